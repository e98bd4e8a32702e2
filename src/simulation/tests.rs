//! Seeds in numbers, one seed twice, and seeds over broken code.

#![cfg(test)]
#![expect(clippy::print_stdout, reason = "a run tells what it met")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Report, run};
use crate::failpoints::Mutation;

/// Seeds of a run that does not say how many.
const SEEDS: u64 = 300;
/// Seeds within which a bug has to show itself,
const SEEDS_PER_BUG: u64 = 400;
/// in so many of them.
const SEEDS_THAT_SHOW: usize = 5;
/// Lines of the trace that a failure shows.
const LINES_SHOWN: usize = 60;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

fn story(seed: u64, report: &Report) -> String {
    let lines: Vec<_> = report.trace.lines().collect();
    let tail = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
    let broken = report.broken.as_deref().unwrap_or_default();
    format!(
        "seed {seed}: {broken}\n{tail}\nseed {seed}: {broken}\nreplay: BALTO_TEST_SEED={seed} cargo test --lib simulation::tests::nothing"
    )
}

/// Runs the seeds on as many threads as there are processors; gives what happened, or the story of a failure.
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
            if report.broken.is_some() {
                failure.lock().unwrap().get_or_insert_with(|| story(seed, &report));
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
        assert!(report.broken.is_none(), "{}", story(seed, &report));
        return;
    }
    let first = number("BALTO_TEST_SEED_FIRST").unwrap_or(1);
    let seeds = first..first + number("BALTO_TEST_SEEDS").unwrap_or(SEEDS);
    let happened = run_all(seeds.clone()).unwrap_or_else(|story| panic!("{story}"));
    println!("seeds {seeds:?}: {happened:?}");
    // A run that never met a fault shows nothing.
    let wanted = [
        "sent",
        "accepted",
        "told",
        "duplicate",
        "rejected",
        "rejectedAgain",
        "otherBatches",
        "mismatches",
        "delivered",
        "dead",
        "redriven",
        "replayed",
        "cancelled",
        "actedUponUnderWay",
        "endpointsDeleted",
        "eventsRead",
        "powerCuts",
        "kills",
        "stops",
        "tornTails",
        "statesLost",
        "unheardRecords",
        "fullDisks",
        "diskErrors",
        "clockJumps",
        "refused",
        "asked",
        "calledBack",
        "retained",
        "expired",
        "reordered",
        "recordsRemoved",
        "stalls",
        "readErrors",
        "shortages",
        "exhausted",
        "walkedPages",
        "backups",
        "reachedInBulk",
    ];
    for what in wanted {
        assert!(
            happened.contains_key(what) || seeds.end - seeds.start < SEEDS,
            "no seed met {what}: {happened:?}"
        );
    }
}

#[test]
fn a_seed_gives_the_same_trace_each_time() {
    for seed in [3, 17, 170, 1_234] {
        let (first, second) = (run(seed, None), run(seed, None));
        assert!(first.trace.len() > 1_000, "seed {seed} does next to nothing");
        assert_eq!(first.trace, second.trace, "seed {seed}");
    }
    assert_ne!(run(3, None).trace, run(4, None).trace);
}

/// Shown by several seeds, so that a change elsewhere, which moves every seed, does not hide it.
fn caught(bug: Mutation) {
    let (mut shown, mut first) = (Vec::new(), None);
    for seed in 1..=SEEDS_PER_BUG {
        if let Some(broken) = run(seed, Some(bug)).broken {
            shown.push(seed);
            first.get_or_insert(broken);
        }
        if shown.len() == SEEDS_THAT_SHOW {
            println!("{bug:?} shows itself in seeds {shown:?}, first: {}", first.unwrap_or_default());
            return;
        }
    }
    panic!("{bug:?} was in the code for {SEEDS_PER_BUG} seeds, and only {shown:?} show it");
}

#[test]
fn an_answer_before_the_flush_is_caught() {
    caught(Mutation::AnswerBeforeFlush);
}

#[test]
fn a_key_forgotten_during_a_refill_is_caught() {
    caught(Mutation::ForgetDuringRefill);
}

#[test]
fn a_checkpoint_apart_from_its_position_is_caught() {
    caught(Mutation::CursorApart);
}

#[test]
fn forgotten_keys_of_the_last_commits_are_caught() {
    caught(Mutation::ForgetRecentKeys);
}

#[test]
fn a_delivery_without_consent_is_caught() {
    caught(Mutation::SendUnasked);
}

#[test]
fn two_deliveries_of_one_ordering_key_at_once_are_caught() {
    caught(Mutation::LetTwoThrough);
}

#[test]
fn a_queue_that_is_stranded_by_a_change_of_ordering_is_caught() {
    caught(Mutation::StrandQueue);
}

#[test]
fn a_torn_tail_that_stays_is_caught() {
    caught(Mutation::KeepTornTail);
}

#[test]
fn checksums_that_do_not_count_are_caught() {
    caught(Mutation::IgnoreChecksums);
}

#[test]
fn a_position_that_is_given_twice_is_caught() {
    caught(Mutation::GivePositionTwice);
}

#[test]
fn a_needed_record_that_retention_takes_is_caught() {
    caught(Mutation::DropNeeded);
}

#[test]
fn an_emptied_segment_that_leaves_nothing_behind_is_caught() {
    caught(Mutation::LeaveNoNote);
}

#[test]
fn a_clock_that_goes_back_is_caught() {
    caught(Mutation::TrustWallClock);
}

#[test]
fn a_receiver_that_is_not_left_alone_is_caught() {
    caught(Mutation::IgnoreRetryAfter);
}

#[test]
fn twice_the_burst_is_caught() {
    caught(Mutation::DoubleBurst);
}

#[test]
fn restart_that_forgets_holds_is_caught() {
    caught(Mutation::ForgetHolds);
}

#[test]
fn restart_that_forgets_rates_is_caught() {
    caught(Mutation::ForgetRates);
}

#[test]
fn delays_that_count_as_age_are_caught() {
    caught(Mutation::CountDelays);
}

#[test]
fn a_delivery_that_is_tried_beside_itself_is_caught() {
    caught(Mutation::SendBesideItself);
}

#[test]
fn attempts_that_a_redrive_forgets_are_caught() {
    caught(Mutation::ForgetAttempts);
}

#[test]
fn a_delivery_that_ends_twice_is_caught() {
    caught(Mutation::SettleTwice);
}

#[test]
fn versions_with_gaps_are_caught() {
    caught(Mutation::SkipVersion);
}

#[test]
fn keys_that_are_forgotten_too_early_are_caught() {
    caught(Mutation::ForgetTooEarly);
}
