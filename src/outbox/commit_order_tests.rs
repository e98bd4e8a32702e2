//! Tests of the notification order after a commit: the state, the dispatcher, the callers.

use std::sync::Mutex;
use std::task::{Context, Poll, Wake, Waker};

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc as async_mpsc, oneshot};

use super::*;
use crate::domain::{DeliveryKey, EndpointNumber, Idempotency, KeyId, Position, Record, Tenant, Trigger};
use crate::failpoints::{self, Bound, Mutation, TestOverrides, fails_with};
use crate::outbox::UnstartedOutbox;
use crate::outbox::commit_queue::AdmissionLimits;
use crate::outbox::commit_thread::STATE_LAG_MAX;
use crate::outbox::decide::CommitEnvironment;
use crate::outbox::draft::EventDraft;
use crate::outbox::recent_keys::Prepared;
use crate::outbox::unit::{Command, Outcome, UnitAnswer, UnitReply};
use crate::outbox::{Health, Outbox};
use crate::storage::disk::{Fault, MemoryDisk, Operation};
use crate::storage::journal::{Journal, JournalOptions};
use crate::storage::state::row_store::RowStore;
use crate::storage::state::row_store::memory::{MemoryRows, PowerState};

struct Clock;

impl CommitEnvironment for Clock {
    fn now(&mut self) -> Timestamp {
        Timestamp::from_millis(3_000_000_000_000)
    }

    fn random(&mut self) -> u128 {
        7
    }
}

/// Runs a closure when a channel wakes its receiver.
struct WakeObserver<F>(Mutex<F>);

impl<F: FnMut() + Send> Wake for WakeObserver<F> {
    fn wake(self: Arc<Self>) {
        self.0.lock().unwrap()();
    }
}

fn observer(look: impl FnMut() + Send + 'static) -> Waker {
    Arc::new(WakeObserver(Mutex::new(look))).into()
}

/// An outbox whose threads run step by step. The first `missing` positions of its journal are lost.
fn assembled(disk: &MemoryDisk, missing: u64) -> UnstartedOutbox {
    let (mut journal, _) = Journal::open(Arc::new(disk.clone()), JournalOptions::new(1)).unwrap();
    if missing > 0 {
        journal.skip_lost_positions(Position(missing)).unwrap();
    }
    let rows = RowStore::Memory(MemoryRows::new(Arc::new(|| PowerState::On)));
    let state = State::with_rows(rows, journal.reader().last_position()).unwrap();
    let admission = AdmissionLimits { bytes: 1 << 20, commands: 1_000 };
    let assembled = Outbox::assemble(journal, state, admission, Box::new(Clock), Arc::new(|_, _| ()), None);
    UnstartedOutbox { writer: assembled.writer.without_pauses(), ..assembled }
}

fn unit(command: Command, reply: Option<UnitReply>) -> Unit {
    Unit { commands: vec![command], prepared: Prepared::default(), reply }
}

fn record(number: u64) -> Command {
    let id: KeyId = format!("key_{number}").parse().unwrap();
    Command::Record(Record::KeyDeleted { id, at: Timestamp::from_millis(number) })
}

/// Polls once, so that the next message wakes the observer.
fn watch_notices(notices: &mut async_mpsc::Receiver<Notice>, waker: &Waker) {
    assert!(notices.poll_recv(&mut Context::from_waker(waker)).is_pending());
}

fn watch_answer(answer: &mut oneshot::Receiver<UnitAnswer>, waker: &Waker) {
    assert!(std::pin::Pin::new(answer).poll(&mut Context::from_waker(waker)).is_pending());
}

type Story = Arc<Mutex<Vec<&'static str>>>;

fn add(story: &Story, what: &'static str) {
    story.lock().unwrap().push(what);
}

#[test]
fn writer_notifies_state_then_lanes_then_callers() {
    let UnstartedOutbox { mut writer, state, mut notices, .. } = assembled(&MemoryDisk::new(), 0);
    let ApplyThread { messages, .. } = state;
    let story = Story::default();
    let seen = story.clone();
    let lanes = observer(move || match messages.try_recv() {
        Ok(StateMessage::Committed(group)) if group.records.len() == 1 => add(&seen, "state, then lanes"),
        _ => add(&seen, "lanes without the state"),
    });
    watch_notices(&mut notices, &lanes);
    let (reply, mut answer) = oneshot::channel();
    let seen = story.clone();
    watch_answer(&mut answer, &observer(move || add(&seen, "caller")));
    writer.queue.push(unit(record(1), Some(reply))).unwrap();

    assert!(writer.turn_by_hand());

    assert_eq!(*story.lock().unwrap(), ["state, then lanes", "caller"]);
    assert!(matches!(notices.try_recv(), Ok(Notice::Committed(_))));
    assert!(answer.try_recv().unwrap().is_ok());
}

