//! A bounded cache of converted events: endpoints with the same pin share a conversion.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::{Event, EventVersion, Position};
use crate::limits;

/// Event, version and revision of the type.
type ConversionKey = (Position, EventVersion, Position);

#[derive(Debug, Default)]
pub(crate) struct ConvertedEvents(Mutex<CachedConversions>);

#[derive(Debug, Default)]
struct CachedConversions {
    events: HashMap<ConversionKey, Arc<Event>>,
    /// Oldest first.
    order: VecDeque<ConversionKey>,
    bytes: usize,
}

impl ConvertedEvents {
    pub(crate) fn get(&self, key: &ConversionKey) -> Option<Arc<Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).events.get(key).cloned()
    }

    /// Drops the conversions of an event, whose content was erased.
    pub(crate) fn forget(&self, event: Position) {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped: usize = cached
            .events
            .extract_if(|(position, _, _), _| *position == event)
            .map(|(_, converted)| converted.weight())
            .sum();
        cached.bytes -= dropped;
        cached.order.retain(|(position, _, _)| *position != event);
    }

    /// Caches a conversion. Evicts the oldest ones beyond the bound.
    pub(crate) fn insert(&self, key: ConversionKey, event: Arc<Event>) {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = event.weight();
        if cached.events.insert(key.clone(), event).is_some() {
            return;
        }
        cached.bytes += bytes;
        cached.order.push_back(key);
        while cached.bytes > limits::CONVERSION_CACHE_BYTES_MAX
            && let Some(oldest) = cached.order.pop_front()
        {
            let evicted = cached.events.remove(&oldest);
            cached.bytes -= evicted.map_or(0, |event| event.weight());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::tests::event;

    #[test]
    fn oldest_conversions_are_evicted() {
        let cache = ConvertedEvents::default();
        let large = Arc::new(Event { data: vec![b'1'; 1024 * 1024].into(), ..event() });
        let key = |number: u64| (Position(number), EventVersion::default(), Position(1));
        for number in 0..20 {
            cache.insert(key(number), large.clone());
        }
        assert!(cache.get(&key(0)).is_none() && cache.get(&key(19)).is_some());
        assert!(cache.0.lock().unwrap().bytes <= limits::CONVERSION_CACHE_BYTES_MAX);
        cache.forget(Position(19));
        assert!(cache.get(&key(19)).is_none() && cache.get(&key(18)).is_some());
    }
}
