//! Erasure on disk: removes the content of erased events from the files of the journal.
//!
//! Owns the passes. A pass rewrites every segment with such content, also for a single record, and
//! first seals the active segment if it has some. The record of an event is rewritten after the
//! records of its attempts. So an event whose record has lost its content needs no further rewrite,
//! and a crash at any point is harmless: the next pass continues. Must never remove a record.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::retention::{failed, run_blocking};
use crate::domain::{IdMap, Position, Record, Timestamp};
use crate::failpoints::{self, Bound, Mutation};
use crate::limits;
use crate::outbox::Outbox;
use crate::outbox::ReadModel;
use crate::outbox::draft::Unavailable;
use crate::projections::reads::DeliveryFacts;
use crate::storage::journal::{Fate, RewriteError, RewriteReport};
use crate::storage::state::State;

/// Erased events that the apply thread looks up per step.
const EVENTS_PER_STEP: usize = 200;
/// Erased events per pass over the segments. Bounds the memory of a pass.
const EVENTS_PER_ROUND_MAX: usize = 20_000;
/// Pause between two steps, so that the apply thread can serve other work.
const STEP_PAUSE: Duration = Duration::from_millis(2);
/// How long records of an erased event are still checked for content after its files have none: an
/// attempt that began before the erasure may end after it.
const HIDING_TIME: Duration = Duration::from_secs(900);

/// Result of a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErasureReport {
    /// Events whose content left the files.
    pub events: u64,
    /// Records that lost content.
    pub records: u64,
    /// Events whose content is still in the files, because a segment could not be rewritten.
    pub left: u64,
}

/// Runs one pass at a time.
pub struct Erasures {
    outbox: Outbox,
    /// Events whose content left the files, and when.
    completed: VecDeque<(Timestamp, Vec<Position>)>,
}

/// The records with the content of an erased event.
#[derive(Debug)]
struct Content {
    event: Position,
    at: Timestamp,
    /// Positions of its attempts. `None` if the state does not know all of them: then any later
    /// segment may have one.
    attempts: Option<Vec<Position>>,
}

impl Content {
    fn of(state: &State, event: Position, at: Timestamp) -> Self {
        let deliveries = state.deliveries_of(event);
        // A lease has two records, its start and its end.
        let is_whole = |facts: &DeliveryFacts| {
            let (known, made) = (facts.attempts.len(), facts.attempts_made as usize);
            known >= made && known < limits::ATTEMPTS_KEPT_MAX
        };
        let is_complete = state.knows(event) && deliveries.iter().all(is_whole);
        let attempts = deliveries.into_iter().flat_map(|facts| facts.attempts).collect();
        Self { event, at, attempts: is_complete.then_some(attempts) }
    }

    /// The first positions of the segments with this content, of all segments in order.
    fn segments<'a>(&'a self, firsts: &'a [Position]) -> Box<dyn Iterator<Item = Position> + 'a> {
        let number = |at: Position| firsts.partition_point(|first| *first <= at).saturating_sub(1);
        match &self.attempts {
            None => Box::new(firsts[number(self.event)..].iter().copied()),
            Some(attempts) => {
                let positions = std::iter::once(&self.event).chain(attempts);
                Box::new(positions.map(move |at| firsts[number(*at)]))
            }
        }
    }
}

impl Erasures {
    #[must_use]
    pub fn new(outbox: Outbox) -> Self {
        Self { outbox, completed: VecDeque::new() }
    }

    /// Runs one pass.
    ///
    /// # Errors
    /// When the outbox has stopped or failed. The next pass continues.
    pub async fn pass(&mut self, now: Timestamp) -> Result<ErasureReport, Unavailable> {
        self.end_hiding(now);
        let outbox = self.outbox.clone();
        let _held = outbox.hold_state().await;
        let mut pass = ErasureReport::default();
        let mut after = Position(0);
        loop {
            let contents = self.pending(after).await?;
            let Some(last) = contents.last().map(|content| content.event) else { return Ok(pass) };
            after = last;
            let count = contents.len() as u64;
            let (done, records) = self.rewrite(contents).await?;
            pass.records += records;
            pass.events += done.len() as u64;
            pass.left += count - done.len() as u64;
            self.complete(done, now).await?;
        }
    }