#[test]
fn writer_reports_health_before_it_rejects() {
    for (errno, expected) in [(Fault::ENOSPC, "full"), (Fault::EIO, "failed")] {
        let disk = MemoryDisk::new();
        let UnstartedOutbox { outbox, mut writer, state, .. } = assembled(&disk, 0);
        let (reply, mut answer) = oneshot::channel();
        let (story, health) = (Story::default(), outbox.health());
        let seen = story.clone();
        let caller = observer(move || match &*health.borrow() {
            Health::Good => add(&seen, "good"),
            Health::DiskFull => add(&seen, "full"),
            Health::Failed(_) => add(&seen, "failed"),
        });
        watch_answer(&mut answer, &caller);
        disk.inject(Fault::once(Operation::Write, errno));
        writer.queue.push(unit(record(1), Some(reply))).unwrap();
        assert_eq!(writer.turn_by_hand(), errno == Fault::ENOSPC);
        assert_eq!(*story.lock().unwrap(), [expected]);
        assert!(answer.try_recv().unwrap().is_err());
        assert!(state.messages.try_recv().is_err(), "the state got an undurable group");
    }
}

/// The wait ends when the state catches up, the queue closes or the outbox fails.
#[test]
fn writer_waits_for_a_lagging_state() {
    let ends: [fn(&ThreadLinks, &CommitQueue); 3] = [
        |links, _| links.applied.store(STATE_LAG_MAX + 1, Ordering::Relaxed),
        |_, queue| queue.close(),
        |links, _| links.health.fail("simulated failure"),
    ];
    for end in ends {
        let UnstartedOutbox { writer, .. } = assembled(&MemoryDisk::new(), 2 * STATE_LAG_MAX + 1);
        let (links, queue) = (writer.links.clone(), writer.queue.clone());
        links.applied.store(STATE_LAG_MAX, Ordering::Relaxed);
        let (done, is_done) = mpsc::channel();
        let waiting = std::thread::spawn(move || {
            writer.wait_for_apply();
            done.send(()).unwrap();
        });
        // The thread may not have started yet. The test can then miss a missing wait, but cannot
        // fail wrongly.
        assert!(is_done.recv_timeout(Duration::from_millis(20)).is_err(), "the writer does not wait");
        end(&links, &queue);
        assert!(is_done.recv_timeout(Duration::from_secs(60)).is_ok(), "the writer waits forever");
        waiting.join().unwrap();
    }
}

#[test]
fn state_applies_a_group_before_it_notifies_lanes() {
    let UnstartedOutbox { outbox, mut writer, mut state, mut notices } = assembled(&MemoryDisk::new(), 0);
    let endpoint = crate::rules::tests::endpoint(0, Tenant::DEFAULT, &[]);
    let draft = EventDraft::new(endpoint.tenant.clone(), "order.paid".parse().unwrap(), "{}".into());
    let delivery = DeliveryKey { event: Position(2), endpoint: EndpointNumber(1) };
    let at = Timestamp::from_millis(3_000_000_000_000);
    let commands = [
        Command::PutEndpoint(Box::new(endpoint)),
        Command::Publish(Box::new(draft)),
        Command::Record(Record::DeliveriesCancelled { deliveries: vec![delivery], at }),
        Command::Record(Record::DeliveriesRevived {
            deliveries: vec![delivery],
            trigger: Trigger::Manual,
            at,
        }),
    ];
    let story = Arc::new(Mutex::new(Vec::new()));
    for command in commands {
        writer.queue.push(unit(command, None)).unwrap();
        assert!(writer.turn_by_hand());
        while notices.try_recv().is_ok() {}
        let (seen, asked) = (story.clone(), outbox.clone());
        let lanes = observer(move || seen.lock().unwrap().push(asked.lag()));
        watch_notices(&mut notices, &lanes);
        assert_eq!(outbox.lag(), 1);
        assert!(state.turn_by_hand());
        assert_eq!(outbox.lag(), 0);
        while notices.try_recv().is_ok() {}
        // The next message comes from the writer, not from the state.
        watch_notices(&mut notices, Waker::noop());
    }
    let story = story.lock().unwrap();
    assert!(story.len() >= 2 && story.iter().all(|lag| *lag == 0), "lag at notification: {story:?}");
}

