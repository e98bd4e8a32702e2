//! The feed: all events in the order of their positions, from a cursor on.
//!
//! The newest events come from the tail in memory, older ones from the index of the state and the
//! journal. Every look is bounded in events, bytes and work, and says how far it went, so a reader
//! moves on even where nothing matches.

use std::sync::Arc;

use tokio::sync::watch;

use crate::context::Context;
use crate::context::home::Home;
use crate::context::waiter_limit::WaiterPlace;
use crate::courier::body::feed_cloudevent;
use crate::domain::{Event, EventVersion, Party, Position, Record, VersionChoice};
use crate::failpoints::{Bound, Mutation};
use crate::outbox::ReadModel;
use crate::outbox::draft::Unavailable;
use crate::outbox::tail::FeedEvent;
use crate::projections::feed::FeedStep;
use crate::rules::feed::FeedFilter;
use crate::service::conversions::Conversions;
use crate::service::types::{FeedError, FeedPage, FeedStart, WaitError};
use crate::storage::journal::{JournalReader, ReadError};
use crate::{failpoints, limits};

/// Operations on the feed.
#[derive(Clone, Copy)]
pub struct Feed<'a>(pub &'a Context);

/// Bounds of a page.
#[derive(Clone, Copy, Debug)]
pub struct FeedBounds {
    pub events: usize,
    pub bytes: usize,
}

/// An event of a look, or its position if the journal does not have it.
type Found = (Position, Option<Arc<Event>>);

impl Feed<'_> {
    /// The position after which a reader begins.
    ///
    /// # Errors
    /// When events after it are forgotten, or it is beyond the last position.
    pub fn begin(self, filter: &FeedFilter, start: FeedStart) -> Result<Position, FeedError> {
        match start {
            FeedStart::Oldest => Ok(self.oldest(filter)),
            FeedStart::Now => Ok(self.head()),
            FeedStart::After(position) if position > self.head() => {
                Err(FeedError::Ahead { head: self.head() })
            }
            FeedStart::After(position) => self.check(filter, position).map(|()| position),
        }
    }

    /// The last committed position.
    #[must_use]
    pub fn head(self) -> Position {
        self.0.outbox_of(Home::All).tail().head()
    }

    /// The durable name of the log.
    #[must_use]
    pub fn log_id(&self) -> &str {
        self.0.outbox_of(Home::All).log_id()
    }

    /// The first position after which no event is forgotten.
    #[must_use]
    pub fn oldest(self, filter: &FeedFilter) -> Position {
        let horizon = self.0.outbox_of(Home::All).tail().horizon();
        if filter.has_only_streams() { horizon.stream_events } else { horizon.of_all() }
    }

    fn check(self, filter: &FeedFilter, after: Position) -> Result<(), FeedError> {
        let oldest = self.oldest(filter);
        if after < oldest { Err(FeedError::Gone { oldest }) } else { Ok(()) }
    }

    /// A page after a position that is near the end of the log; `None`: use [`Self::read`].
    #[must_use]
    pub fn read_tail(
        self,
        filter: &FeedFilter,
        after: Position,
        bounds: FeedBounds,
    ) -> Option<Result<FeedPage, FeedError>> {
        let found = self.0.outbox_of(Home::All).tail().after(filter, after, bounds.events)?;
        if let Err(gone) = self.check(filter, after) {
            return Some(Err(gone));
        }
        let mut page = PageBuilder::new(after, bounds, found.head);
        page.add(found.events, found.looked_at);
        Some(Ok(page.page))
    }

    /// A page after a position.
    ///
    /// # Errors
    /// When events after it are forgotten, or the outbox is unavailable.
    pub async fn read(
        self,
        filter: &FeedFilter,
        after: Position,
        bounds: FeedBounds,
    ) -> Result<FeedPage, FeedError> {
        let mut page = PageBuilder::new(after, bounds, self.head());
        let started = self.0.now().monotonic;
        for _ in 0..failpoints::bound(Bound::ListSteps, limits::FEED_STEPS_MAX) {
            let next = page.page.next;
            self.check(filter, next)?;
            if let Some(found) = self.0.outbox_of(Home::All).tail().after(filter, next, page.room()) {
                page.page.head = found.head;
                page.add(found.events, found.looked_at);
                break;
            }
            let mut step = self.look(filter, next, page.room()).await?;
            let events = self.events_at(&mut step, bounds.bytes).await?;
            // Retention may have forgotten some of them during the look.
            self.check(filter, next)?;
            page.add(events, step.looked_at);
            if page.is_full || self.0.now().monotonic - started >= limits::FEED_SEARCH_MAX {
                break;
            }
        }
        Ok(page.page)
    }

    /// Looks for events before the tail. Waits for the state if it has not applied any of them.
    async fn look(self, filter: &FeedFilter, after: Position, limit: usize) -> Result<FeedStep, Unavailable> {
        let outbox = self.0.outbox_of(Home::All);
        let until = outbox.tail().complete_after();
        let question =
            |filter: FeedFilter| move |state: &dyn ReadModel| state.feed(&filter, after, until, limit);
        let step = outbox.read_of(filter.tenant.as_ref(), question(filter.clone())).await?;
        if step.looked_at > after || until <= after {
            return Ok(step);
        }
        outbox.read(question(filter.clone())).await
    }

    /// Reads the events of a look from the journal, up to this many bytes: the look then ends with
    /// the last event that was read. Skips damaged events, which are reported.
    async fn events_at(self, step: &mut FeedStep, bytes: usize) -> Result<Vec<Arc<FeedEvent>>, FeedError> {
        let positions = std::mem::take(&mut step.events);
        let (Some(last), reader) = (positions.last().copied(), self.0.outbox_of(Home::All).journal().clone())
        else {
            return Ok(Vec::new());
        };
        let found = self.0.blocking(move || read_events(&reader, &positions, bytes)).await?;
        let found = found.map_err(|error| Unavailable::Failed(error.to_string().into()))?;
        if let Some((read, _)) = found.last().filter(|(read, _)| *read < last) {
            step.looked_at = *read;
        }
        let event = |(at, event): Found| Some(Arc::new(FeedEvent::new(at, event?)));
        Ok(found.into_iter().filter_map(event).collect())
    }

    /// Converts the events of a page, up to a number of bytes. The page then ends with the last one
    /// that has room; at least one has. Readers of the same version share their conversions.
    pub fn convert(self, versions: &VersionChoice, page: &mut FeedPage, bytes_max: usize) {
        let cut = Conversions(self.0).convert_page(versions, &mut page.events, bytes_max);
        if let Some(last) = page.events.last().filter(|_| cut.is_some()) {
            page.next = last.position;
        }
    }

    /// The event as a CloudEvent.
    #[must_use]
    pub fn cloudevent(self, entry: &FeedEvent) -> Vec<u8> {
        let stored_version = entry.stored_version.as_ref().map(EventVersion::as_str);
        let deprecation = Conversions(self.0).deprecation(&entry.event);
        let error = entry.conversion_error.as_deref();
        feed_cloudevent(entry.position, &entry.event, stored_version, error, deprecation)
    }

    /// Waits for events after the end of a page.
    ///
    /// # Errors
    /// When too many callers wait.
    pub fn enter(self, party: Party) -> Result<WaiterPlace, WaitError> {
        self.0.waits().enter(party).map_err(|_| WaitError::TooManyWaiters)
    }

    /// Completes when an event after `head` may exist, or the daemon stops. Returns whether it
    /// goes on.
    pub async fn changed(self, head: Position) -> bool {
        let (mut tail, mut ended) = (self.0.outbox_of(Home::All).tail().watch(), self.0.waits().ended());
        tokio::select! {
            changed = tail.wait_for(|last| *last > head) => changed.is_ok(),
            _ = ended.wait_for(|ended| *ended) => false,
        }
    }

    /// A place for a stream of events, of `most` at once.
    ///
    /// # Errors
    /// When there are too many.
    pub fn enter_stream(self, party: Party, most: usize) -> Result<WaiterPlace, WaitError> {
        self.0.waits().streams().enter(party, most).map_err(|_| WaitError::TooManyWaiters)
    }

    /// Becomes true when the daemon stops.
    #[must_use]
    pub fn ended(self) -> watch::Receiver<bool> {
        self.0.waits().ended()
    }

    /// Whether the daemon stops.
    #[must_use]
    pub fn has_ended(self) -> bool {
        *self.0.waits().ended().borrow()
    }
}

