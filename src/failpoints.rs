//! Test overrides: small bounds that a simulation reaches often, and mutations (deliberate bugs)
//! that a test must detect.
//!
//! Owns the overrides of the current test thread. Outside of tests nothing can be overridden, and
//! every query is a compile-time constant. Any layer may query.

/// A bound that tests can override.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bound {
    LaneWindowMax,
    LaneWindowLow,
    CheckpointRows,
    PartCheckpointRows,
    ApplyStepTargets,
    IntakeTargets,
    RecentEntries,
    RetryAfterSeconds,
    AttemptSecondsMax,
    BulkDeliveries,
    PagePositions,
    SpanPages,
    StreamBlock,
    TargetsListed,
    PageBytes,
    ListSteps,
    ScanEntries,
    RetentionPages,
    RebuildRecords,
    CommitRecords,
    CommitTargets,
    Outcomes,
    PayloadBytes,
    Handshakes,
    ClosedEndpointsChecked,
    BackupBytes,
    TailBytes,
    ComputeTurns,
    StateCacheBytes,
    EndedJobs,
}

/// A deliberate bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mutation {
    /// The journal reports an append as durable before it is synced.
    AnswerBeforeFlush,
    /// A lane loses keys that fall due during a refill.
    ForgetDuringRefill,
    /// A checkpoint writes its cursor in a separate batch from its rows.
    CursorApart,
    /// Keys and streams of recent commits are not cached.
    ForgetRecentKeys,
    /// An append that was prepared from recent commits ignores the commits since.
    IgnoreLaterAppends,
    /// An ordered endpoint sends the next delivery before the previous one has ended.
    LetTwoThrough,
    /// A delivery that leaves its queue after an ordering change does not release the next one.
    StrandQueue,
    /// Deliveries do not wait for their receiver's consent.
    SendUnasked,
    /// Recovery keeps a torn tail, and new frames follow it.
    KeepTornTail,
    /// The checksum of a frame's body is not verified.
    IgnoreChecksums,
    /// The first record after a restart gets the position of the last one before it.
    GivePositionTwice,
    /// Retention also removes events with pending deliveries.
    DropNeeded,
    /// A segment that retention has emptied leaves no marker.
    LeaveNoNote,
    /// Scheduling uses the wall clock, which can go back.
    TrustWallClock,
    /// A delivery key is released when its attempt ends instead of when the outcome is recorded.
    ForgetUnrecorded,
    /// Moving an in-flight delivery starts a second attempt at once.
    SendBesideItself,
    /// `Retry-After` is ignored.
    IgnoreRetryAfter,
    /// The circuit breaker never opens.
    NeverOpenCircuit,
    /// A rate allows twice its burst.
    DoubleBurst,
    /// A restart loses the holds of `Retry-After`.
    ForgetHolds,
    /// A restart restores every endpoint's full burst.
    ForgetRates,
    /// Waits that the receiver did not cause count as age.
    CountDelays,
    /// A revived delivery restarts its attempt count at zero.
    ForgetAttempts,
    /// A completed delivery stays in its lane and completes again.
    SettleTwice,
    /// Stream versions have gaps.
    SkipVersion,
    /// A rejected atomic request leaves the events before the rejected one.
    HalfAppend,
    /// A full block of a stream's positions is not written.
    ForgetStreamBlock,
    /// After a restart, a partly applied event is applied from its beginning.
    ForgetPart,
    /// Records leave the journal before the checkpoint without them is durable.
    RemoveBeforeSync,
    /// After a restart, records that were applied early are applied again.
    ForgetEarly,
    /// A record is applied before the rest of an event that it depends on.
    OvertakeOwn,
    /// Opening the state does not verify the sum of its rows.
    TrustRows,
    /// Idempotency keys are removed before they expire.
    ForgetTooEarly,
    /// Lanes take turns for delivery slots without regard to their tenant.
    TurnsByLane,
    /// A tenant above its share gets slots of the reserve.
    GiveAboveShare,
    /// A tenant that has sent keeps its turn.
    KeepTurn,
    /// A tenant's usage keeps counting deliveries that have ended.
    ForgetUsage,
    /// The state ignores the moves of consumers.
    ForgetCommits,
    /// A consumer moves from any position.
    IgnoreFence,
    /// The cursor of a full page moves past events that the page has no room for.
    SkipUnread,
    /// The tail still claims the events that it has dropped.
    TailGap,
    /// A message under a lease is leased again.
    LeaseTwice,
    /// A receipt ends a lease that is not its own.
    AckStale,
    /// A restart loses the leases.
    ForgetLease,
    /// A released lease counts as a delivery.
    CountRelease,
    /// A lost answer does not count, so that the next one is free again.
    ForgetLostAnswers,
    /// The first lost answer is charged.
    ChargeLostAnswer,
    /// A lease runs out before its time.
    ExpireEarly,
    /// Fresh messages go out before returned ones.
    FreshFirst,
    /// A source acknowledges messages that the store refused.
    SettleRefused,
    /// The writer counts pending deliveries only after the state has applied them.
    CountAppliedOnly,
    /// Retention forgets events beyond the recorded horizon.
    SkipHorizon,
    /// Reads give the content of an erased event until it has left the files.
    EraseForgets,
    /// An erasure is complete before the content has left the files.
    KeepErasedBytes,
    /// An erasure leaves the cached states of streams with the content.
    KeepErasedStates,
    /// A change of the state rules leaves the cached states of streams.
    KeepStatesOfOldRules,
    /// Events of registered types are not counted.
    ForgetTypeUsage,
    /// An event without labels reaches endpoints with labels.
    AdmitUnlabelled,
    /// Events of a batch with the same type share the results of filters.
    ShareFilterResults,
    /// The state ignores the steps of jobs.
    ForgetJobSteps,
    /// The index of pages by tenant lists a page only for the first tenant on it.
    ForgetTenantPage,
    /// After retention has deleted events of the newest page, new events there are not indexed.
    TrustOpenPage,
    /// The index of dead letters by owner lacks those of endpoints of all tenants.
    ForgetOwner,
    /// Retention removes the block of a stream's positions with the first event of it.
    DropKeptVersions,
}

