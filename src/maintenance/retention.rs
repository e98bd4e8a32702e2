//! Retention: deletes expired events from the state, and their unneeded records from the journal.
//!
//! Owns the passes: which pages and segments are examined, and when. The state decides which events
//! have expired. A rewrite removes only records that the durable state does not need. A crash at
//! any point is harmless: events that the journal still has are deleted again, and events that it
//! lost were already deleted.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::domain::{EndpointNumber, IdSet, Position, Record, Timestamp};
use crate::failpoints::{self, Bound, Mutation};
use crate::outbox::Outbox;
use crate::outbox::draft::Unavailable;
use crate::outbox::unit::Command;
use crate::panics;
use crate::projections::retention::{Cutoffs, Forgotten};
use crate::storage::journal::{Fate, JournalReader, ReadError, RewriteError};
use crate::storage::state::{EventLookup, State, StateError};

/// Pages that the apply thread examines per step.
const PAGES_PER_STEP: usize = 16;
/// Endpoints whose statistics the apply thread examines per step.
const ENDPOINTS_PER_STEP: usize = 200;
/// Hours of tenants that it examines per step.
const TENANT_HOURS_PER_STEP: usize = 1_000;
/// Audit entries forgotten per step.
const ACTS_PER_STEP: usize = 1_000;
/// Pause between two steps, so that the apply thread can serve other work.
const STEP_PAUSE: Duration = Duration::from_millis(2);
/// A segment is rewritten when at least one in this many of its records is unneeded.
const REWRITE_SHARE_MIN: u64 = 4;

/// Retention periods of ended events and of audit entries. `None`: forever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionPolicy {
    pub events: Option<Duration>,
    pub stream_events: Option<Duration>,
    pub audit: Option<Duration>,
}

impl RetentionPolicy {
    fn cutoffs(&self, now: Timestamp) -> Cutoffs {
        let before = |keep: Option<Duration>| keep.map(|keep| now.minus(keep));
        Cutoffs { events: before(self.events), stream_events: before(self.stream_events) }
    }

    fn keeps_everything(&self) -> bool {
        *self == Self::default()
    }
}

/// Result of a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionReport {
    /// Deleted events.
    pub events: u64,
    /// Records removed from the journal.
    pub records: u64,
    /// Bytes by which the journal shrank.
    pub bytes: u64,
}

/// Runs one retention pass at a time.
pub struct Retention {
    outbox: Outbox,
    policy: RetentionPolicy,
    /// For each segment, by first position: the number of records that became unneeded since it was
    /// examined. `None` if it was not examined since the process started.
    unneeded_counts: BTreeMap<Position, Option<u64>>,
}

impl Retention {
    #[must_use]
    pub fn new(outbox: Outbox, policy: RetentionPolicy) -> Self {
        Self { outbox, policy, unneeded_counts: BTreeMap::new() }
    }

