//! Runs of many seeds, of one seed twice, and of seeds over mutated code.

#![cfg(test)]
#![expect(clippy::print_stdout, reason = "a run prints its counters")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::chance::Chance;
use super::world::Plan;
use super::{Report, jobs, run};
use crate::failpoints::Mutation;

/// Default number of seeds of a run.
const SEEDS: u64 = 400;
/// Maximum number of seeds in which a mutation must be detected.
const SEEDS_PER_BUG: u64 = 800;
/// Number of seeds that must detect it.
const SEEDS_THAT_SHOW: usize = 2;
/// Number of trace lines in a failure report.
const LINES_SHOWN: usize = 60;

/// Counters that a run must have: it proves nothing about faults that never occurred.
const WANTED: &[&str] = &[
    "sent",
    "accepted",
    "operatorEvents",
    "duplicate",
    "rejected",
    "rejectedAgain",
    "appends",
    "appendsRejected",
    "appendsRepeated",
    "streamsRead",
    "otherBatches",
    "mismatches",
    "delivered",
    "dead",
    "redriven",
    "replayed",
    "cancelled",
    "changedInFlight",
    "endpointsDeleted",
    "eventsRead",
    "powerCuts",
    "kills",
    "stops",
    "tornTails",
    "statesLost",
    "unacknowledgedRecords",
    "fullDisks",
    "diskErrors",
    "clockJumps",
    "refused",
    "handshakeRequests",
    "callbacksUsed",
    "retained",
    "rebuilt",
    "feedPages",
    "feedGone",
    "expired",
    "reordered",
    "recordsRemoved",
    "stalls",
    "readErrors",
    "shortages",
    "exhausted",
    "walkedPages",
    "backups",
    "tenantsAtLimit",
    "reachedInBulk",
    "quotaRefused",
    "tenantsChanged",
    "tenantsDeleted",
    "consumersDefined",
    "consumersCommitted",
    "consumersFenced",
    "rowsAdded",
    "consumersGone",
    "erased",
    "streamsErased",
    "erasedOnDisk",
    "typesChanged",
    "statesCompared",
    "statesDuringChanges",
    "pastStates",
    "stateProblems",
    "messagesReceived",
    "workersDied",
    "answersLost",
    "acked",
    "requeued",
    "refusedByWorkers",
    "released",
    "extended",
    "staleReceipts",
    "goneReceipts",
    "messagesAcknowledged",
    "acknowledgementsLost",
];

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, got {text:?}")))
}

fn failure_report(seed: u64, report: &Report) -> String {
    let lines: Vec<_> = report.trace.lines().collect();
    let tail = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
    let violation = report.violation.as_deref().unwrap_or_default();
    format!(
        "seed {seed}: {violation}\n{tail}\nseed {seed}: {violation}\nreplay: BALTO_TEST_SEED={seed} cargo test --lib simulation::tests::nothing"
    )
}

