//! What changes many deliveries: replays, redrives and purges by filter, what is given up, a change of ordering.
//!
//! It goes in bounded steps, each one commit, so that nothing else waits for it; the answer of a request is in its last step.

use super::Engine;
use super::commands::{DELETED, revived};
use super::queries::scoped;
use super::types::{ChangeError, Cursor, Filter, Keyed, Scope, Unavailable};
use crate::domain::{
    DeadReason, DeliveryKey, DeliveryState, Endpoint, EndpointId, EndpointNumber, EventId, Pattern, Record,
    Tenant, Timestamp, Trigger,
};
use crate::knobs::{self, Knob};
use crate::limits;
use crate::outbox::ReadModel;
use crate::outbox::unit::Command;
use crate::projections::pending::Misplaced;
use crate::projections::reads;
use crate::rules::matching::want;

/// Deliveries that one step, which is one record, changes.
pub(super) fn deliveries_per_step() -> usize {
    knobs::bound(Knob::BulkDeliveries, limits::BULK_DELIVERIES_MAX)
}

impl Engine {
    /// To these endpoints, or (when `None`) to those that it matches now, all in one commit. Gives the number of deliveries.
    ///
    /// # Errors
    /// When the event is unknown in the scope, an endpoint is not one of its tenant, or nothing could be written.
    pub async fn replay_event(
        &self,
        scope: &Scope,
        tenant: &Tenant,
        id: &EventId,
        endpoints: Option<Vec<EndpointId>>,
        keyed: Option<Keyed<u64>>,
    ) -> Result<u64, ChangeError> {
        let _alone = self.shared.acting.lock().await;
        let _held = self.outbox().hold_events().await;
        let found = self.find_event(scope, tenant, id).await?;
        let (position, event) = found.ok_or(ChangeError::NotFound)?;
        let numbers: Vec<EndpointNumber> = match endpoints {
            Some(ids) => {
                let find = |id| self.endpoint(scope, id).filter(|endpoint| endpoint.tenant == event.tenant);
                let found: Option<Vec<_>> =
                    ids.iter().map(|id| find(id).map(|endpoint| endpoint.number)).collect();
                found.ok_or(ChangeError::NotAllowed("an endpoint is not one of the event's tenant"))?
            }
            None => self.outbox().registry(|registry| {
                let matching = registry.endpoints().filter(|endpoint| {
                    endpoint.tenant == event.tenant && want(&endpoint.event_types, &event.event_type)
                });
                matching.map(|endpoint| endpoint.number).collect()
            }),
        };
        let deliveries: Vec<_> =
            numbers.into_iter().map(|endpoint| DeliveryKey { event: position, endpoint }).collect();
        let count = deliveries.len() as u64;
        let at = self.now().wall;
        let steps = deliveries.chunks(deliveries_per_step());
        let commands = steps.map(|some| revived(some.to_vec(), Trigger::Replay, at)).collect();
        self.commit(commands, keyed.map(|keyed| keyed.answered(&count))).await?;
        Ok(count)
    }

