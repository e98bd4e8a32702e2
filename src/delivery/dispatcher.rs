//! The delivery loop: hears what was committed, asks the lanes who sends next, starts attempts.
//!
//! Owns the lanes, the payloads and every running attempt. Being the only one who touches the lanes it needs no lock.
//! It never waits for the store, so that the store may wait for it.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::context::Context;
use crate::context::overdue::Behind;
use crate::context::signal::{LaneAnswer, Signal};
use crate::delivery::attempt::{Assignment, attempt};
use crate::delivery::background::see_to;
use crate::delivery::gauges::measure;
use crate::delivery::jobs::{
    Chore, disabled_at, expire_all, in_turn, is_over, refill, reorder_all, see_through,
};
use crate::delivery::lane_policy::{config, policy};
use crate::delivery::payload_cache::Payloads;
use crate::domain::{Attempt, DisabledReason, Endpoint, EndpointNumber, Now, Ordering, Record};
use crate::failpoints::Bound;
use crate::lanes::{Action, Backlog, LanePolicy, Lanes, Promises};
use crate::metrics::BackgroundJob;
use crate::outbox::decide::CommittedGroup;
use crate::outbox::draft::Unavailable;
use crate::outbox::unit::Unit;
use crate::outbox::{Health, Notice, ReadModel};
use crate::projections::failing::{Failing, OperatorChange};
use crate::projections::{LaneChange, counters};
use crate::rules::{handshake, health};
use crate::service::endpoints::Endpoints;
use crate::service::system_events::SystemEvents;
use crate::{failpoints, limits, panics};

/// Between two looks at what nobody else triggers: expiry at closed endpoints, handshakes that are due, gauges.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);

/// Notices and signals that are taken in before the lanes are asked again.
const INTAKE_MAX: usize = 256;

/// What the delivery loop is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Run {
    On,
    /// Start nothing more; let running attempts end.
    Draining,
    /// Let nothing end.
    Cut,
}

/// What the dispatcher compares a changed endpoint with.
#[derive(Clone, Copy, Debug)]
struct HeardEndpoint {
    ordering: Ordering,
    change: OperatorChange,
}

impl From<&Endpoint> for HeardEndpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self { ordering: endpoint.ordering, change: endpoint.into() }
    }
}

pub struct Dispatcher {
    context: Context,
    lanes: Lanes,
    payloads: Payloads,
    notices: mpsc::Receiver<Notice>,
    signals: mpsc::UnboundedReceiver<Signal>,
    tasks: JoinSet<()>,
    health: watch::Receiver<Health>,
    /// The failures of each endpoint that has had no success since.
    failing: HashMap<EndpointNumber, Failing>,
    /// For the gauges: what lanes do not know.
    behind: Behind,
    /// What was last heard of each endpoint.
    known: HashMap<EndpointNumber, HeardEndpoint>,
    /// Who puts what is pending into the order of its endpoint: of those that changed theirs, and of all since the start.
    reordering: HashMap<EndpointNumber, AbortHandle>,
    reordering_all: Option<AbortHandle>,
    /// Those that are being asked for consent; at most [`limits::HANDSHAKES_MAX`].
    asking: HashSet<EndpointNumber>,
    /// Who asks the store for the gauges, and who gives up what waits in vain. One at a time of each: while the store
    /// hangs no second one joins the first, and what was submitted once is not submitted again.
    measuring: Option<AbortHandle>,
    expiring: Option<AbortHandle>,
    /// The closed endpoint that was last looked at.
    looked_at: EndpointNumber,
    draining: bool,
    heartbeat: watch::Sender<()>,
}

impl Dispatcher {
    pub(crate) fn new(
        context: Context,
        notices: mpsc::Receiver<Notice>,
        signals: mpsc::UnboundedReceiver<Signal>,
    ) -> Self {
        let lanes = Lanes::new(config(&context));
        let health = context.outbox().health();
        Self {
            context,
            lanes,
            payloads: Payloads::default(),
            notices,
            signals,
            tasks: JoinSet::new(),
            health,
            failing: HashMap::new(),
            behind: Behind::default(),
            known: HashMap::new(),
            reordering: HashMap::new(),
            reordering_all: None,
            asking: HashSet::new(),
            measuring: None,
            expiring: None,
            looked_at: EndpointNumber(0),
            draining: false,
            heartbeat: watch::Sender::new(()),
        }
    }

