//! Reports of lanes.

use std::time::Duration;

use super::CircuitState;
use crate::domain::Timestamp;
use crate::domain::closed_list::closed_list;
use crate::limits;

closed_list! {
    /// Why a lane waits. Each reason has a word in the API and a metric label.
    pub enum WaitReason {
        NotDue => "notDue",
        Rate => "rate",
        InFlightLimit => "inFlightLimit",
        CircuitOpen => "circuitOpen",
        RetryAfter => "retryAfter",
        Paused => "paused",
        Disabled => "disabled",
        Ordering => "ordering",
        GlobalLimit => "globalLimit",
        Handshake => "handshake",
        AddressLimit => "addressLimit",
        /// No worker asks for messages.
        NoWorker => "noWorker",
        /// The queue has its maximum number of messages under lease.
        LeaseLimit => "leaseLimit",
        /// The disk or the queue of uncommitted outcomes is full.
        StoreFull => "storeFull",
        /// The broker takes no messages, because it is short of memory or disk.
        BrokerBlocked => "brokerBlocked",
    }
}

/// Why a lane takes a delivery back without an attempt, and pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostponeCause {
    /// The receiver's address is at its limit.
    AddressLimit,
    /// The broker takes no messages.
    BrokerBlocked,
}

impl PostponeCause {
    pub(super) fn reason(self) -> WaitReason {
        match self {
            Self::AddressLimit => WaitReason::AddressLimit,
            Self::BrokerBlocked => WaitReason::BrokerBlocked,
        }
    }

    pub(super) fn pause(self) -> Duration {
        match self {
            Self::AddressLimit => limits::ADDRESS_LIMIT_PAUSE,
            Self::BrokerBlocked => limits::broker::BLOCKED_PAUSE,
        }
    }
}

/// Why all lanes send nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SendHold {
    /// They may send.
    #[default]
    None,
    /// The store takes no further outcomes: the disk or the queue of outcomes is full.
    StoreFull,
    Shutdown,
}

/// Adds the reason `Ordering` if deliveries wait `behind` others of their order. Lanes do not see
/// those, so they report no reason or `NotDue`.
#[must_use]
pub fn with_order(reason: Option<WaitReason>, behind: bool) -> Option<WaitReason> {
    match reason {
        None | Some(WaitReason::NotDue) if behind => Some(WaitReason::Ordering),
        other => other,
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneReport {
    /// `None`: no delivery waits, or the next one is about to be sent.
    pub reason: Option<WaitReason>,
    /// Keys held in memory.
    pub window: usize,
    pub in_flight: usize,
    pub next_due: Option<Timestamp>,
    /// When the reason ends without a further change.
    pub retry_at: Option<Timestamp>,
    pub circuit: CircuitState,
    pub consecutive_failures: u32,
    pub more_on_disk: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LanesSummary {
    pub in_flight: usize,
    /// Lanes of endpoints and queues by wait reason, in the order of [`WaitReason::ALL`].
    pub waiting: [u64; WaitReason::ALL.len()],
    /// Due time of the oldest delivery that is due and unsent.
    pub oldest_due: Option<Timestamp>,
}
