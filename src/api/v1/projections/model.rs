//! Responses about projections.

use schemars::JsonSchema;
use serde::Serialize;

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
        Self { records: lag.records, seconds: lag.age.as_secs_f64() }
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
        }
    }
}

impl From<ConsumerProgress> for ProjectionBody {
    fn from(consumer: ConsumerProgress) -> Self {
        Self {
            name: consumer.name,
            kind: "consumer",
            tenant: consumer.tenant.map(|tenant| tenant.to_string()),
            position: consumer.position.0,
            lag: consumer.lag.into(),
            rows: None,
            bytes: None,
        }
    }
}
