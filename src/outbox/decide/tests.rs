//! Tests of events with many targets: the limit of a request, and the memory of a group.

use tokio::sync::oneshot;

use super::*;
use crate::domain::{Expected, KeyId, Rejection, Tenant};
use crate::limits;
use crate::outbox::draft::EventDraft;
use crate::rules::tests as examples;
use crate::storage::disk::MemoryDisk;
use crate::storage::journal::JournalOptions;

impl Committer {
    pub(in crate::outbox) fn unapplied_load_is_empty(&mut self, tenant: &str) -> bool {
        self.unapplied_load.is_empty(tenant)
    }
}

/// Targets of each event.
const ENDPOINTS: usize = 2_000;

struct Clock;

impl CommitEnvironment for Clock {
    fn now(&mut self) -> Timestamp {
        Timestamp::from_millis(3_000_000_000_000)
    }

    fn random(&mut self) -> u128 {
        7
    }
}

fn committer(disk: &MemoryDisk) -> Committer {
    committer_with(disk, ENDPOINTS)
}

/// A committer with this many endpoints that match every event.
pub(super) fn committer_with(disk: &MemoryDisk, endpoints: usize) -> Committer {
    let (journal, _) = Journal::open(Arc::new(disk.clone()), JournalOptions::new(1)).unwrap();
    let mut registry = Registry::default();
    for number in 1..=endpoints {
        let endpoint = examples::endpoint(number.try_into().unwrap(), Tenant::DEFAULT, &[]);
        registry.apply(&Record::EndpointPut(Arc::new(endpoint)));
    }
    Committer::new(journal, Arc::new(RwLock::new(registry)), Arc::default(), Box::new(Clock))
}

fn draft(only: Option<EndpointNumber>) -> Command {
    let (tenant, event_type) = (Tenant::DEFAULT.parse().unwrap(), "order.paid".parse().unwrap());
    Command::Publish(Box::new(EventDraft { only, ..EventDraft::new(tenant, event_type, "{}".into()) }))
}

fn unit(commands: Vec<Command>, reply: Option<UnitReply>) -> Unit {
    Unit { commands, prepared: Prepared::default(), reply }
}

#[test]
fn event_ids_are_unpredictable_across_groups() {
    struct Chance(u128);
    impl CommitEnvironment for Chance {
        fn now(&mut self) -> Timestamp {
            Clock.now()
        }

        fn random(&mut self) -> u128 {
            self.0 += 1;
            self.0 << 80
        }
    }
    let mut committer = committer(&MemoryDisk::new());
    committer.environment = Box::new(Chance(0));
    let mut last = Ulid::nil();
    for _ in 0..100 {
        let (reply, _answer) = oneshot::channel();
        let mut result = committer.commit(vec![unit(vec![draft(None); 2], Some(reply))]);
        let outcomes = result.replies.pop().unwrap().1.unwrap();
        let ids = outcomes.iter().map(|outcome| match outcome {
            Outcome::Accepted(accepted) => Ulid::from_string(&accepted.event.id.as_str()[4..]).unwrap(),
            other => panic!("{other:?}"),
        });
        let ids: Vec<_> = ids.collect();
        assert!(ids[0].0 - last.0 > 1 << 15, "{} is predictable from {last}", ids[0]);
        assert!(ids[1] > ids[0], "ids ascend within a group");
        last = ids[1];
    }
}

/// Number of deliveries that the group announces to the lanes.
fn announced(committed: &CommittedGroup) -> usize {
    let of_record = |(position, record): &(Position, Record)| match record {
        Record::EventAccepted(event) => committed.announced(*position, event, &event.targets).count(),
        _ => 0,
    };
    committed.records.iter().map(of_record).sum()
}