    /// Runs one pass.
    ///
    /// # Errors
    /// When the outbox has stopped or failed. The next pass continues.
    pub async fn pass(&mut self, now: Timestamp) -> Result<RetentionReport, Unavailable> {
        let mut pass = RetentionReport::default();
        if self.policy.keeps_everything() {
            return Ok(pass);
        }
        let outbox = self.outbox.clone();
        let _held = outbox.hold_state().await;
        self.refresh_segments();
        let cutoffs = self.policy.cutoffs(now);
        if cutoffs != Cutoffs::default() {
            pass.events = self.forget(cutoffs, now).await?;
        } else {
            self.record_horizon(now).await?;
        }
        if let Some(before) = cutoffs.events {
            self.forget_hours(before).await?;
        }
        if let Some(age) = self.policy.audit {
            self.forget_acts(now.minus(age)).await?;
        }
        // Records leave the durable state before they leave the journal.
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
                    tracing::warn!(%error, segment = first.0, "segment rewrite failed");
                }
                Err(RewriteFailure::Held) => break,
            }
        }
        Ok(pass)
    }

    /// Forgets expired events, step by step. Before a step, the horizon of its events is durable,
    /// so that no reader of the feed misses them unnoticed.
    async fn forget(&mut self, cutoffs: Cutoffs, now: Timestamp) -> Result<u64, Unavailable> {
        let (mut events, mut page) = (0, Some(0));
        while let Some(from) = page {
            let pages = failpoints::bound(Bound::RetentionPages, PAGES_PER_STEP);
            let held = self.outbox.hold_forgetting().await;
            let horizon =
                self.outbox.with_state_mut(move |state| state.next_horizon(cutoffs, from, pages)).await?;
            if let Some(horizon) = horizon.filter(|_| !failpoints::is_active(Mutation::SkipHorizon)) {
                let record = Record::HorizonMoved { horizon, at: now };
                self.outbox.commit(vec![Command::Record(record)]).await?;
            }
            let Forgotten { positions, events: count, next, .. } =
                self.outbox.with_state_mut(move |state| state.forget(cutoffs, from, pages)).await?;
            drop(held);
            events += count;
            page = next;
            self.note_unneeded(&positions);
            tokio::time::sleep(STEP_PAUSE).await;
        }
        Ok(events)
    }

    /// Records the horizon before the first removal of anything. Without it, a rebuild of the state
    /// would take removed audit entries for removed events.
    async fn record_horizon(&self, now: Timestamp) -> Result<(), Unavailable> {
        let unknown = |state: &mut State| state.next_horizon(Cutoffs::default(), 0, 0);
        if let Some(horizon) = self.outbox.with_state_mut(unknown).await? {
            let record = Record::HorizonMoved { horizon, at: now };
            self.outbox.commit(vec![Command::Record(record)]).await?;
        }
        Ok(())
    }

    /// Deletes the statistics of deleted events.
    async fn forget_hours(&self, before: Timestamp) -> Result<(), Unavailable> {
        let mut next = Some(EndpointNumber(0));
        let most = failpoints::bound(Bound::RetentionPages, ENDPOINTS_PER_STEP);
        while let Some(from) = next {
            next = self.outbox.with_state_mut(move |state| state.forget_hours(before, from, most)).await?;
            tokio::time::sleep(STEP_PAUSE).await;
        }
        let rows = failpoints::bound(Bound::RetentionPages, TENANT_HOURS_PER_STEP);
        while self.outbox.with_state_mut(move |state| state.forget_tenant_hours(before, rows)).await? {
            tokio::time::sleep(STEP_PAUSE).await;
        }
        Ok(())
    }

    /// Forgets audit entries of acts before a time.
    async fn forget_acts(&mut self, before: Timestamp) -> Result<(), Unavailable> {
        let most = failpoints::bound(Bound::RetentionPages, ACTS_PER_STEP);
        loop {
            let forget = move |state: &mut State| state.forget_acts(before, most);
            let positions = self.outbox.with_state_mut(forget).await?;
            self.note_unneeded(&positions);
            if positions.len() < most {
                return Ok(());
            }
            tokio::time::sleep(STEP_PAUSE).await;
        }
    }

    /// Counts records that the state no longer needs, for the choice of segments to rewrite.
    fn note_unneeded(&mut self, positions: &[Position]) {
        for position in positions {
            if let Some((_, Some(gone))) = self.unneeded_counts.range_mut(..=*position).next_back() {
                *gone += 1;
            }
        }
    }

    /// Updates the list of segments.
    fn refresh_segments(&mut self) {
        let reader = self.outbox.journal();
        let firsts: Vec<_> = reader.sealed_segments().into_iter().map(|(first, _)| first).collect();
        let firsts: Vec<_> = firsts.into_iter().chain([reader.active_first()]).collect();
        self.unneeded_counts.retain(|first, _| firsts.contains(first));
        for first in firsts {
            self.unneeded_counts.entry(first).or_insert(None);
        }
    }

    /// Sealed segments that were never examined or lost enough records since, with their upper
    /// bounds.
    fn rewrite_candidates(&self) -> Vec<(Position, Position)> {
        let segments = self.unneeded_counts.iter().zip(self.unneeded_counts.keys().skip(1));
        let worth = segments.filter(|((first, gone), upper)| {
            gone.is_none_or(|gone| gone * REWRITE_SHARE_MIN >= upper.0 - first.0)
        });
        worth.map(|((first, _), upper)| (*first, *upper)).collect()
    }

    /// Rewrites a segment if it is worthwhile. Returns the number of removed records and bytes.
    async fn rewrite(
        &mut self,
        first: Position,
        upper: Position,
    ) -> Result<Option<(u64, u64)>, RewriteFailure> {
        // Counts the records that become unneeded from now on.
        self.unneeded_counts.insert(first, Some(0));
        let (unneeded, records) = self.unneeded(first, upper).await?;
        let count = unneeded.len() as u64;
        if count == 0 || count * REWRITE_SHARE_MIN < records {
            self.unneeded_counts.insert(first, Some(count));
            return Ok(None);
        }
        let reader = self.outbox.journal().clone();
        let rewritten = run_blocking(move || {
            reader.rewrite_segment(first, &mut |position, _| Fate::keep_if(!unneeded.contains(&position)))
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

    /// Returns the unneeded records of a segment, and its number of records.
    ///
    /// An event's attempts leave the journal with the event or after it. Without its attempts, a
    /// remaining event would be pending again in a rebuilt state.
    async fn unneeded(
        &self,
        first: Position,
        upper: Position,
    ) -> Result<(IdSet<Position>, u64), RewriteFailure> {
        let (mut unneeded, mut count, mut at) = (IdSet::default(), 0, first);
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
                    if !has_subject_in_journal(&reader, &unneeded, &record)? {
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

/// Returns the records that the state does not need. Deletes the publisher-chosen ids of their
/// events.
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

/// Whether the journal still has an event or a job that the record refers to.
fn has_subject_in_journal(
    reader: &JournalReader,
    unneeded: &IdSet<Position>,
    record: &Record,
) -> Result<bool, ReadError> {
    let subjects: Vec<Position> = match record {
        // The state knows whether it needs the event itself.
        Record::EventAccepted(_) => Vec::new(),
        Record::EventErased { event, .. } => vec![*event],
        // Without its end, a forgotten job would run again in a rebuilt state.
        Record::JobMoved { job, progress } if !progress.is_running() => vec![*job],
        other => other.deliveries(Position(0)).iter().map(|delivery| delivery.event).collect(),
    };
    for subject in subjects {
        if !unneeded.contains(&subject) && reader.read(subject)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Runs file work outside the runtime's threads. A simulation has a single thread and runs it
/// inline.
pub(super) async fn run_blocking<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, Unavailable> {
    if cfg!(test) {
        return Ok(work());
    }
    on_blocking_thread(work).await
}

/// A panic of the work is one of the task that waits for it.
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

pub(super) fn failed(error: StateError) -> Unavailable {
    Unavailable::Failed(error.to_string().into())
}

/// Reads about 64 KB of records from a position on. Returns them and the next position. Damage is
/// an error, and the segment stays unchanged.
fn read_batch(reader: &JournalReader, from: Position) -> Result<Option<(Records, Position)>, ReadError> {
    let Some(frame) = reader.frames_from(from).next() else { return Ok(None) };
    let records = frame?;
    let next = records.last().map_or(from, |(last, _)| *last).next();
    Ok(Some((records, next)))
}

/// Publisher-chosen ids of an event: idempotency keys without an expiry.
fn unexpiring_requests(position: Position, record: &Record) -> Vec<([u8; 16], Position)> {
    let Record::EventAccepted(event) = record else { return Vec::new() };
    let endless = event.idempotency.iter().filter(|idempotency| idempotency.expires_at.is_none());
    endless.map(|idempotency| (idempotency.scope, position)).collect()
}