/// Runs the threads until the commit has its answer. Returns the version that it appended.
fn append(
    outbox: &Outbox,
    writer: &mut CommitThread,
    mut state: Option<&mut ApplyThread>,
    stream: &str,
) -> Option<u64> {
    let mut draft = EventDraft::new(Tenant::DEFAULT.parse().unwrap(), "a.b".parse().unwrap(), "{}".into());
    draft.stream = Some(stream.parse().unwrap());
    let mut commit = std::pin::pin!(outbox.commit(vec![Command::Publish(Box::new(draft))]));
    for _ in 0..10 {
        if let Poll::Ready(outcomes) = commit.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            let Ok([Outcome::Accepted(accepted)]) = outcomes.as_deref() else { panic!("{outcomes:?}") };
            return accepted.event.stream.as_ref().map(|(_, version)| *version);
        }
        assert!(writer.turn_by_hand());
        if let Some(state) = &mut state {
            while state.turn_by_hand() {}
        }
    }
    None
}

#[test]
fn append_to_a_recent_stream_does_not_ask_the_state() {
    let UnstartedOutbox { outbox, mut writer, mut state, notices: _notices } =
        assembled(&MemoryDisk::new(), 0);
    assert_eq!(append(&outbox, &mut writer, None, "cart-1"), None, "the state knows the stream");
    assert_eq!(append(&outbox, &mut writer, Some(&mut state), "cart-1"), Some(1));
    assert_eq!(append(&outbox, &mut writer, None, "cart-1"), Some(2));
    assert_eq!(append(&outbox, &mut writer, None, "cart-1"), Some(3));
    assert_eq!(append(&outbox, &mut writer, None, "cart-2"), None);
}

#[test]
fn stream_that_is_not_recent_any_more_is_read_from_the_state() {
    TestOverrides { bounds: [(Bound::RecentEntries, 1)].into(), mutation: None }.activate();
    let UnstartedOutbox { outbox, mut writer, mut state, notices: _notices } =
        assembled(&MemoryDisk::new(), 0);
    for (stream, version) in [("cart-1", 1), ("cart-2", 1), ("cart-1", 2), ("cart-1", 3), ("cart-2", 2)] {
        assert_eq!(append(&outbox, &mut writer, Some(&mut state), stream), Some(version));
    }
}

/// The key is evicted first, although the stream's event precedes it.
#[test]
fn stream_that_is_older_than_an_evicted_key_is_current() {
    TestOverrides { bounds: [(Bound::RecentEntries, 1)].into(), mutation: None }.activate();
    let UnstartedOutbox { outbox, mut writer, mut state, notices: _notices } =
        assembled(&MemoryDisk::new(), 0);
    let draft = || EventDraft::new(Tenant::DEFAULT.parse().unwrap(), "a.b".parse().unwrap(), "{}".into());
    let in_stream = EventDraft { stream: Some("cart-1".parse().unwrap()), ..draft() };
    let key = Idempotency { scope: [1; 16], fingerprint: [1; 16], expires_at: None };
    let with_key = EventDraft { idempotency: Some(key), ..draft() };
    let commands = [in_stream, with_key].map(|draft| Command::Publish(Box::new(draft))).into();
    writer.queue.push(Unit { commands, prepared: Prepared::default(), reply: None }).unwrap();
    assert!(writer.turn_by_hand() && state.turn_by_hand());
    assert_eq!(append(&outbox, &mut writer, Some(&mut state), "cart-1"), Some(2));
}

/// A small bound on the deliveries of a step, so that an event with three endpoints is large.
fn one_delivery_per_step() {
    let bounds = [(Bound::ApplyStepTargets, 1), (Bound::PartCheckpointRows, 1)].into();
    let mutation = Some(Mutation::OvertakeOwn).filter(|planted| failpoints::is_active(*planted));
    TestOverrides { bounds, mutation }.activate();
}

fn publish(tenant: &str, event_type: &str) -> Command {
    let tenant = tenant.parse().unwrap();
    Command::Publish(Box::new(EventDraft::new(tenant, event_type.parse().unwrap(), "{}".into())))
}