    /// Changes about once a second for as long as the loop turns: a watchdog that sees nothing knows that it hangs.
    #[must_use]
    pub fn heartbeat(&self) -> watch::Receiver<()> {
        self.heartbeat.subscribe()
    }

    /// Delivers until it is told to stop, then waits for running attempts, at most `drain` long. Attempts that are cut
    /// off are not charged: they will be made again.
    ///
    /// # Errors
    /// When the store failed: the process has to end.
    pub async fn run(mut self, told: watch::Receiver<Run>, drain: Duration) -> Result<(), Unavailable> {
        self.start().await?;
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING_INTERVAL);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // What is seldom ready stays in place over all turns: to make it anew each time costs more than the turn.
        let mut until = told.clone();
        let mut stopped = pin!(async move { drop(until.wait_for(|run| *run != Run::On).await) });
        let mut sick = pin!(changed(self.health.clone()));
        let mut alarm = pin!(tokio::time::sleep(HOUSEKEEPING_INTERVAL));
        loop {
            self.pump();
            if let Some(wakeup) = self.lanes.next_wakeup(self.context.now()) {
                let wakeup = Instant::now() + wakeup;
                // One that comes too early does no harm.
                if alarm.is_elapsed() || wakeup < alarm.deadline() {
                    alarm.as_mut().reset(wakeup);
                }
            }
            tokio::select! {
                biased;
                () = &mut stopped => break,
                Some(notice) = self.notices.recv() => self.on_notice(notice, self.context.now()),
                Some(signal) = self.signals.recv() => self.on_signal(signal, self.context.now()),
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => note_panic(&ended),
                _ = housekeeping.tick() => self.keep_house(),
                () = &mut alarm, if !alarm.is_elapsed() => {}
                health = &mut sick => sick.set(changed(health)),
            }
            self.take_in();
            let health = self.health.borrow().clone();
            if let Health::Failed(reason) = health {
                return Err(Unavailable::Failed(reason));
            }
            self.lanes.hold(self.is_held());
        }
        self.drain(drain, told).await;
        Ok(())
    }

    /// Nothing is sent that could not be recorded.
    fn is_held(&self) -> bool {
        self.draining
            || self.context.outbox().is_outcome_queue_full()
            || *self.health.borrow() != Health::Good
    }

    /// Lanes for the endpoints that are known from before.
    async fn start(&mut self) -> Result<(), Unavailable> {
        let endpoints: Vec<_> = self.context.outbox().endpoints();
        let numbers: Vec<_> = endpoints.iter().map(|endpoint| endpoint.number).collect();
        let known = move |state: &dyn ReadModel| {
            let reserved =
                numbers.into_iter().filter_map(|number| Some((number, state.reservation(number)?)));
            (state.lanes().into_iter().collect(), reserved.collect())
        };
        let (counted, reserved): (HashMap<_, counters::Lane>, HashMap<_, _>) =
            self.context.outbox().read(known).await?;
        let now = self.context.now();
        let mut backlogs = Vec::new();
        for endpoint in endpoints {
            let counted = counted.get(&endpoint.number).copied().unwrap_or_default();
            let backlog = if counted.pending > 0 { Backlog::OnDisk } else { Backlog::None };
            self.lanes.on_endpoint(endpoint.number, self.policy(&endpoint), backlog, now);
            let promises = Promises {
                held_until: counted.hold.map(|(until, _)| until),
                reservation: reserved.get(&endpoint.number).copied(),
            };
            self.lanes.restore(endpoint.number, promises, now);
            self.known.insert(endpoint.number, endpoint.as_ref().into());
            if backlog == Backlog::OnDisk {
                backlogs.push(endpoint.number);
            }
            if let Some(failing) = counted.failing {
                self.failing.insert(endpoint.number, failing);
            }
        }
        // Whoever changed an ordering may have been cut short by the end of the last life.
        let reorder_all = move |context| reorder_all(context, backlogs.clone());
        self.reordering_all = Some(self.begin(BackgroundJob::Reorder, reorder_all));
        let deleted: Vec<_> =
            self.context.outbox().registry(|registry| registry.deleted_endpoints().collect());
        for endpoint in deleted {
            if counted.get(&endpoint).is_some_and(|lane| lane.pending > 0) {
                self.sweep(endpoint);
            }
        }
        Ok(())
    }

    /// Takes in what else has arrived, so that a burst costs one round of questions, and one look at the clock.
    fn take_in(&mut self) {
        let now = self.context.now();
        for _ in 0..INTAKE_MAX {
            if let Ok(notice) = self.notices.try_recv() {
                self.on_notice(notice, now);
            } else if let Ok(signal) = self.signals.try_recv() {
                self.on_signal(signal, now);
            } else {
                break;
            }
        }
        while let Some(ended) = self.tasks.try_join_next() {
            note_panic(&ended);
        }
    }

    fn on_notice(&mut self, notice: Notice, now: Now) {
        match notice {
            Notice::Committed(committed) => self.on_committed(&committed, now),
            Notice::Lanes(changes) => {
                for change in changes {
                    self.on_change(change, now);
                }
            }
        }
    }

    fn on_committed(&mut self, committed: &CommittedGroup, now: Now) {
        for (position, record) in &committed.records {
            match record {
                Record::EventAccepted(event) => self.payloads.insert(*position, event),
                Record::EndpointPut(endpoint) => self.on_endpoint(endpoint, now),
                Record::EndpointDeleted { endpoint, .. } => {
                    self.lanes.on_endpoint_removed(*endpoint);
                    self.failing.remove(endpoint);
                    self.known.remove(endpoint);
                    self.sweep(*endpoint);
                }
                Record::AttemptFinished { delivery, attempt, .. } => {
                    self.on_health(delivery.endpoint, attempt);
                }
                Record::RateReserved { endpoint, reservation } => {
                    self.lanes.on_reserved(*endpoint, reservation, now);
                }
                Record::KeyPut(_)
                | Record::KeyDeleted { .. }
                | Record::DeliveriesRevived { .. }
                | Record::DeliveriesCancelled { .. }
                | Record::DeliveriesDied { .. }
                | Record::DeadLettersPurged { .. }
                | Record::DeliveriesReordered { .. }
                | Record::RequestAnswered { .. }
                | Record::EventRejected { .. } => {}
            }
        }
        for change in &committed.announced {
            self.on_change(*change, now);
        }
    }

    fn on_endpoint(&mut self, endpoint: &Endpoint, now: Now) {
        let before = self.known.insert(endpoint.number, endpoint.into());
        if Failing::ends_with(endpoint, before.map(|before| before.change)) {
            self.failing.remove(&endpoint.number);
        }
        let policy = self.policy(endpoint);
        self.lanes.on_endpoint(endpoint.number, policy, Backlog::None, now);
        if before.is_some_and(|before| before.ordering != endpoint.ordering) {
            self.reorder(endpoint.number);
        }
        if handshake::next_request(endpoint).is_some_and(|at| at <= now.wall) {
            self.ask(endpoint.number);
        }
    }

    fn policy(&self, endpoint: &Endpoint) -> LanePolicy {
        policy(endpoint, &self.context.settings().defaults)
    }

    fn ask(&mut self, endpoint: EndpointNumber) {
        let room = self.asking.len() < failpoints::bound(Bound::Handshakes, limits::HANDSHAKES_MAX);
        if room && !self.is_held() && self.asking.insert(endpoint) {
            self.tasks.spawn(panics::contained(super::handshake::ask(self.context.clone(), endpoint)));
        }
    }

    fn on_change(&mut self, change: LaneChange, now: Now) {
        match change {
            LaneChange::Due { endpoint, key, progress, at } => {
                self.lanes.on_due(endpoint, key, progress, at, now)
            }
            LaneChange::Settled { endpoint, key, at } => self.lanes.on_settled(endpoint, key, at, now),
            LaneChange::Recorded { endpoint, key } => self.lanes.on_recorded(endpoint, key, now),
        }
    }

    /// An endpoint that has failed without one success for too long is disabled.
    fn on_health(&mut self, endpoint: EndpointNumber, attempt: &Attempt) {
        let known = self.failing.remove(&endpoint);
        // Of the endpoint as this loop has heard of it: the directory may be ahead.
        let Some(revision) = self.lanes.revision(endpoint).filter(|_| attempt.error.is_some()) else {
            return;
        };
        let failing = Failing::after(known, attempt);
        self.failing.insert(endpoint, failing);
        if health::should_disable(&failing, self.context.settings().disable_after) {
            self.begin(BackgroundJob::Disabling, move |context: Context| async move {
                // A change of it, a resume for instance, begins its time anew.
                Endpoints(&context)
                    .disable(endpoint, DisabledReason::Failing, |now| now.revision == revision)
                    .await;
            });
        }
    }

    fn on_signal(&mut self, signal: Signal, now: Now) {
        match signal {
            Signal::Finished { endpoint, key, outcome } => {
                if let Some(turn) = self.lanes.on_finished(endpoint, key, outcome, now) {
                    self.begin(BackgroundJob::OperatorEvent, move |context: Context| async move {
                        SystemEvents(&context).tell_turn(endpoint, turn).await;
                    });
                }
            }
            Signal::Returned { endpoint, key, progress } => {
                self.lanes.on_returned(endpoint, key, progress, now)
            }
            Signal::Asked { endpoint } => {
                self.asking.remove(&endpoint);
            }
            Signal::Refilled { endpoint, entries, exhausted, as_of } => {
                self.lanes.on_refilled(endpoint, entries, exhausted, as_of, now);
            }
            Signal::Explain { endpoint, answer } => {
                let report =
                    self.lanes.explain(endpoint, now).map_or_else(LaneAnswer::default, LaneAnswer::from);
                // The asker may have gone.
                let _gone = answer.send(report).is_err();
            }
            Signal::Behind(behind) => self.behind = behind,
            Signal::Reconfigured => self.reconfigure(now),
        }
    }

    fn reconfigure(&mut self, now: Now) {
        self.lanes.reconfigure(config(&self.context));
        let endpoints: Vec<_> = self.context.outbox().endpoints();
        for endpoint in endpoints {
            let policy = self.policy(&endpoint);
            self.lanes.on_endpoint(endpoint.number, policy, Backlog::None, now);
        }
    }

    /// Does what the lanes want done, until they want nothing more now.
    fn pump(&mut self) {
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
                    self.context.outbox().record(Unit::of_record(record));
                }
                Action::Refill { endpoint, after, limit } => {
                    self.begin(BackgroundJob::Refill, move |context| refill(context, endpoint, after, limit));
                }
            }
        }
    }

    fn begin<F: Future<Output = ()> + Send>(
        &mut self,
        job: BackgroundJob,
        work: impl Fn(Context) -> F + Send + Sync + 'static,
    ) -> AbortHandle {
        let context = self.context.clone();
        self.tasks.spawn(async move { see_to(&context, job, work).await })
    }

    fn sweep(&mut self, endpoint: EndpointNumber) {
        self.begin(BackgroundJob::Sweep, move |context| see_through(context, endpoint, Chore::Sweep));
    }

    /// Its ordering may be another than what is pending stands in. One that does the same already begins anew.
    fn reorder(&mut self, endpoint: EndpointNumber) {
        let reorder = move |context| see_through(context, endpoint, Chore::Reorder);
        let task = self.begin(BackgroundJob::Reorder, reorder);
        if let Some(before) = self.reordering.insert(endpoint, task) {
            before.abort();
        }
    }

    fn keep_house(&mut self) {
        panics::test_point("dispatcher");
        self.heartbeat.send_replace(());
        let now = self.context.now();
        let summary = self.lanes.summary(&self.behind.oldest_due, now);
        self.context.metrics().lanes(&summary);
        self.context.metrics().rate_waited(self.lanes.take_rate_waited());
        self.reordering.retain(|_, task| !task.is_finished());
        if is_over(self.measuring.as_ref()) {
            let behind = self.behind.clone();
            let measure = move |context| measure(context, behind.clone());
            self.measuring = Some(self.begin(BackgroundJob::Gauges, measure));
        }
        let (closed, due) = self.context.outbox().registry(|registry| {
            let closed = registry.endpoints().filter(|endpoint| disabled_at(endpoint).is_some());
            let is_due = |endpoint: &&Arc<Endpoint>| {
                handshake::next_request(endpoint).is_some_and(|at| at <= now.wall)
            };
            let due = registry.endpoints().filter(is_due).map(|endpoint| endpoint.number);
            (closed.cloned().collect::<Vec<_>>(), due.collect::<Vec<_>>())
        });
        if !self.is_held() && is_over(self.expiring.as_ref()) {
            let closed = in_turn(closed, self.looked_at);
            if let Some(last) = closed.last() {
                self.looked_at = last.number;
                let expire = move |context| expire_all(context, closed.clone(), now.wall);
                self.expiring = Some(self.begin(BackgroundJob::Expiry, expire));
            }
        }
        for endpoint in due {
            self.ask(endpoint);
        }
    }

    async fn drain(&mut self, limit: Duration, mut told: watch::Receiver<Run>) {
        self.draining = true;
        self.lanes.hold(true);
        // The next start goes on with it.
        self.reordering.values().chain(&self.reordering_all).for_each(AbortHandle::abort);
        let deadline = Instant::now() + limit;
        let mut turn = tokio::time::interval(HOUSEKEEPING_INTERVAL);
        while !self.tasks.is_empty() {
            tokio::select! {
                biased;
                () = cut(&mut told) => self.cut_off().await,
                () = tokio::time::sleep_until(deadline) => self.cut_off().await,
                Some(ended) = self.tasks.join_next() => note_panic(&ended),
                Some(notice) = self.notices.recv() => self.on_notice(notice, self.context.now()),
                Some(_) = self.signals.recv() => {}
                _ = turn.tick() => {
                    self.heartbeat.send_replace(());
                }
            }
        }
    }

    async fn cut_off(&mut self) {
        tracing::warn!(attempts = self.tasks.len(), "running attempts are cut off; they will be made again");
        self.tasks.shutdown().await;
    }
}

