//! Positions of the log: what answers reflect, and waits for a position.

use std::pin::pin;
use std::time::Duration;

use crate::context::Context;
use crate::context::home::Home;
use crate::context::waiter_limit::TooManyWaiters;
use crate::context::waits::WaitSubject;
use crate::domain::{Party, Position};
use crate::service::types::WaitError;

/// Result of a wait for a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    Yes,
    /// The time passed before.
    No,
}

/// Operations on positions.
#[derive(Clone, Copy)]
pub struct Positions<'a>(pub &'a Context);

impl Positions<'_> {
    /// Every question that is asked from now on reflects at least this position.
    #[must_use]
    pub fn readable(self) -> Position {
        self.0.outbox_of(Home::All).readable()
    }

    /// Waits until answers reflect a position, for at most `wait`, or until the caller is `gone`.
    /// On one node, answers reflect every position that a client can know. So only a position of
    /// the future is waited for.
    ///
    /// # Errors
    /// When too many callers wait.
    pub async fn wait(
        self,
        party: Party,
        position: Position,
        wait: Duration,
        gone: impl Future<Output = ()>,
    ) -> Result<Reached, WaitError> {
        let reached = || if self.readable() >= position { Reached::Yes } else { Reached::No };
        if reached() == Reached::Yes || wait.is_zero() {
            return Ok(reached());
        }
        let registered = self.0.waits().register(WaitSubject::Log, party);
        let registered = registered.map_err(|TooManyWaiters| WaitError::TooManyWaiters)?;
        let (mut timeout, mut gone) = (pin!(tokio::time::sleep(wait)), pin!(gone));
        loop {
            let mut changed = pin!(registered.changed());
            // Before the look: a commit after it wakes this caller.
            changed.as_mut().enable();
            if reached() == Reached::Yes || registered.has_ended() {
                return Ok(reached());
            }
            tokio::select! {
                () = changed => {}
                () = &mut timeout => return Ok(reached()),
                () = &mut gone => return Ok(reached()),
            }
        }
    }
}