#[test]
fn questions_of_others_are_answered_between_steps() {
    one_delivery_per_step();
    let UnstartedOutbox { outbox, mut writer, mut state, mut notices } = assembled(&MemoryDisk::new(), 0);
    let mut commit = |command| {
        writer.queue.push(unit(command, None)).unwrap();
        assert!(writer.turn_by_hand());
    };
    for tenant in ["evil", "evil", "evil", "good"] {
        commit(Command::PutEndpoint(Box::new(crate::rules::tests::endpoint(0, tenant, &[]))));
        assert!(state.turn_by_hand());
    }
    commit(publish("evil", "a.b"));
    let story = Arc::new(Mutex::new(Vec::new()));
    let ask = |who: &'static str, needs: Position| {
        let story = story.clone();
        let question = move |state: &State| story.lock().unwrap().push((who, state.applied().0));
        outbox.inner.state.send(StateMessage::Read { needs, question: Box::new(question) }).unwrap();
    };
    let needed = |tenant: &str| outbox.inner.freshness.needed(&tenant.parse().unwrap());
    ask("evil", needed("evil"));
    ask("all", IN_ORDER);
    ask("writer", AT_ONCE);
    ask("good", needed("good"));
    while state.turn_by_hand() {}
    assert_eq!(*story.lock().unwrap(), [("writer", 4), ("good", 4), ("evil", 5), ("all", 5)]);
    assert_eq!(needed("good"), IN_ORDER, "nothing is left to apply");
    while notices.try_recv().is_ok() {}
    // A tenant's question also waits for its own record, which overtakes the large event.
    commit(publish("evil", "a.b"));
    commit(publish("good", "a.b"));
    ask("evil", needed("evil"));
    ask("good", needed("good"));
    while state.turn_by_hand() {}
    assert_eq!(story.lock().unwrap()[4..], [("good", 5), ("evil", 6)]);
    TestOverrides::default().activate();
}

fn records_overtake_a_large_event() {
    one_delivery_per_step();
    let UnstartedOutbox { outbox, mut writer, mut state, notices } = assembled(&MemoryDisk::new(), 0);
    drop(notices);
    let commit = |writer: &mut CommitThread, command| {
        writer.queue.push(unit(command, None)).unwrap();
        assert!(writer.turn_by_hand());
    };
    for tenant in ["evil", "evil", "evil", "evil", "good"] {
        commit(&mut writer, Command::PutEndpoint(Box::new(crate::rules::tests::endpoint(0, tenant, &[]))));
        assert!(state.turn_by_hand());
    }
    let cancelled = |event, endpoint| {
        let delivery = DeliveryKey { event: Position(event), endpoint: EndpointNumber(endpoint) };
        let at = Timestamp::from_millis(3_000_000_000_000);
        Command::Record(Record::DeliveriesCancelled { deliveries: vec![delivery], at })
    };
    let seen = Arc::new(Mutex::new(Vec::new()));
    commit(&mut writer, publish("evil", "a.b"));
    for command in [
        cancelled(6, 4),
        publish("good", "a.b"),
        cancelled(8, 5),
        publish("evil", "a.b"),
        publish("good", "a.b"),
    ] {
        commit(&mut writer, command);
        let seen = seen.clone();
        let note = move |state: &State| {
            let early = state.early().whole.iter().chain(&state.early().begun);
            let early: Vec<_> = early.map(|position| position.0).collect();
            let pending = |number| ReadModel::lane(state, EndpointNumber(number)).pending;
            seen.lock().unwrap().push((state.applied().0, early, pending(4), pending(5)));
        };
        let needs = if outbox.journal().last_position() == Position(11) { Position(11) } else { AT_ONCE };
        outbox.inner.state.send(StateMessage::Read { needs, question: Box::new(note) }).unwrap();
    }
    while state.turn_by_hand() {}
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0], (5, vec![8], 0, 1), "each step lets one delivery overtake");
    assert_eq!(seen[4], (9, vec![11], 0, 1), "the last event overtakes the second large one");
    let pending =
        [1, 2, 3, 4, 5].map(|number| ReadModel::lane(state.state(), EndpointNumber(number)).pending);
    assert_eq!((state.state().applied(), pending), (Position(11), [2, 2, 2, 1, 1]));
    assert!(state.state().early().is_empty());
    TestOverrides::default().activate();
}

