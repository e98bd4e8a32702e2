//! Replays: delivering past events again.

use std::sync::Arc;

use crate::context::Context;
use crate::context::responses::Keyed;
use crate::domain::{
    DeliveryKey, DeliveryState, EndpointId, EndpointNumber, EventId, Party, Position, Tenant, Trigger,
};
use crate::outbox::ReadModel;
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::projections::reads::{Cursor, Filter, Past};
use crate::service::bulk::{deliveries_per_step, revive_command};
use crate::service::endpoints::Endpoints;
use crate::service::events::Events;
use crate::service::filters::StoredSelection;
use crate::service::pages::Pages;
use crate::service::types::Scope;

/// Delivers past events again.
#[derive(Clone, Copy)]
pub struct Replays<'a>(pub &'a Context);

impl Replays<'_> {
    /// Replays an event to these endpoints, or to all that match it now, in one commit. Returns the
    /// number of deliveries.
    ///
    /// # Errors
    /// When the scope lacks the event, an endpoint takes no events of its tenant, or the commit
    /// failed.
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
                let find = |id| {
                    Endpoints(self.0)
                        .get(scope, id)
                        .filter(|endpoint| endpoint.tenant.takes_from(&event.tenant))
                };
                let found: Option<Vec<_>> =
                    ids.iter().map(|id| find(id).map(|endpoint| endpoint.number)).collect();
                found.ok_or(ChangeError::NotAllowed(
                    "an endpoint does not take events of the event's tenant",
                ))?
            }
            None => {
                let mut wanted = self.0.outbox_of(&event.tenant).wanted_by(&event).await;
                wanted.retain(|endpoint| Pages(self.0).covers(scope, event.tenant.as_str(), *endpoint));
                wanted
            }
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

    /// The past events of a step that a replay delivers, newest first, and the start of the next
    /// step. Their selection works in the turn of its tenant.
    pub(crate) async fn find(
        self,
        range: &PastRange,
    ) -> Result<(Vec<Position>, Option<Cursor>), Unavailable> {
        let wanted = range.clone();
        let PastRange { filter, endpoint, after, limit, .. } = range.clone();
        let read = move |state: &dyn ReadModel| state.past(&filter, endpoint, after, limit);
        let found = self.0.outbox_of(endpoint).read(read).await?;
        let select = move || -> Result<(Vec<Position>, Option<Cursor>), Unavailable> {
            let (mut selected, mut examined) = (Vec::new(), None);
            for past in &found.items {
                if selected.len() == wanted.most {
                    return Ok((selected, examined.map(Cursor::at)));
                }
                if wanted.wants(past)? {
                    selected.push(past.position);
                }
                examined = Some(past.position);
            }
            Ok((selected, found.next))
        };
        self.0.compute(&Party::of(range.filter.tenant.as_ref()), select).await?
    }

    /// The deliveries of these events that are still to be made. Events that were removed or erased
    /// since they were found have none.
    pub(crate) async fn confirm(
        self,
        range: &PastRange,
        found: Vec<Position>,
    ) -> Result<Vec<DeliveryKey>, Unavailable> {
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let endpoint = range.endpoint;
        // By position: a second list could end before the last of them.
        let read = move |state: &dyn ReadModel| state.past_of(endpoint, &found);
        let current = self.0.outbox_of(endpoint).read(read).await?.into_iter();
        let left = current.filter(|past| is_eligible(past, range.only_undelivered));
        Ok(left.map(|past| DeliveryKey { event: past.position, endpoint }).collect())
    }
}

/// The past events of a step.
#[derive(Clone)]
pub(crate) struct PastRange {
    pub(crate) filter: Filter,
    pub(crate) endpoint: EndpointNumber,
    pub(crate) after: Option<Cursor>,
    /// Number of events that a step examines.
    pub(crate) limit: usize,
    /// Number of events that it selects.
    pub(crate) most: usize,
    pub(crate) only_undelivered: bool,
    pub(crate) selection: Arc<StoredSelection>,
}

impl PastRange {
    /// Blocks.
    fn wants(&self, past: &Past) -> Result<bool, Unavailable> {
        if !is_eligible(past, self.only_undelivered) {
            return Ok(false);
        }
        self.selection.wants(&past.event_type, past.position)
    }
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
