//! Effects of commits on the lanes, the caches and the waiting callers.

use std::collections::BTreeMap;

use super::Dispatcher;
use crate::context::Context;
use crate::delivery::intake::Intake;
use crate::domain::{Attempt, DisabledReason, Endpoint, EndpointNumber, Now, Position, Record, Tenant};
use crate::lanes::Backlog;
use crate::metrics::BackgroundTask;
use crate::outbox::Notice;
use crate::outbox::decide::CommittedGroup;
use crate::projections::LaneChange;
use crate::projections::failing::Failing;
use crate::rules::{handshake, health};
use crate::service::endpoints::Endpoints;

impl Dispatcher {
    pub(super) fn on_notice(&mut self, notice: Notice, now: Now) {
        match notice {
            Notice::Committed(committed) => {
                self.on_committed(&committed, now);
                self.intake = Some(Intake::new(committed));
                self.take_in(now);
            }
            Notice::Lanes(changes) => {
                for change in changes {
                    self.on_change(change, now);
                }
            }
        }
    }

    fn on_committed(&mut self, committed: &CommittedGroup, now: Now) {
        self.context.waits().on_committed(committed.records.iter().map(|(_, record)| record));
        let mut erased: BTreeMap<&Tenant, Vec<Position>> = BTreeMap::new();
        for (position, record) in &committed.records {
            match record {
                Record::EventAccepted(event) => self.payloads.insert(*position, event),
                Record::EventErased { event, tenant, .. } => {
                    self.payloads.forget(*event);
                    self.context.converted_events().forget(*event);
                    erased.entry(tenant).or_default().push(*event);
                }
                Record::EndpointPut(endpoint) => self.on_endpoint(endpoint, now),
                Record::EndpointDeleted { endpoint, .. } => {
                    self.lanes.on_endpoint_removed(*endpoint);
                    self.on_queue_removed(*endpoint);
                    self.failing.remove(endpoint);
                    self.known.remove(endpoint);
                    self.sweep(*endpoint);
                }
                Record::ConsumerDeleted { key, .. } => self.context.consumers().on_deleted(key),
                Record::AttemptFinished { delivery, attempt, .. } => {
                    self.on_health(delivery.endpoint, attempt);
                }
                Record::RateReserved { endpoint, reservation } => {
                    self.lanes.on_reserved(*endpoint, reservation, now);
                }
                Record::JobPut(job) if job.progress.is_running() => self.context.note_job_started(),
                Record::KeyPut(_)
                | Record::KeyDeleted { .. }
                | Record::KeyUsed { .. }
                | Record::TenantPut(_)
                | Record::TenantDeleted { .. }
                | Record::HorizonMoved { .. }
                | Record::ConsumerPut(_)
                | Record::ConsumerMoved { .. }
                | Record::TypePut(_)
                | Record::TypeDeleted { .. }
                | Record::JobPut(_)
                | Record::JobMoved { .. }
                | Record::Audited(_)
                | Record::SourcePut(_)
                | Record::SourceDeleted { .. }
                | Record::DeliveriesRevived { .. }
                | Record::DeliveriesCancelled { .. }
                | Record::DeliveriesDied { .. }
                | Record::DeadLettersPurged { .. }
                | Record::DeliveriesReordered { .. }
                | Record::RequestAnswered { .. }
                | Record::EventRejected { .. }
                | Record::MessagesLeased { .. }
                | Record::LeasesEnded { .. }
                | Record::LeasesExtended { .. } => {}
            }
        }
        for (tenant, events) in erased {
            self.context.folded_states().forget(tenant, events);
        }
    }

    /// Takes in a bounded part of a group's new deliveries.
    pub(super) fn take_in(&mut self, now: Now) {
        let Some(mut intake) = self.intake.take() else { return };
        if intake.step(|change| self.on_change(change, now)) {
            self.intake = Some(intake);
        }
    }

    fn on_endpoint(&mut self, endpoint: &Endpoint, now: Now) {
        let before = self.known.insert(endpoint.number, endpoint.into());
        if Failing::is_ended_by(endpoint, before.map(|before| before.change)) {
            self.failing.remove(&endpoint.number);
        }
        if endpoint.queue().is_some() {
            self.on_queue(endpoint);
        } else {
            let policy = self.policy(endpoint);
            self.lanes.on_endpoint(endpoint.number, policy, Backlog::None, now);
        }
        if before.is_some_and(|before| before.ordering != endpoint.ordering) {
            self.reorder(endpoint.number);
        }
        if handshake::next_request(endpoint).is_some_and(|at| at <= now.wall) {
            if !self.due_handshakes.contains(&endpoint.number) {
                self.due_handshakes.push(endpoint.number);
            }
            self.start_handshakes();
        }
    }

    fn on_change(&mut self, change: LaneChange, now: Now) {
        match change {
            LaneChange::Due { endpoint, key, progress, at } if self.desk.lanes.has(endpoint) => {
                self.desk.lanes.with(endpoint, |lane| lane.on_due(key, progress, at));
            }
            LaneChange::Settled { endpoint, key, at } if self.desk.lanes.has(endpoint) => {
                self.desk.lanes.with(endpoint, |lane| lane.on_settled(key, at));
            }
            LaneChange::Taken { endpoint, taken, lease } => self.on_taken(endpoint, taken, lease, now),
            LaneChange::LeaseChanged { endpoint, event, lease } => {
                self.desk.lanes.with(endpoint, |lane| lane.on_lease(event, lease, now));
            }
            LaneChange::LeaseEnded { endpoint, event } => {
                self.desk.lanes.with(endpoint, |lane| lane.on_lease_ended(event));
            }
            LaneChange::LeaseCounted { outcome, duration } => {
                self.context.metrics().lease_ended(outcome, duration);
            }
            LaneChange::Due { endpoint, key, progress, at } => {
                self.lanes.on_due(endpoint, key, progress, at, now)
            }
            LaneChange::Settled { endpoint, key, at } => self.lanes.on_settled(endpoint, key, at, now),
            LaneChange::Recorded { endpoint, key } => self.lanes.on_recorded(endpoint, key, now),
        }
    }

    /// Tracks failures, and disables an endpoint that has failed for too long without a success.
    fn on_health(&mut self, endpoint: EndpointNumber, attempt: &Attempt) {
        let known = self.failing.remove(&endpoint);
        // The lane's revision is the one that this loop has processed. The registry may be ahead.
        let Some(revision) = self.lanes.revision(endpoint).filter(|_| attempt.error.is_some()) else {
            return;
        };
        let failing = Failing::after(known, attempt);
        self.failing.insert(endpoint, failing);
        if health::should_disable(&failing, self.context.settings().disable_after) {
            self.spawn_task(BackgroundTask::Disabling, move |context: Context| async move {
                // A change of the endpoint, such as a resume, restarts its failing time.
                Endpoints(&context)
                    .disable(endpoint, DisabledReason::Failing, |now| now.revision == revision)
                    .await;
            });
        }
    }
}
