//! What requests change: judged and committed by the writer, answered only then.

use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::queries::scoped;
use super::types::{
    Accepted, Answer, ChangeError, Cursor, DeliveryView, EventDraft, Filter, Keyed, PublishError, Remember,
    Scope, Unavailable,
};
use crate::domain::{
    ApiKey, DeadReason, DeliveryKey, DeliveryState, Endpoint, EndpointId, EndpointNumber, EventId, EventType,
    KeyId, Pattern, Position, Record, Tenant, Timestamp, Trigger,
};
use crate::limits;
use crate::projections::reads;
use crate::rules::matching::pattern_matches;
use crate::store::ReadModel;
use crate::store::recent::Prepared;
use crate::store::types::generated_at;
use crate::store::writer::{Command, Outcome, Unit};

fn unit(commands: Vec<Command>) -> Unit {
    Unit { commands, prepared: Prepared::default(), reply: None }
}

/// No patterns match every type.
fn matches_any(patterns: &[Pattern], event_type: &str) -> bool {
    let parsed = event_type.parse::<EventType>();
    patterns.is_empty()
        || parsed.is_ok_and(|kind| patterns.iter().any(|pattern| pattern_matches(pattern, &kind)))
}

fn revived(deliveries: Vec<DeliveryKey>, trigger: Trigger, at: Timestamp) -> Command {
    Command::Record(Record::DeliveriesRevived { deliveries, trigger, at })
}

const DELETED: ChangeError = ChangeError::NotAllowed("the endpoint was deleted");
const PURGED: ChangeError =
    ChangeError::NotAllowed("its dead letter was purged; a replay of the event sends it again");

/// The outcomes of commands that are never judged against anything.
const UNJUDGED: &str = "the writer gives each kind of command its own kinds of outcome";

impl Engine {
    /// Accepts one event: when this returns, it and its deliveries are on disk.
    ///
    /// # Errors
    /// When nothing was accepted.
    pub async fn publish(&self, draft: EventDraft) -> Result<Accepted, PublishError> {
        let mut results = self.publish_batch(vec![draft]).await;
        results.pop().expect("one result per draft")
    }

    /// Each event stands alone; results in order.
    pub async fn publish_batch(&self, mut drafts: Vec<EventDraft>) -> Vec<Result<Accepted, PublishError>> {
        let count = drafts.len();
        let submitted = async {
            self.look_for_namesakes(&mut drafts).await?;
            let mut unit = unit(drafts.into_iter().map(|draft| Command::Publish(Box::new(draft))).collect());
            unit.prepared = self.outbox().prepare(&unit).await?;
            self.outbox().submit(unit).await
        };
        let outcomes = match submitted.await {
            Ok(outcomes) => outcomes,
            Err(error) => return (0..count).map(|_| Err(error.clone().into())).collect(),
        };
        let mut results = Vec::with_capacity(count);
        for outcome in outcomes {
            let result = self.published(outcome).await;
            self.count_published(&result);
            results.push(result);
        }
        results
    }

    /// A chosen id may be one that the daemon has given to another event of the tenant. Nobody knows such an id before
    /// its event is in the journal, so that what the journal says here is the last word; also of an event that retention
    /// has let go, because a state that is made anew would know both.
    async fn look_for_namesakes(&self, drafts: &mut [EventDraft]) -> Result<(), Unavailable> {
        let shaped = |draft: &&mut EventDraft| draft.id.as_ref().and_then(generated_at).is_some();
        let shaped: Vec<_> = drafts.iter_mut().filter(shaped).collect();
        if shaped.is_empty() {
            return Ok(());
        }
        let ids = shaped.iter().filter_map(|draft| draft.id.clone()).collect();
        for (draft, found) in shaped.into_iter().zip(self.generated_events(ids).await?) {
            if let Some((position, event)) = found.filter(|(_, event)| event.tenant == draft.tenant) {
                draft.namesake = draft.judge_namesake(position, &event);
            }
        }
        Ok(())
    }

