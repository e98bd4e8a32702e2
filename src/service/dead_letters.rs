//! Dead letters: reading, listing, redriving, purging.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::context::Context;
use crate::context::responses::Keyed;
use crate::domain::{DeadReason, DeliveryKey, Event, Party, Record, Trigger};
use crate::outbox::ReadModel;
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::outbox::read_model::DeadLetter;
use crate::projections::reads::{Cursor, Filter, Found};
use crate::service::bulk::deliveries_per_step;
use crate::service::conversions::Conversions;
use crate::service::deliveries::Deliveries;
use crate::service::pages::Pages;
use crate::service::search::has_id_start;
use crate::service::types::{DeadLetterDetail, DeadLetterView, DeliveryView, Page, Scope};

/// Operations on dead letters.
#[derive(Clone, Copy)]
pub struct DeadLetters<'a>(pub &'a Context);

impl DeadLetters<'_> {
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn get(self, scope: &Scope, key: DeliveryKey) -> Result<Option<DeadLetterDetail>, Unavailable> {
        let letter = move |state: &dyn ReadModel| state.dead_letter(key);
        let found = self.0.outbox_of(key.event).read_of(scope.0.as_ref(), letter).await?;
        let found = found.filter(|(facts, ..)| Pages(self.0).covers(scope, &facts.tenant, key.endpoint));
        let Some((facts, reason, died_at)) = found else { return Ok(None) };
        let Some(event) = self.0.event_at(key.event).await? else { return Ok(None) };
        let delivery = Deliveries(self.0).view(&event, &facts);
        let letter = DeadLetterView { delivery, reason, died_at };
        let endpoint = self.0.outbox_of(key.endpoint).endpoint(key.endpoint);
        let endpoint = endpoint.filter(|_| reason == DeadReason::Unconvertible);
        let conversion_error = endpoint.and_then(|endpoint| {
            let converted = Conversions(self.0).convert(&endpoint.versions, key.event, &event);
            converted.err().map(|error| error.to_string())
        });
        let attempts = Deliveries(self.0).attempts(&event, &facts).await;
        Ok(Some(DeadLetterDetail { letter, event, attempts, conversion_error }))
    }

    /// Filters: see [`reads::dead_letters`](crate::projections::reads::dead_letters), and
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
    ) -> Result<Page<DeadLetterView>, Unavailable> {
        let Some(filter) = Pages(self.0).scoped(scope, filter) else { return Ok(Pages(self.0).empty()) };
        let (tenant, id_start) = (filter.tenant.clone(), filter.event_id_start.clone());
        let page = Pages(self.0)
            .collect(tenant.as_ref(), after, limit, move |state, after, limit| {
                let found = state.dead_letters(&filter, after, limit);
                let facts = |letter: crate::projections::dead::Letter| state.dead_letter(letter.delivery);
                Found { items: found.items.into_iter().filter_map(facts).collect(), next: found.next }
            })
            .await?;
        let mut items = Vec::with_capacity(page.items.len());
        let add = |(facts, reason, died_at): DeadLetter, event: Option<Arc<Event>>| {
            let event = event.filter(|event| has_id_start(event, id_start.as_deref()));
            let view = |event: Arc<Event>| Deliveries(self.0).view(&event, &facts);
            items.extend(event.map(view).map(|delivery| DeadLetterView { delivery, reason, died_at }));
            ControlFlow::Continue(())
        };
        self.0.visit_events(page.items, |(facts, ..)| facts.key.event, add).await?;
        Ok(Page { items, next: page.next, as_of: page.as_of })
    }

    /// # Errors
    /// When the scope lacks the dead letter, its endpoint was deleted, or the commit failed.
    pub async fn redrive(
        self,
        scope: &Scope,
        key: DeliveryKey,
        keyed: Option<Keyed<DeliveryView>>,
    ) -> Result<DeliveryView, ChangeError> {
        Deliveries(self.0).revive_one(scope, key, Trigger::Redrive, keyed).await
    }

    /// # Errors
    /// When the scope lacks the dead letter, or the commit failed.
    pub async fn purge(self, scope: &Scope, key: DeliveryKey) -> Result<(), ChangeError> {
        let _alone = self.0.exclusive(&scope.party()).await;
        self.get(scope, key).await?.ok_or(ChangeError::NotFound)?;
        self.0.write(Record::DeadLettersPurged { deliveries: vec![key], at: self.0.now().wall }).await?;
        Ok(())
    }

    /// Purges all matching dead letters and returns their number. Works in bounded steps of one
    /// commit each.
    ///
    /// # Errors
    /// When a read or commit failed. Completed steps stay.
    pub(crate) async fn purge_matching(self, filter: Filter) -> Result<u64, Unavailable> {
        let (filter, mut cursor, mut count) = (Pages(self.0).with_owners(filter), None, 0);
        loop {
            let _alone = self.0.exclusive(&Party::Delivery).await;
            let wanted = filter.clone();
            let read =
                move |state: &dyn ReadModel| state.dead_letters(&wanted, cursor, deliveries_per_step());
            let found = self.0.outbox_of(filter.tenant.as_ref()).read(read).await?;
            let deliveries: Vec<_> = found.items.into_iter().map(|letter| letter.delivery).collect();
            count += deliveries.len() as u64;
            if !deliveries.is_empty() {
                self.0.write(Record::DeadLettersPurged { deliveries, at: self.0.now().wall }).await?;
            }
            cursor = found.next;
            if cursor.is_none() {
                return Ok(count);
            }
        }
    }
}
