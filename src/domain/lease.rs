//! Leases: a worker's hold on messages of a queue, and how it ends.

use super::closed_list::closed_list;
use super::{DeadReason, Position, Progress, Timestamp};

/// A message that a worker takes: its event, and the place that it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TakenMessage {
    pub event: Position,
    pub from: TakenFrom,
}

/// The place of a message before a lease. A record whose place no longer holds the message leases
/// nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TakenFrom {
    /// The message was due then.
    Due(Timestamp),
    /// An earlier lease, which has run out or was released.
    Lease(Position),
}

/// A lease of one message. The position of its record fences it: it is unique, rises, and
/// survives a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseKey {
    pub event: Position,
    pub lease: Position,
}

/// The end of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedLease {
    pub key: LeaseKey,
    pub end: LeaseEnd,
}

/// How a lease ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseEnd {
    /// The work is done.
    Acked,
    /// The message returns to the front at once. The lease does not count as a delivery.
    Released,
    /// The work failed; the message is due again then.
    Requeued(Timestamp),
    /// The work failed for good.
    Dead(DeadReason),
    /// The worker did not get the answer with the message. `None`: the message returns to the
    /// front at once, and the lease does not count as a delivery. Else the lease counts, and the
    /// message is due again then.
    Lost(Option<Timestamp>),
}

closed_list! {
    /// How a lease ended.
    pub enum LeaseOutcome {
        /// It has not ended.
        Leased => "leased",
        Acked => "acked",
        Requeued => "requeued",
        /// Its message became a dead letter.
        Dead => "dead",
        Released => "released",
        /// It ran out.
        Expired => "expired",
        /// Its message was cancelled, purged or erased.
        Cancelled => "cancelled",
    }
}

impl LeaseOutcome {
    /// The outcome of a lease that ends without its worker, because its message ends: `died`, or
    /// else cancelled. `until`: the end of the lease's time.
    #[must_use]
    pub fn of_ended_message(died: Option<DeadReason>, until: Timestamp, at: Timestamp) -> Self {
        match died {
            // A lane gives up a message after its lease alone, by monotonic time.
            Some(DeadReason::AttemptsExhausted | DeadReason::MaxAge) => Self::Expired,
            _ if until <= at => Self::Expired,
            Some(_) => Self::Dead,
            None => Self::Cancelled,
        }
    }
}

impl From<LeaseEnd> for LeaseOutcome {
    fn from(end: LeaseEnd) -> Self {
        match end {
            LeaseEnd::Acked => Self::Acked,
            LeaseEnd::Released | LeaseEnd::Lost(None) => Self::Released,
            LeaseEnd::Requeued(_) | LeaseEnd::Lost(Some(_)) => Self::Requeued,
            LeaseEnd::Dead(_) => Self::Dead,
        }
    }
}

/// The last lease of a pending message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLease {
    /// Position of its record.
    pub position: Position,
    pub since: Timestamp,
    /// From then on the message may be leased again. Until that happens the lease can still end.
    pub until: Timestamp,
    /// Its worker has released it, or did not get it.
    pub is_released: bool,
    /// Counts this lease, unless it is released.
    pub progress: Progress,
}