    async fn published(&self, outcome: Outcome) -> Result<Accepted, PublishError> {
        match outcome {
            Outcome::Accepted(accepted) => Ok(accepted),
            Outcome::Duplicate(position) => match self.event_at(position).await? {
                Some(event) => Ok(Accepted { event, position, duplicate: true }),
                None => Err(PublishError::IdempotencyMismatch),
            },
            Outcome::Mismatch => Err(PublishError::IdempotencyMismatch),
            Outcome::VersionConflict { expected, actual } => {
                Err(PublishError::VersionConflict { expected, actual })
            }
            Outcome::TooManyTargets => Err(PublishError::TooManyTargets),
            Outcome::Endpoint(_) | Outcome::Written(_) | Outcome::Conflict => unreachable!("{UNJUDGED}"),
        }
    }

    fn count_published(&self, result: &Result<Accepted, PublishError>) {
        match result {
            Ok(accepted) if accepted.duplicate => self.metrics().duplicate(),
            Ok(_) => self.metrics().accepted(),
            // Counted at the door, with what is refused before it comes here.
            Err(_) => {}
        }
    }

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
            None => self.outbox().directory(|directory| {
                let matching = directory.endpoints().filter(|endpoint| {
                    endpoint.tenant == event.tenant
                        && (endpoint.event_types.is_empty()
                            || endpoint
                                .event_types
                                .iter()
                                .any(|pattern| pattern_matches(pattern, &event.event_type)))
                });
                matching.map(|endpoint| endpoint.number).collect()
            }),
        };
        let deliveries: Vec<_> =
            numbers.into_iter().map(|endpoint| DeliveryKey { event: position, endpoint }).collect();
        let count = deliveries.len() as u64;
        let at = self.now().wall;
        let steps = deliveries.chunks(limits::BULK_DELIVERIES_MAX);
        let commands = steps.map(|some| revived(some.to_vec(), Trigger::Replay, at)).collect();
        self.commit(commands, keyed.map(|keyed| keyed.answered(&count))).await?;
        Ok(count)
    }

    /// `endpoint.number` and `.revision` are set by the writer. The answer is remembered in the same commit.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn create_endpoint(
        &self,
        mut endpoint: Endpoint,
        remember: Option<Remember>,
    ) -> Result<Arc<Endpoint>, ChangeError> {
        endpoint.number = EndpointNumber(0);
        self.put_endpoint(endpoint, remember).await
    }

    /// Replaces it when its revision is still `endpoint.revision`. The answer is remembered in the same commit.
    ///
    /// # Errors
    /// [`ChangeError::Conflict`] when it is not.
    pub async fn update_endpoint(
        &self,
        mut endpoint: Endpoint,
        remember: Option<Remember>,
    ) -> Result<Arc<Endpoint>, ChangeError> {
        endpoint.updated_at = self.now().wall;
        self.put_endpoint(endpoint, remember).await
    }

    pub(super) async fn put_endpoint(
        &self,
        endpoint: Endpoint,
        remember: Option<Remember>,
    ) -> Result<Arc<Endpoint>, ChangeError> {
        let commands = vec![Command::PutEndpoint(Box::new(endpoint))];
        match self.commit(commands, remember).await?.into_iter().next() {
            Some(Outcome::Endpoint(endpoint)) => Ok(endpoint),
            _ => unreachable!("{UNJUDGED}"),
        }
    }

    /// Its pending deliveries become dead letters, in the background.
    ///
    /// # Errors
    /// When it is unknown in the scope, or the deletion could not be written.
    pub async fn delete_endpoint(&self, scope: &Scope, id: &EndpointId) -> Result<(), ChangeError> {
        let _alone = self.shared.acting.lock().await;
        let endpoint = self.endpoint(scope, id).ok_or(ChangeError::NotFound)?.number;
        let command = Command::DeleteEndpoint { endpoint, at: self.now().wall };
        match self.outbox().submit(unit(vec![command])).await?.first() {
            Some(Outcome::Conflict) => Err(ChangeError::NotFound),
            _ => Ok(()),
        }
    }

    /// Gives up what is pending for a deleted endpoint, in bounded steps. Repeating it changes nothing.
    pub(super) async fn sweep_deleted(&self, endpoint: EndpointNumber) -> Result<(), Unavailable> {
        let pending = move |state: &dyn ReadModel| {
            let deliveries = state.pending(endpoint, limits::BULK_DELIVERIES_MAX);
            let is_swept = deliveries.is_empty();
            (deliveries, is_swept)
        };
        while !self.give_up(DeadReason::EndpointDeleted, pending).await? {}
        Ok(())
    }

    /// Makes dead letters of the pending deliveries that are found, a bounded number; gives what was found beside them.
    /// Nobody acts on them between the look and the commit. The operator is told of each, in one further commit.
    pub(super) async fn give_up<R: Send + 'static>(
        &self,
        reason: DeadReason,
        find: impl FnOnce(&dyn ReadModel) -> (Vec<DeliveryKey>, R) + Send + 'static,
    ) -> Result<R, Unavailable> {
        let (deliveries, found) = {
            let _alone = self.shared.acting.lock().await;
            let (deliveries, found) = self.outbox().read(find).await?;
            for some in deliveries.chunks(limits::BULK_DELIVERIES_MAX) {
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

    async fn write(&self, record: Record) -> Result<Position, Unavailable> {
        match self.outbox().submit(unit(vec![Command::Record(record)])).await?.first() {
            Some(Outcome::Written(position)) => Ok(*position),
            _ => unreachable!("{UNJUDGED}"),
        }
    }

    /// Commits all of it, with the answer that the request gets when it is repeated, or nothing. Without commands and
    /// answer there is nothing to do.
    async fn commit(
        &self,
        mut commands: Vec<Command>,
        remember: Option<Remember>,
    ) -> Result<Vec<Outcome>, ChangeError> {
        commands.extend(remember.map(|remember| self.answered(remember)));
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut unit = unit(commands);
        unit.prepared = self.outbox().prepare(&unit).await?;
        let outcomes = self.outbox().submit(unit).await?;
        match outcomes.first() {
            Some(Outcome::Conflict) => Err(ChangeError::Conflict),
            Some(Outcome::Duplicate(_) | Outcome::Mismatch) => Err(ChangeError::Repeated),
            _ => Ok(outcomes),
        }
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
            if self.outbox().directory(|directory| directory.endpoint(number).is_none()) {
                return Err(DELETED);
            }
            let _held = self.outbox().hold_events().await;
            let filter = filter.clone();
            let found = self
                .outbox()
                .read(move |state| state.past(&filter, number, cursor, limits::BULK_DELIVERIES_MAX))
                .await?;
            let wanted = |past: &reads::Past| {
                let open = match past.state {
                    Some(DeliveryState::Pending) => false,
                    // Nobody wants what was purged; all there is, is all there is.
                    Some(DeliveryState::Delivered | DeliveryState::Purged) => !only_undelivered,
                    Some(DeliveryState::Dead(_) | DeliveryState::Cancelled) | None => true,
                };
                open && matches_any(patterns, &past.event_type)
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

    /// Due now, in a new retry series; for pending, dead, delivered and cancelled ones.
    ///
    /// # Errors
    /// When it is unknown in the scope, was purged, its endpoint is gone, or nothing could be written.
    pub async fn retry_delivery(
        &self,
        scope: &Scope,
        key: DeliveryKey,
        keyed: Option<Keyed<DeliveryView>>,
    ) -> Result<DeliveryView, ChangeError> {
        self.revive_one(scope, key, Trigger::Manual, keyed).await
    }

    async fn revive_one(
        &self,
        scope: &Scope,
        key: DeliveryKey,
        trigger: Trigger,
        keyed: Option<Keyed<DeliveryView>>,
    ) -> Result<DeliveryView, ChangeError> {
        let _alone = self.shared.acting.lock().await;
        let _held = self.outbox().hold_events().await;
        let found = self.delivery(scope, key).await?.ok_or(ChangeError::NotFound)?;
        match found.delivery.state {
            DeliveryState::Dead(_) => {}
            _ if trigger == Trigger::Redrive => return Err(ChangeError::NotFound),
            DeliveryState::Purged => return Err(PURGED),
            DeliveryState::Pending | DeliveryState::Delivered | DeliveryState::Cancelled => {}
        }
        if self.outbox().directory(|directory| directory.endpoint(key.endpoint).is_none()) {
            return Err(DELETED);
        }
        // What it is once this is committed: so the answer is known before, and can be committed with it. A redrive alone may
        // find that an attempt under way has just delivered it, which is what it was for.
        let at = self.now().wall;
        let view = DeliveryView {
            state: DeliveryState::Pending,
            next_attempt_at: Some(at),
            settled_at: None,
            ..found.delivery
        };
        self.commit(vec![revived(vec![key], trigger, at)], keyed.map(|keyed| keyed.answered(&view))).await?;
        Ok(view)
    }

    /// Pending ones only. An attempt that is under way goes on; when it succeeds, the delivery is delivered after all.
    ///
    /// The answer is remembered in a commit of its own, once it is known: an attempt may have ended the delivery in between,
    /// and what has ended is not cancelled. Whoever repeats the request after a crash in between finds it cancelled.
    ///
    /// # Errors
    /// When it is unknown in the scope, not pending, or nothing could be written.
    pub async fn cancel_delivery(
        &self,
        scope: &Scope,
        key: DeliveryKey,
        keyed: Option<Keyed<DeliveryView>>,
    ) -> Result<DeliveryView, ChangeError> {
        const TOO_LATE: ChangeError = ChangeError::NotAllowed("only a pending delivery can be cancelled");
        let _alone = self.shared.acting.lock().await;
        let before = self.delivery(scope, key).await?.ok_or(ChangeError::NotFound)?.delivery.state;
        match before {
            DeliveryState::Pending => {
                let at = self.now().wall;
                self.write(Record::DeliveriesCancelled { deliveries: vec![key], at }).await?;
            }
            // Maybe by an earlier try of this request, which was not answered.
            DeliveryState::Cancelled if keyed.is_some() => {}
            _ => return Err(TOO_LATE),
        }
        let view = self.delivery(scope, key).await?.ok_or(ChangeError::NotFound)?.delivery;
        if view.state != DeliveryState::Cancelled {
            return Err(TOO_LATE);
        }
        if before == DeliveryState::Pending {
            self.metrics().cancelled(1);
        }
        self.commit(Vec::new(), keyed.map(|keyed| keyed.answered(&view))).await?;
        Ok(view)
    }

    /// # Errors
    /// When there is no such dead letter in the scope, its endpoint is gone, or nothing could be written.
    pub async fn redrive(
        &self,
        scope: &Scope,
        key: DeliveryKey,
        keyed: Option<Keyed<DeliveryView>>,
    ) -> Result<DeliveryView, ChangeError> {
        self.revive_one(scope, key, Trigger::Redrive, keyed).await
    }

    /// # Errors
    /// When there is no such dead letter in the scope, or nothing could be written.
    pub async fn purge(&self, scope: &Scope, key: DeliveryKey) -> Result<(), ChangeError> {
        let _alone = self.shared.acting.lock().await;
        self.dead_letter(scope, key).await?.ok_or(ChangeError::NotFound)?;
        self.write(Record::DeadLettersPurged { deliveries: vec![key], at: self.now().wall }).await?;
        Ok(())
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
                .read(move |state| state.dead_letters(&filter, cursor, limits::BULK_DELIVERIES_MAX))
                .await?;
            let mut deliveries: Vec<_> = found.items.into_iter().map(|letter| letter.delivery).collect();
            if living_endpoints_only {
                self.outbox().directory(|directory| {
                    deliveries.retain(|key| directory.endpoint(key.endpoint).is_some());
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

    /// # Errors
    /// When it could not be written.
    pub async fn create_key(&self, key: ApiKey, remember: Option<Remember>) -> Result<(), ChangeError> {
        self.commit(vec![Command::Record(Record::KeyPut(Arc::new(key)))], remember).await.map(drop)
    }

    /// # Errors
    /// When it is unknown, or the deletion could not be written.
    pub async fn delete_key(&self, id: &KeyId) -> Result<(), ChangeError> {
        if self.outbox().directory(|directory| directory.key(id).is_none()) {
            return Err(ChangeError::NotFound);
        }
        self.write(Record::KeyDeleted { id: id.clone(), at: self.now().wall }).await?;
        Ok(())
    }

    /// Binds a key to its request before that does anything.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn remember(&self, remember: Remember) -> Result<(), ChangeError> {
        self.commit(Vec::new(), Some(remember)).await.map(drop)
    }

    /// Ends the outbox after the dispatcher has ended: writes what waits, checkpoints. Blocks.
    pub fn stop_outbox(&self) {
        self.outbox().stop();
    }

    /// How long a client should wait before it tries again, when the outbox is unavailable.
    pub const RETRY_AFTER: Duration = Duration::from_secs(1);
}

impl Engine {
    fn answered(&self, Remember { idempotency, answer }: Remember) -> Command {
        let Answer { status, body } = self.seal_answer(&idempotency, answer);
        Command::Record(Record::RequestAnswered { idempotency, status, body })
    }
}
