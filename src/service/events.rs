//! Events: publishing, reading, listing, replaying.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use crate::context::Context;
use crate::context::home::Home;
use crate::context::records::UNEXPECTED_OUTCOME;
use crate::context::waits::WaitSubject;
use crate::domain::{Event, EventId, EventStatus, Idempotency, Position, Record, Tenant, Timestamp};
use crate::failpoints::Bound;
use crate::outbox::ReadModel;
use crate::outbox::draft::{
    AcceptedEvent, EventDraft, PublishError, Unavailable, generated_at, has_publisher_id, publisher_id_scope,
};
use crate::outbox::unit::{Command, Outcome};
use crate::projections::reads::{Cursor, DeliveryFacts, Filter, Found};
use crate::rules::event_status::event_status;
use crate::service::conversions::Conversions;
use crate::service::deliveries::Deliveries;
use crate::service::pages::Pages;
use crate::service::types::{EventView, Page, Published, Scope, WaitError};
use crate::storage::journal::{JournalReader, ReadError};
use crate::{failpoints, limits};

/// An event and its position.
type FoundEvent = (Position, Arc<Event>);

/// Operations on events.
#[derive(Clone, Copy)]
pub struct Events<'a>(pub &'a Context);

impl Events<'_> {
    /// Number of an event's deliveries that a scope sees. Those to endpoints and queues of all
    /// tenants are the operator's.
    #[must_use]
    pub fn delivery_count(self, scope: &Scope, event: &Event) -> usize {
        if scope.0.is_none() {
            return event.targets.len();
        }
        let shared = self.0.outbox_of(Home::All).registry(|registry| registry.shared_endpoints());
        event.targets.iter().filter(|target| !shared.contains(target)).count()
    }

    /// Accepts one event. On return, the event and its deliveries are on disk.
    ///
    /// # Errors
    /// When the event was not accepted.
    pub async fn publish(self, draft: EventDraft) -> Result<AcceptedEvent, PublishError> {
        let mut published = self.publish_batch(vec![draft], None).await?;
        published.results.pop().expect("one result per draft")
    }

    /// Judges each event by itself. `request` is the key of the batch; events may have their own.
    ///
    /// # Errors
    /// When the commit failed, or another request used the key.
    pub async fn publish_batch(
        self,
        mut drafts: Vec<EventDraft>,
        request: Option<Idempotency>,
    ) -> Result<Published, PublishError> {
        let has_key = request.is_some();
        let refused = self.take_refused(&mut drafts);
        self.resolve_generated_ids(&mut drafts).await?;
        let mut retry_drafts = Vec::new();
        if drafts.iter().any(EventDraft::may_be_duplicate) {
            retry_drafts.clone_from(&drafts);
        }
        let mut retry_drafts = retry_drafts.into_iter();
        let wanted = drafts.len();
        let publish = drafts.into_iter().map(|draft| Command::Publish(Box::new(draft)));
        let commands = request.map(Command::Claim).into_iter().chain(publish).collect();
        let (outcomes, unavailable) = self.0.submit_independent(commands).await?;
        let mut outcomes = outcomes.into_iter();
        let mut published = Published::default();
        if has_key {
            published.repeated = match outcomes.next() {
                Some(Outcome::Mismatch) => return Err(PublishError::IdempotencyMismatch),
                claimed => matches!(claimed, Some(Outcome::Duplicate(_))),
            };
        }
        for outcome in outcomes {
            let result = self.publish_result(outcome, retry_drafts.next()).await;
            match &result {
                Ok(accepted) if accepted.duplicate => self.0.metrics().duplicate(),
                Ok(accepted) => {
                    self.0.metrics().accepted();
                    if Conversions(self.0).deprecation(&accepted.event).is_some() {
                        self.0.metrics().deprecated();
                    }
                }
                // The API counts all rejected events.
                Err(_) => {}
            }
            published.results.push(result);
        }
        if let Some(error) = unavailable {
            published.results.resize_with(wanted, || Err(PublishError::Store(error.clone())));
        }
        for (index, error) in refused {
            published.results.insert(index, Err(error));
        }
        Ok(published)
    }

    /// Removes the drafts that their type refuses or that exceed their tenant's rate. Returns their
    /// indexes, in order. Keeps a refused draft that may repeat an accepted event.
    fn take_refused(self, drafts: &mut Vec<EventDraft>) -> Vec<(usize, PublishError)> {
        let mut refused = Vec::new();
        let mut index = 0;
        drafts.retain_mut(|draft| {
            let is_final = !draft.may_be_duplicate();
            let error = match draft.refusal.take_if(|_| is_final) {
                Some(refusal) => Some(PublishError::Refused(refusal)),
                None => self.0.take_rate(&draft.tenant, 1, draft.data.len() as u64).err().map(Into::into),
            };
            refused.extend(error.map(|error| (index, error)));
            index += 1;
            refused.last().is_none_or(|(last, _)| last + 1 != index)
        });
        refused
    }

    /// Finds publisher ids that were generated for other events of the tenant. This journal read is
    /// final, because generated ids are unknown before their event is in the journal. It includes
    /// events that retention removed from the state, because a rebuild would restore them.
    pub(super) async fn resolve_generated_ids(self, drafts: &mut [EventDraft]) -> Result<(), Unavailable> {
        let looks_generated = |draft: &&mut EventDraft| draft.id.as_ref().and_then(generated_at).is_some();
        let candidates: Vec<_> = drafts.iter_mut().filter(looks_generated).collect();
        if candidates.is_empty() {
            return Ok(());
        }
        let ids = candidates.iter().filter_map(|draft| draft.id.clone()).collect();
        for (draft, found) in candidates.into_iter().zip(self.find_generated_events(ids).await?) {
            if let Some((position, event)) = found.filter(|(_, event)| event.tenant == draft.tenant) {
                draft.id_conflict = draft.judge_id_conflict(position, &event);
            }
        }
        Ok(())
    }

    /// The result for the publisher. If retention removes the original of a duplicate before it is
    /// read, submits `retry_draft` once more.
    async fn publish_result(
        self,
        mut outcome: Outcome,
        mut retry_draft: Option<EventDraft>,
    ) -> Result<AcceptedEvent, PublishError> {
        loop {
            let position = match outcome {
                Outcome::Accepted(accepted) => return Ok(accepted),
                Outcome::Duplicate(position) => position,
                Outcome::Mismatch => return Err(PublishError::IdempotencyMismatch),
                Outcome::Rejected(rejection) => {
                    return Err(PublishError::Rejected { rejection, repeated: false });
                }
                Outcome::TooManyTargets => return Err(PublishError::TooManyTargets),
                Outcome::Refused(refusal) => return Err(PublishError::Refused(refusal)),
                Outcome::QuotaExceeded(exceeded) => {
                    self.0.metrics().quota_refused(exceeded.quota);
                    return Err(PublishError::QuotaExceeded(exceeded));
                }
                Outcome::Endpoint(_)
                | Outcome::UidTaken
                | Outcome::Tenant(_)
                | Outcome::Consumer(_)
                | Outcome::ConsumerCreated(_)
                | Outcome::ConsumerMoved { .. }
                | Outcome::TooManyConsumers
                | Outcome::Job(_)
                | Outcome::TooManyJobs
                | Outcome::Type(_)
                | Outcome::Source(_)
                | Outcome::Written(_)
                | Outcome::Passed
                | Outcome::Withdrawn
                | Outcome::Sealed
                | Outcome::Conflict => unreachable!("{UNEXPECTED_OUTCOME}"),
            };
            outcome = match self.0.record_at(position).await? {
                Some(Record::EventAccepted(event)) => {
                    return Ok(AcceptedEvent { event, position, duplicate: true });
                }
                Some(Record::EventRejected { rejection, .. }) => {
                    return Err(PublishError::Rejected { rejection, repeated: true });
                }
                _ => {
                    let Some(draft) = retry_draft.take() else {
                        return Err(PublishError::IdempotencyMismatch);
                    };
                    let commands = vec![Command::Publish(Box::new(draft))];
                    // Boxed, because it is rare; every request would reserve its size otherwise.
                    Box::pin(self.0.submit(commands)).await?.pop().expect("one command")
                }
            };
        }
    }

    /// Looks up a publisher's id in `tenant`, and a generated id in the whole scope.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn get(
        self,
        scope: &Scope,
        tenant: &Tenant,
        id: &EventId,
    ) -> Result<Option<EventView>, Unavailable> {
        let Some((position, event)) = self.find(scope, tenant, id).await? else { return Ok(None) };
        // Retention may have removed it since `find`.
        let known = move |state: &dyn ReadModel| state.knows(position).then(|| state.deliveries_of(position));
        let Some(facts) = self.0.outbox_of(position).read_of(Some(&event.tenant), known).await? else {
            return Ok(None);
        };
        Ok(Some(self.view(scope, position, event, facts)))
    }

    /// As [`Self::get`], but waits until the event's status is final, for at most `wait`, and not
    /// for a caller that has gone.
    ///
    /// # Errors
    /// When the outbox is unavailable, or too many callers wait.
    pub async fn get_final(
        self,
        scope: &Scope,
        tenant: &Tenant,
        id: &EventId,
        wait: Duration,
        gone: impl Future<Output = ()> + Send,
    ) -> Result<Option<EventView>, WaitError> {
        let is_final = |view: &Option<EventView>| {
            view.as_ref().is_none_or(|view| view.status != EventStatus::Pending.as_str())
        };
        let view = self.get(scope, tenant, id).await?;
        let Some(position) = view.as_ref().filter(|_| !wait.is_zero()).map(|view| view.position) else {
            return Ok(view);
        };
        if is_final(&view) {
            return Ok(view);
        }
        let subject = WaitSubject::Deliveries(position);
        let registered =
            self.0.waits().register(subject, scope.party()).map_err(|_| WaitError::TooManyWaiters)?;
        let (mut timeout, mut gone) = (pin!(tokio::time::sleep(wait)), pin!(gone));
        loop {
            let mut changed = pin!(registered.changed());
            // Before the read: a commit after it wakes this caller.
            changed.as_mut().enable();
            let view = self.get(scope, tenant, id).await?;
            if is_final(&view) || registered.has_ended() {
                return Ok(view);
            }
            tokio::select! {
                () = changed => {}
                () = &mut timeout => return Ok(view),
                () = &mut gone => return Ok(view),
            }
        }
    }

    /// The event with this publisher's id in `tenant`, or with this generated id. In a scope of all
    /// tenants, the generated id comes first: a publisher that chooses an id of that form must not
    /// hide another tenant's event. An id is unique within a tenant.
    pub(crate) async fn find(
        self,
        scope: &Scope,
        tenant: &Tenant,
        id: &EventId,
    ) -> Result<Option<FoundEvent>, Unavailable> {
        if scope.0.is_none()
            && let Some(found) = self.find_generated_event(scope, id).await?
        {
            return Ok(Some(found));
        }
        let chosen = publisher_id_scope(tenant, id);
        let known = self
            .0
            .outbox_of(tenant)
            .read_of(Some(tenant), move |state| {
                state.request(&chosen).filter(|known| state.knows(known.position))
            })
            .await?;
        match known {
            Some(known) => {
                let event = self.0.event_at(known.position).await?;
                Ok(event
                    .map(|event| (known.position, event))
                    .filter(|(_, event)| scope.covers(&event.tenant)))
            }
            None if scope.0.is_some() => self.find_generated_event(scope, id).await,
            None => Ok(None),
        }
    }

    /// The event with this generated id, unless retention removed it from the state.
    async fn find_generated_event(
        self,
        scope: &Scope,
        id: &EventId,
    ) -> Result<Option<FoundEvent>, Unavailable> {
        let Some(at) = generated_at(id) else { return Ok(None) };
        if let Some(own) = &scope.0
            && !self.may_have_accepted(own, at).await?
        {
            return Ok(None);
        }
        let found = self.find_generated_events(vec![id.clone()]).await?.pop().flatten();
        let Some((position, event)) = found.filter(|(_, event)| scope.covers(&event.tenant)) else {
            return Ok(None);
        };
        let tenant = Some(&event.tenant);
        let known = self.0.outbox_of(position).read_of(tenant, move |state| state.knows(position)).await?;
        Ok(known.then_some((position, event)))
    }

    /// Whether the tenant has an event from this millisecond. If not, a journal read would leak.
    async fn may_have_accepted(self, tenant: &Tenant, at: Timestamp) -> Result<bool, Unavailable> {
        let until = Some(at.plus(Duration::from_millis(1)));
        let filter = Filter { tenant: Some(tenant.clone()), since: Some(at), until, ..Filter::default() };
        let page = Pages(self.0)
            .collect(Some(tenant), None, 1, move |state, after, limit| state.events(&filter, after, limit))
            .await?;
        Ok(!page.items.is_empty() || page.next.is_some())
    }

    /// For each generated id its event, if the journal still has it.
    pub(crate) async fn find_generated_events(
        self,
        ids: Vec<EventId>,
    ) -> Result<Vec<Option<FoundEvent>>, Unavailable> {
        let reader = self.0.outbox_of(Home::All).journal().clone();
        let found = self.0.blocking(move || scan_for_generated_ids(&reader, &ids)).await?;
        found.map_err(|error| Unavailable::Failed(error.to_string().into()))
    }

    /// The event with its deliveries, as the scope sees them.
    fn view(
        self,
        scope: &Scope,
        position: Position,
        event: Arc<Event>,
        mut facts: Vec<DeliveryFacts>,
    ) -> EventView {
        facts.retain(|facts| Pages(self.0).covers(scope, &facts.tenant, facts.key.endpoint));
        let status = event_status(facts.iter().map(|facts| facts.state)).as_str();
        let deliveries = facts.iter().map(|facts| Deliveries(self.0).view(&event, facts)).collect();
        EventView { event, position, status, deliveries }
    }

    /// Filters: tenant, event_type, stream, event_status, since, until.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn list(
        self,
        scope: &Scope,
        filter: Filter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Page<EventView>, Unavailable> {
        let Some(mut filter) = Pages(self.0).scoped(scope, filter) else { return Ok(Pages(self.0).empty()) };
        let tenant = filter.tenant.clone();
        if tenant.is_none() {
            // The operator sees the status of all deliveries.
            filter.shared = Arc::default();
        }
        let scope = &Scope(tenant.clone());
        let page = Pages(self.0)
            .collect(tenant.as_ref(), after, limit, move |state, after, limit| {
                let found = state.events(&filter, after, limit);
                with_deliveries(state, found)
            })
            .await?;
        let mut items = Vec::with_capacity(page.items.len());
        let (mut bytes, mut next) = (0, page.next);
        let last = page.items.last().map(|(position, _)| *position);
        let add = |(position, facts), event: Option<Arc<Event>>| {
            if let Some(event) = event {
                bytes += event_bytes(&event);
                items.push(self.view(scope, position, event, facts));
            }
            let is_full = bytes >= failpoints::bound(Bound::PageBytes, limits::PAGE_BYTES_TARGET);
            if is_full && last != Some(position) {
                next = Some(Cursor::at(position));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        self.0.visit_events(page.items, |(position, _)| *position, add).await?;
        Ok(Page { items, next, as_of: page.as_of })
    }
}

/// Adds the deliveries of each event. A step ends after the event with which it has read
/// [`limits::SCAN_ENTRIES_MAX`] deliveries.
fn with_deliveries(state: &dyn ReadModel, found: Found<Position>) -> Found<(Position, Vec<DeliveryFacts>)> {
    let (mut items, mut read, last) = (Vec::new(), 0, found.items.last().copied());
    for position in found.items {
        let facts = state.deliveries_of(position);
        read += facts.len();
        items.push((position, facts));
        if read >= failpoints::bound(Bound::ScanEntries, limits::SCAN_ENTRIES_MAX) && Some(position) != last {
            return Found { items, next: Some(Cursor::at(position)) };
        }
    }
    Found { items, next: found.next }
}

/// Approximate bytes of an event in a page, with its deliveries.
fn event_bytes(event: &Event) -> usize {
    event.weight() + 256 * event.targets.len()
}

/// Finds events by generated ids, whose times lead to their frames. Skips damaged records.
fn scan_for_generated_ids(
    reader: &JournalReader,
    ids: &[EventId],
) -> std::io::Result<Vec<Option<FoundEvent>>> {
    let mut wanted: BTreeMap<Timestamp, HashMap<&EventId, Vec<usize>>> = BTreeMap::new();
    for (number, id) in ids.iter().enumerate() {
        if let Some(at) = generated_at(id) {
            wanted.entry(at).or_default().entry(id).or_default().push(number);
        }
    }
    let mut found = vec![None; ids.len()];
    for (at, mut ids) in wanted {
        let mut records = reader.positions_at(at);
        while !ids.is_empty()
            && let Some(record) = records.next()
        {
            match record {
                Ok((position, Record::EventAccepted(event))) if !has_publisher_id(&event) => {
                    for number in ids.remove(&event.id).unwrap_or_default() {
                        found[number] = Some((position, event.clone()));
                    }
                }
                Err(ReadError::Io(error)) => return Err(error),
                Ok(_) | Err(ReadError::Damaged { .. } | ReadError::Undecodable { .. }) => {}
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::{Fault, MemoryDisk, Operation};
    use crate::storage::journal::{Journal, JournalOptions};

    #[test]
    fn generated_ids_lead_to_events_and_read_errors_are_returned() {
        let disk = MemoryDisk::new();
        let (mut journal, _) = Journal::open(Arc::new(disk.clone()), JournalOptions::new(1)).unwrap();
        let millis = 1_700_000_000_000;
        let id = |number: u128| -> EventId {
            format!("evt_{}", ulid::Ulid::from_parts(millis, number)).parse().unwrap()
        };
        let event = |number| {
            Record::EventAccepted(Arc::new(Event { id: id(number), ..crate::rules::tests::event() }))
        };
        let records: Vec<_> = (1..=3).map(event).collect();
        journal.append(Timestamp::from_millis(millis), &[&records]).unwrap();
        let reader = journal.reader();
        let publisher_id: EventId = "chosen".parse().unwrap();
        let ids = [id(3), id(9), publisher_id, id(1), id(3)];
        let found = scan_for_generated_ids(&reader, &ids).unwrap();
        let positions: Vec<_> = found.iter().map(|found| found.as_ref().map(|(at, _)| at.0)).collect();
        assert_eq!(positions, [Some(3), None, None, Some(1), Some(3)]);
        drop(journal);
        // A freshly opened journal has no records in memory.
        let (journal, _) = Journal::open(Arc::new(disk.clone()), JournalOptions::new(1)).unwrap();
        disk.inject(Fault { operation: Operation::Read, errno: Fault::EIO, skip: 0, count: u64::MAX });
        assert!(scan_for_generated_ids(&journal.reader(), &ids).is_err());
    }
}