#[test]
fn event_with_too_many_targets_is_rejected_alone() {
    let mut committer = committer_with(&MemoryDisk::new(), limits::EVENT_TARGETS_MAX + 1);
    let (reply, _answer) = oneshot::channel();
    let commands = vec![draft(None), draft(Some(EndpointNumber(1)))];
    let mut result = committer.commit(vec![unit(commands, Some(reply))]);
    let outcomes = result.replies.pop().unwrap().1.unwrap();
    assert!(matches!(outcomes[..], [Outcome::TooManyTargets, Outcome::Accepted(_)]), "{outcomes:?}");
}

#[test]
fn unit_with_too_many_targets_is_rejected_alone() {
    let mut committer = committer(&MemoryDisk::new());
    let fit = limits::REQUEST_TARGETS_MAX / ENDPOINTS;
    let (reply, _answer) = oneshot::channel();
    let mut commands = vec![draft(None); fit + 1];
    commands.push(draft(Some(EndpointNumber(1))));
    let id: KeyId = "key_1".parse().unwrap();
    let other = Command::Record(Record::KeyDeleted { id, at: Timestamp::from_millis(1) });

    let mut result = committer.commit(vec![unit(commands, Some(reply)), unit(vec![other], None)]);

    assert!(result.failure.is_none(), "{:?}", result.failure);
    let outcomes = result.replies.pop().unwrap().1.unwrap();
    assert_eq!(outcomes.len(), fit + 2);
    assert!(outcomes[..fit].iter().all(|outcome| matches!(outcome, Outcome::Accepted(_))));
    assert!(matches!(outcomes[fit], Outcome::TooManyTargets), "{:?}", outcomes[fit]);
    assert!(matches!(outcomes[fit + 1], Outcome::TooManyTargets), "it overtakes the event before it");
    let committed = result.committed.unwrap();
    assert_eq!((committed.records.len(), announced(&committed)), (fit, fit * ENDPOINTS));
    let least = fit * ENDPOINTS * size_of::<EndpointNumber>();
    assert!(committer.unapplied().bytes() > least, "{} of {least}", committer.unapplied().bytes());
    drop(committed);
    assert_eq!(committer.unapplied().bytes(), 0);

    let next = committer.commit(result.unwritten);
    assert_eq!(next.committed.unwrap().records.len(), 1, "the next unit is committed");
    let again = committer.commit(vec![unit(vec![draft(None)], None)]);
    assert_eq!(announced(&again.committed.unwrap()), ENDPOINTS, "the rejected event fits alone");
}

fn answer(scope: u8, fingerprint: u8) -> Command {
    Command::Record(Record::RequestAnswered {
        idempotency: Idempotency { scope: [scope; 16], fingerprint: [fingerprint; 16], expires_at: None },
        status: 201,
        body: Arc::from(&b"{}"[..]),
    })
}

/// Commits a unit. Returns its outcomes and the number of its records.
pub(super) fn committed(committer: &mut Committer, commands: Vec<Command>) -> (Vec<Outcome>, usize) {
    let (reply, _answer) = oneshot::channel();
    let mut result = committer.commit(vec![unit(commands, Some(reply))]);
    let outcomes = result.replies.pop().unwrap().1.unwrap();
    (outcomes, result.committed.map_or(0, |committed| committed.records.len()))
}

#[test]
fn request_and_response_are_committed_together_and_once() {
    let mut committer = committer(&MemoryDisk::new());
    let new = || Command::PutEndpoint(Box::new(examples::endpoint(0, Tenant::DEFAULT, &[])));
    let (outcomes, records) = committed(&mut committer, vec![new(), answer(1, 1)]);
    let [Outcome::Endpoint(_), Outcome::Written(answered)] = outcomes[..] else { panic!("{outcomes:?}") };
    assert_eq!(records, 2);

    let (outcomes, records) = committed(&mut committer, vec![new(), answer(1, 1)]);
    assert!(matches!(outcomes[..], [Outcome::Duplicate(one), _] if one == answered), "{outcomes:?}");
    assert_eq!(records, 0, "it ran twice");
    let (outcomes, records) = committed(&mut committer, vec![new(), answer(1, 2)]);
    assert!(matches!(outcomes[..], [Outcome::Mismatch, _]), "{outcomes:?}");
    assert_eq!(records, 0, "another request ran with its key");
}