    /// The erased events after a position whose content is still in the files, up to
    /// [`EVENTS_PER_ROUND_MAX`].
    async fn pending(&self, mut after: Position) -> Result<Vec<Content>, Unavailable> {
        let mut contents = Vec::new();
        while contents.len() < EVENTS_PER_ROUND_MAX {
            let limit = failpoints::bound(Bound::RetentionPages, EVENTS_PER_STEP);
            let find = move |state: &mut State| -> Vec<Content> {
                let erased = state.pending_erasures(after, limit);
                erased.into_iter().map(|(event, at)| Content::of(state, event, at)).collect()
            };
            let found = self.outbox.with_state_mut(find).await?;
            let Some(last) = found.last() else { break };
            after = last.event;
            contents.extend(found);
            tokio::time::sleep(STEP_PAUSE).await;
        }
        if !contents.is_empty() {
            // The durable state knows the erasures before the files lose the content.
            let checkpoint = |state: &mut State| state.checkpoint(Timestamp::default());
            self.outbox.with_state_mut(checkpoint).await?.map_err(failed)?;
        }
        Ok(contents)
    }

    /// Rewrites all segments with this content, the last one first. Returns the events whose
    /// content left the files, and the number of changed records.
    async fn rewrite(&self, contents: Vec<Content>) -> Result<(Vec<Position>, u64), Unavailable> {
        if failpoints::is_active(Mutation::KeepErasedBytes) {
            return Ok((contents.into_iter().map(|content| content.event).collect(), 0));
        }
        let active = self.outbox.journal().active_first();
        let is_active = |content: &Content| {
            content.attempts.iter().flatten().chain([&content.event]).any(|at| *at >= active)
        };
        if contents.iter().any(|content| content.attempts.is_none() || is_active(content)) {
            self.outbox.seal_segment().await?;
        }
        let firsts: Vec<_> = self.outbox.journal().sealed_segments().into_iter().map(|(at, _)| at).collect();
        if firsts.is_empty() {
            return Ok((Vec::new(), 0));
        }
        let segments: BTreeSet<_> = contents.iter().flat_map(|content| content.segments(&firsts)).collect();
        let mut contents = contents;
        let mut erased = erased_at(&contents);
        let mut records = 0;
        for first in segments.into_iter().rev() {
            match self.rewrite_segment(first, erased.clone()).await? {
                Ok(report) => records += report.replaced,
                Err(error) => {
                    if !matches!(error, RewriteError::Paused) {
                        tracing::warn!(%error, segment = first.0, "erased content stays in a segment, retrying");
                    }
                    contents.retain(|content| content.segments(&firsts).all(|other| other != first));
                    erased = erased_at(&contents);
                }
            }
        }
        Ok((contents.into_iter().map(|content| content.event).collect(), records))
    }

    async fn rewrite_segment(
        &self,
        first: Position,
        erased: Arc<IdMap<Position, Timestamp>>,
    ) -> Result<Result<RewriteReport, RewriteError>, Unavailable> {
        let reader = self.outbox.journal().clone();
        let judge = move |position: Position, record: &Record| match record
            .content_of(position)
            .and_then(|event| erased.get(&event))
        {
            Some(at) => Fate::Replace(record.erased(*at)),
            None => Fate::Keep,
        };
        let mut judge = judge;
        run_blocking(move || reader.rewrite_segment(first, &mut judge)).await
    }

    /// Notes that the content of these events left the files.
    async fn complete(&mut self, events: Vec<Position>, now: Timestamp) -> Result<(), Unavailable> {
        if events.is_empty() {
            return Ok(());
        }
        let completed = events.clone();
        let complete = move |state: &mut State| {
            state.complete_erasures(&completed);
            state.checkpoint(Timestamp::default())
        };
        self.outbox.with_state_mut(complete).await?.map_err(failed)?;
        self.completed.push_back((now, events));
        Ok(())
    }

    fn end_hiding(&mut self, now: Timestamp) {
        while let Some((at, events)) = self.completed.front()
            && now.since(*at) >= HIDING_TIME
        {
            self.outbox.journal().end_hiding(events);
            self.completed.pop_front();
        }
    }
}

fn erased_at(contents: &[Content]) -> Arc<IdMap<Position, Timestamp>> {
    Arc::new(contents.iter().map(|content| (content.event, content.at)).collect())
}
