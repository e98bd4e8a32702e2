//! The time of a delivery's next attempt, if any.

use std::time::Duration;

use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff;

use crate::domain::{
    DeadReason, DeliveryKey, LeaseEnd, Next, Progress, RetryPolicy, RetryRule, Timestamp, Verdict,
};
use crate::failpoints::{self, Mutation};
use crate::limits;

/// Minimum time to the next attempt: a moved delivery needs a new key in its lane.
const INTERVAL_MIN: Duration = Duration::from_millis(1);

/// Decides the next step after an attempt. `progress` is from before the attempt,
/// [after its delay](Progress::after).
#[must_use]
pub fn next(
    policy: &RetryPolicy,
    delivery: DeliveryKey,
    progress: &Progress,
    verdict: Verdict,
    started_at: Timestamp,
    finished_at: Timestamp,
) -> Next {
    let held = match verdict {
        Verdict::Delivered => return Next::Delivered,
        Verdict::Refused(reason) => return Next::Dead(reason),
        Verdict::Gone(reason) => return Next::Dead(reason.dead_reason()),
        Verdict::Retry => INTERVAL_MIN,
        Verdict::RetryAfter(wait) => held(wait),
    };
    let failed = progress.attempts_in_series + 1;
    match policy {
        RetryPolicy::Schedule(intervals) => match intervals.get(failed as usize - 1) {
            Some(interval) => Next::RetryAt(finished_at.plus((*interval).max(held))),
            None => Next::Dead(DeadReason::AttemptsExhausted),
        },
        RetryPolicy::Exponential { initial, multiplier, max_interval, max_attempts, max_age, jitter } => {
            if failed >= *max_attempts {
                return Next::Dead(DeadReason::AttemptsExhausted);
            }
            let interval = interval(*initial, *multiplier, *max_interval, failed);
            let jittered = apply_jitter(interval, *jitter, delivery, progress.attempts + 1);
            let at = finished_at.plus(jittered.max(held));
            // Time before the first attempt does not count.
            if at > progress.first_attempt.unwrap_or(started_at).plus(*max_age) {
                return Next::Dead(DeadReason::MaxAge);
            }
            Next::RetryAt(at)
        }
    }
}

/// The next step of a message after a lease that counts. `progress` counts it. The age counts from
/// the start of the series.
#[must_use]
pub fn next_after_lease(
    policy: &RetryPolicy,
    delivery: DeliveryKey,
    progress: &Progress,
    ended_at: Timestamp,
) -> Next {
    let before = Progress {
        attempts: progress.attempts.saturating_sub(1),
        attempts_in_series: progress.attempts_in_series.saturating_sub(1),
        first_attempt: Some(progress.series_started),
        ..*progress
    };
    next(policy, delivery, &before, Verdict::Retry, ended_at, ended_at)
}

/// The end of a lease whose answer did not reach the worker. `progress` counts the lease.
///
/// The first one of a series is free. The message may be the cause, for example because a proxy
/// cuts it: it would come again for ever, before all others. So the next ones count as deliveries.
/// The lane gives up a message that is due and has had all its deliveries, or is too old.
#[must_use]
pub fn end_of_lost_answer(
    policy: &RetryPolicy,
    delivery: DeliveryKey,
    progress: &Progress,
    ended_at: Timestamp,
) -> LeaseEnd {
    if progress.is_lost_answer_free() && !failpoints::is_active(Mutation::ChargeLostAnswer) {
        return LeaseEnd::Lost(None);
    }
    let due = match (next_after_lease(policy, delivery, progress, ended_at), policy) {
        (Next::RetryAt(due), _) => due,
        (Next::Dead(DeadReason::MaxAge), RetryPolicy::Exponential { max_age, .. }) => {
            progress.series_started.plus(*max_age).plus(INTERVAL_MIN).max(ended_at)
        }
        (Next::Dead(_) | Next::Delivered, _) => ended_at,
    };
    LeaseEnd::Lost(Some(due))
}

