//! Replays: delivering past events again.

use std::collections::HashSet;
use std::sync::Arc;

use crate::context::Context;
use crate::context::responses::Keyed;
use crate::domain::{
    DeliveryKey, DeliveryState, Endpoint, EndpointId, EndpointNumber, EventId, Party, Pattern, Position,
    Tenant, Timestamp, Trigger,
};
use crate::outbox::ReadModel;
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::projections::reads::{Cursor, Filter, Found, Past};
use crate::service::bulk::{DELETED, deliveries_per_step, revive_command};
use crate::service::endpoints::Endpoints;
use crate::service::events::Events;
use crate::service::filters::StoredSelection;
use crate::service::types::Scope;

/// Delivers past events again.
#[derive(Clone, Copy)]
pub struct Replays<'a>(pub &'a Context);

impl Replays<'_> {
    /// Replays an event to these endpoints, or to all that match it now, in one commit. Returns the
    /// number of deliveries.
    ///
    /// # Errors
    /// When the scope lacks the event, an endpoint belongs to another tenant, or the commit failed.
    pub async fn of_event(
        self,
        scope: &Scope,
        tenant: &Tenant,
        id: &EventId,
        endpoints: Option<Vec<EndpointId>>,
        keyed: Option<Keyed<u64>>,
    ) -> Result<u64, ChangeError> {
        let _alone = self.0.exclusive(&scope.party()).await;
        let _held = self.0.outbox_of(scope.0.as_ref()).hold_events().await;
        let found = Events(self.0).find(scope, tenant, id).await?;
        let (position, event) = found.ok_or(ChangeError::NotFound)?;
        if event.erased_at.is_some() {
            return Err(ChangeError::Erased);
        }
        let numbers: Vec<EndpointNumber> = match endpoints {
            Some(ids) => {
                let find =
                    |id| Endpoints(self.0).get(scope, id).filter(|endpoint| endpoint.tenant == event.tenant);
                let found: Option<Vec<_>> =
                    ids.iter().map(|id| find(id).map(|endpoint| endpoint.number)).collect();
                found.ok_or(ChangeError::NotAllowed("an endpoint does not belong to the event's tenant"))?
            }
            None => self.0.outbox_of(&event.tenant).wanted_by(&event).await,
        };
        let deliveries: Vec<_> =
            numbers.into_iter().map(|endpoint| DeliveryKey { event: position, endpoint }).collect();
        let count = deliveries.len() as u64;
        let at = self.0.now().wall;
        let steps = deliveries.chunks(deliveries_per_step());
        let commands = steps.map(|some| revive_command(some.to_vec(), Trigger::Replay, at)).collect();
        self.0.commit(commands, keyed.map(|keyed| keyed.response_for(&count))).await?;
        Ok(count)
    }

    /// Replays the logged events of the endpoint's tenant between the times, and returns the number
    /// of deliveries. The patterns replace those of the endpoint; its labels and its filter apply.
    /// Skips pending deliveries. Works in bounded steps of one commit each; the last
    /// commit stores the response. Repeating an interrupted request starts over, and may replay
    /// deliveries that were delivered since.
    ///
    /// # Errors
    /// When a read or commit failed. Completed steps stay.
    pub async fn to_endpoint(
        self,
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
        let selection = Arc::new(StoredSelection::new(self.0, endpoint, patterns));
        let number = endpoint.number;
        // Later events are not past ones. So each step finds the same events twice.
        let end = self.0.outbox_of(number).journal().last_position().next();
        let mut cursor = Some(Cursor::at(end));
        let mut count = 0;
        loop {
            let range = PastRange { filter: filter.clone(), endpoint: number, after: cursor };
            let found = self.past(&range).await?;
            let after_this = found.next;
            let wanted = self.select(found, only_undelivered, selection.clone()).await?;
            // The scan and the selection take long; the lock covers the decision only. Events that
            // retention deleted in between are not found again.
            let _alone = self.0.exclusive(&Party::of(Some(&endpoint.tenant))).await;
            let _held = self.0.outbox_of(number).hold_events().await;
            if self.0.outbox_of(number).endpoint(number).is_none() {
                return Err(DELETED);
            }
            let mut deliveries = Vec::new();
            if !wanted.is_empty() {
                let current = self.past(&range).await?.items.into_iter();
                let eligible = current.filter(|past| is_eligible(past, only_undelivered));
                let keys = eligible.map(|past| DeliveryKey { event: past.position, endpoint: number });
                deliveries.extend(keys.filter(|key| wanted.contains(&key.event)));
            }
            // Found newest first, sent in order of acceptance.
            deliveries.sort_unstable();
            count += deliveries.len() as u64;
            cursor = after_this;
            let command = (!deliveries.is_empty())
                .then(|| revive_command(deliveries, Trigger::Replay, self.0.now().wall));
            let last = keyed.clone().filter(|_| cursor.is_none());
            self.0
                .commit(command.into_iter().collect(), last.map(|keyed| keyed.response_for(&count)))
                .await?;
            if cursor.is_none() {
                return Ok(count);
            }
        }
    }

    async fn past(self, range: &PastRange) -> Result<Found<Past>, Unavailable> {
        let PastRange { filter, endpoint, after } = range.clone();
        let read = move |state: &dyn ReadModel| state.past(&filter, endpoint, after, deliveries_per_step());
        self.0.outbox_of(endpoint).read(read).await
    }

    /// Positions of the eligible events that are selected. Works on a blocking thread.
    async fn select(
        self,
        found: Found<Past>,
        only_undelivered: bool,
        selection: Arc<StoredSelection>,
    ) -> Result<HashSet<Position>, Unavailable> {
        let select = move || -> Result<HashSet<Position>, Unavailable> {
            let mut selected = HashSet::new();
            for past in found.items.iter().filter(|past| is_eligible(past, only_undelivered)) {
                if selection.wants(&past.event_type, past.position)? {
                    selected.insert(past.position);
                }
            }
            Ok(selected)
        };
        self.0.blocking(select).await?
    }
}

/// The past events of a step.
#[derive(Clone)]
struct PastRange {
    filter: Filter,
    endpoint: EndpointNumber,
    after: Option<Cursor>,
}

fn is_eligible(past: &Past, only_undelivered: bool) -> bool {
    match past.state {
        _ if past.is_erased => false,
        Some(DeliveryState::Pending) => false,
        // A purged dead letter is unwanted, but a full replay includes it.
        Some(DeliveryState::Delivered | DeliveryState::Purged) => !only_undelivered,
        Some(DeliveryState::Dead(_) | DeliveryState::Cancelled) | None => true,
    }
}
