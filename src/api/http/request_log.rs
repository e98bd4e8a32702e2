//! The log line of a request, at level `debug`.
//!
//! It has the path of the route, without parameters and query, which may name customers.

use std::time::Duration;

use axum::http::HeaderMap;

use crate::domain::{TraceId, TraceParent, attribute};

/// A request whose line is due.
pub(in crate::api) struct RequestLog {
    began: Duration,
    trace_id: Option<TraceId>,
}

impl RequestLog {
    /// `now`: the monotonic time. `None` if the level is off.
    pub(in crate::api) fn begin(headers: &HeaderMap, now: impl FnOnce() -> Duration) -> Option<Self> {
        tracing::enabled!(tracing::Level::DEBUG).then(|| Self {
            began: now(),
            trace_id: trace_parent(headers).and_then(TraceParent::parse).map(TraceParent::trace_id),
        })
    }

    /// Writes the line. A stream of events has only begun then.
    pub(in crate::api) fn end(&self, method: &str, path: &str, status: u16, now: Duration) {
        let duration = now.saturating_sub(self.began);
        tracing::debug!(
            method,
            path,
            status,
            milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            trace_id = self.trace_id.map(tracing::field::display),
            "request"
        );
    }
}

/// The only `traceparent` of a request.
pub(in crate::api) fn trace_parent(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(attribute::TRACE_PARENT).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    value.to_str().ok()
}