    /// Replays what the log holds of the endpoint's tenant between the times; gives the number of deliveries. Bounded
    /// steps, each one commit, the answer in the last one: who repeats a request that broke off begins anew, and may
    /// replay what was replayed and delivered before that. What still waits is left alone.
    ///
    /// # Errors
    /// When nothing could be read or written; what was replayed before stays so.
    pub async fn replay_endpoint(
        &self,
        endpoint: &Endpoint,
        since: Timestamp,
        until: Option<Timestamp>,
        event_types: &[Pattern],
        only_undelivered: bool,
        keyed: Option<Keyed<u64>>,
    ) -> Result<u64, ChangeError> {
        let filter =
            Filter { tenant: Some(endpoint.tenant.clone()), since: Some(since), until, ..Filter::default() };
        let patterns = if event_types.is_empty() { &endpoint.event_types } else { event_types };
        let number = endpoint.number;
        let mut cursor: Option<Cursor> = None;
        let mut count = 0;
        loop {
            let _alone = self.shared.acting.lock().await;
            if self.outbox().endpoint(number).is_none() {
                return Err(DELETED);
            }
            let _held = self.outbox().hold_events().await;
            let filter = filter.clone();
            let found = self
                .outbox()
                .read(move |state| state.past(&filter, number, cursor, deliveries_per_step()))
                .await?;
            let wanted = |past: &reads::Past| {
                let open = match past.state {
                    Some(DeliveryState::Pending) => false,
                    // Nobody wants what was purged; all there is, is all there is.
                    Some(DeliveryState::Delivered | DeliveryState::Purged) => !only_undelivered,
                    Some(DeliveryState::Dead(_) | DeliveryState::Cancelled) | None => true,
                };
                open && past.event_type.parse().is_ok_and(|event_type| want(patterns, &event_type))
            };
            let mut deliveries: Vec<_> = found
                .items
                .iter()
                .filter(|past| wanted(past))
                .map(|past| DeliveryKey { event: past.position, endpoint: number })
                .collect();
            // Newest first was how they were found; in order of acceptance is how they go out.
            deliveries.sort_unstable();
            count += deliveries.len() as u64;
            cursor = found.next;
            let command =
                (!deliveries.is_empty()).then(|| revived(deliveries, Trigger::Replay, self.now().wall));
            let last = keyed.clone().filter(|_| cursor.is_none());
            self.commit(command.into_iter().collect(), last.map(|keyed| keyed.answered(&count))).await?;
            if cursor.is_none() {
                return Ok(count);
            }
        }
    }

    /// Every dead letter that matches when its turn comes, in bounded steps, each one commit, the answer in the last one.
    /// Those whose endpoint is gone stay, and do not count. Who repeats a request that broke off goes on with the letters that
    /// are left, and hears their number.
    ///
    /// # Errors
    /// When nothing more could be read or written; what was redriven before stays so.
    pub async fn redrive_matching(
        &self,
        scope: &Scope,
        filter: Filter,
        keyed: Option<Keyed<u64>>,
    ) -> Result<u64, ChangeError> {
        let record = |deliveries, at| Record::DeliveriesRevived { deliveries, trigger: Trigger::Redrive, at };
        self.for_matching(scope, filter, true, record, keyed).await
    }

    /// As [`Self::redrive_matching`], but for good, and whether their endpoints are there or not.
    ///
    /// # Errors
    /// When nothing more could be read or written; what was purged before stays so.
    pub async fn purge_matching(
        &self,
        scope: &Scope,
        filter: Filter,
        keyed: Option<Keyed<u64>>,
    ) -> Result<u64, ChangeError> {
        let record = |deliveries, at| Record::DeadLettersPurged { deliveries, at };
        self.for_matching(scope, filter, false, record, keyed).await
    }

    async fn for_matching(
        &self,
        scope: &Scope,
        filter: Filter,
        living_endpoints_only: bool,
        record: fn(Vec<DeliveryKey>, Timestamp) -> Record,
        keyed: Option<Keyed<u64>>,
    ) -> Result<u64, ChangeError> {
        let Some(filter) = scoped(scope, filter) else { return Ok(0) };
        let mut cursor = None;
        let mut count = 0;
        loop {
            let _alone = self.shared.acting.lock().await;
            let filter = filter.clone();
            let found = self
                .outbox()
                .read(move |state| state.dead_letters(&filter, cursor, deliveries_per_step()))
                .await?;
            let mut deliveries: Vec<_> = found.items.into_iter().map(|letter| letter.delivery).collect();
            if living_endpoints_only {
                self.outbox().registry(|registry| {
                    deliveries.retain(|key| registry.endpoint(key.endpoint).is_some());
                });
            }
            count += deliveries.len() as u64;
            // Newest first was how they were found; in order of acceptance is how they go out.
            deliveries.sort_unstable();
            cursor = found.next;
            let command =
                (!deliveries.is_empty()).then(|| Command::Record(record(deliveries, self.now().wall)));
            let last = keyed.clone().filter(|_| cursor.is_none());
            self.commit(command.into_iter().collect(), last.map(|keyed| keyed.answered(&count))).await?;
            if cursor.is_none() {
                return Ok(count);
            }
        }
    }

