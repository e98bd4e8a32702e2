//! Erasure of events: their content is gone for every read from the commit on, and leaves the disk
//! soon after.
//!
//! The commit that erases an event also cancels its pending deliveries and purges its dead letters.
//! Streams are erased in bounded steps of one commit each. Repeating an interrupted request
//! continues it.

use std::collections::VecDeque;

use crate::context::Context;
use crate::domain::{
    DeliveryKey, DeliveryState, EventId, OnDisk, Position, Record, StreamName, Tenant, Timestamp,
};
use crate::outbox::ReadModel;
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::outbox::unit::Command;
use crate::projections::reads::{Cursor, Filter};
use crate::projections::streams::Head;
use crate::service::bulk::deliveries_per_step;
use crate::service::events::Events;
use crate::service::types::{ErasureView, Scope};

/// Erases events.
#[derive(Clone, Copy)]
pub struct Erasure<'a>(pub &'a Context);

/// An erasure request.
struct Request<'a> {
    at: Timestamp,
    reason: &'a str,
    scope: &'a Scope,
    tenant: &'a Tenant,
}

/// The events of one commit.
#[derive(Debug, Default)]
struct Step {
    /// Events to erase.
    events: Vec<Position>,
    /// Their deliveries that are pending or dead. An attempt may still change pending ones.
    deliveries: Vec<DeliveryKey>,
    pending: u64,
    /// Already erased events.
    erased: ErasureView,
    /// Events of the next step.
    rest: VecDeque<Position>,
}

impl Erasure<'_> {
    /// Erases the event with this id. An erased event is not erased again.
    ///
    /// # Errors
    /// When the scope lacks the event, or the commit failed.
    pub async fn of_event(
        self,
        scope: &Scope,
        tenant: &Tenant,
        id: &EventId,
        reason: &str,
    ) -> Result<ErasureView, ChangeError> {
        let found = Events(self.0).find(scope, tenant, id).await?;
        let (position, event) = found.ok_or(ChangeError::NotFound)?;
        let request = Request { at: self.0.now().wall, reason, scope, tenant: &event.tenant };
        let view = self.erase(&request, vec![position]).await?;
        // Retention may have removed it since `find`.
        if view.count == 0 { Err(ChangeError::NotFound) } else { Ok(view) }
    }

    /// Erases the events that a stream has now. Already erased ones count too.
    ///
    /// # Errors
    /// When the stream does not exist, or a read or commit failed. Completed steps stay.
    pub async fn of_stream(
        self,
        scope: &Scope,
        tenant: &Tenant,
        stream: &StreamName,
        reason: &str,
    ) -> Result<ErasureView, ChangeError> {
        let request = Request { at: self.0.now().wall, reason, scope, tenant };
        let end = self.0.outbox_of(tenant).journal().last_position().next();
        let head = self.head(tenant, stream).await?.ok_or(ChangeError::NotFound)?;
        if head.first_version == 1 {
            let view = self.erase_versions(&request, stream, head.version).await?;
            // Retention may have moved the first version in between.
            if self.head(tenant, stream).await?.is_some_and(|head| head.first_version == 1) {
                return Ok(view);
            }
        }
        Ok(self.erase_before(&request, stream, end).await?)
    }

    async fn head(self, tenant: &Tenant, stream: &StreamName) -> Result<Option<Head>, Unavailable> {
        let (of, name) = (tenant.clone(), stream.clone());
        self.0.outbox_of(tenant).read_of(Some(tenant), move |state| state.stream(&of, &name)).await
    }

    /// Erases the events of a stream up to a version, by the index of the stream.
    async fn erase_versions(
        self,
        request: &Request<'_>,
        stream: &StreamName,
        version: u64,
    ) -> Result<ErasureView, Unavailable> {
        let mut view = ErasureView::default();
        let mut first = 1;
        while first <= version {
            let last = version.min(first + deliveries_per_step() as u64 - 1);
            let (of, name) = (request.tenant.clone(), stream.clone());
            let positions = move |state: &dyn ReadModel| state.stream_positions(&of, &name, first..=last);
            let found = self.0.outbox_of(request.tenant).read_of(Some(request.tenant), positions).await?;
            view.add(&self.erase(request, found.into_iter().map(|(_, at)| at).collect()).await?);
            first = last + 1;
        }
        Ok(view)
    }

    /// Erases the events of a stream before a position, by the index of all events: retention may
    /// have kept events below the first version of the stream's index, for a dead letter.
    async fn erase_before(
        self,
        request: &Request<'_>,
        stream: &StreamName,
        end: Position,
    ) -> Result<ErasureView, Unavailable> {
        let filter = Filter {
            tenant: Some(request.tenant.clone()),
            stream: Some(stream.clone()),
            ..Filter::default()
        };
        let (mut view, mut cursor) = (ErasureView::default(), Some(Cursor::at(end)));
        while let Some(after) = cursor {
            let filter = filter.clone();
            let page = move |state: &dyn ReadModel| state.events(&filter, Some(after), deliveries_per_step());
            let found = self.0.outbox_of(request.tenant).read_of(Some(request.tenant), page).await?;
            cursor = found.next;
            view.add(&self.erase(request, found.items).await?);
        }
        Ok(view)
    }

    /// Erases these events of the tenant, in bounded steps.
    async fn erase(self, request: &Request<'_>, events: Vec<Position>) -> Result<ErasureView, Unavailable> {
        let mut view = ErasureView::default();
        let mut events = VecDeque::from(events);
        while !events.is_empty() {
            let _alone = self.0.exclusive(&request.scope.party()).await;
            let _held = self.0.outbox_of(request.tenant).hold_events().await;
            let plan = move |state: &dyn ReadModel| Step::plan(state, events);
            let step = self.0.outbox_of(request.tenant).read_of(Some(request.tenant), plan).await?;
            let count = step.events.len() as u64;
            view.add(&step.erased);
            if count > 0 {
                self.0.submit(step.commands(request)).await?;
                self.0.folded_states().forget(request.tenant, step.events.clone());
                self.0.request_erasure_pass();
                self.0.metrics().erased(count);
                self.0.metrics().cancelled(step.pending);
                view.add(&ErasureView { count, erased_at: Some(request.at), on_disk: OnDisk::Pending });
            }
            events = step.rest;
        }
        Ok(view)
    }
}

