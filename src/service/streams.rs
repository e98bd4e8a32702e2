//! Streams: heads, events by version, lists.

use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use crate::context::Context;
use crate::context::waits::WaitSubject;
use crate::domain::{Pattern, Position, Record, StreamName, Tenant, Timestamp, VersionChoice};
use crate::failpoints::Bound;
use crate::outbox::ReadModel;
use crate::outbox::draft::Unavailable;
use crate::outbox::tail::FeedEvent;
use crate::projections::streams::Head;
use crate::rules::matching::want;
use crate::service::conversions::Conversions;
use crate::service::pages::cut;
use crate::service::types::{Scope, WaitError};
use crate::storage::journal::JournalReader;
use crate::{failpoints, limits};

/// Order of the events of a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    #[default]
    Forwards,
    Backwards,
}

/// Where a read begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadStart {
    /// Forwards at version 1, backwards at the last version.
    #[default]
    End,
    /// At the first version that is there.
    Oldest,
    Version(u64),
}

/// Which events of a stream to read. `until_version` (inclusive) and `until` (exclusive, by
/// acceptance) bound the versions in both directions.
#[derive(Clone, Debug, Default)]
pub struct StreamRead {
    pub start: ReadStart,
    pub direction: Direction,
    pub until_version: Option<u64>,
    pub until: Option<Timestamp>,
    /// Only types that match one of these patterns; empty: all.
    pub types: Vec<Pattern>,
    pub limit: usize,
}

/// Events of a stream, and where the next read begins.
#[derive(Clone, Debug)]
pub struct StreamPage {
    pub head: Head,
    pub events: Vec<Arc<FeedEvent>>,
    /// `None` at the end of the wanted versions.
    pub next_version: Option<u64>,
}

/// Why a stream cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamReadError {
    #[error("the stream does not exist")]
    NotFound,
    /// Retention has removed the version where the read begins.
    #[error("the stream begins at version {first_version}")]
    Gone { first_version: u64 },
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Operations on streams.
#[derive(Clone, Copy)]
pub struct Streams<'a>(pub &'a Context);

/// The question for the next versions of a read.
#[derive(Clone)]
struct StepQuestion {
    tenant: Tenant,
    stream: StreamName,
    wanted: StreamRead,
    versions_max: usize,
}

/// The positions of the next versions of a read.
struct Step {
    head: Head,
    positions: Vec<(u64, Position)>,
    /// The next version after these, if it is wanted.
    next: Option<u64>,
}

/// Events of a step, and where the read ended.
struct Batch {
    events: Vec<Arc<FeedEvent>>,
    bytes: usize,
    /// The first version that was not read.
    rest: Option<u64>,
}

impl Streams<'_> {
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn head(self, tenant: &Tenant, stream: &StreamName) -> Result<Option<Head>, Unavailable> {
        let (owner, name) = (tenant.clone(), stream.clone());
        self.0.outbox_of(tenant).read_of(Some(tenant), move |state| state.stream(&owner, &name)).await
    }

    /// As [`Self::head`], but waits until the stream's version is above `after`, for at most
    /// `wait`, and not for a caller that has gone.
    ///
    /// # Errors
    /// When the outbox is unavailable, or too many callers wait.
    pub async fn head_after(
        self,
        scope: &Scope,
        tenant: &Tenant,
        stream: &StreamName,
        (after, wait): (u64, Duration),
        gone: impl Future<Output = ()> + Send,
    ) -> Result<Option<Head>, WaitError> {
        let is_later = |head: &Option<Head>| head.is_some_and(|head| head.version > after);
        let head = self.head(tenant, stream).await?;
        if wait.is_zero() || is_later(&head) {
            return Ok(head);
        }
        let subject = WaitSubject::Stream(tenant.clone(), stream.clone());
        let registered =
            self.0.waits().register(subject, scope.party()).map_err(|_| WaitError::TooManyWaiters)?;
        let (mut timeout, mut gone) = (pin!(tokio::time::sleep(wait)), pin!(gone));
        loop {
            let mut changed = pin!(registered.changed());
            // Before the read: a commit after it wakes this caller.
            changed.as_mut().enable();
            let head = self.head(tenant, stream).await?;
            if is_later(&head) || registered.has_ended() {
                return Ok(head);
            }
            tokio::select! {
                () = changed => {}
                () = &mut timeout => return Ok(head),
                () = &mut gone => return Ok(head),
            }
        }
    }

    /// Streams of a tenant, by name, and whether there are more.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn list(
        self,
        tenant: &Tenant,
        prefix: String,
        after: Option<StreamName>,
        limit: usize,
    ) -> Result<(Vec<(StreamName, Head)>, bool), Unavailable> {
        let owner = tenant.clone();
        let list = move |state: &dyn ReadModel| state.streams(&owner, &prefix, after.as_ref(), limit + 1);
        let mut found = self.0.outbox_of(tenant).read_of(Some(tenant), list).await?;
        let has_more = cut(&mut found, limit);
        Ok((found, has_more))
    }

    /// Reads a page of events. It ends early when its events reach
    /// [`limits::PAGE_BYTES_TARGET`], or when it has examined
    /// [`limits::STREAM_SCAN_EVENTS_MAX`] events of other types.
    ///
    /// # Errors
    /// When the stream or its first wanted version does not exist, or the outbox is unavailable.
    pub async fn read(
        self,
        tenant: &Tenant,
        stream: &StreamName,
        wanted: StreamRead,
    ) -> Result<StreamPage, StreamReadError> {
        let bytes_max = failpoints::bound(Bound::PageBytes, limits::PAGE_BYTES_TARGET);
        let (limit, is_filtered) = (wanted.limit, !wanted.types.is_empty());
        let versions_max = if is_filtered { limits::STREAM_PAGE_EVENTS_MAX } else { limit };
        let mut question =
            StepQuestion { tenant: tenant.clone(), stream: stream.clone(), wanted, versions_max };
        let (mut events, mut bytes, mut examined) = (Vec::new(), 0, 0);
        loop {
            let asked = question.clone();
            let step =
                self.0.outbox_of(tenant).read_of(Some(tenant), move |state| asked.answer(state)).await??;
            examined += step.positions.len();
            let room = (limit - events.len(), bytes_max - bytes);
            let batch = self.read_step(&question, &step, room).await?;
            events.extend(batch.events);
            bytes += batch.bytes;
            let next_version = batch.rest.or(step.next);
            let is_full = batch.rest.is_some()
                || events.len() >= limit
                || bytes >= bytes_max
                || examined >= limits::STREAM_SCAN_EVENTS_MAX;
            match next_version.filter(|_| !is_full) {
                None => return Ok(StreamPage { head: step.head, events, next_version }),
                Some(version) => question.wanted.start = ReadStart::Version(version),
            }
        }
    }

    /// Converts the events of a page, up to [`limits::PAGE_BYTES_TARGET`]. The page then ends with
    /// the last one that has room; at least one has.
    pub fn convert(self, versions: &VersionChoice, page: &mut StreamPage) {
        let cut = Conversions(self.0).convert_page(versions, &mut page.events, limits::PAGE_BYTES_TARGET);
        if let Some((_, version)) = cut.and_then(|cut| cut.event.stream.clone()) {
            page.next_version = Some(version);
        }
    }

    /// Reads the events of a step from the journal, until `room` events or bytes are used.
    async fn read_step(
        self,
        StepQuestion { tenant, stream, wanted, .. }: &StepQuestion,
        step: &Step,
        room: (usize, usize),
    ) -> Result<Batch, StreamReadError> {
        let reader = self.0.outbox_of(tenant).journal().clone();
        let (positions, types) = (step.positions.clone(), wanted.types.clone());
        let read = self.0.blocking(move || read_batch(&reader, &positions, &types, room)).await?;
        let missing = match read {
            Ok(batch) => return Ok(batch),
            Err(missing) => missing,
        };
        // Retention may have removed the event since the step.
        let first_version = self.head(tenant, stream).await?.map_or(0, |head| head.first_version);
        if missing.version < first_version {
            return Err(StreamReadError::Gone { first_version });
        }
        tracing::error!(error = missing.reason, %stream, version = missing.version, "reading event failed");
        let reason = format!("version {} of stream {stream} cannot be read", missing.version);
        Err(Unavailable::Failed(reason.into()).into())
    }
}

