//! Open requests for the events of consumers, and the consumers whose events are forgotten.
//!
//! Owns the number of requests per consumer, and the positions whose loss is reported.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::{ConsumerKey, Position};
use crate::limits;

#[derive(Debug, Default)]
pub struct ConsumerWatch {
    connections: Mutex<HashMap<ConsumerKey, usize>>,
    /// The last reported position of each consumer.
    gone: Mutex<HashMap<ConsumerKey, Position>>,
}

/// An open request, until it is dropped.
#[derive(Debug)]
pub struct ConsumerConnection {
    watch: Arc<ConsumerWatch>,
    key: ConsumerKey,
}

impl ConsumerWatch {
    pub fn connect(self: &Arc<Self>, key: &ConsumerKey) -> ConsumerConnection {
        *lock(&self.connections).entry(key.clone()).or_default() += 1;
        ConsumerConnection { watch: Arc::clone(self), key: key.clone() }
    }

    #[must_use]
    pub fn connections(&self, key: &ConsumerKey) -> usize {
        lock(&self.connections).get(key).copied().unwrap_or_default()
    }

    /// Notes that events after the consumer's position are forgotten. Returns whether that is new.
    pub fn note_gone(&self, key: &ConsumerKey, position: Position) -> bool {
        let mut gone = lock(&self.gone);
        if gone.len() >= limits::CONSUMERS_MAX && !gone.contains_key(key) {
            // Of deleted consumers, too. A consumer may be reported a second time.
            gone.clear();
        }
        gone.insert(key.clone(), position) != Some(position)
    }
}

impl Drop for ConsumerConnection {
    fn drop(&mut self) {
        if let Entry::Occupied(mut open) = lock(&self.watch.connections).entry(self.key.clone()) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ConsumerKey {
        ConsumerKey { tenant: None, name: name.parse().unwrap() }
    }

    #[test]
    fn closed_connections_leave_nothing() {
        let watch = Arc::new(ConsumerWatch::default());
        let open = [watch.connect(&key("a")), watch.connect(&key("a")), watch.connect(&key("b"))];
        assert_eq!((watch.connections(&key("a")), watch.connections(&key("c"))), (2, 0));
        drop(open);
        assert_eq!(watch.connections(&key("a")), 0);
        assert!(lock(&watch.connections).is_empty());
    }

    #[test]
    fn loss_is_reported_once_per_position() {
        let watch = ConsumerWatch::default();
        assert!(watch.note_gone(&key("a"), Position(3)));
        assert!(!watch.note_gone(&key("a"), Position(3)));
        assert!(watch.note_gone(&key("a"), Position(9)));
        for number in 0..2 * limits::CONSUMERS_MAX {
            watch.note_gone(&key(&format!("n{number}")), Position(1));
        }
        assert!(lock(&watch.gone).len() <= limits::CONSUMERS_MAX);
    }
}
