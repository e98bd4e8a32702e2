//! Requests and responses of tenants.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::api::EndpointDefaults;
use crate::api::http::body::object;
use crate::api::http::problem::{ErrorLocation, Errors, FieldError};
use crate::api::text::{Time, format_duration};
use crate::api::v1::endpoints::model::{EndpointInput, RetryInput, retry_body};
use crate::api::v1::jobs::model::StartedBody;
use crate::domain::{
    Position, Quota, QuotaOverride, QuotaOverrides, Tenant, TenantDelivery, TenantSettings, Timestamp,
};
use crate::limits;
use crate::service::tenants::{TenantDeletion, TenantView};

/// Settings of a tenant. An absent member has its default.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TenantInput {
    /// A name for people; at most 255 bytes.
    #[schemars(length(max = 255))]
    pub name: Option<String>,
    /// Any object, at most 16 KiB.
    pub metadata: Option<Map<String, Value>>,
    /// The tenant's own limits. An absent or null limit is the configured default.
    #[serde(default, deserialize_with = "object")]
    pub quotas: Option<QuotasInput>,
    /// Defaults for new endpoints of the tenant, in place of those of the configuration.
    #[serde(default, deserialize_with = "object")]
    pub delivery: Option<DeliveryInput>,
}

/// A limit: a whole number, or `off`. Checked with its bounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct QuotaInput(Value);

impl JsonSchema for QuotaInput {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Quota".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "integer", "minimum": 0, "maximum": limits::QUOTA_MAX},
            {"type": "string", "enum": ["off"]},
        ]})
    }
}

/// Limits of a tenant: a whole number, `off`, or null for the configured default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = set_bounds)]
pub struct QuotasInput {
    pub endpoints: Option<QuotaInput>,
    /// Bytes of the topic patterns of all endpoints.
    pub pattern_bytes: Option<QuotaInput>,
    /// `*` and `#` in the topic patterns of all endpoints.
    pub wildcard_parts: Option<QuotaInput>,
    /// Bytes of the custom headers of all endpoints.
    pub header_bytes: Option<QuotaInput>,
    /// API keys that are bound to the tenant.
    pub keys: Option<QuotaInput>,
    /// Consumers of the tenant.
    pub consumers: Option<QuotaInput>,
    pub pending_deliveries: Option<QuotaInput>,
    /// Bytes of stored events.
    pub stored_bytes: Option<QuotaInput>,
    /// 1 to 1,000,000.
    pub events_per_second: Option<QuotaInput>,
    /// Bytes of event data per second: 1 MiB to 10 GiB.
    pub bytes_per_second: Option<QuotaInput>,
    /// Connections of one API key that is bound to the tenant.
    pub connections_per_key: Option<QuotaInput>,
    /// Reads in progress with one API key that is bound to the tenant.
    pub reads_per_key: Option<QuotaInput>,
}

/// Sets the bounds of each quota, which differ.
fn set_bounds(schema: &mut Schema) {
    for quota in Quota::ALL {
        let (min, max) = quota.bounds();
        let member = schema.pointer_mut(&format!("/properties/{}/anyOf/0", quota.as_str()));
        if let Some(member) = member {
            (member["minimum"], member["maximum"]) = (min.into(), max.into());
        }
    }
}

impl QuotasInput {
    fn member(&mut self, quota: Quota) -> &mut Option<QuotaInput> {
        match quota {
            Quota::Endpoints => &mut self.endpoints,
            Quota::PatternBytes => &mut self.pattern_bytes,
            Quota::WildcardParts => &mut self.wildcard_parts,
            Quota::HeaderBytes => &mut self.header_bytes,
            Quota::Keys => &mut self.keys,
            Quota::Consumers => &mut self.consumers,
            Quota::PendingDeliveries => &mut self.pending_deliveries,
            Quota::StoredBytes => &mut self.stored_bytes,
            Quota::EventsPerSecond => &mut self.events_per_second,
            Quota::BytesPerSecond => &mut self.bytes_per_second,
            Quota::ConnectionsPerKey => &mut self.connections_per_key,
            Quota::ReadsPerKey => &mut self.reads_per_key,
        }
    }

    fn new(overrides: &QuotaOverrides) -> Self {
        let mut quotas = Self::default();
        for quota in Quota::ALL {
            *quotas.member(quota) = match overrides.get(quota) {
                QuotaOverride::Default => None,
                QuotaOverride::Off => Some(QuotaInput(json!("off"))),
                QuotaOverride::Limit(limit) => Some(QuotaInput(limit.into())),
            };
        }
        quotas
    }

