//! Validation of a source's members.

use serde_json::Value;

use super::model::{HeaderMember, SourceInput};
use crate::api::http::problem::{Errors, pointer};
use crate::api::v1::endpoints::amqp::check_length;
use crate::api::v1::endpoints::outgoing::check_auth_text;
use crate::api::v1::endpoints::settings::{Words, check_integer, parse_word};
use crate::domain::{
    Dedup, OnInvalid, Position, Sealed, Source, SourceFormat, SourceName, SourceQueueType, SourceStatus,
    SourceTenant, Tenant, Timestamp,
};
use crate::service::types::{BrokerCredentials, BrokerUrl, is_same_origin};

const KINDS: Words<()> = &[("amqp", ())];
const QUEUE_TYPES: Words<SourceQueueType> =
    &[("quorum", SourceQueueType::Quorum), ("classic", SourceQueueType::Classic)];
const FORMATS: Words<SourceFormat> =
    &[("auto", SourceFormat::Auto), ("envelope", SourceFormat::Envelope), ("raw", SourceFormat::Raw)];
const FATES: Words<OnInvalid> = &[("park", OnInvalid::Park), ("reject", OnInvalid::Reject)];
const DEDUPS: Words<Dedup> = &[("messageId", Dedup::MessageId), ("none", Dedup::None)];
const PREFETCH_DEFAULT: u64 = 500;
const PREFETCH_MAX: u64 = 10_000;
const BINDINGS_MAX: usize = 64;

impl SourceInput {
    /// Moves user name and password in the URL to their members.
    pub(super) fn lift_credentials(&mut self, errors: &mut Errors) {
        let Some(url) = self.url.as_deref() else { return };
        let Ok((parsed, Some(credentials))) = BrokerUrl::parse(url) else { return };
        if self.password.is_some() {
            errors.push("/password", "is also in the URL");
        }
        self.url = Some(parsed.to_string());
        self.username = Some(credentials.username.into());
        self.password = Some(credentials.password.into());
    }

    /// The validated source; meaningless if `errors` has any. `current` is the source that it
    /// changes. The caller checks the URL.
    pub(super) fn source(
        &self,
        current: Option<&Source>,
        now: Timestamp,
        errors: &mut Errors,
    ) -> Option<Source> {
        let name = self.name.clone().or_else(|| missing("name", errors));
        let name = name.and_then(|name| errors.check("/name", name.parse::<SourceName>()));
        if current.is_some_and(|current| Some(current.name.as_str()) != self.name.as_deref()) {
            errors.push("/name", "cannot be changed");
        }
        parse_word(errors, "/kind", self.kind.as_deref(), KINDS);
        let url = self.url.clone().or_else(|| missing("url", errors));
        let queue = self.queue.clone().or_else(|| missing("queue", errors));
        check_name(queue.as_deref().unwrap_or("x"), "/queue", errors);
        self.exchange.iter().for_each(|exchange| check_name(exchange, "/exchange", errors));
        let (username, password) = self.login(current, errors);
        let prefetch =
            check_integer(errors, "/prefetch", self.prefetch.unwrap_or(PREFETCH_DEFAULT), PREFETCH_MAX);
        let (queue_type, format) = (self.queue_type.as_deref(), self.format.as_deref());
        let source = Source {
            name: name?,
            url: url?.into(),
            username,
            password,
            queue: queue?.into(),
            queue_type: parse_word(errors, "/queueType", queue_type, QUEUE_TYPES),
            exchange: self.exchange.as_deref().map(Into::into),
            bindings: self.bindings(errors),
            declares: self.declare.unwrap_or(true),
            prefetch: u16::try_from(prefetch).unwrap_or(u16::MAX),
            tenant: parse_tenant(self.tenant.as_ref(), errors),
            format: parse_word(errors, "/format", format, FORMATS),
            stream_header: parse_header(self.stream.as_ref(), "/stream", errors),
            ordering_key_header: parse_header(self.ordering_key.as_ref(), "/orderingKey", errors),
            on_invalid: parse_word(errors, "/onInvalid", self.on_invalid.as_deref(), FATES),
            dedup: parse_word(errors, "/dedup", self.dedup.as_deref(), DEDUPS),
            status: current.map_or(SourceStatus::Active, |current| current.status),
            created_at: current.map_or(now, |current| current.created_at),
            updated_at: current.map_or(now, |current| current.updated_at),
            revision: current.map_or(Position(0), |current| current.revision),
        };
        Some(source)
    }

