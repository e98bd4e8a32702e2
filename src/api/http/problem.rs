//! The errors of the API: RFC 9457 problem details with a stable `code`.
//!
//! Owns status, code, title and extension members of every problem, and the exhaustive mapping from
//! the errors of the services.

use std::time::Duration;

use serde::ser::SerializeMap;

use details::{
    ahead_detail, expected_text, expired_detail, gone_detail, late_detail, rejection_detail, retry_seconds,
    wrong_keys_detail,
};
pub use fields::{ErrorLocation, Errors, FieldError, pointer};

use crate::api::http::reply::Reply;
use crate::api::v1::event_types::model::IncompatibilityBody;
use crate::domain::{Expected, Position, Quota, QuotaExceeded, Rejection, Timestamp};
use crate::limits;

/// The part of an atomic request that a problem is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProblemPart {
    /// Index of the event.
    pub index: Option<usize>,
    /// Its stream.
    pub stream: Option<String>,
}

impl ProblemPart {
    fn serialize_into<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        if let Some(index) = self.index {
            map.serialize_entry("index", &index)?;
        }
        if let Some(stream) = &self.stream {
            map.serialize_entry("stream", stream)?;
        }
        Ok(())
    }
}

/// The reason why a request was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The body is not JSON, or the request is not valid HTTP.
    Malformed(String),
    /// Plain HTTP on a TLS listener.
    MissesTls,
    Unauthorized,
    KeyExpired {
        at: Timestamp,
    },
    /// Counted per client address.
    TooManyWrongKeys {
        retry_after: Duration,
    },
    /// Counted per endpoint.
    TooManyTests {
        retry_after: Duration,
    },
    Forbidden(String),
    /// With `--dev`: a foreign page may have sent the request.
    UntrustedOrigin(String),
    NotFound(String),
    MethodNotAllowed,
    RequestTimeout,
    /// The body arrives at less than `rate` bytes per second.
    BodyTooSlow {
        rate: usize,
    },
    /// The clients of the key have not read `limit` bytes of responses.
    UnreadResponses {
        limit: usize,
    },
    /// `repeated`: this is the stored response of an earlier request with the same key.
    Rejected {
        rejection: Rejection,
        repeated: bool,
    },
    Conflict(String),
    /// The state of the stream needs more work than one request does.
    StreamTooLong(String),
    /// Retention has removed the version where a read begins.
    VersionGone {
        first_version: u64,
    },
    /// The problem of a part of an atomic request.
    OfPart {
        part: ProblemPart,
        cause: Box<Self>,
    },
    /// The consumer is at another position than the commit expects.
    ConsumerMoved {
        actual: Position,
    },
    /// The state has not reached the position that the request waits for.
    NotCaughtUp {
        position: Position,
    },
    /// The event has no content that could be delivered.
    EventErased,
    /// Another queue has this name.
    QueueExists(String),
    UidTaken,
    /// The first request with this `Idempotency-Key` is still in progress.
    RequestInFlight,
    /// `limit` in bytes.
    PayloadTooLarge {
        limit: usize,
    },
    UriTooLong,
    /// Too many headers, or too large.
    HeadersTooLarge,
    UnsupportedMediaType {
        accepted: &'static [&'static str],
    },
    /// A compressed body.
    UnsupportedContentEncoding,
    /// An `Expect` other than `100-continue`.
    ExpectationFailed,
    Validation(Vec<FieldError>),
    IdempotencyMismatch,
    ForbiddenUrl {
        /// The member with the URL.
        pointer: &'static str,
        detail: String,
    },
    /// The event passed more than `limit` Balto instances.
    LoopDetected {
        limit: u32,
    },
    /// The request's events together create more than `limit` deliveries.
    TooManyDeliveries {
        limit: usize,
    },
    /// The data does not match the schema of its type and version.
    SchemaViolation(Vec<FieldError>),
    /// The event's version is not one of the registered ones.
    UnknownVersion {
        known: Vec<String>,
    },
    /// Event types must be registered, and this one is not.
    UnknownType,
    /// Events or pins use a version of the event type.
    VersionInUse(String),
    /// A version is not compatible with an earlier one.
    IncompatibleSchema(Vec<IncompatibilityBody>),
    /// A quota of the tenant.
    QuotaExceeded(QuotaExceeded),
    Overloaded {
        retry_after: Duration,
    },
    /// Too many requests wait for something.
    TooManyWaiters,
    /// Events after the position of the feed are forgotten. `oldest` is the oldest position.
    PositionGone {
        oldest: Position,
    },
    /// The position is beyond the end of the log.
    PositionAhead {
        head: Position,
    },
    Unavailable(String),
    DiskFull,
}

