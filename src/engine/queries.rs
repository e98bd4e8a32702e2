//! What requests ask. Answers come from the state (as of a position), the journal (records) and memory (endpoints).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Engine;
use super::types::{
    Answer, Cursor, DeadLetterDetail, DeadLetterView, DeliveryDetail, DeliveryView, EndpointStats, EventView,
    Filter, LaneView, Page, Remembered, Scope, Unavailable,
};
use crate::domain::{
    Attempt, DeliveryKey, DeliveryState, Endpoint, EndpointNumber, EndpointStatus, Event, EventId,
    Idempotency, Position, Record, Tenant, Timestamp,
};
use crate::knobs::{self, Knob};
use crate::lanes::{WaitReason, with_order};
use crate::maintenance::backup::{self, BackupId, BackupKey, BackupPart, Signing};
use crate::outbox::ReadModel;
use crate::outbox::draft::{chosen_scope, generated_at, is_chosen};
use crate::projections::reads::{DeliveryFacts, Found};
use crate::rules::append::{Judged, judge_idempotency};
use crate::rules::event_status::event_status;
use crate::storage::journal::{JournalReader, ReadError};
use crate::{limits, panics};

/// Bytes of a part of a backup, about.
const BACKUP_PART_BYTES: usize = 4 * 1024 * 1024;
/// How long retention waits after a part of a backup was asked for.
const BACKUP_HOLD: Duration = Duration::from_secs(120);

/// An event and where it is.
type FoundEvent = (Position, Arc<Event>);

impl Engine {
    /// A chosen id is looked up in `tenant`, one that the daemon gave everywhere in the scope.
    ///
    /// # Errors
    /// When the outbox cannot answer.
    pub async fn event(
        &self,
        scope: &Scope,
        tenant: &Tenant,
        id: &EventId,
    ) -> Result<Option<EventView>, Unavailable> {
        let Some((position, event)) = self.find_event(scope, tenant, id).await? else { return Ok(None) };
        // Retention may have let it go since it was found.
        let known =
            self.outbox().read(move |state| state.knows(position).then(|| state.deliveries_of(position)));
        let Some(facts) = known.await? else { return Ok(None) };
        Ok(Some(self.event_view(position, event, facts).await))
    }