/// The rule that set the time of the next attempt. `None` without a next attempt.
#[must_use]
pub fn rule(next: Next, verdict: Verdict, finished_at: Timestamp) -> Option<RetryRule> {
    match (next, verdict) {
        (Next::RetryAt(at), Verdict::RetryAfter(wait)) if at == finished_at.plus(held(wait)) => {
            Some(RetryRule::RetryAfter)
        }
        (Next::RetryAt(_), _) => Some(RetryRule::RetryPolicy),
        (Next::Delivered | Next::Dead(_), _) => None,
    }
}

/// How long `Retry-After` postpones the next attempt.
fn held(wait: Duration) -> Duration {
    wait.clamp(INTERVAL_MIN, limits::RETRY_AFTER_MAX)
}

/// Delay of an attempt that the receiver did not cause: from its due time to its start, or to
/// `shut_since`, when the receiver shut the lane. A pause, a rate, a limit, an ordering and a
/// stopped daemon count.
#[must_use]
pub fn delay(due: Timestamp, started_at: Timestamp, shut_since: Option<Timestamp>) -> Duration {
    if failpoints::is_active(Mutation::CountDelays) {
        return Duration::ZERO;
    }
    shut_since.map_or(started_at, |since| since.min(started_at)).since(due)
}

/// The interval after the `failed`-th failure, by the `backoff` crate without its randomness.
pub(super) fn interval(initial: Duration, multiplier: f64, max_interval: Duration, failed: u32) -> Duration {
    let mut policy = ExponentialBackoffBuilder::new()
        .with_initial_interval(initial.min(max_interval))
        .with_multiplier(multiplier)
        .with_max_interval(max_interval)
        .with_randomization_factor(0.0)
        .with_max_elapsed_time(None)
        .build();
    let last = (0..failed.min(limits::ATTEMPTS_MAX)).filter_map(|_| policy.next_backoff()).last();
    // The crate adds a random nanosecond even without randomness.
    last.map_or(initial, |interval| {
        Duration::from_micros(u64::try_from(interval.as_micros()).unwrap_or(u64::MAX))
    })
}