    /// User name and password. A change at the same broker keeps the password.
    fn login(&self, current: Option<&Source>, errors: &mut Errors) -> (Box<str>, Sealed) {
        let guest = BrokerCredentials::guest();
        let username = self.username.as_deref().unwrap_or(&guest.username);
        check_auth_text(username, 1, errors, "/username");
        let url = self.url.as_deref().unwrap_or_default();
        let kept = current.filter(|current| is_same_origin(&current.url, url));
        let password = match (&self.password, &self.username, kept) {
            (Some(password), _, _) => {
                check_auth_text(password, 0, errors, "/password");
                password.as_bytes()
            }
            (None, Some(_), Some(kept)) => return (username.into(), kept.password.clone()),
            (None, Some(username), None) if *username != *guest.username => {
                errors.push("/password", "is required");
                &[]
            }
            (None, _, _) => guest.password.as_bytes(),
        };
        (username.into(), Sealed::Plain(password.into()))
    }

    fn bindings(&self, errors: &mut Errors) -> Vec<Box<str>> {
        if self.exchange.is_none() {
            if self.bindings.is_some() {
                errors.push("/bindings", "require `exchange`");
            }
            return Vec::new();
        }
        let Some(given) = &self.bindings else { return vec!["#".into()] };
        if given.is_empty() || given.len() > BINDINGS_MAX {
            errors.push("/bindings", format!("1 to {BINDINGS_MAX} patterns"));
        }
        for (index, binding) in given.iter().take(BINDINGS_MAX).enumerate() {
            check_length(binding, &format!("/bindings/{index}"), errors);
        }
        given.iter().map(|binding| binding.as_str().into()).collect()
    }
}

fn missing(name: &str, errors: &mut Errors) -> Option<String> {
    errors.push(pointer("", name), format!("missing field `{name}`"));
    None
}

/// The name of a queue, an exchange or a header.
fn check_name(text: &str, location: &str, errors: &mut Errors) {
    if text.is_empty() {
        errors.push(location, "must not be empty");
    }
    check_length(text, location, errors);
}

fn parse_header(member: Option<&HeaderMember>, location: &str, errors: &mut Errors) -> Option<Box<str>> {
    let header = &member?.header;
    check_name(header, &pointer(location, "header"), errors);
    Some(header.as_str().into())
}

fn default_tenant() -> Tenant {
    Tenant::DEFAULT.parse().expect("a legal tenant")
}

fn parse_tenant(given: Option<&Value>, errors: &mut Errors) -> SourceTenant {
    let fixed = |text: &str, errors: &mut Errors| {
        let tenant = errors.check("/tenant", text.parse::<Tenant>()).unwrap_or_else(default_tenant);
        if tenant.as_str() == Tenant::OPERATOR {
            errors.push("/tenant", "the tenant `balto` is reserved");
        }
        SourceTenant::Fixed(tenant)
    };
    match given {
        None => SourceTenant::Fixed(default_tenant()),
        Some(Value::String(text)) => fixed(text, errors),
        Some(value) => match serde_json::from_value::<HeaderMember>(value.clone()) {
            Ok(member) => {
                check_name(&member.header, "/tenant/header", errors);
                SourceTenant::Header(member.header.into())
            }
            Err(_) => {
                errors.push("/tenant", "must be a tenant, or an object with `header`");
                SourceTenant::Fixed(default_tenant())
            }
        },
    }
}
