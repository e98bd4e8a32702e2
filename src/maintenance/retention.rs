//! Retention: events leave the state when their time is over, and the journal when nothing rests on them any more.
//!
//! Owns the passes: which pages and segments are looked at, and when. The state decides what is over; a segment is
//! rewritten only without what the durable state does not need. A crash at any point is harmless: what the journal
//! still has is forgotten again, and what it has no more was forgotten before.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use crate::domain::{EndpointNumber, Position, Record, Timestamp};
use crate::failpoints::{self, Bound};
use crate::outbox::Outbox;
use crate::outbox::draft::Unavailable;
use crate::panics;
use crate::projections::retention::{Cutoffs, Forgotten};
use crate::storage::journal::{JournalReader, ReadError, RewriteError};
use crate::storage::state::{EventLookup, State, StateError};

/// Pages that the state's thread looks at in one go.
const PAGES_PER_STEP: usize = 16;
/// Endpoints whose statistics the state's thread looks at in one go.
const ENDPOINTS_PER_STEP: usize = 200;
/// Pause between two steps, so that the state's thread has time for others.
const STEP_PAUSE: Duration = Duration::from_millis(2);
/// A segment is rewritten when at least this part of its records (one in so many) is needed no more.
const REWRITE_SHARE_MIN: u64 = 4;

/// How long what has ended is kept; `None`: for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionPolicy {
    pub events: Option<Duration>,
    pub stream_events: Option<Duration>,
}

impl RetentionPolicy {
    fn cutoffs(&self, now: Timestamp) -> Cutoffs {
        let before = |keep: Option<Duration>| keep.map(|keep| now.minus(keep));
        Cutoffs { events: before(self.events), stream_events: before(self.stream_events) }
    }

    fn keeps_everything(&self) -> bool {
        self.events.is_none() && self.stream_events.is_none()
    }
}

/// What one pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionReport {
    /// Events forgotten.
    pub events: u64,
    /// Records taken out of the journal.
    pub records: u64,
    /// Bytes by which the journal shrank.
    pub bytes: u64,
}

/// Takes one pass after the other.
pub struct Retention {
    outbox: Outbox,
    policy: RetentionPolicy,
    /// Every segment by its first position: how many of its records went since it was looked at; `None` when it has not
    /// been in this life of the process.
    unneeded_counts: BTreeMap<Position, Option<u64>>,
}

impl Retention {
    #[must_use]
    pub fn new(outbox: Outbox, policy: RetentionPolicy) -> Self {
        Self { outbox, policy, unneeded_counts: BTreeMap::new() }
    }

    /// # Errors
    /// When the outbox has stopped or failed; the next pass goes on.
    pub async fn pass(&mut self, now: Timestamp) -> Result<RetentionReport, Unavailable> {
        let mut pass = RetentionReport::default();
        if self.policy.keeps_everything() {
            return Ok(pass);
        }
        self.refresh_segments();
        let cutoffs = self.policy.cutoffs(now);
        pass.events = self.forget(cutoffs).await?;
        if let Some(before) = cutoffs.events {
            self.forget_hours(before).await?;
        }
        // What leaves the journal has left the durable state before.
        self.outbox.with_state_mut(|state| state.checkpoint(Timestamp::default())).await?.map_err(failed)?;
        for (first, upper) in self.rewrite_candidates() {
            match self.rewrite(first, upper).await {
                Ok(Some((records, bytes))) => {
                    pass.records += records;
                    pass.bytes += bytes;
                }
                Ok(None) => {}
                Err(RewriteFailure::Outbox(error)) => return Err(error),
                Err(RewriteFailure::Segment(error)) => {
                    tracing::warn!(%error, segment = first.0, "a segment of the journal stays as it is");
                }
                Err(RewriteFailure::Held) => break,
            }
        }
        Ok(pass)
    }

