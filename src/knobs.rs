//! Bounds that a simulation makes small, so that it meets them often, and bugs that it puts in to see itself catch them.
//!
//! Owns what a test has set for its own thread. Outside of tests nothing can be set, and each question is answered while
//! compiling. Any layer may ask.

/// A bound that is a constant outside of simulations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Knob {
    LaneWindowMax,
    LaneWindowLow,
    CheckpointRows,
    RecentEntries,
    RetryAfterSeconds,
    AttemptSecondsMax,
    BulkDeliveries,
    PagePositions,
    PageBytes,
    ListSteps,
    ScanEntries,
    RetentionPages,
    CommitRecords,
    CommitTargets,
    Outcomes,
    PayloadBytes,
    Handshakes,
    ClosedLookedAt,
    BackupBytes,
}

/// A bug on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bug {
    /// The journal says that an append is durable without having synced it.
    AnswerBeforeFlush,
    /// What falls due while a lane's refill is under way is not taken down.
    ForgetDuringRefill,
    /// A checkpoint writes its position apart from its rows.
    CursorApart,
    /// Keys and streams of the last commits are not remembered.
    ForgetRecentKeys,
    /// An endpoint with an order lets the next delivery through before the first has ended.
    LetTwoThrough,
    /// A delivery that a change of ordering takes out of its queue lets nobody through there.
    StrandQueue,
    /// Deliveries do not wait for their receiver's consent.
    SendUnasked,
    /// What a crash left half written at the journal's end stays before what is written next.
    KeepTornTail,
    /// A frame's body counts as sound whatever its checksum says.
    IgnoreChecksums,
    /// The first record of a life gets the position of the last one of the life before.
    GivePositionTwice,
    /// Retention takes the events of pending deliveries, too.
    DropNeeded,
    /// A segment that retention has emptied leaves nothing behind.
    LeaveNoNote,
    /// Scheduling goes by a clock that somebody has set back.
    TrustWallClock,
    /// A key is free again when an attempt has ended, not when its outcome is recorded.
    ForgetUnrecorded,
    /// A delivery that is moved while its attempt is under way is tried at once beside it.
    SendBesideItself,
    /// A receiver that asks to be left alone is not.
    IgnoreRetryAfter,
    /// A receiver that is down is not probed but hammered.
    NeverOpenCircuit,
    /// Twice the burst of a rate goes out at once.
    DoubleBurst,
    /// A restart forgets that receivers asked to be left alone.
    ForgetHolds,
    /// After a restart every endpoint has its whole burst again.
    ForgetRates,
    /// Time in which nothing was tried because of us counts as age.
    CountDelays,
    /// A delivery that is revived begins to count its attempts anew.
    ForgetAttempts,
    /// A delivery that has ended keeps its place in its lane, and ends again.
    SettleTwice,
    /// Versions of streams are not dense.
    SkipVersion,
    /// Rows of the state are not added up when it is opened.
    TrustRows,
    /// Idempotency keys are forgotten before they have expired.
    ForgetTooEarly,
}

#[cfg(not(test))]
pub(crate) const fn bound(_: Knob, usual: usize) -> usize {
    usual
}

#[cfg(not(test))]
pub(crate) const fn has(_: Bug) -> bool {
    false
}

#[cfg(test)]
pub(crate) use set::{Knobs, bound, has};

/// A number from the environment.
#[cfg(test)]
pub(crate) fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// A test that fails while the bug is in.
#[cfg(test)]
pub(crate) fn fails_with(bug: Bug, test: fn()) {
    Knobs { bug: Some(bug), ..Knobs::default() }.turn();
    let failed = std::panic::catch_unwind(test).is_err();
    Knobs::default().turn();
    assert!(failed, "{bug:?} is in the code, and the test passes");
}

/// The seed of a random test: `BALTO_TEST_SEED`, or a fresh one. Its failure has to name it.
#[cfg(test)]
pub(crate) fn seed() -> u64 {
    number("BALTO_TEST_SEED").unwrap_or_else(|| fastrand::u64(..))
}

/// How often a random test is to be repeated: `BALTO_TEST_ROUNDS`, or so many times.
#[cfg(test)]
pub(crate) fn rounds(usual: u64) -> u64 {
    number("BALTO_TEST_ROUNDS").unwrap_or(usual)
}

#[cfg(test)]
mod set {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::{Bug, Knob};

    #[derive(Clone, Debug, Default)]
    pub(crate) struct Knobs {
        pub(crate) bounds: BTreeMap<Knob, usize>,
        pub(crate) bug: Option<Bug>,
    }

    thread_local! {
        static KNOBS: RefCell<Knobs> = RefCell::default();
    }

    impl Knobs {
        /// From now on, for this thread.
        pub(crate) fn turn(self) {
            KNOBS.replace(self);
        }
    }

    pub(crate) fn bound(knob: Knob, usual: usize) -> usize {
        KNOBS.with_borrow(|knobs| knobs.bounds.get(&knob).copied().unwrap_or(usual))
    }

    pub(crate) fn has(bug: Bug) -> bool {
        KNOBS.with_borrow(|knobs| knobs.bug == Some(bug))
    }
}
