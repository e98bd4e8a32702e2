//! Decisions about new events: repetitions, stream versions, targets and ids.

use std::sync::Arc;

use ulid::Ulid;

use super::staged::{StagedGroup, known};
use super::{Committer, duplicate_outcome, read};
use crate::domain::{EndpointNumber, Event, EventId, Idempotency, Record, Rejection, StreamName, Tenant};
use crate::outbox::draft::{AcceptedEvent, EventDraft};
use crate::outbox::recent_keys::Prepared;
use crate::outbox::unit::Outcome;
use crate::rules::append::judge_version;

impl Committer {
    pub(super) fn publish(
        &mut self,
        draft: &EventDraft,
        prepared: &Prepared,
        staged: &mut StagedGroup,
    ) -> Outcome {
        let key = draft.idempotency.as_ref();
        if let Some(repeated) = key.and_then(|key| self.repeated(key, prepared, staged)) {
            return repeated;
        }
        let outcome = self.publish_fresh(draft, prepared, staged);
        if let (Outcome::Rejected(rejection), Some(key)) = (&outcome, key) {
            let (idempotency, rejection) = (key.clone(), *rejection);
            let rejected = Record::EventRejected { idempotency, rejection, command: None };
            staged.push_with_key(key, rejected);
        }
        outcome
    }

    /// Publishes an event whose key, if any, is new.
    fn publish_fresh(
        &mut self,
        draft: &EventDraft,
        prepared: &Prepared,
        staged: &mut StagedGroup,
    ) -> Outcome {
        match self.by_id(draft, prepared, staged) {
            None => {}
            Some(Outcome::Mismatch) => return Outcome::Rejected(Rejection::IdTaken),
            Some(duplicate) => return duplicate,
        }
        self.append(draft, prepared, staged)
    }

    /// Outcome of an earlier event with the same id, if there was one.
    pub(super) fn by_id(
        &self,
        draft: &EventDraft,
        prepared: &Prepared,
        staged: &StagedGroup,
    ) -> Option<Outcome> {
        let chosen = draft.publisher_id_key();
        let known = chosen.and_then(|chosen| self.repeated(&chosen, prepared, staged));
        known.or_else(|| duplicate_outcome(draft.id_conflict))
    }

    /// Stages an event whose key and id, if any, are new.
    pub(super) fn append(
        &mut self,
        draft: &EventDraft,
        prepared: &Prepared,
        staged: &mut StagedGroup,
    ) -> Outcome {
        if let Some(refusal) = self.refusal(draft) {
            return Outcome::Refused(refusal);
        }
        // The stream version is undecided until the rejected events before this one are accepted.
        if staged.unit_is_full {
            return Outcome::TooManyTargets;
        }
        let stream = match self.next_version(draft, prepared, staged) {
            Ok(stream) => stream,
            Err(rejection) => return Outcome::Rejected(rejection),
        };
        let idempotency = draft.idempotency.iter().cloned().chain(draft.publisher_id_key()).collect();
        let event = Arc::new(self.event(draft, stream, idempotency));
        if let Err(exceeded) = staged.loads.add_event(&event, &self.registry, &mut self.unapplied_load) {
            return Outcome::QuotaExceeded(exceeded);
        }
        if !staged.reserve_targets(event.targets.len()) {
            staged.loads.remove_event(&event);
            return Outcome::TooManyTargets;
        }
        let position = staged.push(Record::EventAccepted(event.clone()));
        for answered in &event.idempotency {
            staged.put_scope(answered.scope, known(answered, position));
        }
        if let Some((stream, version)) = &event.stream {
            staged.put_stream((event.tenant.clone(), stream.clone()), *version, position);
        }
        Outcome::Accepted(AcceptedEvent { event, position, duplicate: false })
    }

    fn next_version(
        &self,
        draft: &EventDraft,
        prepared: &Prepared,
        staged: &StagedGroup,
    ) -> Result<Option<(StreamName, u64)>, Rejection> {
        let Some(stream) = &draft.stream else { return Ok(None) };
        let actual = self.version(&(draft.tenant.clone(), stream.clone()), prepared, staged);
        judge_version(draft.expected, actual).map(|version| Some((stream.clone(), version)))
    }

    /// Version of a stream, with the events of the group so far.
    pub(super) fn version(
        &self,
        name: &(Tenant, StreamName),
        prepared: &Prepared,
        staged: &StagedGroup,
    ) -> Option<u64> {
        let staged = staged.streams.get(name).map(|(version, _)| *version);
        staged
            .or_else(|| read(&self.recent).stream(name, prepared.as_of))
            .or_else(|| prepared.streams.get(name).copied())
    }

    fn event(
        &mut self,
        draft: &EventDraft,
        stream: Option<(StreamName, u64)>,
        idempotency: Vec<Idempotency>,
    ) -> Event {
        let targets = match draft.only {
            Some(endpoint) if read(&self.registry).endpoint(endpoint).is_some() => vec![endpoint],
            Some(_) => Vec::new(),
            None => self.targets(draft),
        };
        Event {
            id: draft.id.clone().unwrap_or_else(|| self.next_id()),
            tenant: draft.tenant.clone(),
            event_type: draft.event_type.clone(),
            version: draft.version.clone(),
            timestamp: draft.timestamp.unwrap_or(self.last_time),
            accepted_at: self.last_time,
            stream,
            ordering_key: draft.ordering_key.clone(),
            deliver_at: draft.deliver_at,
            labels: draft.labels.clone(),
            metadata: draft.metadata.clone(),
            attributes: draft.attributes.clone(),
            data: draft.data.clone(),
            targets,
            idempotency,
            erased_at: None,
        }
    }

    /// The matching endpoints. An earlier match is valid while no endpoint has changed, and its
    /// results of filters always are. A unit that changes an endpoint is alone in its group, so all
    /// events of a group see the same endpoints.
    fn targets(&self, draft: &EventDraft) -> Vec<EndpointNumber> {
        let subscriptions = self.subscriptions.read().expect("no holder of this lock panics");
        let revision = subscriptions.matcher().revision();
        if let Some(matched) = draft.matched.as_ref().filter(|matched| matched.revision == revision) {
            return matched.targets.to_vec();
        }
        let candidates = subscriptions.candidates(&draft.tenant, &draft.event_type).0;
        drop(subscriptions);
        let known = draft.matched.as_ref().and_then(|matched| matched.verdicts.as_deref()).cloned();
        candidates.select(draft.facts(), known.unwrap_or_default())
    }

    /// Generates ascending ULIDs: a new random part per millisecond, incremented within it.
    fn next_id(&mut self) -> EventId {
        let millis = self.last_time.millis();
        self.last_ulid = match self.last_ulid.increment() {
            Some(next) if self.last_ulid.timestamp_ms() == millis => next,
            // Half of the random range stays free, so that increments within the millisecond cannot
            // overflow.
            _ => Ulid::from_parts(millis, self.environment.random() >> 49),
        };
        format!("evt_{}", self.last_ulid).parse().expect("a ULID has only letters and digits")
    }
}