/// Runs the seeds on one thread per processor. Returns the counters, or a failure report.
fn run_all(seeds: std::ops::Range<u64>) -> Result<BTreeMap<&'static str, u64>, String> {
    let next = AtomicU64::new(seeds.start);
    let happened = Mutex::new(BTreeMap::new());
    let failure = Mutex::new(None);
    let work = || {
        while failure.lock().unwrap().is_none() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let report = run(seed, None);
            if report.violation.is_some() {
                failure.lock().unwrap().get_or_insert_with(|| failure_report(seed, &report));
            }
            let mut happened = happened.lock().unwrap();
            for (what, count) in report.happened {
                *happened.entry(what).or_default() += count;
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    match failure.into_inner().unwrap() {
        Some(failure) => Err(failure),
        None => Ok(happened.into_inner().unwrap()),
    }
}

#[test]
fn nothing_is_lost_in_any_seed() {
    if let Some(seed) = number("BALTO_TEST_SEED") {
        let report = run(seed, None);
        println!("{}", report.trace);
        assert!(report.violation.is_none(), "{}", failure_report(seed, &report));
        return;
    }
    let first = number("BALTO_TEST_SEED_FIRST").unwrap_or(1);
    let seeds = first..first + number("BALTO_TEST_SEEDS").unwrap_or(SEEDS);
    let happened = run_all(seeds.clone()).unwrap_or_else(|story| panic!("{story}"));
    println!("seeds {seeds:?}: {happened:?}");
    for what in WANTED.iter().copied().chain(jobs::OCCURRENCES) {
        assert!(
            happened.contains_key(what) || seeds.end - seeds.start < SEEDS,
            "{what} never occurred: {happened:?}"
        );
    }
}

#[test]
fn seed_always_gives_the_same_trace() {
    for seed in [3, 17, 170, 1_234] {
        let (first, second) = (run(seed, None), run(seed, None));
        assert!(first.trace.len() > 1_000, "the trace of seed {seed} is too short");
        assert_eq!(first.trace, second.trace, "seed {seed}");
    }
    assert_ne!(run(3, None).trace, run(4, None).trace);
}

/// Asserts that several seeds detect a mutation. One is not enough, because any code change alters
/// the course of every seed.
fn assert_caught(bug: Mutation) {
    assert_caught_by(SEEDS_THAT_SHOW, |_| true, bug);
}

/// As [`assert_caught`], for a mutation that takes a rare course: a second seed costs minutes.
fn assert_caught_once(bug: Mutation) {
    assert_caught_by(1, |_| true, bug);
}

/// Skips the seeds whose plan cannot show the mutation.
fn assert_caught_by(seeds: usize, can_show: fn(&Plan) -> bool, bug: Mutation) {
    let (mut shown, mut first) = (Vec::new(), None);
    for seed in (1..=SEEDS_PER_BUG).filter(|seed| can_show(&Plan::draw(&mut Chance::new(*seed)))) {
        if let Some(violation) = run(seed, Some(bug)).violation {
            shown.push(seed);
            first.get_or_insert(violation);
        }
        if shown.len() == seeds {
            println!("{bug:?} detected by seeds {shown:?}, first: {}", first.unwrap_or_default());
            return;
        }
    }
    panic!("{bug:?} was detected only by {shown:?} of {SEEDS_PER_BUG} seeds");
}

/// Some endpoints are queues, and all clocks agree about the end of a lease.
fn has_queues(plan: &Plan) -> bool {
    plan.queues && !plan.clock_jumps
}

/// Tenants share few slots.
fn is_crowded(plan: &Plan) -> bool {
    plan.crowded
}

#[test]
fn settled_message_without_an_event_is_caught() {
    assert_caught_by(SEEDS_THAT_SHOW, |plan| plan.source, Mutation::SettleRefused);
}

#[test]
fn early_response_is_caught() {
    assert_caught(Mutation::AnswerBeforeFlush);
}

#[test]
fn key_lost_during_a_refill_is_caught() {
    assert_caught_once(Mutation::ForgetDuringRefill);
}

#[test]
fn partly_applied_event_that_is_applied_again_is_caught() {
    assert_caught_by(1, |plan| plan.crashes, Mutation::ForgetPart);
}

#[test]
fn checkpoint_without_its_position_is_caught() {
    assert_caught_by(SEEDS_THAT_SHOW, |plan| plan.crashes, Mutation::CursorApart);
}

#[test]
fn lost_keys_of_recent_commits_are_caught() {
    assert_caught(Mutation::ForgetRecentKeys);
}

#[test]
fn append_that_ignores_later_commits_is_caught() {
    assert_caught(Mutation::IgnoreLaterAppends);
}

#[test]
fn delivery_without_consent_is_caught() {
    assert_caught(Mutation::SendUnasked);
}

#[test]
fn concurrent_deliveries_of_one_ordering_key_are_caught() {
    assert_caught_by(SEEDS_THAT_SHOW, |plan| plan.orders, Mutation::LetTwoThrough);
}

#[test]
fn stranded_queue_after_an_ordering_change_is_caught() {
    assert_caught_by(SEEDS_THAT_SHOW, |plan| plan.orders, Mutation::StrandQueue);
}

#[test]
fn kept_torn_tail_is_caught() {
    assert_caught_by(SEEDS_THAT_SHOW, |plan| plan.crashes, Mutation::KeepTornTail);
}

#[test]
fn ignored_checksums_are_caught() {
    assert_caught_by(SEEDS_THAT_SHOW, |plan| plan.crashes, Mutation::IgnoreChecksums);
}

#[test]
fn reused_position_is_caught() {
    assert_caught(Mutation::GivePositionTwice);
}

#[test]
fn events_forgotten_beyond_the_horizon_are_caught() {
    assert_caught_once(Mutation::SkipHorizon);
}

#[test]
fn needed_record_removed_by_retention_is_caught() {
    assert_caught(Mutation::DropNeeded);
}

#[test]
fn emptied_segment_without_a_marker_is_caught() {
    assert_caught_once(Mutation::LeaveNoNote);
}

#[test]
fn backward_clock_is_caught() {
    assert_caught_by(SEEDS_THAT_SHOW, |plan| plan.clock_jumps, Mutation::TrustWallClock);
}

#[test]
fn ignored_retry_after_is_caught() {
    assert_caught(Mutation::IgnoreRetryAfter);
}

#[test]
fn doubled_burst_is_caught() {
    assert_caught(Mutation::DoubleBurst);
}

#[test]
fn holds_lost_on_restart_are_caught() {
    assert_caught_by(1, |plan| plan.crashes, Mutation::ForgetHolds);
}

#[test]
fn rates_lost_on_restart_are_caught() {
    assert_caught_by(1, |plan| plan.crashes, Mutation::ForgetRates);
}

#[test]
fn delays_counted_as_age_are_caught() {
    assert_caught(Mutation::CountDelays);
}

#[test]
fn concurrent_attempts_of_one_delivery_are_caught() {
    assert_caught(Mutation::SendBesideItself);
}

#[test]
fn attempts_lost_by_a_redrive_are_caught() {
    assert_caught(Mutation::ForgetAttempts);
}

#[test]
fn delivery_that_ends_twice_is_caught() {
    assert_caught(Mutation::SettleTwice);
}

#[test]
fn versions_with_gaps_are_caught() {
    assert_caught(Mutation::SkipVersion);
}

#[test]
fn half_of_an_append_is_caught() {
    assert_caught(Mutation::HalfAppend);
}

#[test]
fn lost_block_of_a_stream_is_caught() {
    assert_caught(Mutation::ForgetStreamBlock);
}

#[test]
fn turns_by_lane_are_caught() {
    assert_caught_by(SEEDS_THAT_SHOW, is_crowded, Mutation::TurnsByLane);
}

#[test]
fn slot_above_the_share_is_caught() {
    assert_caught_by(SEEDS_THAT_SHOW, is_crowded, Mutation::GiveAboveShare);
}

#[test]
fn kept_turn_is_caught() {
    assert_caught_by(1, is_crowded, Mutation::KeepTurn);
}

#[test]
fn usage_of_ended_deliveries_is_caught() {
    assert_caught(Mutation::ForgetUsage);
}

#[test]
fn uncounted_events_of_types_are_caught() {
    assert_caught(Mutation::ForgetTypeUsage);
}

#[test]
fn quota_over_a_lagging_state_is_caught() {
    assert_caught_once(Mutation::CountAppliedOnly);
}

#[test]
fn forgotten_commits_of_consumers_are_caught() {
    assert_caught(Mutation::ForgetCommits);
}

#[test]
fn forgotten_steps_of_jobs_are_caught() {
    assert_caught(Mutation::ForgetJobSteps);
}

#[test]
fn pages_missing_in_the_index_of_a_tenant_are_caught() {
    assert_caught(Mutation::ForgetTenantPage);
}

#[test]
fn ignored_fence_of_a_consumer_is_caught() {
    assert_caught(Mutation::IgnoreFence);
}

#[test]
fn cursor_past_unread_events_is_caught() {
    assert_caught(Mutation::SkipUnread);
}

#[test]
fn gap_in_the_tail_is_caught() {
    assert_caught(Mutation::TailGap);
}

#[test]
fn readable_content_after_an_erasure_is_caught() {
    assert_caught(Mutation::EraseForgets);
}

#[test]
fn states_that_survive_an_erasure_are_caught() {
    assert_caught(Mutation::KeepErasedStates);
}

#[test]
fn states_by_earlier_rules_are_caught() {
    assert_caught(Mutation::KeepStatesOfOldRules);
}

#[test]
fn content_that_stays_on_disk_is_caught() {
    assert_caught_once(Mutation::KeepErasedBytes);
}

#[test]
fn lease_that_ends_early_is_caught() {
    assert_caught_by(1, has_queues, Mutation::ExpireEarly);
}

#[test]
fn leases_lost_on_restart_are_caught() {
    assert_caught_by(SEEDS_THAT_SHOW, has_queues, Mutation::ForgetLease);
}

#[test]
fn released_lease_that_counts_is_caught() {
    assert_caught_by(SEEDS_THAT_SHOW, has_queues, Mutation::CountRelease);
}

#[test]
fn lost_answers_that_are_free_for_ever_are_caught() {
    assert_caught_by(SEEDS_THAT_SHOW, has_queues, Mutation::ForgetLostAnswers);
}

#[test]
fn charge_for_the_first_lost_answer_is_caught() {
    assert_caught_by(SEEDS_THAT_SHOW, has_queues, Mutation::ChargeLostAnswer);
}

#[test]
fn keys_expired_too_early_are_caught() {
    assert_caught(Mutation::ForgetTooEarly);
}

#[test]
fn unlabelled_events_at_labelled_endpoints_are_caught() {
    assert_caught(Mutation::AdmitUnlabelled);
}

#[test]
fn shared_filter_results_are_caught() {
    assert_caught(Mutation::ShareFilterResults);
}