impl StepQuestion {
    fn answer(&self, state: &dyn ReadModel) -> Result<Step, StreamReadError> {
        let Self { tenant, stream, wanted, .. } = self;
        let head = state.stream(tenant, stream).ok_or(StreamReadError::NotFound)?;
        let before = wanted.until.map(|until| state.stream_version_before(tenant, stream, until));
        let last = [wanted.until_version, before].into_iter().flatten().fold(head.version, u64::min);
        let start = match (wanted.start, wanted.direction) {
            (ReadStart::Version(version), _) => version,
            (ReadStart::Oldest, _) => head.first_version,
            (ReadStart::End, Direction::Forwards) => 1,
            (ReadStart::End, Direction::Backwards) => last.max(head.first_version),
        };
        if start < head.first_version {
            return Err(StreamReadError::Gone { first_version: head.first_version });
        }
        let more = (self.versions_max as u64).saturating_sub(1);
        Ok(match wanted.direction {
            Direction::Forwards => {
                let end = last.min(start.saturating_add(more));
                let positions = state.stream_positions(tenant, stream, start..=end);
                Step { head, positions, next: Some(end + 1).filter(|next| (start..=last).contains(next)) }
            }
            Direction::Backwards => {
                let start = start.min(last);
                let end = head.first_version.max(start.saturating_sub(more));
                let mut positions = state.stream_positions(tenant, stream, end..=start);
                positions.reverse();
                Step { head, positions, next: Some(end - 1).filter(|next| *next >= head.first_version) }
            }
        })
    }
}

/// An event that the journal does not give.
struct MissingEvent {
    version: u64,
    reason: String,
}

fn read_batch(
    reader: &JournalReader,
    positions: &[(u64, Position)],
    types: &[Pattern],
    (events_max, bytes_max): (usize, usize),
) -> Result<Batch, MissingEvent> {
    let mut batch = Batch { events: Vec::new(), bytes: 0, rest: None };
    let mut versions = positions.iter().map(|(version, _)| *version);
    let mut missing = None;
    reader.read_each(positions.iter().map(|(_, position)| *position), &mut |position, record| {
        let version = versions.next().unwrap_or_default();
        if batch.events.len() >= events_max || batch.bytes >= bytes_max {
            batch.rest = Some(version);
            return ControlFlow::Break(());
        }
        let reason = match record {
            Ok(Some(Record::EventAccepted(event))) => {
                if want(types, &event.event_type) {
                    batch.bytes += event.weight();
                    batch.events.push(Arc::new(FeedEvent::new(position, event)));
                }
                return ControlFlow::Continue(());
            }
            Ok(_) => "the journal does not have it".to_owned(),
            Err(error) => error.to_string(),
        };
        missing = Some(MissingEvent { version, reason });
        ControlFlow::Break(())
    });
    missing.map_or(Ok(batch), Err)
}