/// Is ready when nothing may be waited for any more. A sender that is gone means the same.
async fn cut(told: &mut watch::Receiver<Run>) {
    drop(told.wait_for(|run| *run == Run::Cut).await);
}

/// The receiver, once there is something new; never, when nobody can say anything any more.
async fn changed(mut health: watch::Receiver<Health>) -> watch::Receiver<Health> {
    match health.changed().await {
        Ok(()) => health,
        Err(_) => std::future::pending().await,
    }
}

fn note_panic(ended: &Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a task panicked; its delivery waits for the next start");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::attempt::Place;
    use crate::domain::{DueKey, Position, Progress, Timestamp};
    use crate::domain::{Tenant, Trigger};

    #[test]
    fn closed_endpoints_take_turns_so_that_each_is_looked_at_and_few_at_a_time() {
        let endpoint = |number| Arc::new(crate::rules::tests::endpoint(number, Tenant::DEFAULT, &[]));
        let most = u32::try_from(limits::CLOSED_ENDPOINTS_CHECKED_MAX).unwrap();
        let closed: Vec<_> = (1..=2 * most + 3).rev().map(endpoint).collect();
        let (mut last, mut looked_at) = (EndpointNumber(0), Vec::new());
        for _ in 0..3 {
            let turn = in_turn(closed.clone(), last);
            assert_eq!(turn.len(), limits::CLOSED_ENDPOINTS_CHECKED_MAX);
            last = turn.last().unwrap().number;
            looked_at.extend(turn.iter().map(|endpoint| endpoint.number.0));
        }
        let expected: Vec<_> = (1..=2 * most + 3).chain(1..=most - 3).collect();
        assert_eq!(looked_at, expected, "in order, and then again from the first");
        // The one that was last has been opened meanwhile.
        assert_eq!(in_turn(vec![endpoint(1), endpoint(9)], EndpointNumber(4))[0].number.0, 9);
        assert!(in_turn(Vec::new(), last).is_empty());
    }

    #[tokio::test]
    async fn an_attempt_that_panics_leaves_its_place() {
        let (context, mut dispatcher, _directory) = crate::service::tests::context();
        let panicking = tokio::spawn(async move {
            let at = Timestamp::from_millis(1);
            let key = DueKey { due: at, event: Position(1) };
            let progress = Progress::begin(0, at, Trigger::Publish);
            let endpoint = EndpointNumber(7);
            let assignment = Assignment { endpoint, key, progress, shut_since: None, event: None };
            let _place = Place { context: &context, assignment: &assignment };
            panic!("on purpose");
        });
        assert!(panicking.await.unwrap_err().is_panic());
        let told = dispatcher.signals.try_recv();
        assert!(matches!(told, Ok(Signal::Finished { endpoint: EndpointNumber(7), .. })), "{told:?}");
    }
}