    async fn forget(&mut self, cutoffs: Cutoffs) -> Result<u64, Unavailable> {
        let (mut events, mut page) = (0, Some(0));
        while let Some(from) = page {
            let pages = failpoints::bound(Bound::RetentionPages, PAGES_PER_STEP);
            let held = self.outbox.hold_forgetting().await;
            let Forgotten { positions, events: count, next } =
                self.outbox.with_state_mut(move |state| state.forget(cutoffs, from, pages)).await?;
            drop(held);
            events += count;
            page = next;
            for position in positions {
                if let Some((_, Some(gone))) = self.unneeded_counts.range_mut(..=position).next_back() {
                    *gone += 1;
                }
            }
            tokio::time::sleep(STEP_PAUSE).await;
        }
        Ok(events)
    }

    /// Statistics stay as long as the events that they count.
    async fn forget_hours(&self, before: Timestamp) -> Result<(), Unavailable> {
        let mut next = Some(EndpointNumber(0));
        let most = failpoints::bound(Bound::RetentionPages, ENDPOINTS_PER_STEP);
        while let Some(from) = next {
            next = self.outbox.with_state_mut(move |state| state.forget_hours(before, from, most)).await?;
            tokio::time::sleep(STEP_PAUSE).await;
        }
        Ok(())
    }

    /// Knows the segments that there are now.
    fn refresh_segments(&mut self) {
        let reader = self.outbox.journal();
        let firsts: Vec<_> = reader.sealed_segments().into_iter().map(|(first, _)| first).collect();
        let firsts: Vec<_> = firsts.into_iter().chain([reader.active_first()]).collect();
        self.unneeded_counts.retain(|first, _| firsts.contains(first));
        for first in firsts {
            self.unneeded_counts.entry(first).or_insert(None);
        }
    }

    /// Sealed segments that were not looked at yet or have lost enough since, and where each ends.
    fn rewrite_candidates(&self) -> Vec<(Position, Position)> {
        let segments = self.unneeded_counts.iter().zip(self.unneeded_counts.keys().skip(1));
        let worth = segments.filter(|((first, gone), upper)| {
            gone.is_none_or(|gone| gone * REWRITE_SHARE_MIN >= upper.0 - first.0)
        });
        worth.map(|((first, _), upper)| (*first, *upper)).collect()
    }

    /// Gives how many records and bytes went, when the segment was rewritten.
    async fn rewrite(
        &mut self,
        first: Position,
        upper: Position,
    ) -> Result<Option<(u64, u64)>, RewriteFailure> {
        // From now on it is counted what else goes.
        self.unneeded_counts.insert(first, Some(0));
        let (unneeded, records) = self.unneeded(first, upper).await?;
        let count = unneeded.len() as u64;
        if count == 0 || count * REWRITE_SHARE_MIN < records {
            self.unneeded_counts.insert(first, Some(count));
            return Ok(None);
        }
        let reader = self.outbox.journal().clone();
        let rewritten = run_blocking(move || {
            reader.rewrite_segment(first, &mut |position, _| !unneeded.contains(&position))
        });
        match rewritten.await? {
            Ok(report) => Ok(Some((report.removed, report.bytes_before.saturating_sub(report.bytes_after)))),
            Err(RewriteError::Paused) => {
                self.unneeded_counts.insert(first, None);
                Err(RewriteFailure::Held)
            }
            Err(error) => Err(RewriteFailure::Segment(error)),
        }
    }