    /// The event that was posted with the id in `tenant`, or the one to which the daemon gave it. Where no tenant was named,
    /// the daemon's own comes first: a publisher that chooses an id of that form must not put its event in the place of
    /// another tenant's. (In one tenant no two events have the same id.)
    pub(super) async fn find_event(
        &self,
        scope: &Scope,
        tenant: &Tenant,
        id: &EventId,
    ) -> Result<Option<FoundEvent>, Unavailable> {
        if scope.0.is_none()
            && let Some(found) = self.generated_event(scope, id).await?
        {
            return Ok(Some(found));
        }
        let chosen = chosen_scope(tenant, id);
        let known = self
            .outbox()
            .read(move |state| state.request(&chosen).filter(|known| state.knows(known.position)))
            .await?;
        match known {
            Some(known) => {
                let event = self.event_at(known.position).await?;
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
    async fn generated_event(&self, scope: &Scope, id: &EventId) -> Result<Option<FoundEvent>, Unavailable> {
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
        let known = self.outbox().read(move |state| state.knows(position)).await?;
        Ok(known.then_some((position, event)))
    }

    /// Whether the state has an event of the tenant from this millisecond. Without one the journal is not read: how long
    /// the answer takes must not tell whether another tenant has the event.
    async fn may_have_accepted(&self, tenant: &Tenant, at: Timestamp) -> Result<bool, Unavailable> {
        let until = Some(at.plus(Duration::from_millis(1)));
        let filter = Filter { tenant: Some(tenant.clone()), since: Some(at), until, ..Filter::default() };
        let page = self.list(None, 1, move |state, after, limit| state.events(&filter, after, limit)).await?;
        Ok(!page.items.is_empty() || page.next.is_some())
    }

    /// For each id the event to which the daemon gave it, for as long as the journal has it.
    pub(super) async fn generated_events(
        &self,
        ids: Vec<EventId>,
    ) -> Result<Vec<Option<FoundEvent>>, Unavailable> {
        let reader = self.outbox().journal().clone();
        let found = self.blocking(move || find_generated(&reader, &ids)).await?;
        found.map_err(|error| Unavailable::Failed(error.to_string().into()))
    }

    /// Runs file reads off the async threads.
    async fn blocking<R: Send + 'static>(
        &self,
        read: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        #[cfg(test)]
        self.shared.journal_reads.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        #[cfg(test)]
        if let Some(receivers) = self.shared.receivers.get() {
            receivers.wait_for_the_disk().await;
            return Ok(read());
        }
        let answer = tokio::task::spawn_blocking(|| panics::contain(read)).await;
        answer.ok().and_then(Result::ok).ok_or(Unavailable::Stopping)
    }

    /// `None` when there is no such record any more.
    pub(super) async fn record_at(&self, position: Position) -> Result<Option<Record>, Unavailable> {
        let reader = self.outbox().journal().clone();
        match self.blocking(move || reader.read(position)).await? {
            Ok(record) => Ok(record),
            Err(error) => {
                tracing::error!(%error, %position, "a record cannot be read");
                match error {
                    ReadError::Damaged { .. } | ReadError::Undecodable { .. } => Ok(None),
                    ReadError::Io(error) => Err(Unavailable::Failed(error.to_string().into())),
                }
            }
        }
    }

    /// The event at a position; `None` when retention or damage has taken it.
    pub(super) async fn event_at(&self, position: Position) -> Result<Option<Arc<Event>>, Unavailable> {
        Ok(match self.record_at(position).await? {
            Some(Record::EventAccepted(event)) => Some(event),
            _ => None,
        })
    }

    async fn attempt_at(&self, position: Position) -> Option<Arc<Attempt>> {
        match self.record_at(position).await {
            Ok(Some(Record::AttemptFinished { attempt, .. })) => Some(attempt),
            Ok(_) | Err(_) => None,
        }
    }

    async fn attempts(&self, facts: &DeliveryFacts) -> Vec<Arc<Attempt>> {
        let mut attempts = Vec::with_capacity(facts.attempts.len());
        for position in &facts.attempts {
            attempts.extend(self.attempt_at(*position).await);
        }
        attempts
    }

    async fn delivery_view(&self, event: &Event, facts: &DeliveryFacts) -> DeliveryView {
        let last_attempt = match facts.attempts.last() {
            Some(position) if facts.state != DeliveryState::Delivered => self.attempt_at(*position).await,
            Some(_) | None => None,
        };
        DeliveryView {
            key: facts.key,
            event_id: event.id.clone(),
            event_type: event.event_type.clone(),
            tenant: event.tenant.clone(),
            endpoint_id: self.outbox().registry(|registry| registry.id_of(facts.key.endpoint).cloned()),
            state: facts.state,
            created_at: facts.accepted_at,
            attempts: facts.attempts_made,
            next_attempt_at: facts.due,
            settled_at: facts.settled_at,
            last_status: facts.last_status,
            last_attempt,
        }
    }

    async fn event_view(
        &self,
        position: Position,
        event: Arc<Event>,
        facts: Vec<DeliveryFacts>,
    ) -> EventView {
        let status = event_status(facts.iter().map(|facts| facts.state)).as_str();
        let mut deliveries = Vec::with_capacity(facts.len());
        for facts in &facts {
            deliveries.push(self.delivery_view(&event, facts).await);
        }
        EventView { event, position, status, deliveries }
    }

    /// Filters: tenant, event_type, stream, event_status, since, until.
    ///
    /// # Errors
    /// When the outbox cannot answer.
    pub async fn events(
        &self,
        scope: &Scope,
        filter: Filter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Page<EventView>, Unavailable> {
        let Some(filter) = scoped(scope, filter) else { return Ok(self.empty_page()) };
        let page = self
            .list(after, limit, move |state, after, limit| {
                let found = state.events(&filter, after, limit);
                let items = found.items.into_iter().map(|at| (at, state.deliveries_of(at))).collect();
                Found { items, next: found.next }
            })
            .await?;
        let mut items = Vec::with_capacity(page.items.len());
        let (mut bytes, mut next) = (0, page.next);
        let last = page.items.len();
        for (number, (position, facts)) in page.items.into_iter().enumerate() {
            if let Some(event) = self.event_at(position).await? {
                bytes += event_bytes(&event);
                items.push(self.event_view(position, event, facts).await);
            }
            if bytes >= knobs::bound(Knob::PageBytes, limits::PAGE_BYTES_TARGET) && number + 1 < last {
                next = Some(Cursor::at(position));
                break;
            }
        }
        Ok(Page { items, next, as_of: page.as_of })
    }

    /// Takes bounded steps through the state until the page is full. What it has found is answered after a number of them;
    /// an empty page that is not the last comes only when looking for the first item took too long.
    async fn list<T: Send + 'static>(
        &self,
        after: Option<Cursor>,
        limit: usize,
        step: impl Fn(&dyn ReadModel, Option<Cursor>, usize) -> Found<T> + Clone + Send + 'static,
    ) -> Result<Page<T>, Unavailable> {
        let mut page = Page { items: Vec::new(), next: after, as_of: Position(0) };
        let started = self.now().monotonic;
        for steps in 1.. {
            let (step, after, wanted) = (step.clone(), page.next, limit - page.items.len());
            let (found, as_of) =
                self.outbox().read(move |state| (step(state, after, wanted), state.applied())).await?;
            page.as_of = as_of;
            page.items.extend(found.items);
            page.next = found.next;
            if is_done(&page, limit, steps, self.now().monotonic - started) {
                break;
            }
        }
        Ok(page)
    }

    fn empty_page<T>(&self) -> Page<T> {
        Page { items: Vec::new(), next: None, as_of: self.outbox().journal().last_position() }
    }

    /// Newest first. `status` is `active`, `paused` or `disabled`.
    #[must_use]
    pub fn endpoints(
        &self,
        scope: &Scope,
        tenant: Option<&Tenant>,
        status: Option<&str>,
        after: Option<Cursor>,
        limit: usize,
    ) -> Page<Arc<Endpoint>> {
        let wanted = |endpoint: &&Arc<Endpoint>| {
            scope.covers(&endpoint.tenant)
                && tenant.is_none_or(|tenant| *tenant == endpoint.tenant)
                && status.is_none_or(|status| status == status_word(&endpoint.status))
                && after.is_none_or(|cursor| endpoint.number < cursor.endpoint)
        };
        let mut items: Vec<_> = self.outbox().registry(|registry| {
            registry.endpoints().rev().filter(wanted).take(limit + 1).cloned().collect()
        });
        let more = items.len() > limit;
        items.truncate(limit);
        let last = items.last().filter(|_| more).map(|endpoint| endpoint.number);
        let next = last.map(|endpoint| Cursor { endpoint, ..Cursor::at(Position(0)) });
        Page { items, next, as_of: self.outbox().journal().last_position() }
    }

    /// # Errors
    /// When the outbox cannot answer.
    pub async fn endpoint_stats(
        &self,
        endpoint: EndpointNumber,
        since: Timestamp,
        until: Timestamp,
    ) -> Result<EndpointStats, Unavailable> {
        self.outbox()
            .read(move |state| {
                let hours = state.statistics(endpoint, since, until);
                let lane = state.lane(endpoint);
                EndpointStats {
                    since,
                    until,
                    attempts: hours.attempts,
                    delivered: hours.delivered,
                    failed_attempts: hours.attempts - hours.delivered,
                    dead: hours.dead,
                    cancelled: hours.cancelled,
                    latency_p50: hours.percentile(0.50),
                    latency_p95: hours.percentile(0.95),
                    latency_p99: hours.percentile(0.99),
                    backlog: lane.pending,
                    oldest_pending: state.oldest_pending(endpoint),
                }
            })
            .await
    }

    /// # Errors
    /// When the outbox cannot answer.
    pub async fn lane(&self, endpoint: EndpointNumber) -> Result<LaneView, Unavailable> {
        let counted = self.outbox().read(move |state| state.lane(endpoint)).await?;
        let report = self.explain(endpoint).await?;
        let in_flight = report.in_flight as u64;
        let reason = with_order(report.reason, counted.waiting > 0);
        Ok(LaneView {
            reason: reason.map(WaitReason::as_str),
            pending: counted.pending,
            waiting_for_order: counted.waiting,
            in_flight,
            next_due: report.next_due,
            until: report.until,
            circuit: report.circuit,
            consecutive_failures: report.consecutive_failures,
        })
    }

    /// Filters: tenant, endpoint, event, event_type, delivery_state, since, until.
    ///
    /// # Errors
    /// When the outbox cannot answer.
    pub async fn deliveries(
        &self,
        scope: &Scope,
        filter: Filter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Page<DeliveryView>, Unavailable> {
        let Some(filter) = scoped(scope, filter) else { return Ok(self.empty_page()) };
        let page = self
            .list(after, limit, move |state, after, limit| state.deliveries(&filter, after, limit))
            .await?;
        let mut items = Vec::with_capacity(page.items.len());
        for facts in page.items {
            if let Some(event) = self.event_at(facts.key.event).await? {
                items.push(self.delivery_view(&event, &facts).await);
            }
        }
        Ok(Page { items, next: page.next, as_of: page.as_of })
    }

    /// # Errors
    /// When the outbox cannot answer.
    pub async fn delivery(
        &self,
        scope: &Scope,
        key: DeliveryKey,
    ) -> Result<Option<DeliveryDetail>, Unavailable> {
        let facts = self.outbox().read(move |state| state.delivery(key)).await?;
        // Another tenant's is unknown before the journal is read: how long the answer takes tells nothing.
        let Some(facts) = facts.filter(|facts| scope.covers_name(&facts.tenant)) else { return Ok(None) };
        let Some(event) = self.event_at(key.event).await? else { return Ok(None) };
        let delivery = self.delivery_view(&event, &facts).await;
        Ok(Some(DeliveryDetail { delivery, attempts: self.attempts(&facts).await }))
    }

    /// Filters: tenant, endpoint, event_type, reason, since, until (of the death).
    ///
    /// # Errors
    /// When the outbox cannot answer.
    pub async fn dead_letters(
        &self,
        scope: &Scope,
        filter: Filter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Page<DeadLetterView>, Unavailable> {
        let Some(filter) = scoped(scope, filter) else { return Ok(self.empty_page()) };
        let page = self
            .list(after, limit, move |state, after, limit| {
                let found = state.dead_letters(&filter, after, limit);
                let facts = |letter: crate::projections::dead::Letter| state.dead_letter(letter.delivery);
                Found { items: found.items.into_iter().filter_map(facts).collect(), next: found.next }
            })
            .await?;
        let mut items = Vec::with_capacity(page.items.len());
        for (facts, reason, died_at) in page.items {
            if let Some(event) = self.event_at(facts.key.event).await? {
                items.push(DeadLetterView {
                    delivery: self.delivery_view(&event, &facts).await,
                    reason,
                    died_at,
                });
            }
        }
        Ok(Page { items, next: page.next, as_of: page.as_of })
    }

    /// # Errors
    /// When the outbox cannot answer.
    pub async fn dead_letter(
        &self,
        scope: &Scope,
        key: DeliveryKey,
    ) -> Result<Option<DeadLetterDetail>, Unavailable> {
        let found = self.outbox().read(move |state| state.dead_letter(key)).await?;
        let found = found.filter(|(facts, ..)| scope.covers_name(&facts.tenant));
        let Some((facts, reason, died_at)) = found else { return Ok(None) };
        let Some(event) = self.event_at(key.event).await? else { return Ok(None) };
        let delivery = self.delivery_view(&event, &facts).await;
        let letter = DeadLetterView { delivery, reason, died_at };
        Ok(Some(DeadLetterDetail { letter, event, attempts: self.attempts(&facts).await }))
    }

    /// Whether all parts of a backup need its id.
    #[must_use]
    pub fn authenticates_backups(&self) -> bool {
        self.shared.vault.sealing_key().is_some()
    }

    /// The part of a backup after a position, and the backup's id when it is authenticated: all parts are asked for with the
    /// id of the first. See [`backup::part`]. Retention waits while parts are asked for.
    ///
    /// # Errors
    /// When the outbox cannot answer.
    pub async fn backup(
        &self,
        after: Position,
        until: Option<Position>,
        id: Option<BackupId>,
    ) -> Result<(BackupPart, Position, Option<BackupId>), Unavailable> {
        let reader = self.outbox().journal().clone();
        let last = reader.last_position();
        let until = until.map_or(last, |until| until.min(last));
        let bytes = knobs::bound(Knob::BackupBytes, BACKUP_PART_BYTES);
        let signing = self.shared.vault.backup_keys().next().map(|(key, bytes)| Signing {
            key: BackupKey::new(key.to_string().into(), bytes),
            backup: id.unwrap_or_else(|| BackupId(self.random_bytes())),
        });
        let id = signing.as_ref().map(|signing| signing.backup);
        let part = self
            .blocking(move || {
                // A rewrite that is under way is waited for.
                reader.hold_rewrites(Instant::now() + BACKUP_HOLD);
                backup::part(&reader, after, until, bytes, signing.as_ref())
            })
            .await?;
        let part = part.map_err(|error| Unavailable::Failed(error.to_string().into()))?;
        Ok((part, until, id))
    }

    /// What an earlier request with the same scope and key was answered (requests other than events).
    ///
    /// # Errors
    /// When the outbox cannot answer.
    pub async fn remembered(&self, wanted: &Idempotency) -> Result<Remembered, Unavailable> {
        let scope = wanted.scope;
        let known = self.outbox().read(move |state| state.request(&scope)).await?;
        let position = match judge_idempotency(known.as_ref(), &wanted.fingerprint, self.now().wall) {
            Judged::Fresh => return Ok(Remembered::Nothing),
            Judged::Mismatch(_) => return Ok(Remembered::Mismatch),
            Judged::Duplicate(position) => position,
        };
        Ok(match self.record_at(position).await? {
            Some(Record::RequestAnswered { status, body, .. }) => {
                Remembered::Same(self.open_answer(wanted, Answer { status, body })?)
            }
            _ => Remembered::Nothing,
        })
    }
}

/// Whether a list is answered with what it has found, after so many steps and so long.
fn is_done<T>(page: &Page<T>, limit: usize, steps: usize, looked: Duration) -> bool {
    let short = !page.items.is_empty() && steps >= knobs::bound(Knob::ListSteps, limits::LIST_STEPS_MAX);
    page.next.is_none() || page.items.len() >= limit || short || looked >= limits::LIST_SEARCH_MAX
}

/// What an event brings to a page, about: itself, and a word on each of its deliveries.
fn event_bytes(event: &Event) -> usize {
    event.weight() + 256 * event.targets.len()
}

/// The API's word for an endpoint's status.
#[must_use]
fn status_word(status: &EndpointStatus) -> &'static str {
    match status {
        EndpointStatus::Active => "active",
        EndpointStatus::Paused => "paused",
        EndpointStatus::Disabled { .. } => "disabled",
    }
}

/// The filter within the scope; `None` when they exclude each other.
pub(super) fn scoped(scope: &Scope, mut filter: Filter) -> Option<Filter> {
    if let Some(own) = &scope.0 {
        if filter.tenant.as_ref().is_some_and(|tenant| tenant != own) {
            return None;
        }
        filter.tenant = Some(own.clone());
    }
    Some(filter)
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
                Ok((position, Record::EventAccepted(event))) if !is_chosen(&event) => {
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
    fn generated_ids_lead_to_their_events_and_a_sick_disk_is_no_answer() {
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

    #[test]
    fn an_empty_page_is_not_answered_while_there_is_more_and_time_to_look() {
        let more = Some(Cursor::at(Position(9)));
        let soon = Duration::from_millis(1);
        let page = |items: usize, next| Page { items: vec![(); items], next, as_of: Position(0) };
        assert!(!is_done(&page(0, more), 50, limits::LIST_STEPS_MAX * 100, soon), "nothing is found yet");
        assert!(!is_done(&page(1, more), 50, limits::LIST_STEPS_MAX - 1, soon), "the page can be filled");
        assert!(is_done(&page(1, more), 50, limits::LIST_STEPS_MAX, soon), "something is found");
        assert!(is_done(&page(50, more), 50, 1, soon), "it is full");
        assert!(is_done(&page(0, None), 50, 1, soon), "that was all");
        assert!(is_done(&page(0, more), 50, 1, limits::LIST_SEARCH_MAX), "it took too long");
    }
}
