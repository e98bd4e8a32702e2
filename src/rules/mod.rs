//! Policy decisions, as pure functions. Must never know async, I/O, serde, clocks or randomness.
//!
//! Owns: whether an event may be appended ([`append`]), its endpoints ([`matching`], [`patterns`]),
//! status ([`event_status`]) and trace ([`trace`]); the meaning of a reply ([`verdict`]), the next
//! attempt ([`retry`]), failing endpoints ([`health`]), consent of receivers ([`handshake`]),
//! signatures ([`signature`]), guessable secrets ([`weakness`]) and headers with credentials
//! ([`headers`]).

pub mod append;
pub mod event_status;
pub mod feed;
pub mod handshake;
pub mod headers;
pub mod health;
pub mod matching;
pub mod patterns;
pub mod retry;
pub mod signature;
pub mod trace;
pub mod verdict;
pub mod weakness;

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use crate::domain::{
        Endpoint, EndpointNumber, EndpointStatus, EndpointTransport, Event, EventSelection, Format, Ordering,
        Position, RequestShape, RetryPolicy, SignatureScheme, Tenant, Timestamp,
    };

    /// An event for one endpoint, without optional fields.
    pub(crate) fn event() -> Event {
        Event {
            id: "evt_1".parse().unwrap(),
            tenant: Tenant::DEFAULT.parse().unwrap(),
            event_type: "order.paid".parse().unwrap(),
            version: "1.0".parse().unwrap(),
            timestamp: Timestamp::default(),
            accepted_at: Timestamp::default(),
            stream: None,
            ordering_key: None,
            deliver_at: None,
            labels: Vec::new(),
            metadata: None,
            attributes: Vec::new(),
            data: Bytes::from_static(b"{}"),
            targets: vec![EndpointNumber(1)],
            idempotency: Vec::new(),
            erased_at: None,
        }
    }

    /// An endpoint with these event type patterns.
    pub(crate) fn endpoint(number: u32, tenant: &str, patterns: &[String]) -> Endpoint {
        Endpoint {
            number: EndpointNumber(number),
            id: format!("ep_{number}").parse().unwrap(),
            tenant: tenant.parse().unwrap(),
            transport: EndpointTransport::Http,
            url: "https://example.com/".into(),
            description: "".into(),
            event_types: patterns.iter().map(|pattern| pattern.parse().unwrap()).collect(),
            selection: EventSelection::default(),
            headers: Vec::new(),
            sensitive_headers: Vec::new(),
            rate_limit: None,
            max_in_flight: Some(16),
            timeout: Some(Duration::from_secs(15)),
            ordering: Ordering::None,
            retry: Some(RetryPolicy::Schedule(Vec::new())),
            format: Format::Standard,
            signatures: SignatureScheme::standard(),
            request: RequestShape::default(),
            auth: None,
            handshake: None,
            client_certificate: None,
            secrets: Vec::new(),
            trace: false,
            uid: None,
            versions: Vec::new(),
            metadata: None,
            status: EndpointStatus::Active,
            created_at: Timestamp::default(),
            updated_at: Timestamp::default(),
            revision: Position(0),
        }
    }
}
