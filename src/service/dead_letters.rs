//! Dead letters: reading, listing, redriving, purging.

use crate::context::Context;
use crate::context::responses::Keyed;
use crate::domain::{DeliveryKey, Record, Timestamp, Trigger};
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::outbox::unit::Command;
use crate::projections::reads::{Cursor, Filter, Found};
use crate::service::bulk::deliveries_per_step;
use crate::service::deliveries::Deliveries;
use crate::service::pages::{Pages, scoped};
use crate::service::types::{DeadLetterDetail, DeadLetterView, DeliveryView, Page, Scope};

/// Operations on dead letters.
#[derive(Clone, Copy)]
pub struct DeadLetters<'a>(pub &'a Context);

impl DeadLetters<'_> {
    /// # Errors
    /// When the outbox cannot answer.
    pub async fn get(self, scope: &Scope, key: DeliveryKey) -> Result<Option<DeadLetterDetail>, Unavailable> {
        let found = self.0.outbox().read(move |state| state.dead_letter(key)).await?;
        let found = found.filter(|(facts, ..)| scope.covers_name(&facts.tenant));
        let Some((facts, reason, died_at)) = found else { return Ok(None) };
        let Some(event) = self.0.event_at(key.event).await? else { return Ok(None) };
        let delivery = Deliveries(self.0).view(&event, &facts).await;
        let letter = DeadLetterView { delivery, reason, died_at };
        Ok(Some(DeadLetterDetail { letter, event, attempts: Deliveries(self.0).attempts(&facts).await }))
    }

    /// Filters: tenant, endpoint, event_type, reason, since, until (of the death).
    ///
    /// # Errors
    /// When the outbox cannot answer.
    pub async fn list(
        self,
        scope: &Scope,
        filter: Filter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Page<DeadLetterView>, Unavailable> {
        let Some(filter) = scoped(scope, filter) else { return Ok(Pages(self.0).empty()) };
        let page = Pages(self.0)
            .collect(after, limit, move |state, after, limit| {
                let found = state.dead_letters(&filter, after, limit);
                let facts = |letter: crate::projections::dead::Letter| state.dead_letter(letter.delivery);
                Found { items: found.items.into_iter().filter_map(facts).collect(), next: found.next }
            })
            .await?;
        let mut items = Vec::with_capacity(page.items.len());
        for (facts, reason, died_at) in page.items {
            if let Some(event) = self.0.event_at(facts.key.event).await? {
                items.push(DeadLetterView {
                    delivery: Deliveries(self.0).view(&event, &facts).await,
                    reason,
                    died_at,
                });
            }
        }
        Ok(Page { items, next: page.next, as_of: page.as_of })
    }

    /// # Errors
    /// When there is no such dead letter in the scope, its endpoint is gone, or nothing could be written.
    pub async fn redrive(
        self,
        scope: &Scope,
        key: DeliveryKey,
        keyed: Option<Keyed<DeliveryView>>,
    ) -> Result<DeliveryView, ChangeError> {
        Deliveries(self.0).revive_one(scope, key, Trigger::Redrive, keyed).await
    }

    /// # Errors
    /// When there is no such dead letter in the scope, or nothing could be written.
    pub async fn purge(self, scope: &Scope, key: DeliveryKey) -> Result<(), ChangeError> {
        let _alone = self.0.exclusive().await;
        self.get(scope, key).await?.ok_or(ChangeError::NotFound)?;
        self.0.write(Record::DeadLettersPurged { deliveries: vec![key], at: self.0.now().wall }).await?;
        Ok(())
    }

    /// Every dead letter that matches when its turn comes, in bounded steps, each one commit, the answer in the last one.
    /// Those whose endpoint is gone stay, and do not count. Who repeats a request that broke off goes on with the letters that
    /// are left, and hears their number.
    ///
    /// # Errors
    /// When nothing more could be read or written; what was redriven before stays so.
    pub async fn redrive_matching(
        self,
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
        self,
        scope: &Scope,
        filter: Filter,
        keyed: Option<Keyed<u64>>,
    ) -> Result<u64, ChangeError> {
        let record = |deliveries, at| Record::DeadLettersPurged { deliveries, at };
        self.for_matching(scope, filter, false, record, keyed).await
    }

    async fn for_matching(
        self,
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
            let _alone = self.0.exclusive().await;
            let filter = filter.clone();
            let found = self
                .0
                .outbox()
                .read(move |state| state.dead_letters(&filter, cursor, deliveries_per_step()))
                .await?;
            let mut deliveries: Vec<_> = found.items.into_iter().map(|letter| letter.delivery).collect();
            if living_endpoints_only {
                self.0.outbox().registry(|registry| {
                    deliveries.retain(|key| registry.endpoint(key.endpoint).is_some());
                });
            }
            count += deliveries.len() as u64;
            // Newest first was how they were found; in order of acceptance is how they go out.
            deliveries.sort_unstable();
            cursor = found.next;
            let command =
                (!deliveries.is_empty()).then(|| Command::Record(record(deliveries, self.0.now().wall)));
            let last = keyed.clone().filter(|_| cursor.is_none());
            self.0.commit(command.into_iter().collect(), last.map(|keyed| keyed.answered(&count))).await?;
            if cursor.is_none() {
                return Ok(count);
            }
        }
    }
}