impl Problem {
    /// One wrong member of the body.
    pub fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Validation(vec![FieldError::at(pointer, detail)])
    }

    /// One wrong query parameter.
    pub fn parameter(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Validation(vec![FieldError::parameter(name, detail)])
    }

    /// The same problem, about a part of the request.
    #[must_use]
    pub fn of_part(self, part: ProblemPart) -> Self {
        if part == ProblemPart::default() {
            return self;
        }
        let cause = match (self, part.index) {
            (Self::SchemaViolation(found), Some(index)) => {
                let mut errors = Errors::default();
                errors.extend_below(&format!("/events/{index}"), found);
                Self::SchemaViolation(errors.0)
            }
            (cause, _) => cause,
        };
        Self::OfPart { part, cause: Box::new(cause) }
    }

    /// One problem per code, ordered by status, for the reference page.
    #[must_use]
    pub fn examples() -> Vec<Self> {
        let text = String::new;
        let retry_after = Duration::from_secs(1);
        let exceeded = QuotaExceeded { quota: Quota::Endpoints, limit: 0, value: 1, retry_after: None };
        let conflict = Rejection::VersionConflict { expected: Expected::NoStream, actual: None };
        vec![
            Self::Malformed(text()),
            Self::MissesTls,
            Self::Unauthorized,
            Self::KeyExpired { at: Timestamp::ZERO },
            Self::Forbidden(text()),
            Self::UntrustedOrigin(text()),
            Self::QuotaExceeded(exceeded),
            Self::NotFound(text()),
            Self::MethodNotAllowed,
            Self::RequestTimeout,
            Self::BodyTooSlow { rate: 0 },
            Self::Conflict(text()),
            Self::ConsumerMoved { actual: Position(0) },
            Self::EventErased,
            Self::QueueExists(text()),
            Self::UidTaken,
            Self::Rejected { rejection: conflict, repeated: false },
            Self::Rejected { rejection: Rejection::PartialDuplicate, repeated: false },
            Self::RequestInFlight,
            Self::PositionAhead { head: Position(0) },
            Self::PositionGone { oldest: Position(0) },
            Self::VersionGone { first_version: 1 },
            Self::PayloadTooLarge { limit: 0 },
            Self::UriTooLong,
            Self::UnsupportedMediaType { accepted: &[] },
            Self::UnsupportedContentEncoding,
            Self::ExpectationFailed,
            Self::VersionInUse(text()),
            Self::IncompatibleSchema(Vec::new()),
            Self::Validation(Vec::new()),
            Self::SchemaViolation(Vec::new()),
            Self::UnknownVersion { known: Vec::new() },
            Self::UnknownType,
            Self::StreamTooLong(text()),
            Self::IdempotencyMismatch,
            Self::ForbiddenUrl { pointer: "/url", detail: text() },
            Self::LoopDetected { limit: 0 },
            Self::Overloaded { retry_after },
            Self::TooManyWaiters,
            Self::TooManyDeliveries { limit: 0 },
            Self::UnreadResponses { limit: 0 },
            Self::TooManyWrongKeys { retry_after },
            Self::TooManyTests { retry_after },
            Self::HeadersTooLarge,
            Self::Unavailable(text()),
            Self::NotCaughtUp { position: Position(0) },
            Self::DiskFull,
        ]
    }

    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) | Self::MissesTls => 400,
            Self::Unauthorized | Self::KeyExpired { .. } => 401,
            Self::Forbidden(_) | Self::UntrustedOrigin(_) => 403,
            Self::NotFound(_) => 404,
            Self::MethodNotAllowed => 405,
            Self::RequestTimeout | Self::BodyTooSlow { .. } => 408,
            Self::Rejected {
                rejection: Rejection::VersionConflict { .. } | Rejection::PartialDuplicate,
                ..
            }
            | Self::Conflict(_)
            | Self::PositionAhead { .. }
            | Self::ConsumerMoved { .. }
            | Self::EventErased
            | Self::QueueExists(_)
            | Self::UidTaken
            | Self::VersionInUse(_)
            | Self::IncompatibleSchema(_)
            | Self::RequestInFlight => 409,
            Self::PositionGone { .. } | Self::VersionGone { .. } => 410,
            Self::OfPart { cause, .. } => cause.status(),
            Self::PayloadTooLarge { .. } => 413,
            Self::UriTooLong => 414,
            Self::UnsupportedMediaType { .. } | Self::UnsupportedContentEncoding => 415,
            Self::ExpectationFailed => 417,
            Self::Validation(_)
            | Self::SchemaViolation(_)
            | Self::UnknownVersion { .. }
            | Self::UnknownType
            | Self::StreamTooLong(_)
            | Self::Rejected { rejection: Rejection::IdTaken, .. }
            | Self::IdempotencyMismatch
            | Self::ForbiddenUrl { .. }
            | Self::LoopDetected { .. } => 422,
            Self::Overloaded { .. }
            | Self::TooManyDeliveries { .. }
            | Self::TooManyWaiters
            | Self::TooManyTests { .. }
            | Self::UnreadResponses { .. }
            | Self::TooManyWrongKeys { .. } => 429,
            Self::QuotaExceeded(exceeded) => match exceeded.quota {
                Quota::EventsPerSecond
                | Quota::BytesPerSecond
                | Quota::ConnectionsPerKey
                | Quota::ReadsPerKey => 429,
                Quota::StoredBytes => 507,
                Quota::Endpoints
                | Quota::PatternBytes
                | Quota::WildcardParts
                | Quota::HeaderBytes
                | Quota::Keys
                | Quota::Consumers
                | Quota::PendingDeliveries => 403,
            },
            Self::HeadersTooLarge => 431,
            Self::Unavailable(_) | Self::NotCaughtUp { .. } => 503,
            Self::DiskFull => 507,
        }
    }

    /// A stable identifier for clients and metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::MissesTls => "tls_required",
            Self::Unauthorized => "unauthorized",
            Self::KeyExpired { .. } => "key_expired",
            Self::TooManyWrongKeys { .. } => "too_many_wrong_keys",
            Self::TooManyTests { .. } => "too_many_tests",
            Self::Forbidden(_) => "forbidden",
            Self::UntrustedOrigin(_) => "untrusted_origin",
            Self::NotFound(_) => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::BodyTooSlow { .. } => "body_too_slow",
            Self::UnreadResponses { .. } => "unread_responses",
            Self::Rejected { rejection: Rejection::VersionConflict { .. }, .. } => "version_conflict",
            Self::Rejected { rejection: Rejection::PartialDuplicate, .. } => "partial_duplicate",
            Self::Conflict(_) => "conflict",
            Self::VersionGone { .. } => "version_gone",
            Self::OfPart { cause, .. } => cause.code(),
            Self::ConsumerMoved { .. } => "consumer_moved",
            Self::NotCaughtUp { .. } => "not_caught_up",
            Self::EventErased => "event_erased",
            Self::QueueExists(_) => "queue_exists",
            Self::UidTaken => "uid_taken",
            Self::RequestInFlight => "request_in_flight",
            Self::PayloadTooLarge { .. } => "payload_too_large",
            Self::UriTooLong => "uri_too_long",
            Self::HeadersTooLarge => "headers_too_large",
            Self::UnsupportedMediaType { .. } => "unsupported_media_type",
            Self::UnsupportedContentEncoding => "unsupported_content_encoding",
            Self::ExpectationFailed => "expectation_failed",
            Self::Validation(_) => "validation_failed",
            Self::SchemaViolation(_) => "schema_violation",
            Self::UnknownVersion { .. } => "unknown_version",
            Self::UnknownType => "unknown_type",
            Self::StreamTooLong(_) => "stream_too_long",
            Self::VersionInUse(_) => "version_in_use",
            Self::IncompatibleSchema(_) => "incompatible_schema",
            Self::Rejected { rejection: Rejection::IdTaken, .. } | Self::IdempotencyMismatch => {
                "idempotency_mismatch"
            }
            Self::ForbiddenUrl { .. } => "forbidden_url",
            Self::LoopDetected { .. } => "loop_detected",
            Self::TooManyDeliveries { .. } => "too_many_deliveries",
            Self::QuotaExceeded(_) => "quota_exceeded",
            Self::Overloaded { .. } => "overloaded",
            Self::TooManyWaiters => "too_many_waiters",
            Self::PositionGone { .. } => "position_gone",
            Self::PositionAhead { .. } => "position_ahead",
            Self::Unavailable(_) => "unavailable",
            Self::DiskFull => "disk_full",
        }
    }

    fn title(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "The request is malformed",
            Self::MissesTls => "The listener requires TLS",
            Self::Unauthorized => "No valid API key",
            Self::KeyExpired { .. } => "The API key has expired",
            Self::TooManyWrongKeys { .. } => "Too many wrong API keys",
            Self::TooManyTests { .. } => "Too many test events for the endpoint",
            Self::Forbidden(_) => "The API key does not allow this",
            Self::UntrustedOrigin(_) => "A foreign web page may have sent the request",
            Self::NotFound(_) => "Not found",
            Self::MethodNotAllowed => "The method is not allowed here",
            Self::RequestTimeout => "The request's body did not arrive in time",
            Self::BodyTooSlow { .. } => "The request's body arrives too slowly",
            Self::UnreadResponses { .. } => "Too many unread responses",
            Self::Rejected { rejection: Rejection::VersionConflict { .. }, .. } => "Stream version conflict",
            Self::Rejected { rejection: Rejection::IdTaken, .. } => "The event id was used with another body",
            Self::Rejected { rejection: Rejection::PartialDuplicate, .. } => {
                "Some events of the request exist already"
            }
            Self::QueueExists(_) => "Another queue has this name",
            Self::UidTaken => "Another endpoint of the tenant has this uid",
            Self::Conflict(_) => "The request conflicts with the current state",
            Self::VersionGone { .. } => "The version has been removed",
            Self::OfPart { cause, .. } => cause.title(),
            Self::ConsumerMoved { .. } => "The consumer has moved",
            Self::NotCaughtUp { .. } => "The state has not reached the position",
            Self::EventErased => "The event was erased",
            Self::RequestInFlight => "The first request with this key is still in progress",
            Self::PayloadTooLarge { .. } => "The body is too large",
            Self::UriTooLong => "The URI is too long",
            Self::HeadersTooLarge => "The headers are too large",
            Self::UnsupportedMediaType { .. } => "The media type is not supported",
            Self::UnsupportedContentEncoding => "The content coding is not supported",
            Self::ExpectationFailed => "The expectation is not supported",
            Self::Validation(_) => "The request is not valid",
            Self::SchemaViolation(_) => "The data does not match the schema of its type",
            Self::UnknownVersion { .. } => "The version of the event type is not registered",
            Self::UnknownType => "The event type is not registered",
            Self::StreamTooLong(_) => "The stream is too long for its state",
            Self::VersionInUse(_) => "The version is in use",
            Self::IncompatibleSchema(_) => "The new schema is not compatible",
            Self::IdempotencyMismatch => "The key was used with another body",
            Self::ForbiddenUrl { .. } => "The URL is not allowed",
            Self::LoopDetected { .. } => "Delivery loop detected",
            Self::TooManyDeliveries { .. } => "The request creates too many deliveries",
            Self::QuotaExceeded(_) => "The request exceeds a quota of the tenant",
            Self::Overloaded { .. } => "Too many requests",
            Self::TooManyWaiters => "Too many waiting requests",
            Self::PositionGone { .. } => "Events after the position are forgotten",
            Self::PositionAhead { .. } => "The position is beyond the end of the log",
            Self::Unavailable(_) => "The service is unavailable",
            Self::DiskFull => "The disk is full",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Malformed(detail)
            | Self::Forbidden(detail)
            | Self::UntrustedOrigin(detail)
            | Self::NotFound(detail)
            | Self::Conflict(detail)
            | Self::QueueExists(detail)
            | Self::ForbiddenUrl { detail, .. }
            | Self::VersionInUse(detail)
            | Self::StreamTooLong(detail)
            | Self::Unavailable(detail) => detail.clone(),
            Self::MissesTls => {
                "use `https://`; replace an API key that was sent over plain HTTP".to_owned()
            }
            Self::Unauthorized => "send `Authorization: Bearer <key>` with a valid key".to_owned(),
            Self::KeyExpired { at } => expired_detail(*at),
            Self::UidTaken => "choose another uid, or change the endpoint that has it".to_owned(),
            Self::TooManyWrongKeys { retry_after } => wrong_keys_detail(*retry_after),
            Self::TooManyTests { retry_after } => format!(
                "an endpoint gets at most {} test events per minute; try again in {} s",
                limits::TEST_SENDS_MAX,
                retry_seconds(*retry_after)
            ),
            Self::MethodNotAllowed => "the `Allow` header lists the methods of this resource".to_owned(),
            Self::RequestTimeout => "send the whole body before the timeout".to_owned(),
            Self::BodyTooSlow { rate } => format!(
                "less than {rate} bytes per second arrived for {} s (`server.min_body_rate`); send the body without pauses",
                limits::BODY_RATE_WINDOW.as_secs()
            ),
            Self::UnreadResponses { limit } => format!(
                "clients with this key have not read {limit} bytes of responses; read them, or close their connections"
            ),
            Self::Rejected { rejection, .. } => rejection_detail(rejection),
            Self::VersionGone { first_version } => format!(
                "retention has removed the versions below {first_version}; read from there with `fromVersion=oldest`"
            ),
            Self::OfPart { cause, .. } => cause.detail(),
            Self::ConsumerMoved { actual } => body::moved_detail(*actual),
            Self::NotCaughtUp { position } => late_detail(*position),
            Self::EventErased => "its content was erased, so it cannot be delivered again".to_owned(),
            Self::RequestInFlight => "repeat the request after the first one has completed".to_owned(),
            Self::PayloadTooLarge { limit } => format!("at most {limit} bytes are accepted"),
            Self::UriTooLong => "send a shorter path and query".to_owned(),
            Self::HeadersTooLarge => format!(
                "send fewer or shorter headers: at most {} bytes are accepted, including the request line",
                limits::HEADER_BYTES_MAX
            ),
            Self::UnsupportedMediaType { accepted } => {
                format!("send `Content-Type: {}`", accepted.join("` or `"))
            }
            Self::UnsupportedContentEncoding => "send an unencoded body, without Content-Encoding".to_owned(),
            Self::ExpectationFailed => "send `Expect: 100-continue`, or no `Expect`".to_owned(),
            Self::UnknownVersion { .. } | Self::UnknownType | Self::IncompatibleSchema(_) => self.type_detail(),
            Self::Validation(errors) | Self::SchemaViolation(errors) => match errors.as_slice() {
                [one] => one.detail.clone(),
                many => format!("{} validation errors; `errors` lists them", many.len()),
            },
            Self::IdempotencyMismatch => {
                "this Idempotency-Key was used with another body; bodies are compared byte for byte, so send the same bytes".to_owned()
            }
            Self::LoopDetected { limit } => {
                format!("`balto-hops` says that the event passed more than {limit} Balto instances")
            }
            Self::TooManyDeliveries { limit } => format!(
                "one request creates at most {limit} deliveries and one event at most {}; send this event in another request, or split its endpoints by event type",
                limits::EVENT_TARGETS_MAX
            ),
            Self::TooManyWaiters => {
                "too many requests, or too many of this tenant, wait or read a stream of events; ask again without `wait`, or later".to_owned()
            }
            Self::PositionGone { oldest } => gone_detail(*oldest),
            Self::PositionAhead { head } => ahead_detail(*head),
            Self::QuotaExceeded(exceeded) => quotas::detail(exceeded),
            Self::Overloaded { retry_after } => {
                format!("too much work is pending; try again in {} s", retry_seconds(*retry_after))
            }
            Self::DiskFull => "nothing was stored; free space on the data directory's disk".to_owned(),
        }
    }

    /// The value of `Retry-After`, in seconds.
    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Overloaded { retry_after }
            | Self::TooManyTests { retry_after }
            | Self::TooManyWrongKeys { retry_after } => Some(retry_seconds(*retry_after)),
            Self::QuotaExceeded(QuotaExceeded { retry_after: Some(wait), .. }) => Some(retry_seconds(*wait)),
            // Retention has to remove events first. Nothing fits a limit of zero.
            Self::QuotaExceeded(QuotaExceeded { quota: Quota::StoredBytes, limit: 1.., .. }) => Some(60),
            // Another request can send the event at once; the first request ends with its commit.
            Self::TooManyDeliveries { .. }
            | Self::TooManyWaiters
            | Self::NotCaughtUp { .. }
            | Self::RequestInFlight
            | Self::UnreadResponses { .. } => Some(1),
            Self::Unavailable(_) => Some(5),
            Self::DiskFull => Some(60),
            Self::OfPart { cause, .. } => cause.retry_after(),
            _ => None,
        }
    }

    #[must_use]
    pub fn into_reply(self) -> Reply {
        let mut reply = Reply::json(self.status(), &self).with_content_type("application/problem+json");
        if let Some(seconds) = self.retry_after() {
            reply = reply.with_header("retry-after", &seconds.to_string());
        }
        let cause = match self {
            Self::OfPart { cause, .. } => *cause,
            other => other,
        };
        match cause {
            Self::Rejected { repeated: true, .. } => reply.with_header("idempotent-replayed", "true"),
            Self::Unauthorized | Self::KeyExpired { .. } => reply.with_header("www-authenticate", "Bearer"),
            Self::TooManyWrongKeys { .. } => reply.with_header("connection", "close"),
            Self::QuotaExceeded(exceeded) if exceeded.quota == Quota::ConnectionsPerKey => {
                reply.with_header("connection", "close")
            }
            // The accepted coding (RFC 9110, section 15.5.16).
            Self::UnsupportedContentEncoding => reply.with_header("accept-encoding", "identity"),
            // Tells a sending Balto to give up the delivery at once.
            Self::LoopDetected { .. } => reply.with_header("webhook-delivery", "abort-message"),
            _ => reply,
        }
    }
}

mod body;
mod conversions;
mod details;
mod fields;
mod quotas;
#[cfg(test)]
mod tests;
