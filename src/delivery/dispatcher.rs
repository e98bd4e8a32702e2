//! The delivery loop: receives commits, asks the lanes for actions, starts attempts.
//!
//! Owns the lanes, the payload cache and every running attempt. It alone accesses the lanes, so
//! they need no lock. It never waits for the outbox, because the outbox may wait for it.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::context::Context;
use crate::context::home::Home;
use crate::context::overdue::Behind;
use crate::context::signal::{LaneAnswer, Signal};
use crate::delivery::attempt::{Assignment, attempt};
use crate::delivery::background::run_task;
use crate::delivery::gauges::update_gauges;
use crate::delivery::intake::Intake;
use crate::delivery::lane_policy::{config, policy};
use crate::delivery::lane_upkeep::{
    PendingWork, disabled_at, expire_all, is_finished, next_to_check, refill, reorder_all, run_until_done,
};
use crate::delivery::payload_cache::Payloads;
use crate::delivery::stalls::StallLog;
use crate::domain::{Endpoint, EndpointNumber, IdMap, Now, Ordering, Position, Record};
use crate::lanes::{Action, Backlog, LanePolicy, Lanes, Promises, SendHold};
use crate::metrics::BackgroundTask;
use crate::outbox::draft::Unavailable;
use crate::outbox::unit::Unit;
use crate::outbox::{Health, Notice, ReadModel};
use crate::projections::counters;
use crate::projections::failing::{Failing, OperatorChange};
use crate::rules::handshake;
use crate::service::system_events::SystemEvents;
use crate::{limits, panics};
use queues::QueueDesk;

/// Interval of timed work: expiry at closed endpoints, due handshakes, gauges.
const TICK_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum number of notices and signals per iteration of the loop.
const INTAKE_MAX: usize = 256;

/// Requested state of the delivery loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Run {
    On,
    /// Start no more attempts; wait for running ones.
    Draining,
    /// Abort running attempts.
    Cut,
}

/// The last known version of an endpoint, to compare a change with.
#[derive(Clone, Copy, Debug)]
struct KnownEndpoint {
    ordering: Ordering,
    change: OperatorChange,
}

impl From<&Endpoint> for KnownEndpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self { ordering: endpoint.ordering, change: endpoint.into() }
    }
}

pub struct Dispatcher {
    context: Context,
    lanes: Lanes,
    payloads: Payloads,
    notices: mpsc::Receiver<Notice>,
    /// The group that the lanes are taking in. Later notices wait for its end.
    intake: Option<Intake>,
    stalls: StallLog,
    signals: mpsc::UnboundedReceiver<Signal>,
    /// Attempts and handshake requests.
    tasks: JoinSet<()>,
    /// Background tasks.
    background: JoinSet<()>,
    health: watch::Receiver<Health>,
    /// Failures since the last success, per failing endpoint.
    failing: IdMap<EndpointNumber, Failing>,
    /// Overdue deliveries that the lanes do not know, for the gauges.
    behind: Behind,
    known: IdMap<EndpointNumber, KnownEndpoint>,
    /// Reordering of endpoints with a changed ordering, and the one that runs after the start.
    reorder_tasks: IdMap<EndpointNumber, AbortHandle>,
    reorder_all_task: Option<AbortHandle>,
    /// Endpoints whose handshake request is due and has not started, the longest due first.
    due_handshakes: Vec<EndpointNumber>,
    /// At most one task of each kind runs, so that an unresponsive outbox gets no duplicates.
    gauges_task: Option<AbortHandle>,
    expiry_task: Option<AbortHandle>,
    /// The closed endpoint that was checked last.
    last_checked: EndpointNumber,
    draining: bool,
    desk: QueueDesk,
    heartbeat: watch::Sender<()>,
}

