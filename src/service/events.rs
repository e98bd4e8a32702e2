//! Events: publishing, reading, listing, replaying.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::context::Context;
use crate::context::records::UNJUDGED;
use crate::domain::{Event, EventId, Idempotency, Position, Record, Tenant, Timestamp};
use crate::failpoints::Bound;
use crate::outbox::draft::{
    Accepted, EventDraft, PublishError, Unavailable, generated_at, has_publisher_id, publisher_id_scope,
};
use crate::outbox::unit::{Command, Outcome};
use crate::projections::reads::{Cursor, DeliveryFacts, Filter, Found};
use crate::rules::event_status::event_status;
use crate::service::deliveries::Deliveries;
use crate::service::pages::{Pages, scoped};
use crate::service::types::{EventView, Page, Published, Scope};
use crate::storage::journal::{JournalReader, ReadError};
use crate::{failpoints, limits};

/// An event and where it is.
type FoundEvent = (Position, Arc<Event>);

/// Operations on events.
#[derive(Clone, Copy)]
pub struct Events<'a>(pub &'a Context);

impl Events<'_> {
    /// Accepts one event: when this returns, it and its deliveries are on disk.
    ///
    /// # Errors
    /// When nothing was accepted.
    pub async fn publish(self, draft: EventDraft) -> Result<Accepted, PublishError> {
        let mut published = self.publish_batch(vec![draft], None).await?;
        published.results.pop().expect("one result per draft")
    }

    /// Each event stands alone. `request` is the key that they came with; each has its own beside it.
    ///
    /// # Errors
    /// When nothing could be judged, or the key was another request's.
    pub async fn publish_batch(
        self,
        mut drafts: Vec<EventDraft>,
        request: Option<Idempotency>,
    ) -> Result<Published, PublishError> {
        let has_key = request.is_some();
        self.resolve_generated_ids(&mut drafts).await?;
        let mut kept = Vec::new();
        if drafts.iter().any(EventDraft::may_be_duplicate) {
            kept.clone_from(&drafts);
        }
        let mut kept = kept.into_iter();
        let publish = drafts.into_iter().map(|draft| Command::Publish(Box::new(draft)));
        let commands = request.map(Command::Claim).into_iter().chain(publish).collect();
        let mut outcomes = self.0.submit(commands).await?.into_iter();
        let mut published = Published::default();
        if has_key {
            published.repeated = match outcomes.next() {
                Some(Outcome::Mismatch) => return Err(PublishError::IdempotencyMismatch),
                claimed => matches!(claimed, Some(Outcome::Duplicate(_))),
            };
        }
        for outcome in outcomes {
            let result = self.published(outcome, kept.next()).await;
            match &result {
                Ok(accepted) if accepted.duplicate => self.0.metrics().duplicate(),
                Ok(_) => self.0.metrics().accepted(),
                // Counted at the door, with what is refused before it comes here.
                Err(_) => {}
            }
            published.results.push(result);
        }
        Ok(published)
    }

    /// A chosen id may be one that the daemon has given to another event of the tenant. Nobody knows such an id before
    /// its event is in the journal, so that what the journal says here is the last word; also of an event that retention
    /// has let go, because a state that is made anew would know both.
    async fn resolve_generated_ids(self, drafts: &mut [EventDraft]) -> Result<(), Unavailable> {
        let shaped = |draft: &&mut EventDraft| draft.id.as_ref().and_then(generated_at).is_some();
        let shaped: Vec<_> = drafts.iter_mut().filter(shaped).collect();
        if shaped.is_empty() {
            return Ok(());
        }
        let ids = shaped.iter().filter_map(|draft| draft.id.clone()).collect();
        for (draft, found) in shaped.into_iter().zip(self.generated_events(ids).await?) {
            if let Some((position, event)) = found.filter(|(_, event)| event.tenant == draft.tenant) {
                draft.id_conflict = draft.judge_id_conflict(position, &event);
            }
        }
        Ok(())
    }

    /// What to say of an outcome. The event that it repeats may be forgotten before it is read: then there is none that
    /// `kept`, the draft, would repeat, and it is judged once more.
    async fn published(
        self,
        mut outcome: Outcome,
        mut kept: Option<EventDraft>,
    ) -> Result<Accepted, PublishError> {
        loop {
            let position = match outcome {
                Outcome::Accepted(accepted) => return Ok(accepted),
                Outcome::Duplicate(position) => position,
                Outcome::Mismatch => return Err(PublishError::IdempotencyMismatch),
                Outcome::Rejected(rejection) => {
                    return Err(PublishError::Rejected { rejection, repeated: false });
                }
                Outcome::TooManyTargets => return Err(PublishError::TooManyTargets),
                Outcome::Endpoint(_) | Outcome::Written(_) | Outcome::Conflict => {
                    unreachable!("{UNJUDGED}")
                }
            };
            outcome = match self.0.record_at(position).await? {
                Some(Record::EventAccepted(event)) => {
                    return Ok(Accepted { event, position, duplicate: true });
                }
                Some(Record::EventRejected { rejection, .. }) => {
                    return Err(PublishError::Rejected { rejection, repeated: true });
                }
                _ => {
                    let Some(draft) = kept.take() else { return Err(PublishError::IdempotencyMismatch) };
                    self.0.submit(vec![Command::Publish(Box::new(draft))]).await?.pop().expect("one command")
                }
            };
        }
    }

    /// A chosen id is looked up in `tenant`, one that the daemon gave everywhere in the scope.
    ///
    /// # Errors
    /// When the outbox cannot answer.
    pub async fn get(
        self,
        scope: &Scope,
        tenant: &Tenant,
        id: &EventId,
    ) -> Result<Option<EventView>, Unavailable> {
        let Some((position, event)) = self.find(scope, tenant, id).await? else { return Ok(None) };
        // Retention may have let it go since it was found.
        let known =
            self.0.outbox().read(move |state| state.knows(position).then(|| state.deliveries_of(position)));
        let Some(facts) = known.await? else { return Ok(None) };
        Ok(Some(self.view(position, event, facts).await))
    }

    /// The event that was posted with the id in `tenant`, or the one to which the daemon gave it. Where no tenant was named,
    /// the daemon's own comes first: a publisher that chooses an id of that form must not put its event in the place of
    /// another tenant's. (In one tenant no two events have the same id.)
    pub(crate) async fn find(
        self,
        scope: &Scope,
        tenant: &Tenant,
        id: &EventId,
    ) -> Result<Option<FoundEvent>, Unavailable> {
        if scope.0.is_none()
            && let Some(found) = self.generated_event(scope, id).await?
        {
            return Ok(Some(found));
        }
        let chosen = publisher_id_scope(tenant, id);
        let known = self
            .0
            .outbox()
            .read(move |state| state.request(&chosen).filter(|known| state.knows(known.position)))
            .await?;
        match known {
            Some(known) => {
                let event = self.0.event_at(known.position).await?;
                Ok(event
                    .map(|event| (known.position, event))
                    .filter(|(_, event)| scope.covers(&event.tenant)))
            }
            None if scope.0.is_some() => self.generated_event(scope, id).await,
            None => Ok(None),
        }
    }

    /// The event to which the daemon gave the id. One that retention has let go is unknown, although the journal may still
    /// have it.
    async fn generated_event(self, scope: &Scope, id: &EventId) -> Result<Option<FoundEvent>, Unavailable> {
        let Some(at) = generated_at(id) else { return Ok(None) };
        if let Some(own) = &scope.0
            && !self.may_have_accepted(own, at).await?
        {
            return Ok(None);
        }
        let found = self.generated_events(vec![id.clone()]).await?.pop().flatten();
        let Some((position, event)) = found.filter(|(_, event)| scope.covers(&event.tenant)) else {
            return Ok(None);
        };
        let known = self.0.outbox().read(move |state| state.knows(position)).await?;
        Ok(known.then_some((position, event)))
    }

    /// Whether the state has an event of the tenant from this millisecond. Without one the journal is not read: how long
    /// the answer takes must not tell whether another tenant has the event.
    async fn may_have_accepted(self, tenant: &Tenant, at: Timestamp) -> Result<bool, Unavailable> {
        let until = Some(at.plus(Duration::from_millis(1)));
        let filter = Filter { tenant: Some(tenant.clone()), since: Some(at), until, ..Filter::default() };
        let page = Pages(self.0)
            .collect(None, 1, move |state, after, limit| state.events(&filter, after, limit))
            .await?;
        Ok(!page.items.is_empty() || page.next.is_some())
    }

    /// For each id the event to which the daemon gave it, for as long as the journal has it.
    pub(crate) async fn generated_events(
        self,
        ids: Vec<EventId>,
    ) -> Result<Vec<Option<FoundEvent>>, Unavailable> {
        let reader = self.0.outbox().journal().clone();
        let found = self.0.blocking(move || find_generated(&reader, &ids)).await?;
        found.map_err(|error| Unavailable::Failed(error.to_string().into()))
    }

    pub(crate) async fn view(
        self,
        position: Position,
        event: Arc<Event>,
        facts: Vec<DeliveryFacts>,
    ) -> EventView {
        let status = event_status(facts.iter().map(|facts| facts.state)).as_str();
        let mut deliveries = Vec::with_capacity(facts.len());
        for facts in &facts {
            deliveries.push(Deliveries(self.0).view(&event, facts).await);
        }
        EventView { event, position, status, deliveries }
    }

    /// Filters: tenant, event_type, stream, event_status, since, until.
    ///
    /// # Errors
    /// When the outbox cannot answer.
    pub async fn list(
        self,
        scope: &Scope,
        filter: Filter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Page<EventView>, Unavailable> {
        let Some(filter) = scoped(scope, filter) else { return Ok(Pages(self.0).empty()) };
        let page = Pages(self.0)
            .collect(after, limit, move |state, after, limit| {
                let found = state.events(&filter, after, limit);
                let items = found.items.into_iter().map(|at| (at, state.deliveries_of(at))).collect();
                Found { items, next: found.next }
            })
            .await?;
        let mut items = Vec::with_capacity(page.items.len());
        let (mut bytes, mut next) = (0, page.next);
        let last = page.items.len();
        for (number, (position, facts)) in page.items.into_iter().enumerate() {
            if let Some(event) = self.0.event_at(position).await? {
                bytes += event_bytes(&event);
                items.push(self.view(position, event, facts).await);
            }
            if bytes >= failpoints::bound(Bound::PageBytes, limits::PAGE_BYTES_TARGET) && number + 1 < last {
                next = Some(Cursor::at(position));
                break;
            }
        }
        Ok(Page { items, next, as_of: page.as_of })
    }
}

