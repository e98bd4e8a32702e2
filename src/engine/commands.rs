//! What requests change: judged and committed by the writer, answered only then.

use std::sync::Arc;

use super::Engine;
use super::types::{Answer, ChangeError, DeliveryView, Keyed, Remember, Scope, Unavailable};
use crate::domain::{
    ApiKey, DeliveryKey, DeliveryState, Endpoint, EndpointId, EndpointNumber, KeyId, Position, Record,
    Timestamp, Trigger,
};
use crate::outbox::unit::{Command, Outcome};

pub(super) fn revived(deliveries: Vec<DeliveryKey>, trigger: Trigger, at: Timestamp) -> Command {
    Command::Record(Record::DeliveriesRevived { deliveries, trigger, at })
}

pub(super) const DELETED: ChangeError = ChangeError::NotAllowed("the endpoint was deleted");
const PURGED: ChangeError =
    ChangeError::NotAllowed("its dead letter was purged; a replay of the event sends it again");

/// The outcomes of commands that are never judged against anything.
pub(super) const UNJUDGED: &str = "the writer gives each kind of command its own kinds of outcome";

impl Engine {
    /// `endpoint.number` and `.revision` are set by the writer, which seals its values, too. The answer is remembered in the same commit.
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
        mut endpoint: Endpoint,
        remember: Option<Remember>,
    ) -> Result<Arc<Endpoint>, ChangeError> {
        self.open_carried(&mut endpoint)?;
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
        match self.submit(vec![command]).await?.first() {
            Some(Outcome::Conflict) => Err(ChangeError::NotFound),
            _ => Ok(()),
        }
    }

    pub(super) async fn write(&self, record: Record) -> Result<Position, Unavailable> {
        match self.submit(vec![Command::Record(record)]).await?.first() {
            Some(Outcome::Written(position)) => Ok(*position),
            _ => unreachable!("{UNJUDGED}"),
        }
    }

    /// Commits all of it, with the answer that the request gets when it is repeated, or nothing.
    pub(super) async fn commit(
        &self,
        mut commands: Vec<Command>,
        remember: Option<Remember>,
    ) -> Result<Vec<Outcome>, ChangeError> {
        commands.extend(remember.map(|remember| self.answered(remember)));
        let outcomes = self.submit(commands).await?;
        match outcomes.first() {
            Some(Outcome::Conflict) => Err(ChangeError::Conflict),
            Some(Outcome::Duplicate(_) | Outcome::Mismatch) => Err(ChangeError::Repeated),
            _ => Ok(outcomes),
        }
    }

    /// What becomes of the commands, once that is durable. Without commands there is nothing to do.
    pub(super) async fn submit(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, Unavailable> {
        self.outbox().commit(commands).await
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
        if self.outbox().endpoint(key.endpoint).is_none() {
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

    /// # Errors
    /// When it could not be written.
    pub async fn create_key(&self, key: ApiKey, remember: Option<Remember>) -> Result<(), ChangeError> {
        self.commit(vec![Command::Record(Record::KeyPut(Arc::new(key)))], remember).await.map(drop)
    }

    /// # Errors
    /// When it is unknown, or the deletion could not be written.
    pub async fn delete_key(&self, id: &KeyId) -> Result<(), ChangeError> {
        if self.outbox().registry(|registry| registry.key(id).is_none()) {
            return Err(ChangeError::NotFound);
        }
        self.write(Record::KeyDeleted { id: id.clone(), at: self.now().wall }).await?;
        Ok(())
    }

    fn answered(&self, Remember { idempotency, answer }: Remember) -> Command {
        let Answer { status, body } = self.seal_answer(&idempotency, answer);
        Command::Record(Record::RequestAnswered { idempotency, status, body })
    }
}
