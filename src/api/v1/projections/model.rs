//! Responses about projections.

use schemars::JsonSchema;
use serde::Serialize;

use crate::api::text::{self, Time, Word};
use crate::context::rebuilds::RebuildStatus;
use crate::domain::closed_list::closed_list;
use crate::service::projections::{ConsumerProgress, ProjectionLag, StateProgress};

/// The part of the log that a projection has not processed.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProjectionLagBody {
    pub records: u64,
    /// Age of the first of them; 0 without any.
    pub seconds: f64,
}

impl From<ProjectionLag> for ProjectionLagBody {
    fn from(lag: ProjectionLag) -> Self {
        Self { records: lag.records, seconds: text::seconds(lag.age) }
    }
}

/// Numbers of the state's rows, by kind.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RowCountsBody {
    /// Events since the log began.
    pub accepted_events: u64,
    pub pending_deliveries: u64,
    pub dead_letters: u64,
    pub endpoints: u64,
    pub keys: u64,
    /// Tenants with settings.
    pub tenants: u64,
    pub consumers: u64,
}

closed_list! {
    pub enum RebuildOutcome {
        Running => "running",
        Completed => "completed",
        /// The old state was kept.
        Failed => "failed",
    }
}

/// A rebuild of the state from the journal.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RebuildBody {
    #[schemars(with = "Word<RebuildOutcome>")]
    pub status: &'static str,
    pub started_at: Time,
    /// Null while it runs.
    pub ended_at: Option<Time>,
    /// The position up to which the log is processed.
    pub done: u64,
    /// The position of the old state, which serves until the end.
    pub total: u64,
    /// Of a failed one: why the old state was kept.
    pub error: Option<String>,
}

impl From<RebuildStatus> for RebuildBody {
    fn from(rebuild: RebuildStatus) -> Self {
        let status = match (&rebuild.ended_at, &rebuild.error) {
            (None, _) => RebuildOutcome::Running,
            (Some(_), None) => RebuildOutcome::Completed,
            (Some(_), Some(_)) => RebuildOutcome::Failed,
        };
        Self {
            status: status.as_str(),
            started_at: Time(rebuild.started_at),
            ended_at: rebuild.ended_at.map(Time),
            done: rebuild.done.0,
            total: rebuild.total.0,
            error: rebuild.error,
        }
    }
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProjectionBody {
    /// `state`, or the name of a consumer.
    pub name: String,
    /// `state` or `consumer`.
    pub kind: &'static str,
    /// Of a consumer: its tenant; null reads all tenants.
    pub tenant: Option<String>,
    /// Position up to which the log is processed.
    pub position: u64,
    pub lag: ProjectionLagBody,
    /// Only of the state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<RowCountsBody>,
    /// Only of the state: bytes on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Only of the state: the rebuild that runs, or the last one since the start of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebuild: Option<RebuildBody>,
}

impl From<StateProgress> for ProjectionBody {
    fn from(state: StateProgress) -> Self {
        Self {
            name: "state".to_owned(),
            kind: "state",
            tenant: None,
            position: state.position.0,
            lag: state.lag.into(),
            rows: Some(RowCountsBody {
                accepted_events: state.totals.events,
                pending_deliveries: state.totals.pending,
                dead_letters: state.totals.dead,
                endpoints: state.endpoints,
                keys: state.keys,
                tenants: state.tenants,
                consumers: state.consumers,
            }),
            bytes: Some(state.bytes),
            rebuild: state.rebuild.map(RebuildBody::from),
        }
    }
}

impl From<ConsumerProgress> for ProjectionBody {
    fn from(consumer: ConsumerProgress) -> Self {
        Self {
            name: consumer.key.name.to_string(),
            kind: "consumer",
            tenant: consumer.key.tenant.map(|tenant| tenant.to_string()),
            position: consumer.position.0,
            lag: consumer.lag.into(),
            rows: None,
            bytes: None,
            rebuild: None,
        }
    }
}