#[test]
fn records_overtake_a_large_event_unless_they_depend_on_it() {
    records_overtake_a_large_event();
    fails_with(Mutation::OvertakeOwn, records_overtake_a_large_event);
}

/// Applies a story of waiting and overtaking records; `is_late`: only after all are committed.
fn state_after_changes_of_an_older_event(is_late: bool) -> ApplyThread {
    one_delivery_per_step();
    let UnstartedOutbox { mut writer, mut state, notices, .. } = assembled(&MemoryDisk::new(), 0);
    drop(notices);
    let mut commit = |state: &mut ApplyThread, command, is_late: bool| {
        writer.queue.push(unit(command, None)).unwrap();
        assert!(writer.turn_by_hand());
        assert!(is_late || state.turn_by_hand());
    };
    // Event 24 has 20 endpoints, whose states share a row. Event 25 has the first one and 3 others.
    for number in 1..=23 {
        let types = [(number <= 20).then_some("old"), (number == 1 || number > 20).then_some("large")];
        let types: Vec<_> = types.into_iter().flatten().map(str::to_owned).collect();
        let endpoint = crate::rules::tests::endpoint(0, Tenant::DEFAULT, &types);
        commit(&mut state, Command::PutEndpoint(Box::new(endpoint)), false);
    }
    commit(&mut state, publish(Tenant::DEFAULT, "old"), false);
    commit(&mut state, publish(Tenant::DEFAULT, "large"), is_late);
    let at = Timestamp::from_millis(3_000_000_000_000);
    let delivery = |endpoint| DeliveryKey { event: Position(24), endpoint: EndpointNumber(endpoint) };
    let cancelled = |endpoint| Record::DeliveriesCancelled { deliveries: vec![delivery(endpoint)], at };
    let tenant = Tenant::DEFAULT.parse().unwrap();
    let erased = Record::EventErased { event: Position(24), tenant, at, reason: "".into() };
    let revived = Record::DeliveriesRevived { deliveries: vec![delivery(22)], trigger: Trigger::Replay, at };
    // The first one waits for event 25.
    for record in [cancelled(1), cancelled(2), cancelled(3), erased, revived] {
        commit(&mut state, Command::Record(record), is_late);
    }
    while state.turn_by_hand() {}
    TestOverrides::default().activate();
    state
}

#[test]
fn late_records_of_an_older_event_give_the_same_rows() {
    let in_order = state_after_changes_of_an_older_event(false);
    let late = state_after_changes_of_an_older_event(true);
    assert_eq!(late.state().applied(), Position(30));
    let mut differences = Vec::new();
    let differs = &mut |text| differences.push(text);
    assert!(late.state().audit(in_order.state(), false, differs, &mut |_| ()) > 0);
    assert_eq!(differences, Vec::<String>::new());
}

#[tokio::test]
async fn writer_matches_again_if_an_endpoint_changed() {
    let UnstartedOutbox { outbox, mut writer, mut state, .. } = assembled(&MemoryDisk::new(), 0);
    let endpoint = || crate::rules::tests::endpoint(0, Tenant::DEFAULT, &["a.#".to_owned()]);
    writer.queue.push(unit(Command::PutEndpoint(Box::new(endpoint())), None)).unwrap();
    assert!(writer.turn_by_hand() && state.turn_by_hand());
    let mut commands = vec![publish(Tenant::DEFAULT, "a.b"), publish(Tenant::DEFAULT, "a.b"), record(1)];
    let permit = outbox.match_and_admit(&mut commands).await.unwrap();
    assert!(permit.is_some());
    let matched = |command: &Command| command.draft().unwrap().matched.clone().unwrap().targets.len();
    assert_eq!((matched(&commands[0]), matched(&commands[1])), (1, 1));
    // Another endpoint is created in between.
    writer.queue.push(unit(Command::PutEndpoint(Box::new(endpoint())), None)).unwrap();
    assert!(writer.turn_by_hand());
    let (reply, mut answer) = oneshot::channel();
    let prepared = Prepared { permit, ..Prepared::default() };
    writer.queue.push(Unit { commands, prepared, reply: Some(reply) }).unwrap();
    assert!(writer.turn_by_hand());
    let outcomes = answer.try_recv().unwrap().unwrap();
    let Outcome::Accepted(accepted) = &outcomes[0] else { panic!("{outcomes:?}") };
    assert_eq!(accepted.event.targets, [EndpointNumber(1), EndpointNumber(2)]);
}
