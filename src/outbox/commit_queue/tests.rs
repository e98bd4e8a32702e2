//! Tests of the commit queue: order, limits for publishers only, and an answer for every waiting
//! caller.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::*;
use crate::domain::{EndpointNumber, Record, Timestamp};
use crate::outbox::draft::EventDraft;
use crate::outbox::recent_keys::Prepared;
use crate::outbox::unit::{Command, Outcome, Refusal, UnitReply};

type Answer = oneshot::Receiver<Result<Vec<Outcome>, Refusal>>;

fn queue(commands: usize) -> CommitQueue {
    CommitQueue::new(AdmissionLimits { bytes: 10_000_000, commands })
}

/// A unit that is identified by its number.
fn unit(number: u64, reply: Option<UnitReply>) -> Unit {
    let record = Record::DeliveriesCancelled { deliveries: Vec::new(), at: Timestamp::from_millis(number) };
    Unit { commands: vec![Command::Record(record)], prepared: Prepared::default(), reply }
}

fn outcome(number: u64) -> Unit {
    unit(number, None)
}

fn awaited(number: u64) -> (Unit, Answer) {
    let (reply, answer) = oneshot::channel();
    (unit(number, Some(reply)), answer)
}

/// A unit that changes the registry, so it is committed alone.
fn barrier(number: u64) -> Unit {
    let at = Timestamp::from_millis(number);
    let commands = vec![Command::DeleteEndpoint { endpoint: EndpointNumber(1), at }];
    Unit { commands, prepared: Prepared::default(), reply: None }
}

fn numbers(group: Option<Vec<Unit>>) -> Vec<u64> {
    let number = |unit: Unit| match &unit.commands[0] {
        Command::Record(Record::DeliveriesCancelled { at, .. }) | Command::DeleteEndpoint { at, .. } => {
            at.millis()
        }
        other => panic!("{other:?}"),
    };
    group.unwrap_or_default().into_iter().map(number).collect()
}

#[test]
fn large_atomic_unit_is_alone() {
    let event = |bytes: usize| {
        let (tenant, event_type) = ("acme".parse().unwrap(), "a".parse().unwrap());
        Command::Publish(Box::new(EventDraft::new(tenant, event_type, vec![b'1'; bytes].into())))
    };
    let atomic = |bytes: usize| Unit {
        commands: vec![Command::Atomic(None), event(bytes)],
        prepared: Prepared::default(),
        reply: None,
    };
    let queue = queue(100);
    let large = limits::ATOMIC_SHARED_BYTES_MAX + 1;
    for bytes in [10, 10, large, 10] {
        queue.push(atomic(bytes)).unwrap();
    }
    let sizes: Vec<_> = (0..3).map(|_| queue.take().len()).collect();
    assert_eq!(sizes, [2, 1, 1]);
}

#[test]
fn groups_keep_order_and_barriers_are_alone() {
    let queue = queue(100);
    for unit in [outcome(1), outcome(2), barrier(3), barrier(4), outcome(5)] {
        queue.push(unit).unwrap();
    }
    queue.close();
    let groups: Vec<_> = (0..5).map(|_| numbers(queue.next_group())).collect();
    assert_eq!(groups, [vec![1, 2], vec![3], vec![4], vec![5], vec![]]);
    assert_eq!(queue.pending_weight(), (0, 0));
}

#[test]
fn publishers_are_rejected_at_the_limit_and_outcomes_never() {
    let queue = queue(2);
    let (first, _first) = awaited(1);
    let (second, _second) = awaited(2);
    let (third, _third) = awaited(3);
    queue.push(first).unwrap();
    queue.push(second).unwrap();
    assert!(matches!(queue.push(third), Err(Unavailable::Overloaded { .. })));
    queue.push(outcome(4)).unwrap();
    assert_eq!(numbers(queue.next_group()), [1, 4, 2], "the outcome takes its turn");
    let (again, _again) = awaited(5);
    queue.push(again).unwrap();
}