/// Changes the interval by up to the share `jitter`, deterministically for each attempt.
fn apply_jitter(interval: Duration, jitter: f64, delivery: DeliveryKey, attempt: u32) -> Duration {
    let mut hash =
        delivery.event.0 ^ (u64::from(delivery.endpoint.0) << 32) ^ u64::from(attempt).rotate_left(17);
    // SplitMix64's finalizer.
    hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    let fraction = f64::from((hash >> 32) as u32) / f64::from(u32::MAX);
    interval.mul_f64((1.0 + jitter.clamp(0.0, 1.0) * (2.0 * fraction - 1.0)).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{EndpointNumber, Position, Trigger};

    const KEY: DeliveryKey = DeliveryKey { event: Position(7), endpoint: EndpointNumber(3) };
    const HOUR: Duration = Duration::from_secs(3_600);

    fn after(failed: u32, started: u64) -> Progress {
        let first_attempt = Some(Timestamp::from_millis(started)).filter(|_| failed > 0);
        Progress {
            attempts: failed,
            attempts_in_series: failed,
            first_attempt,
            ..Progress::begin(failed, Timestamp::ZERO, Trigger::Retry)
        }
    }

    fn policy(jitter: f64) -> RetryPolicy {
        RetryPolicy::Exponential {
            initial: Duration::from_secs(5),
            multiplier: 3.0,
            max_interval: 6 * HOUR,
            max_attempts: 12,
            max_age: 72 * HOUR,
            jitter,
        }
    }

    #[test]
    fn rule_is_the_later_of_policy_and_retry_after() {
        let now = Timestamp::from_millis(1_000_000);
        for (verdict, expected) in [
            (Verdict::Retry, Some(RetryRule::RetryPolicy)),
            (Verdict::RetryAfter(Duration::ZERO), Some(RetryRule::RetryPolicy)),
            (Verdict::RetryAfter(HOUR), Some(RetryRule::RetryAfter)),
            (Verdict::Delivered, None),
            (Verdict::Refused(DeadReason::Refused), None),
        ] {
            let next = next(&policy(0.0), KEY, &after(0, 1_000_000), verdict, now, now);
            assert_eq!(rule(next, verdict, now), expected, "{verdict:?}");
        }
    }

    #[test]
    fn intervals_grow_to_their_maximum_and_attempts_end() {
        let now = Timestamp::from_millis(1_000_000);
        let mut seconds = Vec::new();
        for failed in 0..11 {
            match next(&policy(0.0), KEY, &after(failed, 1_000_000), Verdict::Retry, now, now) {
                Next::RetryAt(at) => seconds.push(at.since(now).as_secs()),
                other => panic!("{other:?} after {failed}"),
            }
        }
        assert_eq!(seconds, [5, 15, 45, 135, 405, 1_215, 3_645, 10_935, 21_600, 21_600, 21_600]);
        let last = next(&policy(0.0), KEY, &after(11, 1_000_000), Verdict::Retry, now, now);
        assert_eq!(last, Next::Dead(DeadReason::AttemptsExhausted));
    }

    #[test]
    fn jitter_is_deterministic_and_within_its_share() {
        let now = Timestamp::from_millis(0);
        let mut seen = std::collections::BTreeSet::new();
        for event in 0..1_000 {
            let key = DeliveryKey { event: Position(event), ..KEY };
            let first = next(&policy(0.2), key, &after(0, 0), Verdict::Retry, now, now);
            assert_eq!(first, next(&policy(0.2), key, &after(0, 0), Verdict::Retry, now, now));
            let Next::RetryAt(at) = first else { panic!("{first:?}") };
            assert!((4_000..=6_000).contains(&at.millis()), "{at:?}");
            seen.insert(at);
        }
        assert!(seen.len() > 500, "{} different of 1000", seen.len());
    }

    #[test]
    fn retry_after_is_a_minimum_and_age_ends_the_series() {
        let now = Timestamp::from_millis(0);
        let wait = Verdict::RetryAfter(Duration::from_secs(600));
        let Next::RetryAt(at) = next(&policy(1.0), KEY, &after(0, 0), wait, now, now) else { panic!() };
        assert!(at >= Timestamp::from_millis(600_000), "{at:?}");
        let old = Timestamp::from_millis(0).plus(72 * HOUR);
        assert_eq!(
            next(&policy(0.0), KEY, &after(1, 0), Verdict::Retry, old, old),
            Next::Dead(DeadReason::MaxAge)
        );
    }

    #[test]
    fn schedule_ends_after_its_last_entry() {
        let policy = RetryPolicy::Schedule(vec![Duration::from_secs(1), Duration::from_secs(9)]);
        let now = Timestamp::from_millis(0);
        let at = |millis| Next::RetryAt(Timestamp::from_millis(millis));
        assert_eq!(next(&policy, KEY, &after(0, 0), Verdict::Retry, now, now), at(1_000));
        assert_eq!(next(&policy, KEY, &after(1, 0), Verdict::Retry, now, now), at(9_000));
        let dead = Next::Dead(DeadReason::AttemptsExhausted);
        assert_eq!(next(&policy, KEY, &after(2, 0), Verdict::Retry, now, now), dead);
        assert_eq!(next(&policy, KEY, &after(2, 0), Verdict::Delivered, now, now), Next::Delivered);
    }

    #[test]
    fn redriven_delivery_starts_at_the_first_interval() {
        let now = Timestamp::from_millis(1_000_000);
        let redriven = Progress::begin(11, now, Trigger::Redrive);
        for (failed, seconds) in [(0, 5), (1, 15), (2, 45)] {
            let progress = Progress {
                attempts: 11 + failed,
                attempts_in_series: failed,
                first_attempt: Some(now),
                ..redriven
            };
            let next = next(&policy(0.0), KEY, &progress, Verdict::Retry, now, now);
            assert_eq!(next, Next::RetryAt(now.plus(Duration::from_secs(seconds))), "{failed} failed");
        }
        let last = Progress { attempts: 22, attempts_in_series: 11, first_attempt: Some(now), ..redriven };
        let dead = Next::Dead(DeadReason::AttemptsExhausted);
        assert_eq!(next(&policy(0.0), KEY, &last, Verdict::Retry, now, now), dead);
        let schedule = RetryPolicy::Schedule(vec![Duration::from_secs(1), Duration::from_secs(9)]);
        let next = next(&schedule, KEY, &redriven, Verdict::Retry, now, now);
        assert_eq!(next, Next::RetryAt(now.plus(Duration::from_secs(1))));
    }

    #[test]
    fn age_counts_from_the_first_attempt_of_the_series() {
        let accepted = Timestamp::ZERO;
        let paused_until = accepted.plus(1_000 * HOUR);
        let fresh = Progress::begin(0, accepted, Trigger::Publish);
        let judge = |progress: &Progress, at| next(&policy(0.0), KEY, progress, Verdict::Retry, at, at);
        let retry = |at: Timestamp, seconds| Next::RetryAt(at.plus(Duration::from_secs(seconds)));
        assert_eq!(judge(&fresh, paused_until), retry(paused_until, 5), "waiting does not count");
        let tried =
            Progress { attempts: 1, attempts_in_series: 1, first_attempt: Some(paused_until), ..fresh };
        let last = paused_until.plus(72 * HOUR).minus(Duration::from_secs(15));
        assert_eq!(judge(&tried, last), retry(last, 15));
        let late = last.plus(Duration::from_millis(1));
        assert_eq!(judge(&tried, late), Next::Dead(DeadReason::MaxAge));
        // A delay of the daemon shifts the start of the series.
        let hour_late = judge(&tried.after(HOUR), late.plus(HOUR).minus(Duration::from_millis(1)));
        assert_eq!(hour_late, retry(last.plus(HOUR), 15));
        assert_eq!(judge(&tried.after(HOUR), late.plus(HOUR)), Next::Dead(DeadReason::MaxAge));
        // A slow first attempt counts from its start.
        let slow = next(&policy(0.0), KEY, &fresh, Verdict::Retry, accepted, accepted.plus(72 * HOUR));
        assert_eq!(slow, Next::Dead(DeadReason::MaxAge));
    }

    #[test]
    fn only_the_first_lost_answer_of_a_series_is_free() {
        let end = |deliveries, lost_answers, ended_at: u64| {
            let progress = Progress { lost_answers, ..after(deliveries, 0) };
            end_of_lost_answer(&policy(0.0), KEY, &progress, Timestamp::from_millis(ended_at))
        };
        let due = |millis| LeaseEnd::Lost(Some(Timestamp::from_millis(millis)));
        assert_eq!(end(1, 0, 1_000), LeaseEnd::Lost(None));
        assert_eq!(end(12, 0, 1_000), LeaseEnd::Lost(None), "also of the last delivery");
        assert_eq!(end(1, 1, 1_000), due(6_000));
        assert_eq!(end(2, 1, 1_000), due(16_000), "after a delivery that was not lost");
        assert_eq!(end(11, 11, 1_000), due(21_601_000));
        assert_eq!(end(12, 11, 1_000), due(1_000), "the lane gives it up");
        let age = 72 * HOUR.as_millis() as u64;
        assert_eq!(end(2, 1, age - 1_000), due(age + 1), "when it is too old");
        assert_eq!(end(2, 1, age + 9_000), due(age + 9_000));
        let schedule = RetryPolicy::Schedule(vec![Duration::from_secs(1)]);
        let now = Timestamp::from_millis(1_000);
        let of_schedule = |deliveries| {
            let progress = Progress { lost_answers: 1, ..after(deliveries, 0) };
            end_of_lost_answer(&schedule, KEY, &progress, now)
        };
        assert_eq!((of_schedule(1), of_schedule(2)), (due(2_000), due(1_000)));
    }

    #[test]
    fn injected_bug_of_lost_answers_is_caught() {
        let test = only_the_first_lost_answer_of_a_series_is_free;
        failpoints::fails_with(Mutation::ChargeLostAnswer, test);
    }

    #[test]
    fn delay_ends_when_the_receiver_shuts_the_lane() {
        let at = Timestamp::from_millis;
        let delay = |shut_since: Option<u64>| delay(at(1_000), at(90_000), shut_since.map(at)).as_millis();
        assert_eq!(delay(None), 89_000, "a pause, a rate or a stopped daemon");
        assert_eq!(delay(Some(400)), 0, "the receiver caused all of it");
        assert_eq!(delay(Some(61_000)), 60_000);
        assert_eq!(delay(Some(95_000)), 89_000, "at most all of it");
    }
}
