//! A state that ends within an event: it is intact, and the next start applies the rest.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::domain::{ApiKey, EndpointNumber, EndpointTransport, Event, QueueTarget, Role};
use crate::failpoints::{Mutation, fails_with};
use crate::outbox::open_state;
use crate::storage::data_directory::stamp;
use crate::storage::journal::OpenReport;
use crate::storage::state::AppliedPart;

const ENDPOINTS: u32 = 5;

fn journal(path: &Path) -> Journal {
    let disk = RealDisk::new(path.join(JOURNAL)).unwrap();
    Journal::open(Arc::new(disk), JournalOptions::new(1)).unwrap().0
}

/// A directory whose state has applied two of an event's five deliveries.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    stamp(path).unwrap();
    let mut journal = journal(path);
    let mut records: Vec<_> = (1..=ENDPOINTS)
        .map(|number| {
            let endpoint = crate::rules::tests::endpoint(number, Tenant::DEFAULT, &[]);
            let revision = Position(u64::from(number));
            Record::EndpointPut(Arc::new(Endpoint { revision, ..endpoint }))
        })
        .collect();
    let targets = (1..=ENDPOINTS).map(EndpointNumber).collect();
    records.push(Record::EventAccepted(Arc::new(Event { targets, ..crate::rules::tests::event() })));
    journal.append(Timestamp::from_millis(1), &[&records]).unwrap();
    let mut state = State::open(&path.join("state"), journal.reader().last_position()).unwrap();
    let (event, endpoints) = records.split_last().unwrap();
    for (position, record) in (1..).map(Position).zip(endpoints) {
        state.apply(position, record, false, &mut Vec::new());
    }
    state.apply_part(AppliedPart { position: Position(6), deliveries: 2 }, event);
    state.checkpoint(Timestamp::from_millis(1)).unwrap();
    directory
}

fn check(path: &Path) -> VerificationReport {
    let scratch = tempfile::tempdir().unwrap();
    verify(path, scratch.path(), &mut |_, _| ()).unwrap()
}

/// Opens the state, which applies the rest. Returns why it was rebuilt, if it was.
fn reopen(path: &Path) -> (Option<String>, Vec<u64>) {
    let (mut journal, mut report) = (journal(path), OpenReport::default());
    let (state, rebuilt, _) = open_state(path, &mut journal, &mut report, &mut |_| ()).unwrap();
    assert_eq!((state.part(), state.applied()), (None, Position(u64::from(ENDPOINTS) + 1)));
    let pending = (1..=ENDPOINTS).map(|number| ReadModel::lane(&state, EndpointNumber(number)).pending);
    (rebuilt, pending.chain([ReadModel::totals(&state).pending]).collect())
}

#[test]
fn state_with_a_partly_applied_event_is_intact() {
    let directory = directory();
    let report = check(directory.path());
    assert_eq!(report.problems, Problems::default());
    let expected = Position(u64::from(ENDPOINTS));
    assert!(
        matches!(report.state, StateCheck::Compared { applied, .. } if applied == expected),
        "{report:?}"
    );
}

fn restart_applies_the_rest() {
    let directory = directory();
    let (rebuilt, pending) = reopen(directory.path());
    assert_eq!(rebuilt, None);
    assert_eq!(pending, [1, 1, 1, 1, 1, 5]);
    assert_eq!(check(directory.path()).problems, Problems::default());
}

#[test]
fn restart_applies_the_rest_of_an_event_once() {
    restart_applies_the_rest();
    fails_with(Mutation::ForgetPart, restart_applies_the_rest);
}

/// As [`directory`]. An event to another endpoint is applied early, and a second large one begins.
fn directory_with_early_record() -> tempfile::TempDir {
    let directory = directory();
    let path = directory.path();
    let other = crate::rules::tests::endpoint(7, "other", &[]);
    let other = Record::EndpointPut(Arc::new(Endpoint { revision: Position(7), ..other }));
    let event = crate::rules::tests::event();
    let tenant = "other".parse().unwrap();
    let event = Event { id: "evt_b".parse().unwrap(), tenant, targets: vec![EndpointNumber(7)], ..event };
    let event = Record::EventAccepted(Arc::new(event));
    let mut journal = journal(path);
    let second = Event {
        id: "evt_c".parse().unwrap(),
        targets: (1..=ENDPOINTS).map(EndpointNumber).collect(),
        ..crate::rules::tests::event()
    };
    let records = [other.clone(), event.clone(), Record::EventAccepted(Arc::new(second.clone()))];
    journal.append(Timestamp::from_millis(2), &[&records]).unwrap();
    let mut state = State::open(&path.join("state"), journal.reader().last_position()).unwrap();
    for position in state.registry_positions() {
        state.restore(&journal.reader().read(position).unwrap().unwrap());
    }
    state.apply_early(Position(7), &other, &mut Vec::new());
    state.apply_early(Position(8), &event, &mut Vec::new());
    state.begin_early(Position(9), &second, &mut Vec::new());
    // The next part of the large event.
    let large = journal.reader().read(Position(6)).unwrap().unwrap();
    state.apply_part(AppliedPart { position: Position(6), deliveries: 1 }, &large);
    state.checkpoint(Timestamp::from_millis(2)).unwrap();
    directory
}