#[test]
fn group_after_a_busy_group_waits_for_enough_publishers() {
    let queue = CommitQueue { busy_commit_delay: Duration::from_secs(3_600), ..queue(100) };
    let push = |number| {
        let (unit, answer) = awaited(number);
        queue.push(unit).unwrap();
        answer
    };
    let enough = GROUP_PUBLISHERS_ENOUGH as u64;
    let previous_publishers: Vec<_> = (0..BUSY_PUBLISHERS_MIN as u64).map(push).collect();
    assert_eq!(numbers(queue.next_group()).len(), BUSY_PUBLISHERS_MIN);
    drop(previous_publishers);
    std::thread::scope(|scope| {
        let _most: Vec<_> = (1..enough).map(push).collect();
        let writer = scope.spawn(|| numbers(queue.next_group()));
        while queue.lock().wanted != Some(GROUP_PUBLISHERS_ENOUGH) {
            std::thread::yield_now();
        }
        assert!(!writer.is_finished());
        let _last = push(enough);
        assert_eq!(writer.join().unwrap(), (1..=enough).collect::<Vec<_>>());
    });
    let _more: Vec<_> = (0..=enough).map(push).collect();
    assert_eq!(numbers(queue.next_group()).len(), GROUP_PUBLISHERS_ENOUGH + 1, "all pending publishers join");
    let _few: Vec<_> = (0..enough).map(push).collect();
    assert_eq!(numbers(queue.next_group()).len(), GROUP_PUBLISHERS_ENOUGH, "enough publishers: no wait");
    let _another = push(1);
    let full: Vec<_> = (2..=limits::COMMIT_RECORDS_MAX as u64).collect();
    full.iter().for_each(|number| queue.push(outcome(*number)).unwrap());
    assert_eq!(numbers(queue.next_group()).len(), limits::COMMIT_RECORDS_MAX, "a full group does not wait");
    let _alone = push(2);
    assert_eq!(numbers(queue.next_group()), [2], "one publisher is not busy");
}

#[test]
fn group_size_is_bounded() {
    let queue = queue(1);
    let many = limits::COMMIT_RECORDS_MAX as u64 + 1;
    (0..many).for_each(|number| queue.push(outcome(number)).unwrap());
    assert_eq!(numbers(queue.next_group()).len(), limits::COMMIT_RECORDS_MAX);
    assert_eq!(numbers(queue.next_group()), [many - 1]);
}

#[test]
fn unwritten_units_return_to_the_front() {
    let queue = queue(100);
    (1..=3).for_each(|number| queue.push(outcome(number)).unwrap());
    let group = queue.next_group().unwrap();
    queue.push(outcome(4)).unwrap();
    queue.put_back(group);
    assert_eq!(queue.pending_weight().0, 4);
    assert_eq!(numbers(queue.next_group()), [1, 2, 3, 4]);
}

#[test]
fn closed_queue_drains_and_accepts_nothing() {
    let queue = queue(100);
    queue.push(outcome(1)).unwrap();
    queue.close();
    assert!(matches!(queue.push(outcome(2)), Err(Unavailable::Stopping)));
    assert_eq!(numbers(queue.next_group()), [1]);
    assert!(queue.next_group().is_none());
}

#[test]
fn abandoned_queue_fails_waiting_callers() {
    let queue = queue(100);
    let (unit, answer) = awaited(1);
    queue.push(unit).unwrap();
    queue.abandon();
    assert!(answer.blocking_recv().is_err());
    assert!(matches!(queue.push(outcome(2)), Err(Unavailable::Stopping)));
}

#[test]
fn many_publishers_and_one_writer_lose_nothing() {
    let queue = Arc::new(queue(100));
    let writer = std::thread::spawn({
        let queue = queue.clone();
        move || {
            std::iter::from_fn(|| queue.next_group()).map(|group| numbers(Some(group))).collect::<Vec<_>>()
        }
    });
    let publish = |publisher: u64| {
        let queue = queue.clone();
        std::thread::spawn(move || {
            for count in 0..500 {
                let (unit, _answer) = awaited(publisher * 1_000 + count);
                queue.push(unit).unwrap();
                if count % 10 == 0 {
                    std::thread::yield_now();
                }
                while queue.pending_weight().0 > 50 {
                    std::thread::yield_now();
                }
            }
        })
    };
    let publishers: Vec<_> = (0..16).map(publish).collect();
    publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
    queue.close();
    let all: Vec<u64> = writer.join().unwrap().concat();
    for publisher in 0..16 {
        let own: Vec<u64> = all.iter().copied().filter(|number| number / 1_000 == publisher).collect();
        let expected: Vec<u64> = (0..500).map(|count| publisher * 1_000 + count).collect();
        assert_eq!(own, expected);
    }
}