    fn check(mut self, errors: &mut Errors) -> QuotaOverrides {
        let mut overrides = QuotaOverrides::default();
        for quota in Quota::ALL {
            let Some(QuotaInput(value)) = self.member(quota).take() else { continue };
            let (min, max) = quota.bounds();
            if value == "off" {
                overrides.set(quota, QuotaOverride::Off);
            } else if let Some(limit) = value.as_u64().filter(|limit| (min..=max).contains(limit)) {
                overrides.set(quota, QuotaOverride::Limit(limit));
            } else {
                errors.push(
                    format!("/quotas/{}", quota.as_str()),
                    format!("must be a whole number from {min} to {max}, \"off\", or null for the default; got {value}"),
                );
            }
        }
        overrides
    }
}

/// Defaults of new endpoints.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeliveryInput {
    #[schemars(range(min = 1, max = 1000))]
    pub max_in_flight: Option<u64>,
    /// 100ms to 60s.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub timeout: Option<String>,
    #[serde(default, deserialize_with = "object")]
    pub retry: Option<RetryInput>,
}

impl DeliveryInput {
    fn new(delivery: &TenantDelivery) -> Self {
        Self {
            max_in_flight: delivery.max_in_flight.map(u64::from),
            timeout: delivery.timeout.map(format_duration),
            retry: delivery.retry.as_ref().map(retry_body),
        }
    }

    /// The rules are those of an endpoint.
    fn check(self, defaults: &EndpointDefaults, errors: &mut Errors) -> TenantDelivery {
        let Self { max_in_flight, timeout, retry } = self;
        let input = EndpointInput { max_in_flight, timeout, retry, ..EndpointInput::default() };
        let mut found = Errors::default();
        let settings = input.settings(defaults, |_, _| Ok(()), &mut found);
        errors.0.extend(found.0.into_iter().map(|error| match error.location {
            ErrorLocation::Pointer(pointer) => FieldError::at(format!("/delivery{pointer}"), error.detail),
            ErrorLocation::Parameter(_) | ErrorLocation::Header(_) => error,
        }));
        TenantDelivery {
            max_in_flight: settings.max_in_flight,
            timeout: settings.timeout,
            retry: settings.retry,
        }
    }
}

impl TenantInput {
    /// The input that sets these settings.
    #[must_use]
    pub fn new(settings: &TenantSettings) -> Self {
        Self {
            name: Some(settings.name.to_string()),
            metadata: Some(metadata_body(settings)),
            quotas: Some(QuotasInput::new(&settings.quotas)),
            delivery: Some(DeliveryInput::new(&settings.delivery)),
        }
    }

    /// Validates the members. Records problems in `errors`; the result is then meaningless.
    pub fn settings(
        self,
        tenant: Tenant,
        defaults: &EndpointDefaults,
        now: Timestamp,
        errors: &mut Errors,
    ) -> TenantSettings {
        let name = self.name.unwrap_or_default();
        if name.len() > limits::TENANT_NAME_BYTES_MAX || name.chars().any(char::is_control) {
            let bytes = limits::TENANT_NAME_BYTES_MAX;
            errors.push("/name", format!("at most {bytes} bytes without control characters"));
        }
        let metadata = self.metadata.filter(|metadata| !metadata.is_empty());
        let metadata = metadata.map(|metadata| Value::Object(metadata).to_string());
        if metadata.as_ref().is_some_and(|text| text.len() > limits::METADATA_BYTES_MAX) {
            errors.push("/metadata", format!("at most {} bytes", limits::METADATA_BYTES_MAX));
        }
        let quotas = self.quotas.unwrap_or_default().check(errors);
        if tenant.as_str() == Tenant::OPERATOR && quotas != QuotaOverrides::default() {
            errors.push("/quotas", "the reserved tenant `balto` has no quotas; omit them");
        }
        TenantSettings {
            tenant,
            name: name.into(),
            metadata: metadata.map(Into::into),
            quotas,
            delivery: self.delivery.unwrap_or_default().check(defaults, errors),
            created_at: now,
            updated_at: now,
            revision: Position(0),
        }
    }
}