impl Dispatcher {
    pub(crate) fn new(
        context: Context,
        notices: mpsc::Receiver<Notice>,
        signals: mpsc::UnboundedReceiver<Signal>,
    ) -> Self {
        let lanes = Lanes::new(config(&context));
        let health = context.outbox_of(Home::All).health();
        Self {
            context,
            lanes,
            payloads: Payloads::default(),
            notices,
            intake: None,
            stalls: StallLog::default(),
            signals,
            tasks: JoinSet::new(),
            background: JoinSet::new(),
            health,
            failing: IdMap::default(),
            behind: Behind::default(),
            known: IdMap::default(),
            reorder_tasks: IdMap::default(),
            reorder_all_task: None,
            due_handshakes: Vec::new(),
            gauges_task: None,
            expiry_task: None,
            last_checked: EndpointNumber(0),
            draining: false,
            desk: QueueDesk::default(),
            heartbeat: watch::Sender::new(()),
        }
    }

    /// Changes about once a second while the loop runs, so that a watchdog detects a hang.
    #[must_use]
    pub fn heartbeat(&self) -> watch::Receiver<()> {
        self.heartbeat.subscribe()
    }

    /// Delivers until `run` changes, then waits for running attempts for at most `drain`. Aborted
    /// attempts do not count and are repeated after the next start.
    ///
    /// # Errors
    /// When the outbox failed. The process must end.
    pub async fn run(mut self, run: watch::Receiver<Run>, drain: Duration) -> Result<(), Unavailable> {
        self.start().await?;
        let mut tick = tokio::time::interval(TICK_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Pinned outside the loop: recreating these futures costs more than an iteration.
        let mut stop = run.clone();
        let mut stopped = pin!(async move { drop(stop.wait_for(|run| *run != Run::On).await) });
        let mut health_changed = pin!(changed(self.health.clone()));
        let mut alarm = pin!(tokio::time::sleep(TICK_INTERVAL));
        loop {
            self.perform_actions();
            self.perform_queue_actions();
            let now = self.context.now();
            let wakeups = self.lanes.next_wakeup(now).into_iter().chain(self.desk.lanes.next_wakeup(now));
            if let Some(wakeup) = wakeups.min() {
                let wakeup = Instant::now() + wakeup;
                // An early wakeup is harmless.
                if alarm.is_elapsed() || wakeup < alarm.deadline() {
                    alarm.as_mut().reset(wakeup);
                }
            }
            tokio::select! {
                biased;
                () = &mut stopped => break,
                Some(notice) = self.notices.recv(), if self.intake.is_none() => {
                    self.on_notice(notice, self.context.now());
                }
                Some(signal) = self.signals.recv() => self.on_signal(signal, self.context.now()),
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => log_panic(&ended),
                Some(ended) = self.background.join_next(), if !self.background.is_empty() => log_panic(&ended),
                _ = tick.tick() => self.on_tick(),
                () = &mut alarm, if !alarm.is_elapsed() => {}
                health = &mut health_changed => health_changed.set(changed(health)),
                // Other tasks of the runtime get a turn between two steps.
                () = tokio::task::yield_now(), if self.intake.is_some() => {}
            }
            self.take_in(self.context.now());
            self.receive_queued();
            let health = self.health.borrow().clone();
            if let Health::Failed(reason) = health {
                return Err(Unavailable::Failed(reason));
            }
            let hold = self.hold();
            self.lanes.hold(hold);
            self.desk.lanes.hold(hold);
        }
        self.context.waits().end();
        self.drain(drain, run).await;
        Ok(())
    }

    /// Whether sending is on hold, because an outcome could not be recorded.
    fn is_held(&self) -> bool {
        self.hold() != SendHold::None
    }

    fn hold(&self) -> SendHold {
        if self.draining {
            SendHold::Shutdown
        } else if self.context.outbox_of(Home::All).is_outcome_queue_full()
            || *self.health.borrow() != Health::Good
        {
            SendHold::StoreFull
        } else {
            SendHold::None
        }
    }

    /// Creates the lanes of the existing endpoints.
    async fn start(&mut self) -> Result<(), Unavailable> {
        let endpoints: Vec<_> = self.context.outbox_of(Home::All).endpoints();
        let numbers: Vec<_> = endpoints.iter().map(|endpoint| endpoint.number).collect();
        let queues: Vec<_> =
            endpoints.iter().filter(|one| one.queue().is_some()).map(|one| one.number).collect();
        let held = move |state: &dyn ReadModel| {
            let of_queue = |queue| (queue, state.leases(queue, Position(0), limits::LEASES_MAX));
            queues.into_iter().map(of_queue).collect()
        };
        let mut leases: IdMap<_, Vec<_>> = self.context.outbox_of(Home::All).read(held).await?;
        let known = move |state: &dyn ReadModel| {
            let reserved =
                numbers.into_iter().filter_map(|number| Some((number, state.reservation(number)?)));
            (state.lanes().into_iter().collect(), reserved.collect())
        };
        let (counted, reserved): (IdMap<_, counters::Lane>, IdMap<_, _>) =
            self.context.outbox_of(Home::All).read(known).await?;
        let now = self.context.now();
        let mut backlogs = Vec::new();
        for endpoint in endpoints {
            let counted = counted.get(&endpoint.number).copied().unwrap_or_default();
            let backlog = if counted.pending > 0 { Backlog::OnDisk } else { Backlog::None };
            if backlog == Backlog::OnDisk {
                backlogs.push(endpoint.number);
            }
            if endpoint.queue().is_some() {
                let leases = leases.remove(&endpoint.number).unwrap_or_default();
                self.restore_queue(&endpoint, backlog, leases, now);
                self.known.insert(endpoint.number, endpoint.as_ref().into());
                continue;
            }
            self.lanes.on_endpoint(endpoint.number, self.policy(&endpoint), backlog, now);
            let promises = Promises {
                held_until: counted.hold.map(|(until, _)| until),
                reservation: reserved.get(&endpoint.number).copied(),
            };
            self.lanes.restore(endpoint.number, promises, now);
            self.known.insert(endpoint.number, endpoint.as_ref().into());
            if let Some(failing) = counted.failing {
                self.failing.insert(endpoint.number, failing);
            }
        }
        // The previous process may have ended during a reordering.
        let reorder_all = move |context| reorder_all(context, backlogs.clone());
        self.reorder_all_task = Some(self.spawn_task(BackgroundTask::Reorder, reorder_all));
        let deleted: Vec<_> =
            self.context.outbox_of(Home::All).registry(|registry| registry.deleted_endpoints().collect());
        for endpoint in deleted {
            if counted.get(&endpoint).is_some_and(|lane| lane.pending > 0) {
                self.sweep(endpoint);
            }
        }
        Ok(())
    }

    /// Receives queued notices and signals, so that a burst costs one iteration and one clock read.
    fn receive_queued(&mut self) {
        let now = self.context.now();
        for _ in 0..INTAKE_MAX {
            if self.intake.is_none()
                && let Ok(notice) = self.notices.try_recv()
            {
                self.on_notice(notice, now);
            } else if let Ok(signal) = self.signals.try_recv() {
                self.on_signal(signal, now);
            } else {
                break;
            }
        }
        while let Some(ended) = self.tasks.try_join_next() {
            log_panic(&ended);
        }
    }

    fn policy(&self, endpoint: &Endpoint) -> LanePolicy {
        policy(endpoint, &self.context.settings().defaults)
    }

    fn start_handshakes(&mut self) {
        if self.due_handshakes.is_empty() || self.is_held() {
            return;
        }
        for endpoint in self.lanes.start_handshakes(&mut self.due_handshakes) {
            let request = super::handshake::request_consent(self.context.clone(), endpoint);
            self.tasks.spawn(panics::contained(request));
        }
    }

    fn on_signal(&mut self, signal: Signal, now: Now) {
        match signal {
            Signal::Finished { endpoint, key, outcome, failure } => {
                if let Some(turn) = self.lanes.on_finished(endpoint, key, outcome, now) {
                    self.spawn_task(BackgroundTask::OperatorEvent, move |context: Context| {
                        let failure = failure.clone();
                        async move { SystemEvents(&context).publish_turn(endpoint, turn, failure).await }
                    });
                }
            }
            Signal::Returned { endpoint, key, progress } => {
                self.lanes.on_returned(endpoint, key, progress, now)
            }
            Signal::Postponed { endpoint, key, progress, cause } => {
                self.lanes.on_postponed(endpoint, key, progress, cause, now);
            }
            Signal::Asked { endpoint } => {
                self.lanes.on_handshake_finished(endpoint);
                self.start_handshakes();
            }
            Signal::Refilled { endpoint, entries, exhausted, as_of } if self.desk.lanes.has(endpoint) => {
                self.desk.lanes.with(endpoint, |lane| lane.on_refilled(entries, exhausted, as_of));
            }
            Signal::Refilled { endpoint, entries, exhausted, as_of } => {
                self.lanes.on_refilled(endpoint, entries, exhausted, as_of, now);
            }
            Signal::Explain { endpoint, answer } => {
                let report =
                    self.lanes.explain(endpoint, now).map_or_else(LaneAnswer::default, LaneAnswer::from);
                // The caller may have been dropped.
                let _dropped = answer.send(report).is_err();
            }
            Signal::Behind(behind) => self.behind = behind,
            Signal::Reconfigured => self.reconfigure(now),
            Signal::Queue(signal) => self.on_queue_signal(signal, now),
        }
    }

    fn reconfigure(&mut self, now: Now) {
        self.lanes.reconfigure(config(&self.context));
        let endpoints: Vec<_> = self.context.outbox_of(Home::All).endpoints();
        for endpoint in endpoints {
            if endpoint.queue().is_some() {
                continue;
            }
            let policy = self.policy(&endpoint);
            self.lanes.on_endpoint(endpoint.number, policy, Backlog::None, now);
        }
    }

    /// Performs the lanes' actions until none is left.
    fn perform_actions(&mut self) {
        let now = self.context.now();
        while let Some(action) = self.lanes.next_action(now) {
            match action {
                Action::Send { endpoint, key, progress, shut_since } => {
                    let event = if progress.attempts == 0 { self.payloads.take(key.event) } else { None };
                    let assignment = Assignment { endpoint, key, progress, shut_since, event };
                    self.tasks.spawn(panics::contained(attempt(self.context.clone(), assignment)));
                }
                Action::Reserve { endpoint, reservation } => {
                    let record = Record::RateReserved { endpoint, reservation };
                    self.context.outbox_of(endpoint).record(Unit::of_record(record));
                }
                Action::Refill { endpoint, after, limit } => {
                    self.spawn_task(BackgroundTask::Refill, move |context| {
                        refill(context, endpoint, after, limit)
                    });
                }
            }
        }
    }

    fn spawn_task<F: Future<Output = ()> + Send>(
        &mut self,
        task: BackgroundTask,
        work: impl Fn(Context) -> F + Send + Sync + 'static,
    ) -> AbortHandle {
        let context = self.context.clone();
        self.background.spawn(async move { run_task(&context, task, work).await })
    }

    fn sweep(&mut self, endpoint: EndpointNumber) {
        self.spawn_task(BackgroundTask::Sweep, move |context| {
            run_until_done(context, endpoint, PendingWork::Sweep)
        });
    }

    /// Requeues pending deliveries after an ordering change. Ends a running reordering first.
    fn reorder(&mut self, endpoint: EndpointNumber) {
        let reorder = move |context| run_until_done(context, endpoint, PendingWork::Reorder);
        let task = self.spawn_task(BackgroundTask::Reorder, reorder);
        if let Some(before) = self.reorder_tasks.insert(endpoint, task) {
            before.abort();
        }
    }

    fn on_tick(&mut self) {
        panics::test_point("dispatcher");
        self.heartbeat.send_replace(());
        self.stalls.on_tick(&self.context);
        let now = self.context.now();
        let mut summary = self.lanes.summary(&self.behind.oldest_due, now);
        self.desk.lanes.count_waiting(&mut summary, &self.behind.oldest_due, now);
        self.context.metrics().lanes(&summary);
        self.context.metrics().queues(self.desk.lanes.reports(now), now.wall);
        self.context.metrics().rate_waited(self.lanes.take_rate_waited());
        self.reorder_tasks.retain(|_, task| !task.is_finished());
        if is_finished(self.gauges_task.as_ref()) {
            let behind = self.behind.clone();
            let update = move |context| update_gauges(context, behind.clone());
            self.gauges_task = Some(self.spawn_task(BackgroundTask::Gauges, update));
        }
        let (closed, due) = self.context.outbox_of(Home::All).registry(|registry| {
            let closed = registry.endpoints().filter(|endpoint| disabled_at(endpoint).is_some());
            let due = registry.endpoints().filter_map(|endpoint| {
                let at = handshake::next_request(endpoint).filter(|at| *at <= now.wall)?;
                Some((at, endpoint.number))
            });
            (closed.cloned().collect::<Vec<_>>(), due.collect::<BTreeSet<_>>())
        });
        if !self.is_held() && is_finished(self.expiry_task.as_ref()) {
            let closed = next_to_check(closed, self.last_checked);
            if let Some(last) = closed.last() {
                self.last_checked = last.number;
                let expire = move |context| expire_all(context, closed.clone(), now.wall);
                self.expiry_task = Some(self.spawn_task(BackgroundTask::Expiry, expire));
            }
        }
        self.due_handshakes = due.into_iter().map(|(_, endpoint)| endpoint).collect();
        self.start_handshakes();
    }
}

/// Waits for a change and returns the receiver. Waits forever after the sender is dropped.
async fn changed(mut health: watch::Receiver<Health>) -> watch::Receiver<Health> {
    match health.changed().await {
        Ok(()) => health,
        Err(_) => std::future::pending().await,
    }
}

fn log_panic(ended: &Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "task panicked, its delivery waits for the next start");
    }
}

