//! Consumers: named positions in the log of events.
//!
//! A consumer never holds retention back. Its place moves only by a commit or a reset.

use std::pin::pin;
use std::time::Duration;

use crate::context::Context;
use crate::context::consumer_watch::ConsumerConnection;
use crate::context::home::Home;
use crate::context::records::UNEXPECTED_OUTCOME;
use crate::context::waiter_limit::TooManyWaiters;
use crate::context::waits::WaitSubject;
use crate::domain::{
    Consumer, ConsumerKey, ConsumerMove, ConsumerName, ConsumerPlace, MoveKind, Party, Position,
    QuotaExceeded, Tenant, Timestamp,
};
use crate::limits;
use crate::outbox::ReadModel;
use crate::outbox::draft::Unavailable;
use crate::outbox::registry::ConsumerStatus;
use crate::outbox::unit::{Command, Outcome};
use crate::projections::lag::Lag;
use crate::rules::feed::FeedFilter;
use crate::service::feed::Feed;
use crate::service::pages::cut;
use crate::service::system_events::SystemEvents;
use crate::service::types::WaitError;

/// Where a consumer begins, or is reset to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The first event that is kept.
    Oldest,
    /// The next event.
    Now,
    /// After this position.
    After(Position),
    /// The first event that is kept and was accepted at or after this time.
    At(Timestamp),
}

/// A consumer with its progress.
#[derive(Clone, Debug)]
pub struct ConsumerView {
    pub status: ConsumerStatus,
    pub lag: Lag,
    /// The first position to go on from, if retention has removed events after its position.
    pub oldest: Option<Position>,
    /// Open requests for its events.
    pub connections: usize,
}

/// Whether a `PUT` created the consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    Created,
    Existed,
}

/// Why a consumer was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConsumerError {
    #[error("not found")]
    NotFound,
    /// It is not where the commit expects it.
    #[error("the consumer is at {actual}")]
    Moved { actual: Position },
    #[error("the position is beyond the end of the log, {head}")]
    BeyondHead { head: Position },
    /// Retention has removed events after the position to begin at.
    #[error("events after the position are forgotten; the first position is {oldest}")]
    Gone { oldest: Position },
    #[error("there are {} consumers; delete one first", limits::CONSUMERS_MAX)]
    TooMany,
    #[error(transparent)]
    QuotaExceeded(#[from] QuotaExceeded),
    #[error(transparent)]
    Store(#[from] Unavailable),
}

/// The result of a search by name.
#[derive(Clone, Debug)]
pub enum FoundConsumer {
    One(ConsumerStatus),
    None,
    /// Several tenants have a consumer with this name, and the caller named none of them.
    Several,
}

/// Operations on consumers.
#[derive(Clone, Copy)]
pub struct Consumers<'a>(pub &'a Context);

