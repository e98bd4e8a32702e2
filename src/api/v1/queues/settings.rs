//! Validation of a queue's members.

use std::time::Duration;

use super::model::{QueueInput, QueueRetryInput};
use crate::api::http::problem::Errors;
use crate::api::v1::endpoints::selection::check_selection;
use crate::api::v1::endpoints::settings::{
    Words, canonical_patterns, check_description, check_integer, check_metadata, check_number,
    check_versions, parse_duration_within, parse_word,
};
use crate::domain::{
    Endpoint, EndpointId, EndpointNumber, EndpointStatus, EndpointTransport, EventSelection, EventType,
    Format, Ordering, Pattern, Position, QueueName, QueueTarget, RequestShape, RetryPolicy, SignatureScheme,
    Tenant, Timestamp, VersionPin,
};
use crate::limits;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
/// Shortest lease.
pub(super) const LEASE_MIN: Duration = Duration::from_millis(100);
/// The age of messages without a bound of it: longer than any bound that can be given.
pub(super) const NO_AGE: Duration = Duration::from_secs(1_000 * 365 * 86_400);
const INTERVAL_MAX: Duration = Duration::from_secs(30 * 86_400);

pub(super) const ORDERINGS: Words<Ordering> =
    &[("none", Ordering::None), ("key", Ordering::Key), ("queue", Ordering::Endpoint)];

pub(super) const QUEUE_FORMATS: Words<Format> =
    &[("standard", Format::Standard), ("cloudevents", Format::CloudEvents)];

/// The validated members, except `name` and `tenant`.
#[derive(Clone, Debug)]
pub struct QueueSettings {
    description: Box<str>,
    event_types: Vec<Pattern>,
    selection: EventSelection,
    visibility: Duration,
    ordering: Ordering,
    retry: RetryPolicy,
    leased_max: u32,
    lease_max: Duration,
    format: Format,
    versions: Vec<(EventType, VersionPin)>,
    metadata: Option<Box<str>>,
}

impl QueueInput {
    /// Validates the members. Records problems in `errors`; the result is then meaningless.
    pub fn settings(&self, errors: &mut Errors) -> QueueSettings {
        let lease_bounds = (LEASE_MIN, limits::LEASE_MAX);
        let lease_max =
            parse_duration_within(errors, "/maxLease", self.max_lease.as_deref(), 12 * HOUR, lease_bounds);
        // The default must not be above the given `maxLease`.
        let visibility = (30 * SECOND).min(lease_max);
        QueueSettings {
            description: check_description(self.description.as_deref(), errors),
            event_types: canonical_patterns(self.event_types.as_deref(), errors),
            selection: check_selection(self.filter.as_ref(), self.labels.as_deref(), errors),
            visibility: parse_duration_within(
                errors,
                "/visibility",
                self.visibility.as_deref(),
                visibility,
                (LEASE_MIN, lease_max),
            ),
            ordering: parse_word(errors, "/ordering", self.ordering.as_deref(), ORDERINGS),
            retry: self.retry_policy(errors),
            leased_max: check_integer(
                errors,
                "/maxLeased",
                self.max_leased.unwrap_or(limits::LEASED_DEFAULT),
                limits::LEASED_PER_QUEUE_MAX as u64,
            ),
            lease_max,
            format: parse_word(errors, "/format", self.format.as_deref(), QUEUE_FORMATS),
            versions: check_versions(self.versions.as_ref(), errors),
            metadata: check_metadata(self.metadata.as_ref(), errors),
        }
    }

    fn retry_policy(&self, errors: &mut Errors) -> RetryPolicy {
        let retry = self.retry.clone().unwrap_or_default();
        let QueueRetryInput { initial, multiplier, max_interval, jitter } = retry;
        let bounds = (Duration::from_millis(1), INTERVAL_MAX);
        let initial = parse_duration_within(errors, "/retry/initial", initial.as_deref(), SECOND, bounds);
        RetryPolicy::Exponential {
            initial,
            multiplier: check_number(errors, "/retry/multiplier", multiplier.unwrap_or(2.0), (1.0, 100.0)),
            max_interval: parse_duration_within(
                errors,
                "/retry/maxInterval",
                max_interval.as_deref(),
                (5 * MINUTE).max(initial),
                (initial, INTERVAL_MAX),
            ),
            max_attempts: check_integer(
                errors,
                "/maxDeliveries",
                self.max_deliveries.unwrap_or(limits::DELIVERIES_DEFAULT),
                u64::from(limits::DELIVERIES_MAX),
            ),
            max_age: self.max_age.as_deref().map_or(NO_AGE, |text| {
                parse_duration_within(errors, "/maxAge", Some(text), NO_AGE, (SECOND, 365 * DAY))
            }),
            jitter: check_number(errors, "/retry/jitter", jitter.unwrap_or(0.2), (0.0, 1.0)),
        }
    }
}

impl QueueSettings {
    pub fn event_types(&self) -> &[Pattern] {
        &self.event_types
    }

    pub fn selection(&self) -> &EventSelection {
        &self.selection
    }

    pub fn versions(&self) -> &[(EventType, VersionPin)] {
        &self.versions
    }

    /// A new queue with these settings.
    pub fn into_queue(self, id: EndpointId, tenant: Tenant, name: QueueName, now: Timestamp) -> Endpoint {
        Endpoint {
            number: EndpointNumber(0),
            id,
            tenant,
            transport: EndpointTransport::Queue(QueueTarget { name, lease_max: self.lease_max }),
            url: "".into(),
            description: self.description,
            event_types: self.event_types,
            selection: self.selection,
            headers: Vec::new(),
            sensitive_headers: Vec::new(),
            rate_limit: None,
            max_in_flight: Some(self.leased_max),
            timeout: Some(self.visibility),
            ordering: self.ordering,
            retry: Some(self.retry),
            format: self.format,
            signatures: SignatureScheme::standard(),
            request: RequestShape::default(),
            auth: None,
            handshake: None,
            client_certificate: None,
            secrets: Vec::new(),
            trace: true,
            uid: None,
            versions: self.versions,
            metadata: self.metadata,
            status: EndpointStatus::Active,
            created_at: now,
            updated_at: now,
            revision: Position(0),
        }
    }
}
