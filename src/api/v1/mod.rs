//! The resources under `/v1`.

pub mod audit;
pub mod backup;
pub mod changes;
pub mod cloudevents;
pub mod consumers;
pub mod dead_letters;
pub mod deliveries;
pub mod disclosure;
pub mod endpoints;
pub mod erasure;
pub mod event_types;
pub mod events;
pub mod feed;
pub mod handshakes;
pub mod jobs;
pub mod keys;
pub mod lists;
pub mod overview;
pub mod projections;
pub mod queues;
pub mod sources;
pub mod streams;
pub mod tenants;

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::api::http::response::Accepted;
use crate::api::text::Span;
use crate::context::responses::Keyed;
use crate::domain::{Idempotency, Tenant};

/// The URL of a resource with a name. `tenant`: that of the resource, unless requests find it
/// without one.
fn named_url(list: &str, name: &str, tenant: Option<&Tenant>) -> String {
    let tenant = tenant.map(|tenant| format!("?tenant={tenant}")).unwrap_or_default();
    format!("/v1/{list}/{name}{tenant}")
}

/// Percentiles of a time.
#[derive(Serialize, JsonSchema)]
pub struct PercentilesBody {
    pub p50: Option<Span>,
    pub p95: Option<Span>,
    pub p99: Option<Span>,
}

impl PercentilesBody {
    #[must_use]
    pub fn of_millis([p50, p95, p99]: [Option<u64>; 3]) -> Self {
        let span = |millis: Option<u64>| millis.map(|millis| Span(Duration::from_millis(millis)));
        Self { p50: span(p50), p95: span(p95), p99: span(p99) }
    }
}

/// The number of deliveries that an operation created, redrove or purged.
#[derive(Serialize, JsonSchema)]
pub struct CountBody {
    pub count: u64,
}

impl CountBody {
    #[must_use]
    pub fn accepted(count: u64) -> Accepted<Self> {
        Accepted::new(&Self { count })
    }

    /// The key of a request that is answered with a count; `None` without a key.
    #[must_use]
    pub fn keyed(idempotency: Option<Idempotency>) -> Option<Keyed<u64>> {
        Some(Keyed { idempotency: idempotency?, answer: |count| Self::accepted(*count).answer() })
    }
}
