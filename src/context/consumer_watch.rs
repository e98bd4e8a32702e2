//! Open requests for the events of consumers, and the consumers whose events are forgotten.
//!
//! Owns the requests of each consumer, which notice its resets, and the positions whose loss is
//! reported.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::domain::{ConsumerKey, Position};
use crate::limits;

#[derive(Debug, Default)]
pub struct ConsumerWatch {
    open: Mutex<HashMap<ConsumerKey, OpenRequests>>,
    /// The last reported position of each consumer.
    gone: Mutex<HashMap<ConsumerKey, Position>>,
}

/// The open requests of a consumer.
#[derive(Debug, Default)]
struct OpenRequests {
    count: usize,
    /// The position of the last reset.
    reset: watch::Sender<Position>,
}

/// An open request, until it is dropped.
#[derive(Debug)]
pub struct ConsumerConnection {
    watch: Arc<ConsumerWatch>,
    key: ConsumerKey,
    reset: watch::Receiver<Position>,
}

impl ConsumerConnection {
    #[must_use]
    pub fn consumer(&self) -> &ConsumerKey {
        &self.key
    }

    /// The position of the last reset since the previous call.
    pub fn reset(&mut self) -> Option<Position> {
        let has_changed = self.reset.has_changed().is_ok_and(|has_changed| has_changed);
        has_changed.then(|| *self.reset.borrow_and_update())
    }

    /// Completes when there is a reset.
    pub async fn was_reset(&self) {
        if self.reset.clone().changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl ConsumerWatch {
    pub fn connect(self: &Arc<Self>, key: &ConsumerKey) -> ConsumerConnection {
        let mut all = lock(&self.open);
        let open = all.entry(key.clone()).or_default();
        open.count += 1;
        ConsumerConnection { watch: Arc::clone(self), key: key.clone(), reset: open.reset.subscribe() }
    }

    #[must_use]
    pub fn connections(&self, key: &ConsumerKey) -> usize {
        lock(&self.open).get(key).map_or(0, |open| open.count)
    }

    /// Tells the open requests of a consumer that it was reset or created at a position.
    pub fn reset(&self, key: &ConsumerKey, to: Position) {
        if let Some(open) = lock(&self.open).get(key) {
            open.reset.send_replace(to);
        }
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
        if let Entry::Occupied(mut open) = lock(&self.watch.open).entry(self.key.clone()) {
            open.get_mut().count -= 1;
            if open.get().count == 0 {
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
        assert!(lock(&watch.open).is_empty());
    }

    #[tokio::test]
    async fn open_requests_notice_a_reset_once() {
        let watch = Arc::new(ConsumerWatch::default());
        watch.reset(&key("a"), Position(1));
        let mut open = watch.connect(&key("a"));
        assert_eq!(open.reset(), None);
        watch.reset(&key("b"), Position(2));
        watch.reset(&key("a"), Position(7));
        open.was_reset().await;
        assert_eq!((open.reset(), open.reset()), (Some(Position(7)), None));
        let mut later = watch.connect(&key("a"));
        assert_eq!(later.reset(), None);
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