/// A page while it is filled.
struct PageBuilder {
    page: FeedPage,
    bounds: FeedBounds,
    bytes: usize,
    is_full: bool,
}

impl PageBuilder {
    fn new(after: Position, bounds: FeedBounds, head: Position) -> Self {
        Self { page: FeedPage { events: Vec::new(), next: after, head }, bounds, bytes: 0, is_full: false }
    }

    fn room(&self) -> usize {
        self.bounds.events - self.page.events.len()
    }

    /// Adds events up to the bounds. At least one event has room.
    fn add(&mut self, events: Vec<Arc<FeedEvent>>, looked_at: Position) {
        let bytes_max = failpoints::bound(Bound::PageBytes, self.bounds.bytes);
        for event in events {
            self.bytes += event.event.weight();
            if self.bytes > bytes_max && !self.page.events.is_empty() {
                self.is_full = true;
                if failpoints::is_active(Mutation::SkipUnread) {
                    self.page.next = looked_at;
                }
                return;
            }
            self.page.next = event.position;
            self.page.events.push(event);
        }
        self.page.next = self.page.next.max(looked_at);
        self.is_full = self.room() == 0;
        self.page.head = self.page.head.max(self.page.next);
    }
}

/// Reads events, in order, up to this many bytes.
fn read_events(
    reader: &JournalReader,
    positions: &[Position],
    bytes_max: usize,
) -> std::io::Result<Vec<Found>> {
    let (mut found, mut bytes) = (Vec::with_capacity(positions.len()), 0);
    for position in positions {
        let event = match reader.read(*position) {
            Ok(Some(Record::EventAccepted(event))) => Some(event),
            Ok(_) => None,
            Err(ReadError::Io(error)) => return Err(error),
            Err(error) => {
                tracing::error!(%error, %position, "reading event failed, the feed skips it");
                None
            }
        };
        bytes += event.as_ref().map_or(0, |event| event.weight());
        found.push((*position, event));
        if bytes > bytes_max {
            break;
        }
    }
    Ok(found)
}
