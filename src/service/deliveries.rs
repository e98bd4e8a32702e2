//! Deliveries: reading, listing, retrying, cancelling, and giving up.
//!
//! Bulk work runs in bounded steps of one commit each, so that it does not block other requests.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::context::Context;
use crate::context::home::Home;
use crate::context::responses::Keyed;
use crate::domain::{
    DeadReason, DeliveryKey, DeliveryState, EndpointNumber, Event, Party, Record, Timestamp, Trigger,
};
use crate::outbox::ReadModel;
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::projections::pending::Misplaced;
use crate::projections::reads::{Cursor, DeliveryFacts, Filter};
use crate::service::bulk::{Deaths, deliveries_per_step, revive_command};
use crate::service::history::History;
use crate::service::pages::Pages;
use crate::service::requests::Requests;
use crate::service::search::has_id_start;
use crate::service::system_events::SystemEvents;
use crate::service::types::{
    DeliveryDetail, DeliveryView, Destination, DestinationKind, HistoryEntry, Page, PastAttempt, Scope,
};

const PURGED: ChangeError =
    ChangeError::NotAllowed("the dead letter was purged; replay the event to send it again");
const ENDPOINT_DELETED: ChangeError = ChangeError::NotAllowed(
    "the endpoint was deleted: replay the event to another one, or purge the dead letter",
);
const QUEUE_DELETED: ChangeError = ChangeError::NotAllowed(
    "the queue was deleted: replay the event to another one, or purge the dead letter",
);

/// Operations on deliveries.
#[derive(Clone, Copy)]
pub struct Deliveries<'a>(pub &'a Context);