    /// Gives up what is pending for a deleted endpoint, in bounded steps. Repeating it changes nothing.
    pub(super) async fn sweep_deleted(&self, endpoint: EndpointNumber) -> Result<(), Unavailable> {
        let pending = move |state: &dyn ReadModel| {
            let deliveries = state.pending(endpoint, deliveries_per_step());
            let is_swept = deliveries.is_empty();
            (deliveries, is_swept)
        };
        while !self.give_up(DeadReason::EndpointDeleted, pending).await? {}
        Ok(())
    }

    /// Puts what is pending for an endpoint where its ordering of now wants it: pass after pass, in bounded steps, each one
    /// commit, until one finds nothing. Repeating it changes nothing.
    pub(super) async fn put_in_order(&self, endpoint: EndpointNumber) -> Result<(), Unavailable> {
        let limit = deliveries_per_step();
        let (mut after, mut is_in_order) = (None, true);
        loop {
            let known =
                self.outbox().registry(|registry| registry.endpoint(endpoint).map(|known| known.ordering));
            let Some(ordering) = known else { return Ok(()) };
            let look = move |state: &dyn ReadModel| state.misplaced(endpoint, ordering, after, limit);
            let Misplaced { deliveries, next } = self.outbox().read(look).await?;
            if !deliveries.is_empty() {
                is_in_order = false;
                let at = self.now().wall;
                self.write(Record::DeliveriesReordered { deliveries, at }).await?;
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

    /// Makes dead letters of the pending deliveries that are found, a bounded number; gives what was found beside them.
    /// Nobody acts on them between the look and the commit. The operator is told of each, in one further commit.
    pub(super) async fn give_up<R: Send + 'static>(
        &self,
        reason: DeadReason,
        find: impl FnOnce(&dyn ReadModel) -> (Vec<DeliveryKey>, R) + Send + 'static,
    ) -> Result<R, Unavailable> {
        self.give_up_if(reason, find, || true).await
    }

    /// As [`Self::give_up`], unless the reason has gone when the deliveries are found: the look may take long.
    pub(super) async fn give_up_if<R: Send + 'static>(
        &self,
        reason: DeadReason,
        find: impl FnOnce(&dyn ReadModel) -> (Vec<DeliveryKey>, R) + Send + 'static,
        holds: impl Fn() -> bool,
    ) -> Result<R, Unavailable> {
        let (deliveries, found) = {
            let _alone = self.shared.acting.lock().await;
            let (mut deliveries, found) = self.outbox().read(find).await?;
            if !holds() {
                deliveries.clear();
            }
            for some in deliveries.chunks(deliveries_per_step()) {
                let at = self.now().wall;
                self.write(Record::DeliveriesDied { deliveries: some.to_vec(), reason, at }).await?;
            }
            (deliveries, found)
        };
        if deliveries.is_empty() {
            return Ok(found);
        }
        // An attempt may have ended one just before.
        let dead = move |state: &dyn ReadModel| -> Vec<_> {
            let is_dead = |key: &DeliveryKey| {
                state.delivery(*key).is_some_and(|facts| facts.state == DeliveryState::Dead(reason))
            };
            deliveries.into_iter().filter(is_dead).collect()
        };
        let dead = self.outbox().read(dead).await?;
        self.metrics().died(reason, dead.len() as u64);
        if self.has_operator() {
            let mut words = Vec::new();
            for delivery in dead {
                let event = self.event_at(delivery.event).await.unwrap_or_default();
                words.extend(self.words_on_death(delivery, event.as_deref(), reason));
            }
            self.tell_dead(&words).await;
        }
        Ok(found)
    }
}