#[test]
fn claimed_request_judges_each_event_once() {
    let mut committer = committer(&MemoryDisk::new());
    let key = |scope: u8, fingerprint: u8| Idempotency {
        scope: [scope; 16],
        fingerprint: [fingerprint; 16],
        expires_at: None,
    };
    let event = |expected, fingerprint| {
        let Command::Publish(mut draft) = draft(Some(EndpointNumber(1))) else { unreachable!() };
        draft.stream = Some("s".parse().unwrap());
        draft.expected = expected;
        draft.idempotency = Some(key(2, fingerprint));
        Command::Publish(draft)
    };
    let request = |fingerprint| {
        vec![Command::Claim(key(1, fingerprint)), event(Expected::Version(1), fingerprint), draft(None)]
    };
    let (outcomes, records) = committed(&mut committer, request(1));
    let [Outcome::Written(claimed), Outcome::Rejected(rejection), Outcome::Accepted(_)] = outcomes[..] else {
        panic!("{outcomes:?}")
    };
    assert_eq!(rejection, Rejection::VersionConflict { expected: Expected::Version(1), actual: None });
    assert_eq!(records, 3, "the rejection is durable before the answer");

    let (outcomes, records) = committed(&mut committer, vec![event(Expected::Any, 3)]);
    assert!(matches!(outcomes[..], [Outcome::Mismatch]), "{outcomes:?}");
    assert_eq!(records, 0);
    let (outcomes, _) = committed(&mut committer, request(1));
    let [Outcome::Duplicate(again), Outcome::Duplicate(rejected), Outcome::Accepted(_)] = outcomes[..] else {
        panic!("{outcomes:?}")
    };
    assert_eq!((again, rejected), (claimed, claimed.next()), "an event without a key is new");
    let (outcomes, records) = committed(&mut committer, request(2));
    assert!(
        matches!(outcomes[..], [Outcome::Mismatch, Outcome::Mismatch, Outcome::Mismatch]),
        "{outcomes:?}"
    );
    assert_eq!(records, 0, "another request ran with its key");
}

/// Events beyond the target limit block no later request, and later events are not rejected
/// permanently.
#[test]
fn repeated_request_continues_after_target_limit() {
    let mut committer = committer(&MemoryDisk::new());
    let fit = limits::REQUEST_TARGETS_MAX / ENDPOINTS;
    let key = |scope: u16| Idempotency {
        scope: u128::from(scope).to_be_bytes(),
        fingerprint: [1; 16],
        expires_at: None,
    };
    let event = |number: usize| {
        let Command::Publish(mut draft) = draft(None) else { unreachable!() };
        draft.stream = Some("s".parse().unwrap());
        draft.expected = if number == 0 { Expected::NoStream } else { Expected::Version(number as u64) };
        draft.idempotency = Some(key(u16::try_from(number).unwrap()));
        Command::Publish(draft)
    };
    let request = || [Command::Claim(key(u16::MAX))].into_iter().chain((0..fit + 3).map(event)).collect();
    let (outcomes, _) = committed(&mut committer, request());
    assert!(outcomes[1..=fit].iter().all(|outcome| matches!(outcome, Outcome::Accepted(_))));
    assert!(outcomes[fit + 1..].iter().all(|outcome| matches!(outcome, Outcome::TooManyTargets)));
    let (outcomes, records) = committed(&mut committer, request());
    assert!(outcomes[..=fit].iter().all(|outcome| matches!(outcome, Outcome::Duplicate(_))));
    assert!(outcomes[fit + 1..].iter().all(|outcome| matches!(outcome, Outcome::Accepted(_))));
    assert_eq!(records, 3);
    assert_eq!(committed(&mut committer, request()).1, 0);
}