#[cfg(not(test))]
pub(crate) const fn bound(_: Bound, usual: usize) -> usize {
    usual
}

#[cfg(not(test))]
pub(crate) const fn is_active(_: Mutation) -> bool {
    false
}

#[cfg(test)]
pub(crate) use set::{TestOverrides, bound, is_active};

/// A number from an environment variable.
#[cfg(test)]
pub(crate) fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// Asserts that `test` fails while the mutation is active.
#[cfg(test)]
pub(crate) fn fails_with(mutation: Mutation, test: fn()) {
    TestOverrides { mutation: Some(mutation), ..TestOverrides::default() }.activate();
    let failed = std::panic::catch_unwind(test).is_err();
    TestOverrides::default().activate();
    assert!(failed, "the test passes with {mutation:?}");
}

/// The seed of a random test: `BALTO_TEST_SEED`, or a random one. A failure must print it.
#[cfg(test)]
pub(crate) fn seed() -> u64 {
    number("BALTO_TEST_SEED").unwrap_or_else(|| fastrand::u64(..))
}

/// The number of rounds of a random test: `BALTO_TEST_ROUNDS`, or `usual`.
#[cfg(test)]
pub(crate) fn rounds(usual: u64) -> u64 {
    number("BALTO_TEST_ROUNDS").unwrap_or(usual)
}

#[cfg(test)]
mod set {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::{Bound, Mutation};

    #[derive(Clone, Debug, Default)]
    pub(crate) struct TestOverrides {
        pub(crate) bounds: BTreeMap<Bound, usize>,
        pub(crate) mutation: Option<Mutation>,
    }

    thread_local! {
        static OVERRIDES: RefCell<TestOverrides> = RefCell::default();
    }

    impl TestOverrides {
        /// Replaces the overrides of this thread.
        pub(crate) fn activate(self) {
            OVERRIDES.replace(self);
        }
    }

    pub(crate) fn bound(bound: Bound, usual: usize) -> usize {
        OVERRIDES.with_borrow(|overrides| overrides.bounds.get(&bound).copied().unwrap_or(usual))
    }

    pub(crate) fn is_active(mutation: Mutation) -> bool {
        OVERRIDES.with_borrow(|overrides| overrides.mutation == Some(mutation))
    }
}