impl Consumers<'_> {
    /// Finds a consumer of `tenant`. Without a tenant: the operator's consumer, or the only one
    /// with this name.
    #[must_use]
    pub fn find(self, tenant: Option<Tenant>, name: &ConsumerName) -> FoundConsumer {
        let is_any_tenant = tenant.is_none();
        let key = ConsumerKey { tenant, name: name.clone() };
        self.0.outbox_of(key.tenant.as_ref()).registry(|registry| {
            if let Some(status) = registry.consumers().get(&key) {
                return FoundConsumer::One(status.clone());
            }
            let mut others = registry.consumers().named(name).filter(|_| is_any_tenant);
            match (others.next(), others.next()) {
                (Some(only), None) => FoundConsumer::One(only.clone()),
                (None, _) => FoundConsumer::None,
                (Some(_), Some(_)) => FoundConsumer::Several,
            }
        })
    }

    #[must_use]
    pub fn status(self, key: &ConsumerKey) -> Option<ConsumerStatus> {
        self.0.outbox_of(key.tenant.as_ref()).registry(|registry| registry.consumers().get(key).cloned())
    }

    /// Consumers after a key, by tenant and name, and whether there are more. `tenant`: only those
    /// of this tenant.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn list(
        self,
        tenant: Option<&Tenant>,
        after: Option<&ConsumerKey>,
        limit: usize,
    ) -> Result<(Vec<ConsumerView>, bool), Unavailable> {
        let mut found: Vec<_> = self.0.outbox_of(tenant).registry(|registry| {
            let all = registry.consumers().after(after);
            let own = all.filter(|known| tenant.is_none() || known.consumer.key.tenant.as_ref() == tenant);
            own.take(limit + 1).cloned().collect()
        });
        let more = cut(&mut found, limit);
        let mut views = Vec::with_capacity(found.len());
        for status in found {
            views.push(self.view(status).await?);
        }
        Ok((views, more))
    }

    /// Adds the progress of a consumer.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn view(self, status: ConsumerStatus) -> Result<ConsumerView, Unavailable> {
        let (consumer, after) = (status.consumer.clone(), status.place.position);
        let oldest = self.lost(&status);
        let tenant = status.consumer.key.tenant.clone();
        let question = move |state: &dyn ReadModel| state.lag(&consumer, after, limits::LAG_ENTRIES_MAX);
        let lag = self.0.outbox_of(tenant.as_ref()).read_of(tenant.as_ref(), question).await?;
        let connections = self.0.consumers().connections(&status.consumer.key);
        Ok(ConsumerView { status, lag, oldest, connections })
    }

    /// The first position to go on from, if retention has removed events after the consumer's.
    fn lost(self, status: &ConsumerStatus) -> Option<Position> {
        let oldest = Feed(self.0).oldest(&FeedFilter::from(&*status.consumer));
        (status.place.position < oldest).then_some(oldest)
    }

    /// Creates a consumer at `start`, or changes the definition of an existing one, which keeps its
    /// place.
    ///
    /// # Errors
    /// When nothing was changed.
    pub async fn put(
        self,
        mut consumer: Consumer,
        start: Start,
    ) -> Result<(ConsumerStatus, Creation), ConsumerError> {
        if self.status(&consumer.key).is_none() {
            consumer.place =
                ConsumerPlace { position: self.position_of(&consumer, start).await?, moved_at: None };
        }
        // The writer decides which of several requests creates it.
        self.commit_one(Command::PutConsumer(Box::new(consumer))).await
    }

    /// Moves a consumer to a position up to the end of the log.
    ///
    /// # Errors
    /// When it was not moved.
    pub async fn commit(
        self,
        key: ConsumerKey,
        to: Position,
        from: Option<Position>,
    ) -> Result<ConsumerStatus, ConsumerError> {
        self.check_position(to)?;
        let kind = from.map_or(MoveKind::Commit, MoveKind::CommitFrom);
        self.move_to(key, to, kind).await
    }

    /// Moves a consumer forward or back.
    ///
    /// # Errors
    /// When it was not moved.
    pub async fn reset(self, key: ConsumerKey, to: Start) -> Result<ConsumerStatus, ConsumerError> {
        let consumer = self.status(&key).ok_or(ConsumerError::NotFound)?.consumer;
        let to = self.position_of(&consumer, to).await?;
        let status = self.move_to(key, to, MoveKind::Reset).await?;
        self.0.consumers().on_reset(&status.consumer.key, to);
        Ok(status)
    }

    async fn move_to(
        self,
        key: ConsumerKey,
        to: Position,
        kind: MoveKind,
    ) -> Result<ConsumerStatus, ConsumerError> {
        let at = self.0.now().wall;
        self.submit(Command::MoveConsumer(Box::new(ConsumerMove { key, to, kind, at }))).await
    }

    /// # Errors
    /// When it was not deleted.
    pub async fn delete(self, key: ConsumerKey) -> Result<(), ConsumerError> {
        let command = Command::DeleteConsumer { key, at: self.0.now().wall };
        match self.0.submit(vec![command]).await?.first() {
            Some(Outcome::Written(_)) => Ok(()),
            _ => Err(ConsumerError::NotFound),
        }
    }

    async fn submit(self, command: Command) -> Result<ConsumerStatus, ConsumerError> {
        Ok(self.commit_one(command).await?.0)
    }

    async fn commit_one(self, command: Command) -> Result<(ConsumerStatus, Creation), ConsumerError> {
        match self.0.submit(vec![command]).await?.into_iter().next() {
            Some(Outcome::Consumer(status)) => Ok((status, Creation::Existed)),
            Some(Outcome::ConsumerCreated(status)) => Ok((status, Creation::Created)),
            Some(Outcome::ConsumerMoved { actual }) => Err(ConsumerError::Moved { actual }),
            Some(Outcome::TooManyConsumers) => Err(ConsumerError::TooMany),
            Some(Outcome::QuotaExceeded(exceeded)) => {
                self.0.metrics().quota_refused(exceeded.quota);
                Err(exceeded.into())
            }
            Some(Outcome::Conflict) => Err(ConsumerError::NotFound),
            _ => unreachable!("{UNEXPECTED_OUTCOME}"),
        }
    }

    fn check_position(self, position: Position) -> Result<(), ConsumerError> {
        let head = self.0.outbox_of(Home::All).journal().last_position();
        if position > head { Err(ConsumerError::BeyondHead { head }) } else { Ok(()) }
    }

    /// # Errors
    /// When the position is beyond the end of the log, when events after it are forgotten, or when
    /// the journal cannot be read.
    async fn position_of(self, consumer: &Consumer, start: Start) -> Result<Position, ConsumerError> {
        let reader = self.0.outbox_of(consumer.key.tenant.as_ref()).journal().clone();
        let oldest = Feed(self.0).oldest(&FeedFilter::from(consumer));
        match start {
            Start::Oldest => Ok(oldest),
            Start::Now => Ok(reader.last_position()),
            Start::After(position) if position < oldest => Err(ConsumerError::Gone { oldest }),
            Start::After(position) => self.check_position(position).map(|()| position),
            Start::At(time) => {
                let found = self.0.blocking(move || reader.last_before(time)).await?;
                let found = found.map_err(|error| Unavailable::Failed(error.to_string().into()))?;
                Ok(found.max(oldest))
            }
        }
    }

    /// Waits until the consumer has reached a position, for at most `wait`, or until the caller is
    /// `gone`. Returns it as it is then; `None` if it was deleted.
    ///
    /// # Errors
    /// When too many callers wait.
    pub async fn wait(
        self,
        party: Party,
        key: &ConsumerKey,
        position: Position,
        wait: Duration,
        gone: impl Future<Output = ()>,
    ) -> Result<Option<ConsumerStatus>, WaitError> {
        let has_come = |status: &Option<ConsumerStatus>| {
            status.as_ref().is_none_or(|status| status.place.position >= position)
        };
        let status = self.status(key);
        if has_come(&status) || wait.is_zero() {
            return Ok(status);
        }
        let subject = WaitSubject::Consumer(key.clone());
        let registered =
            self.0.waits().register(subject, party).map_err(|TooManyWaiters| WaitError::TooManyWaiters)?;
        let (mut timeout, mut gone) = (pin!(tokio::time::sleep(wait)), pin!(gone));
        loop {
            let mut changed = pin!(registered.changed());
            // Before the read: a commit after it wakes this caller.
            changed.as_mut().enable();
            let status = self.status(key);
            if has_come(&status) || registered.has_ended() {
                return Ok(status);
            }
            tokio::select! {
                () = changed => {}
                () = &mut timeout => return Ok(self.status(key)),
                () = &mut gone => return Ok(self.status(key)),
            }
        }
    }

    /// Counts a request for the consumer's events as open, until the result is dropped.
    #[must_use]
    pub fn connect(self, key: &ConsumerKey) -> ConsumerConnection {
        self.0.consumers().connect(key)
    }

    /// Reports the consumers whose next events were removed.
    pub(crate) async fn report_gone(self) {
        let all: Vec<_> = self.0.outbox_of(Home::All).registry(|registry| {
            registry.consumers().after(None).map(|status| (status.clone(), self.lost(status))).collect()
        });
        for (status, lost) in all {
            if let Some(oldest) = lost {
                self.on_gone(&status, oldest).await;
            }
        }
    }

    /// Reports that retention has removed events which the consumer has not processed. It reports
    /// each position once.
    pub async fn on_gone(self, status: &ConsumerStatus, oldest: Position) {
        let (key, position) = (&status.consumer.key, status.place.position);
        if !self.0.consumers().note_gone(key, position) {
            return;
        }
        let (tenant, name) = (key.tenant_text(), key.name.as_str());
        tracing::warn!(consumer = name, tenant, %position, %oldest, "consumer lost events to retention");
        self.0.metrics().consumer_gone();
        SystemEvents(self.0).publish_consumer_gone(key, position, oldest).await;
    }
}