fn metadata_body(settings: &TenantSettings) -> Map<String, Value> {
    settings.metadata.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// A tenant. Without settings it exists by use, and its times are null.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TenantBody {
    pub tenant: String,
    pub name: String,
    pub metadata: Map<String, Value>,
    /// The tenant's own limits; null is the configured default.
    pub quotas: QuotasInput,
    /// The limits in effect; null is none.
    pub limits: LimitsBody,
    pub delivery: DeliveryInput,
    pub usage: UsageBody,
    pub created_at: Option<Time>,
    pub updated_at: Option<Time>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LimitsBody {
    pub endpoints: Option<u64>,
    pub pattern_bytes: Option<u64>,
    pub wildcard_parts: Option<u64>,
    pub header_bytes: Option<u64>,
    pub keys: Option<u64>,
    pub consumers: Option<u64>,
    pub pending_deliveries: Option<u64>,
    pub stored_bytes: Option<u64>,
    pub events_per_second: Option<u64>,
    pub bytes_per_second: Option<u64>,
    pub connections_per_key: Option<u64>,
    pub reads_per_key: Option<u64>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageBody {
    pub endpoints: u64,
    pub pattern_bytes: u64,
    pub wildcard_parts: u64,
    pub header_bytes: u64,
    pub keys: u64,
    pub consumers: u64,
    pub pending_deliveries: u64,
    pub dead_letters: u64,
    pub stored_events: u64,
    /// Approximate bytes of the stored events.
    pub stored_bytes: u64,
    /// Estimates from hourly counts: the current hour, and the part of the hour before that the
    /// last hour overlaps.
    pub last_hour: LastHourBody,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastHourBody {
    /// Accepted events.
    pub events: u64,
    /// Attempts and leases.
    pub attempts: u64,
}

impl TenantBody {
    #[must_use]
    pub fn new(view: &TenantView) -> Self {
        let settings = view.settings.as_deref();
        // The reserved tenant has no quotas.
        let is_limited = view.tenant.as_str() != Tenant::OPERATOR;
        let limit = |quota| view.quotas.limit(quota).filter(|_| is_limited);
        Self {
            tenant: view.tenant.to_string(),
            name: settings.map(|settings| settings.name.to_string()).unwrap_or_default(),
            metadata: settings.map(metadata_body).unwrap_or_default(),
            quotas: settings.map(|settings| QuotasInput::new(&settings.quotas)).unwrap_or_default(),
            limits: LimitsBody {
                endpoints: limit(Quota::Endpoints),
                pattern_bytes: limit(Quota::PatternBytes),
                wildcard_parts: limit(Quota::WildcardParts),
                header_bytes: limit(Quota::HeaderBytes),
                keys: limit(Quota::Keys),
                consumers: limit(Quota::Consumers),
                pending_deliveries: limit(Quota::PendingDeliveries),
                stored_bytes: limit(Quota::StoredBytes),
                events_per_second: limit(Quota::EventsPerSecond),
                bytes_per_second: limit(Quota::BytesPerSecond),
                connections_per_key: limit(Quota::ConnectionsPerKey),
                reads_per_key: limit(Quota::ReadsPerKey),
            },
            delivery: settings.map(|settings| DeliveryInput::new(&settings.delivery)).unwrap_or_default(),
            usage: UsageBody {
                endpoints: view.used.endpoints,
                pattern_bytes: view.used.pattern_bytes,
                wildcard_parts: view.used.wildcard_parts,
                header_bytes: view.used.header_bytes,
                keys: view.used.keys,
                consumers: view.used.consumers,
                pending_deliveries: view.usage.pending,
                dead_letters: view.usage.dead,
                stored_events: view.usage.events,
                stored_bytes: view.usage.bytes,
                last_hour: LastHourBody { events: view.last_hour.events, attempts: view.last_hour.attempts },
            },
            created_at: settings.map(|settings| Time(settings.created_at)),
            updated_at: settings.map(|settings| Time(settings.updated_at)),
        }
    }
}

/// The confirmation of a deletion.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeletionInput {
    /// The tenant in the path again.
    pub confirm: String,
    /// `true`: count only, and change nothing.
    pub dry_run: Option<bool>,
}

/// Resources that a deletion covers, and its job.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeletionBody {
    #[serde(flatten)]
    pub job: StartedBody,
    pub endpoints: u64,
    pub keys: u64,
    pub consumers: u64,
    /// Sources with this tenant.
    pub sources: u64,
    /// Deliveries that are pending. They become dead letters soon.
    pub pending_deliveries: u64,
}

impl DeletionBody {
    #[must_use]
    pub fn new(job: StartedBody, deletion: TenantDeletion) -> Self {
        let TenantDeletion { endpoints, keys, consumers, sources, pending_deliveries } = deletion;
        Self { job, endpoints, keys, consumers, sources, pending_deliveries }
    }
}