#[test]
fn claim_does_not_count_as_a_command() {
    let claim = Command::Claim(Idempotency { scope: [1; 16], fingerprint: [1; 16], expires_at: None });
    assert_eq!(unit(vec![claim, draft(None)], None).weight().0, 1);
}

#[test]
fn no_response_is_stored_for_a_rejected_change() {
    let mut committer = committer(&MemoryDisk::new());
    let changed = |revision: u64| {
        let endpoint = examples::endpoint(1, Tenant::DEFAULT, &[]);
        Command::PutEndpoint(Box::new(Endpoint { revision: Position(revision), ..endpoint }))
    };
    let known = read(&committer.registry).endpoint(EndpointNumber(1)).unwrap().revision.0;
    let (outcomes, records) = committed(&mut committer, vec![changed(known + 1), answer(1, 1)]);
    assert!(matches!(outcomes[..], [Outcome::Conflict, Outcome::Conflict]), "{outcomes:?}");
    assert_eq!(records, 0);
    let (outcomes, records) = committed(&mut committer, vec![changed(known), answer(1, 1)]);
    assert!(matches!(outcomes[..], [Outcome::Endpoint(_), Outcome::Written(_)]), "{outcomes:?}");
    assert_eq!(records, 2);
}

#[test]
fn group_with_many_targets_closes_early_and_keeps_order() {
    let mut committer = committer(&MemoryDisk::new());
    let fit = limits::COMMIT_TARGETS.div_ceil(ENDPOINTS);
    let event = |number: u64| {
        let mut command = draft(None);
        if let Command::Publish(draft) = &mut command {
            draft.timestamp = Some(Timestamp::from_millis(number));
        }
        unit(vec![command], None)
    };
    let count = 2 * fit + 3;
    let mut waiting: Vec<_> = (0..count as u64).map(event).collect();
    let (mut sizes, mut seen) = (Vec::new(), Vec::new());
    while !waiting.is_empty() {
        let result = committer.commit(waiting);
        let committed = result.committed.unwrap();
        sizes.push(committed.records.len());
        for (_, record) in &committed.records {
            let Record::EventAccepted(event) = record else { panic!("{record:?}") };
            seen.push(event.timestamp.millis());
        }
        waiting = result.unwritten;
    }
    assert_eq!(sizes, [fit, fit, 3]);
    assert_eq!(seen, (0..count as u64).collect::<Vec<_>>());
}

#[test]
fn full_disk_also_rejects_units_left_out_of_the_group() {
    let disk = MemoryDisk::new();
    let mut committer = committer(&disk);
    disk.set_bytes_max(Some(0));
    let fit = limits::COMMIT_TARGETS.div_ceil(ENDPOINTS);
    let (reply, _answer) = oneshot::channel();
    let mut units: Vec<_> = (0..fit).map(|_| unit(vec![draft(None)], None)).collect();
    units.push(unit(vec![draft(None)], Some(reply)));
    let mut result = committer.commit(units);
    assert!(matches!(result.failure, Some(AppendError::DiskFull)), "{:?}", result.failure);
    assert_eq!(result.unwritten.len(), fit);
    assert!(matches!(result.replies.pop(), Some((_, Err(Refusal::DiskFull)))));
}

#[test]
fn pending_event_counts_metadata_and_attributes() {
    let Command::Publish(plain) = draft(None) else { unreachable!() };
    let of = |draft: EventDraft| unit(vec![Command::Publish(Box::new(draft))], None).weight().1;
    let bare = of(EventDraft::clone(&plain));
    let metadata = Some(vec![b' '; 10_000].into());
    let attributes = vec![("a".into(), "x".repeat(10_000).into())];
    assert!(of(EventDraft { metadata, ..EventDraft::clone(&plain) }) >= bare + 10_000);
    assert!(of(EventDraft { attributes, ..*plain }) >= bare + 10_000);
}
