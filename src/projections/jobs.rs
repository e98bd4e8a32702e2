//! Progress of jobs (`j`), by the number of the job, which is the position of its record.
//!
//! Ended jobs are kept up to [`limits::JOBS_ENDED_MAX`]; the one that ended first is forgotten
//! first. A rebuild needs the record of each known job, and its last move. The last move of a
//! forgotten job stays in the journal as long as its first record, so that a rebuild does not find
//! it running.

use std::ops::ControlFlow;

use super::rows::{Key, Rows, after_prefix, u64_at};
use crate::codec::{Malformed, Reader, put_bytes, put_u8, put_varint};
use crate::domain::{EndpointNumber, JobCursor, JobProgress, JobStatus, Position, Timestamp};
use crate::failpoints::{self, Bound, Mutation};
use crate::limits;

const TAG: u8 = b'j';

/// A job's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRow {
    /// Position of the record of its last move; 0: none.
    pub moved: Position,
    pub progress: JobProgress,
}

fn key(job: Position) -> Vec<u8> {
    Key::new(TAG).position(job).0
}

#[must_use]
pub fn row(rows: &dyn Rows, job: Position) -> Option<JobRow> {
    decode(&rows.get(&key(job))?).ok()
}

/// All jobs by number.
#[must_use]
pub fn all(rows: &dyn Rows) -> Vec<(Position, JobRow)> {
    let mut all = Vec::new();
    rows.scan(&[TAG], &after_prefix(&[TAG]), &mut |key, value| {
        all.extend(decode(value).ok().map(|row| (Position(u64_at(key, 1)), row)));
        ControlFlow::Continue(())
    });
    all
}

/// Applies the record of a new job, with its first step.
pub(super) fn begin(rows: &mut dyn Rows, job: Position, progress: &JobProgress) {
    rows.put(&key(job), encode(&JobRow { moved: Position(0), progress: progress.clone() }));
    forget_oldest(rows, progress);
}

/// Applies a step or an end. Ignores one of an unknown job.
pub(super) fn advance(rows: &mut dyn Rows, position: Position, job: Position, progress: &JobProgress) {
    if row(rows, job).is_some() && !failpoints::is_active(Mutation::ForgetJobSteps) {
        rows.put(&key(job), encode(&JobRow { moved: position, progress: progress.clone() }));
        forget_oldest(rows, progress);
    }
}

/// Most ended jobs that are kept.
#[must_use]
pub fn ended_max() -> usize {
    failpoints::bound(Bound::EndedJobs, limits::JOBS_ENDED_MAX)
}

/// Forgets a job if one more has ended than are kept.
fn forget_oldest(rows: &mut dyn Rows, latest: &JobProgress) {
    if latest.is_running() {
        return;
    }
    let ended = all(rows).into_iter().filter_map(|(job, row)| Some((row.progress.ended_at()?, job)));
    let ended: Vec<_> = ended.collect();
    if ended.len() > ended_max()
        && let Some((_, job)) = ended.into_iter().min()
    {
        rows.remove(&key(job));
    }
}

fn encode(row: &JobRow) -> Vec<u8> {
    let JobRow { moved, progress: JobProgress { status, done, cursor, at, error } } = row;
    let mut value = Vec::with_capacity(48);
    put_varint(&mut value, moved.0);
    put_u8(&mut value, status.code());
    put_varint(&mut value, *done);
    put_varint(&mut value, at.millis());
    put_u8(&mut value, u8::from(cursor.is_some()));
    if let Some(JobCursor { position, endpoint, event }) = cursor {
        for number in [position.0, u64::from(endpoint.0), event.0] {
            put_varint(&mut value, number);
        }
    }
    put_u8(&mut value, u8::from(error.is_some()));
    if let Some(error) = error {
        put_bytes(&mut value, error.as_bytes());
    }
    value
}

fn decode(value: &[u8]) -> Result<JobRow, Malformed> {
    let mut reader = Reader::new(value);
    let r = &mut reader;
    let moved = Position(r.get_varint()?);
    let status = JobStatus::from_code(r.get_u8()?).ok_or(Malformed::Number)?;
    let (done, at) = (r.get_varint()?, Timestamp::from_millis(r.get_varint()?));
    let cursor = if r.get_u8()? == 0 {
        None
    } else {
        let position = Position(r.get_varint()?);
        Some(JobCursor {
            position,
            endpoint: EndpointNumber(r.get_varint_u32()?),
            event: Position(r.get_varint()?),
        })
    };
    let error = if r.get_u8()? == 0 { None } else { Some(r.get_str()?.into()) };
    Ok(JobRow { moved, progress: JobProgress { status, done, cursor, at, error } })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::failpoints::TestOverrides;

    fn progress(status: JobStatus, at: u64) -> JobProgress {
        let cursor = JobCursor { position: Position(300), endpoint: EndpointNumber(7), event: Position(1) };
        JobProgress {
            status,
            done: 400,
            cursor: Some(cursor),
            at: Timestamp::from_millis(at),
            error: (status == JobStatus::Failed).then(|| "why".into()),
        }
    }

    #[test]
    fn job_row_survives_a_round_trip() {
        for status in JobStatus::ALL {
            let row = JobRow { moved: Position(9), progress: progress(status, 5) };
            assert_eq!(decode(&encode(&row)).as_ref(), Ok(&row));
        }
        let bare =
            JobRow { moved: Position(0), progress: JobProgress::begin(None, Timestamp::from_millis(1)) };
        assert_eq!(decode(&encode(&bare)).as_ref(), Ok(&bare));
    }

    #[test]
    fn job_that_ended_first_is_forgotten_first() {
        TestOverrides { bounds: [(Bound::EndedJobs, 2)].into(), mutation: None }.activate();
        let mut rows = BTreeMap::new();
        begin(&mut rows, Position(1), &progress(JobStatus::Running, 1));
        begin(&mut rows, Position(2), &progress(JobStatus::Completed, 2));
        begin(&mut rows, Position(3), &progress(JobStatus::Completed, 3));
        advance(&mut rows, Position(4), Position(1), &progress(JobStatus::Cancelled, 4));
        let known: Vec<_> = all(&rows).into_iter().map(|(job, row)| (job.0, row.moved.0)).collect();
        assert_eq!(known, [(1, 4), (3, 0)]);
        advance(&mut rows, Position(5), Position(2), &progress(JobStatus::Running, 5));
        assert_eq!(row(&rows, Position(2)), None, "a move does not create a job");
        TestOverrides::default().activate();
    }
}