#[test]
fn outcome_backlog_is_reported_until_taken() {
    let queue = queue(10);
    for number in 0..limits::OUTCOMES_MAX as u64 {
        queue.push(outcome(number)).unwrap();
    }
    assert!(!queue.is_outcome_queue_full());
    queue.push(outcome(0)).unwrap();
    assert!(queue.is_outcome_queue_full());
    let (unit, _answer) = awaited(1);
    assert!(queue.push(unit).is_err(), "the publisher limit still applies");
    while !queue.is_empty() {
        queue.take();
    }
    assert!(!queue.is_outcome_queue_full());
    queue.put_back(vec![outcome(1), outcome(2)]);
    assert_eq!(queue.lock().outcomes, (2, 128));
    queue.take();
    assert_eq!(queue.lock().outcomes, (0, 0));
}

/// `count` events of a tenant in one unit.
fn batch(tenant: &str, count: usize) -> (Unit, Answer) {
    let event = || EventDraft::new(tenant.parse().unwrap(), "a".parse().unwrap(), "{}".into());
    let commands = (0..count).map(|_| Command::Publish(Box::new(event()))).collect();
    let (reply, answer) = oneshot::channel();
    (Unit { commands, prepared: Prepared::default(), reply: Some(reply) }, answer)
}

fn large_queue() -> CommitQueue {
    CommitQueue::new(AdmissionLimits { bytes: 1 << 30, commands: 1_000_000 })
}

/// Tenant and size of the next group's units.
fn sizes(queue: &CommitQueue) -> Vec<(String, usize)> {
    let size = |unit: &Unit| (unit.commands[0].draft().unwrap().tenant.to_string(), unit.commands.len());
    queue.next_group().unwrap_or_default().iter().map(size).collect()
}

fn sized(tenant: &str, count: usize) -> (String, usize) {
    (tenant.to_owned(), count)
}

#[test]
fn single_event_waits_for_one_batch_of_another_tenant_at_most() {
    let queue = large_queue();
    let push = |tenant, count| {
        let (unit, answer) = batch(tenant, count);
        queue.push(unit).unwrap();
        answer
    };
    let _batches: Vec<_> = (0..20).map(|_| push("many", 1_000)).collect();
    assert_eq!(sizes(&queue).len(), 8, "a tenant alone gets large groups");
    let _single = push("single", 1);
    assert_eq!(sizes(&queue), [sized("single", 1), sized("many", 1_000)]);
    assert_eq!(sizes(&queue), [sized("many", 1_000)], "groups stay small for a while");
    for _ in 0..10 {
        let _single = push("single", 1);
        assert!(sizes(&queue).contains(&sized("single", 1)));
    }
}

#[test]
fn groups_grow_again_after_the_contention() {
    let queue = large_queue();
    let fill = || {
        let _answers: Vec<_> = (0..10)
            .map(|_| {
                let (unit, answer) = batch("many", 1_000);
                queue.push(unit).unwrap();
                answer
            })
            .collect();
    };
    let (single, _answer) = batch("single", 1);
    queue.push(single).unwrap();
    fill();
    let mut groups = 0;
    while sizes(&queue).len() < 8 {
        groups += 1;
        fill();
        assert!(groups <= 2 * SMALL_GROUPS_AFTER_CONTENTION, "groups stay small");
        while queue.pending_weight().0 > 20_000 {
            queue.take();
        }
    }
    assert!(groups > 0);
}

#[test]
fn backlog_of_one_tenant_rejects_only_that_tenant() {
    let queue = queue(900);
    let push = |tenant: &str| {
        let (unit, answer) = batch(tenant, 1);
        queue.push(unit).map(|()| answer)
    };
    let backlog: Vec<_> = std::iter::from_fn(|| push("many").ok()).collect();
    assert_eq!(backlog.len(), 900, "a tenant alone has the whole limit");
    let other: Vec<_> = std::iter::from_fn(|| push("other").ok()).collect();
    assert!((250..=450).contains(&other.len()), "{} of the other tenant", other.len());
    assert!(push("many").is_err() && push("third").is_ok());
    while !queue.is_empty() {
        queue.take();
    }
    assert!(queue.lock().shares.is_empty());
    assert!(push("many").is_ok());
}

#[test]
fn outcomes_pass_a_backlog_of_events() {
    let queue = large_queue();
    let _answers: Vec<_> = (0..30)
        .map(|_| {
            let (unit, answer) = batch("many", 1_000);
            queue.push(unit).unwrap();
            answer
        })
        .collect();
    (0..1_000).for_each(|number| queue.push(outcome(number)).unwrap());
    let outcomes = queue.next_group().unwrap().iter().filter(|unit| unit.reply.is_none()).count();
    assert!(outcomes > 900, "{outcomes} outcomes in the first group");
}
