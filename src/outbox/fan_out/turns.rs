//! Turns of units with many deliveries. They bound the deliveries on their way into the state.
//!
//! The state applies commits in order, so each delivery ahead delays the commits and reads of all
//! tenants. At most [`limits::FAN_OUT_TARGETS_MAX`] deliveries of units with a turn are unapplied
//! (one larger unit alone). Units that wait for a turn take turns by party and number of
//! deliveries. So a tenant that floods waits before the commit queue, and the others do not.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use crate::domain::Party;
use crate::limits;
use crate::outbox::fair_queue::FairQueue;

#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<TurnBook>);

#[derive(Debug, Default)]
struct TurnBook {
    /// Deliveries of the units that have a turn.
    held: usize,
    waiting: FairQueue<Party, (oneshot::Sender<Turn>, usize)>,
}

/// The turn of a unit, given back on drop.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    targets: usize,
}

impl TurnBook {
    fn has_room(&self, targets: usize) -> bool {
        self.held == 0 || self.held + targets <= limits::FAN_OUT_TARGETS_MAX
    }

    /// Takes the units that get a turn now.
    fn next_units(&mut self) -> Vec<(oneshot::Sender<Turn>, usize)> {
        let mut next = Vec::new();
        while let Some((_, targets)) = self.waiting.first()
            && self.has_room(*targets)
            && let Some((sender, targets)) = self.waiting.take_first()
        {
            if !sender.is_closed() {
                self.held += targets;
                next.push((sender, targets));
            }
        }
        next
    }
}

impl Turns {
    /// Requests a turn for a unit with this number of deliveries. Dropping the receiver gives up
    /// the place, or the turn.
    pub(super) fn request(self: &Arc<Self>, party: &Party, targets: usize) -> oneshot::Receiver<Turn> {
        let (sender, turn) = oneshot::channel();
        let mut book = self.lock();
        book.waiting.push(party, (sender, targets), targets as u64);
        self.hand_out(book);
        turn
    }

    fn hand_out(self: &Arc<Self>, mut book: MutexGuard<'_, TurnBook>) {
        let next = book.next_units();
        drop(book);
        for (sender, targets) in next {
            // The drop of an untaken turn gives it back.
            let _unused = sender.send(Turn { turns: Arc::clone(self), targets });
        }
    }

    fn lock(&self) -> MutexGuard<'_, TurnBook> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut book = self.turns.lock();
        book.held -= self.targets;
        self.turns.hand_out(book);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Party {
        Party::Tenant(name.into())
    }

    #[test]
    fn flooding_tenant_waits_and_the_next_one_is_first_in_turn() {
        let turns = Arc::<Turns>::default();
        let half = limits::FAN_OUT_TARGETS_MAX / 2;
        let mut evil: Vec<_> = (0..6).map(|_| turns.request(&tenant("evil"), half)).collect();
        let first = evil.remove(0).try_recv().unwrap();
        let second = evil.remove(0).try_recv().unwrap();
        assert!(evil[0].try_recv().is_err(), "there is room for two");
        let mut good = turns.request(&tenant("good"), half);
        drop(first);
        let third = evil.remove(0).try_recv();
        drop(second);
        assert!(good.try_recv().is_ok(), "a party that waits was passed over twice");
        drop(third);
        // Requests that were given up do not hold a turn.
        drop(evil);
        let whole = turns.request(&tenant("good"), 10 * limits::FAN_OUT_TARGETS_MAX).try_recv();
        assert!(whole.is_ok(), "a large unit runs alone");
        drop(whole);
        let book = turns.lock();
        assert_eq!((book.held, book.waiting.len()), (0, 0));
    }
}