    /// The records of a segment that nothing rests on, and how many it has.
    ///
    /// What happened to an event leaves the journal with the event or after it: without its attempts, an event that is
    /// still there would be pending again in a state that is rebuilt.
    async fn unneeded(
        &self,
        first: Position,
        upper: Position,
    ) -> Result<(HashSet<Position>, u64), RewriteFailure> {
        let (mut unneeded, mut count, mut at) = (HashSet::new(), 0, first);
        let mut events = EventLookup::default();
        while at < upper {
            let reader = self.outbox.journal().clone();
            let Some((records, next)) = run_blocking(move || read_batch(&reader, at)).await?? else { break };
            at = next;
            count += records.len() as u64;
            let (known, gone) =
                self.outbox.with_state_mut(move |state| take_unneeded(state, events, records, upper)).await?;
            events = known;
            let reader = self.outbox.journal().clone();
            unneeded = run_blocking(move || -> Result<_, ReadError> {
                for (position, record) in gone {
                    if !has_event_in_journal(&reader, &unneeded, &record)? {
                        unneeded.insert(position);
                    }
                }
                Ok(unneeded)
            })
            .await??;
        }
        self.outbox.with_state_mut(|state| state.checkpoint(Timestamp::default())).await?.map_err(failed)?;
        Ok((unneeded, count))
    }
}

type Records = Vec<(Position, Record)>;

/// The records that the state does not need. Chosen ids go with their events.
fn take_unneeded(
    state: &mut State,
    mut events: EventLookup,
    records: Records,
    upper: Position,
) -> (EventLookup, Records) {
    let mut gone = records;
    gone.retain(|(position, record)| {
        *position < upper && !state.needs_record(&mut events, *position, record)
    });
    let requests: Vec<_> =
        gone.iter().flat_map(|(position, record)| unexpiring_requests(*position, record)).collect();
    state.forget_requests(&requests);
    (events, gone)
}

/// Whether the journal has the event (or one of the events) that a record tells of.
fn has_event_in_journal(
    reader: &JournalReader,
    unneeded: &HashSet<Position>,
    record: &Record,
) -> Result<bool, ReadError> {
    let deliveries = match record {
        Record::AttemptFinished { delivery, .. } => std::slice::from_ref(delivery),
        Record::DeliveriesRevived { deliveries, .. }
        | Record::DeliveriesCancelled { deliveries, .. }
        | Record::DeliveriesDied { deliveries, .. }
        | Record::DeadLettersPurged { deliveries, .. }
        | Record::DeliveriesReordered { deliveries, .. } => deliveries,
        _ => &[],
    };
    for delivery in deliveries {
        if !unneeded.contains(&delivery.event) && reader.read(delivery.event)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// File work does not belong on the threads of the runtime. A simulation has one thread, and does it there.
async fn run_blocking<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, Unavailable> {
    if cfg!(test) {
        return Ok(work());
    }
    on_blocking_thread(work).await
}

/// A panic of the work is one of the job that waits for it.
async fn on_blocking_thread<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, Unavailable> {
    let done = tokio::task::spawn_blocking(|| panics::contain(work)).await;
    done.map_err(|_| Unavailable::Stopping)?.map_or_else(|panicked| panics::pass_on(panicked), Ok)
}

/// Why a segment was not rewritten.
enum RewriteFailure {
    Outbox(Unavailable),
    Segment(RewriteError),
    Held,
}

impl From<Unavailable> for RewriteFailure {
    fn from(error: Unavailable) -> Self {
        Self::Outbox(error)
    }
}

impl From<ReadError> for RewriteFailure {
    fn from(error: ReadError) -> Self {
        Self::Segment(error.into())
    }
}

fn failed(error: StateError) -> Unavailable {
    Unavailable::Failed(error.to_string().into())
}

/// The records from a position on, about 64 KB of them, and where the next begin. Damage ends it: such a segment stays.
fn read_batch(reader: &JournalReader, from: Position) -> Result<Option<(Records, Position)>, ReadError> {
    let Some(frame) = reader.frames_from(from).next() else { return Ok(None) };
    let records = frame?;
    let next = records.last().map_or(from, |(last, _)| *last).next();
    Ok(Some((records, next)))
}

/// Requests that are remembered for as long as their event is: chosen ids.
fn unexpiring_requests(position: Position, record: &Record) -> Vec<([u8; 16], Position)> {
    let Record::EventAccepted(event) = record else { return Vec::new() };
    let endless = event.idempotency.iter().filter(|idempotency| idempotency.expires_at.is_none());
    endless.map(|idempotency| (idempotency.scope, position)).collect()
}