impl Step {
    fn plan(state: &dyn ReadModel, mut rest: VecDeque<Position>) -> Self {
        let mut step = Self::default();
        while step.deliveries.len() < deliveries_per_step()
            && let Some(event) = rest.pop_front()
        {
            if let Some(erasure) = state.erasure(event) {
                step.erased.add(&ErasureView {
                    count: 1,
                    erased_at: Some(erasure.at),
                    on_disk: erasure.on_disk,
                });
            } else if state.knows(event) {
                step.events.push(event);
                for facts in state.deliveries_of(event) {
                    match facts.state {
                        DeliveryState::Pending => step.pending += 1,
                        DeliveryState::Dead(_) => {}
                        DeliveryState::Delivered | DeliveryState::Cancelled | DeliveryState::Purged => {
                            continue;
                        }
                    }
                    step.deliveries.push(facts.key);
                }
            }
        }
        step.rest = rest;
        step
    }

    /// The records of the step, in one unit. A pending delivery may die before the commit, so both
    /// lists have all deliveries. Each record changes only those in its state.
    fn commands(&self, request: &Request<'_>) -> Vec<Command> {
        let Request { at, reason, tenant, .. } = *request;
        let erase = |event: &Position| Record::EventErased {
            event: *event,
            tenant: tenant.clone(),
            at,
            reason: reason.into(),
        };
        let mut records: Vec<Record> = self.events.iter().map(erase).collect();
        for some in self.deliveries.chunks(deliveries_per_step()) {
            records.push(Record::DeliveriesCancelled { deliveries: some.to_vec(), at });
            records.push(Record::DeadLettersPurged { deliveries: some.to_vec(), at });
        }
        records.into_iter().map(Command::Record).collect()
    }
}
