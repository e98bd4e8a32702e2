//! A rejected atomic unit leaves nothing in its group.

use std::sync::{Arc, RwLock};

use tokio::sync::oneshot;

use super::*;
use crate::domain::{Expected, Quota, Quotas, Timestamp};
use crate::outbox::decide::{CommitEnvironment, GroupResult};
use crate::outbox::draft::EventDraft;
use crate::outbox::recent_keys::Prepared;
use crate::outbox::registry::Registry;
use crate::rules::tests as examples;
use crate::storage::disk::MemoryDisk;
use crate::storage::journal::{Journal, JournalOptions};

struct Clock;

impl CommitEnvironment for Clock {
    fn now(&mut self) -> Timestamp {
        Timestamp::from_millis(3_000_000_000_000)
    }

    fn random(&mut self) -> u128 {
        7
    }
}

/// A writer whose tenant has two endpoints, and this quota of pending deliveries.
fn writer(pending: u64) -> Committer {
    let (journal, _) = Journal::open(Arc::new(MemoryDisk::new()), JournalOptions::new(1)).unwrap();
    let mut registry = Registry::default();
    registry.set_default_quotas(Quotas::default().with(Quota::PendingDeliveries, Some(pending)));
    for number in [1, 2] {
        registry.apply(&Record::EndpointPut(Arc::new(examples::endpoint(number, "acme", &[]))));
    }
    Committer::new(journal, Arc::new(RwLock::new(registry)), Arc::default(), Box::new(Clock))
}

fn event(stream: &str, expected: Expected, key: Option<u8>) -> Command {
    let (tenant, event_type) = ("acme".parse().unwrap(), "order.paid".parse().unwrap());
    Command::Publish(Box::new(EventDraft {
        stream: Some(stream.parse().unwrap()),
        expected,
        idempotency: key.map(request_key),
        ..EventDraft::new(tenant, event_type, "{}".into())
    }))
}

fn request_key(scope: u8) -> Idempotency {
    Idempotency { scope: [scope; 16], fingerprint: [1; 16], expires_at: None }
}

/// Commits the units in one group; returns their outcomes.
fn commit(writer: &mut Committer, units: Vec<Vec<Command>>) -> (Vec<Vec<Outcome>>, Vec<Record>) {
    let units = units.into_iter().map(|commands| {
        let (reply, _) = oneshot::channel();
        Unit { commands, prepared: Prepared::default(), reply: Some(reply) }
    });
    let GroupResult { committed, replies, .. } = writer.commit(units.collect());
    let outcomes = replies.into_iter().map(|(_, answer)| answer.unwrap()).collect();
    let records = committed.map_or_else(Vec::new, |committed| committed.records.clone());
    (outcomes, records.into_iter().map(|(_, record)| record).collect())
}

#[test]
fn rejected_unit_leaves_no_trace_in_its_group() {
    // Room for one event of two deliveries.
    let mut writer = writer(2);
    let rejected = vec![
        Command::Atomic(None),
        event("s", Expected::NoStream, Some(9)),
        event("t", Expected::Exists, None),
    ];
    let next = vec![event("s", Expected::NoStream, Some(9))];
    let (outcomes, records) = commit(&mut writer, vec![rejected, next]);
    assert!(
        matches!(outcomes[0][..], [Outcome::Withdrawn, Outcome::Withdrawn, Outcome::Rejected(_)]),
        "{outcomes:?}"
    );
    let [Outcome::Accepted(accepted)] = &outcomes[1][..] else { panic!("{outcomes:?}") };
    assert_eq!((accepted.position, records.len()), (Position(1), 1));
    assert_eq!(accepted.event.stream.as_ref().map(|(_, version)| *version), Some(1));
}

#[test]
fn quota_reached_within_a_unit_rejects_all_of_it() {
    let mut writer = writer(5);
    let unit = |count| {
        let events = (0..count).map(|_| event("s", Expected::Any, None));
        std::iter::once(Command::Atomic(None)).chain(events).collect::<Vec<_>>()
    };
    let (outcomes, records) = commit(&mut writer, vec![unit(3), unit(2), unit(1)]);
    assert!(matches!(outcomes[0][3], Outcome::QuotaExceeded(_)), "{outcomes:?}");
    assert!(matches!(outcomes[1][..], [Outcome::Passed, Outcome::Accepted(_), Outcome::Accepted(_)]));
    assert!(matches!(outcomes[2][1], Outcome::QuotaExceeded(_)), "{outcomes:?}");
    assert_eq!(records.len(), 2);
}

#[test]
fn rejection_is_stored_for_the_key_with_its_command() {
    let mut writer = writer(100);
    let unit = || {
        let check = Command::Check {
            tenant: "acme".parse().unwrap(),
            stream: "never".parse().unwrap(),
            expected: Expected::Exists,
        };
        vec![Command::Atomic(Some(request_key(3))), check, event("s", Expected::Any, Some(3))]
    };
    let (outcomes, records) = commit(&mut writer, vec![unit(), unit()]);
    assert!(matches!(outcomes[0][1], Outcome::Rejected(Rejection::VersionConflict { .. })), "{outcomes:?}");
    let [Record::EventRejected { command: Some(1), idempotency, .. }] = &records[..] else {
        panic!("{records:?}")
    };
    assert_eq!(*idempotency, request_key(3));
    assert!(matches!(outcomes[1][0], Outcome::Duplicate(Position(1))), "{outcomes:?}");
}

#[test]
fn repeated_id_within_a_unit_is_rejected() {
    let mut writer = writer(100);
    let with_id = || match event("s", Expected::Any, None) {
        Command::Publish(draft) => {
            Command::Publish(Box::new(EventDraft { id: Some("one".parse().unwrap()), ..*draft }))
        }
        other => other,
    };
    let (outcomes, records) = commit(&mut writer, vec![vec![Command::Atomic(None), with_id(), with_id()]]);
    assert!(matches!(outcomes[0][2], Outcome::Rejected(Rejection::IdTaken)), "{outcomes:?}");
    assert!(records.is_empty(), "{records:?}");
}
