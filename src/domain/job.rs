//! Jobs: bulk work that an operator started, done in steps that survive a restart.

use super::closed_list::closed_list;
use super::{
    Actor, DeadReason, DeliverySearch, EndpointNumber, IdMeaning, JobId, Pattern, Position, Tenant, Timestamp,
};

closed_list! {
    /// The work of a job. The word is the operation that starts it.
    pub enum JobKind {
        RedriveDeadLetters = 1 => "redriveDeadLetters",
        PurgeDeadLetters = 2 => "purgeDeadLetters",
        ReplayEndpoint = 3 => "replayEndpoint",
        ReplayQueue = 4 => "replayQueue",
        PurgeQueue = 5 => "purgeQueue",
        DeleteTenant = 6 => "deleteTenant",
    }
}

closed_list! {
    pub enum JobStatus {
        Running = 1 => "running",
        Completed = 2 => "completed",
        /// It ended early; `error` says why. Completed steps stay.
        Failed = 3 => "failed",
        /// An operator ended it early. Completed steps stay.
        Cancelled = 4 => "cancelled",
    }
}

/// The deliveries or events that a job covers, besides those of its tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobSelection {
    pub endpoint: Option<EndpointNumber>,
    /// Empty: every type.
    pub types: Vec<Pattern>,
    pub reason: Option<DeadReason>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Of a replay: only events that were not delivered.
    pub only_undelivered: bool,
    /// Of dead letters.
    pub search: DeliverySearch,
    /// The meaning of the search's id at the start of the job: an event that is published later,
    /// with an id that its publisher chose, does not change it. `None` without an id, and for jobs
    /// of earlier versions.
    pub id_meaning: Option<IdMeaning>,
}

/// Start of a job's next step: everything that it covers from there on is strictly older.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobCursor {
    pub position: Position,
    pub endpoint: EndpointNumber,
    pub event: Position,
}

/// How far a job has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobProgress {
    pub status: JobStatus,
    /// Number of deliveries, or of deleted resources.
    pub done: u64,
    pub cursor: Option<JobCursor>,
    /// Time of its last step, or of its end.
    pub at: Timestamp,
    /// Why it failed.
    pub error: Option<Box<str>>,
}

impl JobProgress {
    /// A job without a step.
    #[must_use]
    pub fn begin(cursor: Option<JobCursor>, at: Timestamp) -> Self {
        Self { status: JobStatus::Running, done: 0, cursor, at, error: None }
    }

    #[must_use]
    pub fn is_running(&self) -> bool {
        self.status == JobStatus::Running
    }

    #[must_use]
    pub fn ended_at(&self) -> Option<Timestamp> {
        (!self.is_running()).then_some(self.at)
    }
}

/// A job, as its record holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub id: JobId,
    /// Position of its record.
    pub number: Position,
    pub kind: JobKind,
    /// The tenant whose data it changes; `None`: data of all tenants.
    pub tenant: Option<Tenant>,
    pub started_by: Actor,
    pub started_at: Timestamp,
    /// The number of deliveries or resources that it covered when it started.
    pub count: u64,
    /// Most deliveries per second.
    pub rate: Option<u32>,
    pub selection: JobSelection,
    /// After its first step, which is in the same commit.
    pub progress: JobProgress,
}
