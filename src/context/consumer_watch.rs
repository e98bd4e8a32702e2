//! Open requests for the events of consumers, and the consumers whose events are forgotten.
//!
//! Owns the requests of each consumer, which notice its resets and its deletion, and the positions
//! whose loss is reported.

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
    /// The position of the last reset. A deletion drops it.
    reset: watch::Sender<Position>,
}

/// A change of a consumer by an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// It is at this position now.
    Reset(Position),
    Deleted,
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

    /// The deletion, or the last reset since the previous call.
    pub fn interruption(&mut self) -> Option<Interruption> {
        match self.reset.has_changed() {
            Err(_) => Some(Interruption::Deleted),
            Ok(true) => Some(Interruption::Reset(*self.reset.borrow_and_update())),
            Ok(false) => None,
        }
    }

    /// Completes when [`Self::interruption`] has something.
    pub async fn interrupted(&self) {
        // An error is the deletion.
        self.reset.clone().changed().await.ok();
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

    /// Tells the open requests of a consumer that it was reset to a position.
    pub fn on_reset(&self, key: &ConsumerKey, to: Position) {
        if let Some(open) = lock(&self.open).get(key) {
            open.reset.send_replace(to);
        }
    }

    /// Tells the open requests of a consumer that it was deleted.
    pub fn on_deleted(&self, key: &ConsumerKey) {
        if let Some(open) = lock(&self.open).get_mut(key) {
            // Requests for another consumer of this name get the new sender.
            open.reset = watch::Sender::default();
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
    async fn open_requests_notice_a_reset_once_and_the_deletion() {
        let watch = Arc::new(ConsumerWatch::default());
        watch.on_reset(&key("a"), Position(1));
        let mut open = watch.connect(&key("a"));
        assert_eq!(open.interruption(), None);
        watch.on_reset(&key("b"), Position(2));
        watch.on_reset(&key("a"), Position(7));
        open.interrupted().await;
        assert_eq!(open.interruption(), Some(Interruption::Reset(Position(7))));
        assert_eq!(open.interruption(), None);
        watch.on_deleted(&key("a"));
        let mut later = watch.connect(&key("a"));
        watch.on_reset(&key("a"), Position(9));
        open.interrupted().await;
        assert_eq!(open.interruption(), Some(Interruption::Deleted));
        assert_eq!(later.interruption(), Some(Interruption::Reset(Position(9))));
        drop((open, later));
        assert_eq!(watch.connections(&key("a")), 0);
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