mod commits;
mod queues;
mod shutdown;
mod takes;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::delivery::attempt::AttemptGuard;
    use crate::domain::{DueKey, Position, Progress, Timestamp};
    use crate::domain::{Tenant, Trigger};
    use crate::limits;

    #[test]
    fn closed_endpoints_are_checked_round_robin() {
        let endpoint = |number| Arc::new(crate::rules::tests::endpoint(number, Tenant::DEFAULT, &[]));
        let most = u32::try_from(limits::CLOSED_ENDPOINTS_CHECKED_MAX).unwrap();
        let closed: Vec<_> = (1..=2 * most + 3).rev().map(endpoint).collect();
        let (mut last, mut checked) = (EndpointNumber(0), Vec::new());
        for _ in 0..3 {
            let next = next_to_check(closed.clone(), last);
            assert_eq!(next.len(), limits::CLOSED_ENDPOINTS_CHECKED_MAX);
            last = next.last().unwrap().number;
            checked.extend(next.iter().map(|endpoint| endpoint.number.0));
        }
        let expected: Vec<_> = (1..=2 * most + 3).chain(1..=most - 3).collect();
        assert_eq!(checked, expected, "in order, then from the first again");
        // The endpoint that was checked last is open again.
        assert_eq!(next_to_check(vec![endpoint(1), endpoint(9)], EndpointNumber(4))[0].number.0, 9);
        assert!(next_to_check(Vec::new(), last).is_empty());
    }

    #[tokio::test]
    async fn panicked_attempt_signals_its_end() {
        let (context, mut dispatcher, _directory) = crate::service::tests::context();
        let panicking = tokio::spawn(async move {
            let at = Timestamp::from_millis(1);
            let key = DueKey { due: at, event: Position(1) };
            let progress = Progress::begin(0, at, Trigger::Publish);
            let endpoint = EndpointNumber(7);
            let assignment = Assignment { endpoint, key, progress, shut_since: None, event: None };
            let _guard = AttemptGuard { context: &context, assignment: &assignment };
            panic!("on purpose");
        });
        assert!(panicking.await.unwrap_err().is_panic());
        let signal = dispatcher.signals.try_recv();
        assert!(matches!(signal, Ok(Signal::Finished { endpoint: EndpointNumber(7), .. })), "{signal:?}");
    }
}