impl Deliveries<'_> {
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn get(self, scope: &Scope, key: DeliveryKey) -> Result<Option<DeliveryDetail>, Unavailable> {
        let facts =
            self.0.outbox_of(key.event).read_of(scope.0.as_ref(), move |state| state.delivery(key)).await?;
        // Another tenant's delivery is unknown before a journal read: no timing side channel.
        let is_its = |facts: &DeliveryFacts| Pages(self.0).covers(scope, &facts.tenant, key.endpoint);
        let Some(facts) = facts.filter(is_its) else { return Ok(None) };
        let Some(event) = self.0.event_at(key.event).await? else { return Ok(None) };
        let delivery = self.view(&event, &facts);
        Ok(Some(DeliveryDetail { delivery, attempts: self.attempts(&event, &facts).await }))
    }

    /// Filters: see [`reads::deliveries`](crate::projections::reads::deliveries), and
    /// `event_id_start`.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn list(
        self,
        scope: &Scope,
        filter: Filter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Page<DeliveryView>, Unavailable> {
        let Some(filter) = Pages(self.0).scoped(scope, filter) else { return Ok(Pages(self.0).empty()) };
        let (tenant, id_start) = (filter.tenant.clone(), filter.event_id_start.clone());
        let page = Pages(self.0)
            .collect(tenant.as_ref(), after, limit, move |state, after, limit| {
                state.deliveries(&filter, after, limit)
            })
            .await?;
        let mut items = Vec::with_capacity(page.items.len());
        let add = |facts: DeliveryFacts, event: Option<Arc<Event>>| {
            let event = event.filter(|event| has_id_start(event, id_start.as_deref()));
            items.extend(event.map(|event| self.view(&event, &facts)));
            ControlFlow::Continue(())
        };
        self.0.visit_events(page.items, |facts| facts.key.event, add).await?;
        Ok(Page { items, next: page.next, as_of: page.as_of })
    }

    pub(crate) fn view(self, event: &Event, facts: &DeliveryFacts) -> DeliveryView {
        DeliveryView {
            key: facts.key,
            event_id: event.id.clone(),
            event_type: event.event_type.clone(),
            tenant: event.tenant.clone(),
            destination: self.destination(facts.key.endpoint),
            state: facts.state,
            created_at: facts.accepted_at,
            attempts: facts.attempts_made,
            next_attempt_at: facts.due,
            settled_at: facts.settled_at,
            last: facts.last.clone(),
            is_erased: event.erased_at.is_some(),
        }
    }

    fn destination(self, number: EndpointNumber) -> Destination {
        self.0.outbox_of(number).registry(|registry| {
            let name = registry.queue_name(number).cloned();
            let kind = if name.is_some() { DestinationKind::Queue } else { DestinationKind::Endpoint };
            let is_deleted = registry.endpoint(number).is_none();
            Destination { kind, id: registry.id_of(number).cloned(), name, is_deleted }
        })
    }

    /// The attempts and leases of a delivery, oldest first.
    pub(crate) async fn attempts(self, event: &Arc<Event>, facts: &DeliveryFacts) -> Vec<HistoryEntry> {
        let mut history = History::new(facts.key.event);
        for position in &facts.attempts {
            if let Ok(Some(record)) = self.0.record_at(*position).await {
                history.add(*position, record);
            }
        }
        let mut entries = history.finish(facts.lease.as_ref(), self.0.now().wall);
        let mut attempts: Vec<&mut PastAttempt> = entries.iter_mut().filter_map(past_attempt).collect();
        let records: Vec<_> = attempts.iter().map(|past| past.attempt.clone()).collect();
        let requests = Requests(self.0).past(facts.key, event, &records).await;
        for (past, request) in attempts.iter_mut().zip(requests) {
            past.request = request;
        }
        entries
    }

    /// Makes a pending, dead, delivered or cancelled delivery due now, in a new retry series.
    ///
    /// # Errors
    /// When the delivery is unknown or purged, its endpoint was deleted, or the commit failed.
    pub async fn retry(
        self,
        scope: &Scope,
        key: DeliveryKey,
        keyed: Option<Keyed<DeliveryView>>,
    ) -> Result<DeliveryView, ChangeError> {
        self.revive_one(scope, key, Trigger::Manual, keyed).await
    }

    pub(crate) async fn revive_one(
        self,
        scope: &Scope,
        key: DeliveryKey,
        trigger: Trigger,
        keyed: Option<Keyed<DeliveryView>>,
    ) -> Result<DeliveryView, ChangeError> {
        let _alone = self.0.exclusive(&scope.party()).await;
        let _held = self.0.outbox_of(key.event).hold_events().await;
        let found = self.get(scope, key).await?.ok_or(ChangeError::NotFound)?;
        match found.delivery.state {
            _ if found.delivery.is_erased => return Err(ChangeError::Erased),
            DeliveryState::Dead(_) => {}
            _ if trigger == Trigger::Redrive => return Err(ChangeError::NotFound),
            DeliveryState::Purged => return Err(PURGED),
            DeliveryState::Pending | DeliveryState::Delivered | DeliveryState::Cancelled => {}
        }
        if self.0.outbox_of(key.endpoint).endpoint(key.endpoint).is_none() {
            let is_queue = found.delivery.destination.kind == DestinationKind::Queue;
            return Err(if is_queue { QUEUE_DELETED } else { ENDPOINT_DELETED });
        }
        // The view after the commit, so that the same commit can store the response. Only a
        // redrive can race with an attempt that delivers, which also achieves its purpose.
        let at = self.0.now().wall;
        let view = DeliveryView {
            state: DeliveryState::Pending,
            next_attempt_at: Some(at),
            settled_at: None,
            ..found.delivery
        };
        self.0
            .commit(
                vec![revive_command(vec![key], trigger, at)],
                keyed.map(|keyed| keyed.response_for(&view)),
            )
            .await?;
        Ok(view)
    }

    /// Cancels a pending delivery. A running attempt continues, and may still deliver it.
    ///
    /// A second commit stores the response, because an attempt may end the delivery before the
    /// first. After a crash between the two, a repeated request finds the delivery cancelled.
    ///
    /// # Errors
    /// When the scope lacks the delivery, it is not pending, or the commit failed.
    pub async fn cancel(
        self,
        scope: &Scope,
        key: DeliveryKey,
        keyed: Option<Keyed<DeliveryView>>,
    ) -> Result<DeliveryView, ChangeError> {
        const TOO_LATE: ChangeError = ChangeError::NotAllowed("only a pending delivery can be cancelled");
        let _alone = self.0.exclusive(&scope.party()).await;
        let before = self.get(scope, key).await?.ok_or(ChangeError::NotFound)?.delivery.state;
        match before {
            DeliveryState::Pending => {
                let at = self.0.now().wall;
                self.0.write(Record::DeliveriesCancelled { deliveries: vec![key], at }).await?;
            }
            // Possibly by an earlier, interrupted try of this request.
            DeliveryState::Cancelled if keyed.is_some() => {}
            _ => return Err(TOO_LATE),
        }
        let view = self.get(scope, key).await?.ok_or(ChangeError::NotFound)?.delivery;
        if view.state != DeliveryState::Cancelled {
            return Err(TOO_LATE);
        }
        if before == DeliveryState::Pending {
            self.0.metrics().cancelled(1);
        }
        self.0.commit(Vec::new(), keyed.map(|keyed| keyed.response_for(&view))).await?;
        Ok(view)
    }

    /// Turns the deliveries that `find` returns, a bounded number, into dead letters. Holds the
    /// exclusive lock from `find` to the commit. A further commit publishes operator events.
    pub(crate) async fn give_up<R: Send + 'static>(
        self,
        reason: DeadReason,
        find: impl FnOnce(&dyn ReadModel) -> (Vec<DeliveryKey>, R) + Send + 'static,
    ) -> Result<R, Unavailable> {
        let mut deaths = Deaths::new(reason);
        let found = self.give_up_if(&mut deaths, find, || true).await;
        self.report(deaths).await;
        found
    }

    /// Like [`Self::give_up`], but checks the reason again after `find`, which may take long. Adds
    /// the dead deliveries to `deaths`, for one report about several calls.
    pub(crate) async fn give_up_if<R: Send + 'static>(
        self,
        deaths: &mut Deaths,
        find: impl FnOnce(&dyn ReadModel) -> (Vec<DeliveryKey>, R) + Send + 'static,
        holds: impl Fn() -> bool,
    ) -> Result<R, Unavailable> {
        let reason = deaths.reason();
        let (deliveries, found) = {
            let _alone = self.0.exclusive(&Party::Delivery).await;
            let (mut deliveries, found) = self.0.outbox_of(Home::All).read(find).await?;
            if !holds() {
                deliveries.clear();
            }
            for some in deliveries.chunks(deliveries_per_step()) {
                let at = self.0.now().wall;
                self.0.write(Record::DeliveriesDied { deliveries: some.to_vec(), reason, at }).await?;
            }
            (deliveries, found)
        };
        if deliveries.is_empty() {
            return Ok(found);
        }
        // A concurrent attempt may have ended some of them first.
        let dead = move |state: &dyn ReadModel| -> Vec<_> {
            let is_dead = |key: &DeliveryKey| {
                state.delivery(*key).is_some_and(|facts| facts.state == DeliveryState::Dead(reason))
            };
            deliveries.into_iter().filter(is_dead).collect()
        };
        let dead = self.0.outbox_of(Home::All).read(dead).await?;
        self.0.metrics().dead_lettered(reason, dead.len() as u64);
        dead.into_iter().for_each(|delivery| deaths.add(delivery));
        Ok(found)
    }

    /// Publishes one operator event per endpoint with deaths.
    pub(crate) async fn report(self, deaths: Deaths) {
        if !SystemEvents(self.0).has_operator() {
            return;
        }
        let reason = deaths.reason();
        let mut data = Vec::new();
        for (first, count) in deaths.by_endpoint() {
            let event = self.0.event_at(first.event).await.unwrap_or_default();
            data.extend(SystemEvents(self.0).deaths_data(first, count, event.as_deref(), reason));
        }
        SystemEvents(self.0).publish_dead(&data).await;
    }

    /// Whether a delivery died for this reason, or its attempt with this due time will record it.
    pub(crate) async fn is_dead_or_dying(
        self,
        delivery: DeliveryKey,
        due: Timestamp,
        reason: DeadReason,
    ) -> bool {
        let facts = self.0.outbox_of(delivery.event).read(move |state| state.delivery(delivery)).await;
        facts.ok().flatten().is_some_and(|facts| match facts.state {
            DeliveryState::Pending => facts.due == Some(due),
            DeliveryState::Dead(found) => found == reason,
            DeliveryState::Delivered | DeliveryState::Cancelled | DeliveryState::Purged => false,
        })
    }

    /// Gives up the pending deliveries of a deleted endpoint, in bounded steps. Idempotent.
    /// A stop of the daemon ends it after a step; the next start continues.
    pub(crate) async fn sweep_deleted(self, endpoint: EndpointNumber) -> Result<(), Unavailable> {
        let pending = move |state: &dyn ReadModel| {
            let deliveries = state.pending(endpoint, deliveries_per_step());
            let is_swept = deliveries.is_empty();
            (deliveries, is_swept)
        };
        let mut deaths = Deaths::new(DeadReason::EndpointDeleted);
        let swept = loop {
            match self.give_up_if(&mut deaths, pending, || true).await {
                Ok(is_swept) if is_swept || self.0.waits().have_ended() => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        self.report(deaths).await;
        swept
    }

    /// Requeues the pending deliveries of an endpoint by its current ordering. Works in bounded
    /// steps of one commit each, until a complete pass finds no misplaced delivery. Idempotent.
    pub(crate) async fn reorder_pending(self, endpoint: EndpointNumber) -> Result<(), Unavailable> {
        let limit = deliveries_per_step();
        let (mut after, mut is_in_order) = (None, true);
        loop {
            let known = self
                .0
                .outbox_of(endpoint)
                .registry(|registry| registry.endpoint(endpoint).map(|known| known.ordering));
            let Some(ordering) = known else { return Ok(()) };
            let misplaced = move |state: &dyn ReadModel| state.misplaced(endpoint, ordering, after, limit);
            let Misplaced { deliveries, next } = self.0.outbox_of(endpoint).read(misplaced).await?;
            if !deliveries.is_empty() {
                is_in_order = false;
                let at = self.0.now().wall;
                self.0.write(Record::DeliveriesReordered { deliveries, at }).await?;
            }
            if next.is_none() {
                if is_in_order {
                    return Ok(());
                }
                is_in_order = true;
            }
            after = next;
        }
    }
}

fn past_attempt(entry: &mut HistoryEntry) -> Option<&mut PastAttempt> {
    match entry {
        HistoryEntry::Attempt(past) => Some(past),
        HistoryEntry::Lease(_) => None,
    }
}