/// What an event brings to a page, about: itself, and a word on each of its deliveries.
fn event_bytes(event: &Event) -> usize {
    event.weight() + 256 * event.targets.len()
}

/// An id says when it was made, which leads to its frame. Each moment is looked at once, however many ids are of it.
///
/// # Errors
/// When the disk cannot be read. What is damaged is not there.
fn find_generated(reader: &JournalReader, ids: &[EventId]) -> std::io::Result<Vec<Option<FoundEvent>>> {
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
    fn generated_ids_find_their_events_and_read_errors_are_errors() {
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
        let chosen: EventId = "chosen".parse().unwrap();
        let ids = [id(3), id(9), chosen, id(1), id(3)];
        let found = find_generated(&reader, &ids).unwrap();
        let positions: Vec<_> = found.iter().map(|found| found.as_ref().map(|(at, _)| at.0)).collect();
        assert_eq!(positions, [Some(3), None, None, Some(1), Some(3)]);
        drop(journal);
        // Nothing of it is in memory yet.
        let (journal, _) = Journal::open(Arc::new(disk.clone()), JournalOptions::new(1)).unwrap();
        disk.inject(Fault { operation: Operation::Read, errno: Fault::EIO, skip: 0, count: u64::MAX });
        assert!(find_generated(&journal.reader(), &ids).is_err());
    }
}