fn restart_skips_what_was_applied_early() {
    let directory = directory_with_early_record();
    let report = check(directory.path());
    assert_eq!(report.problems, Problems::default());
    let before = Position(u64::from(ENDPOINTS));
    assert!(matches!(report.state, StateCheck::Compared { applied, .. } if applied == before), "{report:?}");
    let (mut journal, mut opened) = (journal(directory.path()), OpenReport::default());
    let (state, rebuilt, _) = open_state(directory.path(), &mut journal, &mut opened, &mut |_| ()).unwrap();
    assert_eq!((rebuilt, state.applied()), (None, Position(9)));
    assert!(state.early().is_empty() && state.part().is_none());
    let pending = [1, 2, 5, 7].map(|number| ReadModel::lane(&state, EndpointNumber(number)).pending);
    assert_eq!((pending, ReadModel::totals(&state).pending), ([2, 2, 2, 1], 11));
    drop(state);
    assert_eq!(check(directory.path()).problems, Problems::default());
}

#[test]
fn restart_skips_records_that_were_applied_early() {
    restart_skips_what_was_applied_early();
    fails_with(Mutation::ForgetEarly, restart_skips_what_was_applied_early);
}

#[test]
fn state_beyond_a_lost_early_record_is_rebuilt() {
    let directory = directory_with_early_record();
    let error = State::open(&directory.path().join("state"), Position(8)).unwrap_err();
    assert!(matches!(error, StateError::Ahead { applied: Position(9), journal_end: Position(8) }), "{error}");
}

#[test]
fn state_beyond_a_lost_event_is_rebuilt() {
    let directory = directory();
    let path = directory.path();
    // The journal lost its last frame.
    std::fs::remove_dir_all(path.join(JOURNAL)).unwrap();
    let mut shorter = journal(path);
    let endpoint = crate::rules::tests::endpoint(1, Tenant::DEFAULT, &[]);
    let endpoint = Endpoint { revision: Position(1), ..endpoint };
    shorter.append(Timestamp::from_millis(1), &[&[Record::EndpointPut(Arc::new(endpoint))]]).unwrap();
    drop(shorter);
    let error = State::open(&path.join("state"), Position(1)).unwrap_err();
    assert!(matches!(error, StateError::Ahead { applied: Position(6), journal_end: Position(1) }), "{error}");
}

#[test]
fn unreadable_filter_is_reported() {
    let directory = directory();
    let path = directory.path();
    let endpoint = crate::rules::tests::endpoint(1, Tenant::DEFAULT, &[]);
    let with = |revision, filter: &str| {
        let selection = crate::domain::EventSelection { filter: Some(filter.into()), labels: Vec::new() };
        Record::EndpointPut(Arc::new(Endpoint { revision, selection, ..endpoint.clone() }))
    };
    let records = [with(Position(7), r#"{"type":"a"}"#), with(Position(8), r#"{"type":{"$regex":"a"}}"#)];
    journal(path).append(Timestamp::from_millis(2), &[&records]).unwrap();
    let problems = check(path).problems.listed;
    let texts: Vec<_> = problems.iter().map(|problem| problem.text.as_str()).collect();
    assert_eq!(texts, ["journal: the filter of endpoint ep_1 is unreadable"]);
}

#[test]
fn repeated_name_id_uid_or_secret_is_reported() {
    let directory = directory();
    let path = directory.path();
    let queue = |number: u32, tenant: &str| {
        let endpoint = crate::rules::tests::endpoint(number, tenant, &[]);
        let target = QueueTarget { name: "jobs".parse().unwrap(), lease_max: Duration::from_secs(60) };
        let uid = Some("crm".parse().unwrap());
        Endpoint { transport: EndpointTransport::Queue(target), uid, ..endpoint }
    };
    let key = |id: &str| {
        Record::KeyPut(Arc::new(ApiKey {
            id: id.parse().unwrap(),
            role: Role::Viewer,
            tenant: None,
            description: "".into(),
            hash: [7; 32],
            created_at: Timestamp::ZERO,
            expires_at: None,
        }))
    };
    let same_id = Endpoint { uid: None, transport: EndpointTransport::Http, ..queue(9, "acme") };
    let same_id = Endpoint { id: "ep_8".parse().unwrap(), ..same_id };
    let endpoints = [queue(6, "acme"), queue(7, "acme"), queue(8, "other"), same_id];
    let endpoints = (7..).map(Position).zip(endpoints);
    let mut records: Vec<_> = endpoints
        .map(|(revision, endpoint)| Record::EndpointPut(Arc::new(Endpoint { revision, ..endpoint })))
        .collect();
    records.extend(["key_1", "key_2"].map(key));
    journal(path).append(Timestamp::from_millis(2), &[&records]).unwrap();
    let problems = check(path).problems.listed;
    let texts: Vec<_> = problems.iter().map(|problem| problem.text.as_str()).collect();
    assert_eq!(
        texts,
        [
            "journal: 2 endpoints have the id ep_8: ep_8, ep_8",
            "journal: 2 endpoints of tenant acme have the uid crm: ep_6, ep_7",
            "journal: 2 queues of tenant acme have the name jobs: ep_6, ep_7",
            "journal: 2 keys have one secret: key_1, key_2",
        ]
    );
    // A deleted one frees its name.
    let at = Timestamp::from_millis(3);
    let deleted = [7, 9].map(|number| Record::EndpointDeleted { endpoint: EndpointNumber(number), at });
    let forgotten = Record::KeyDeleted { id: "key_2".parse().unwrap(), at };
    journal(path).append(at, &[&[&deleted[..], &[forgotten]].concat()]).unwrap();
    assert_eq!(check(path).problems, Problems::default());
}
