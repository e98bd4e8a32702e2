//! The member `amqp`: the exchange of an endpoint with the URL of a broker.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::model::EndpointInput;
use super::outgoing::{AuthSettings, check_auth_text};
use super::settings::EndpointSettings;
use crate::api::http::problem::Errors;
use crate::domain::{
    AmqpTarget, Endpoint, EndpointAuth, EndpointTransport, Format, RequestMethod, RoutingKey, Sealed,
};
use crate::limits;
use crate::service::types::{BrokerUrl, is_broker_url};

/// The exchange that events are published to, and the login at its broker.
#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AmqpInput {
    /// At most 255 bytes. Empty: the default exchange, whose routing key is the name of a queue.
    #[schemars(length(max = 255))]
    pub(super) exchange: String,
    /// `type` (default), `stream`, `orderingKey`, or `{"literal": "..."}`. An event without a
    /// stream or ordering key is routed by its type.
    #[schemars(with = "Option<RoutingKeyMember>")]
    pub(super) routing_key: Option<Value>,
    /// `topic`: the exchange is declared as a durable topic exchange. Default: `false`, it exists.
    #[schemars(with = "Option<DeclareMember>")]
    pub(super) declare: Option<Value>,
    /// Default: `guest`, with the password `guest`.
    #[schemars(length(min = 1, max = 1024))]
    pub(super) username: Option<String>,
    /// Write-only. Required with `username`, except in a change that keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), extend("writeOnly" = true))]
    pub(super) password: Option<String>,
}

impl fmt::Debug for AmqpInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AmqpInput(..)")
    }
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes a member")]
enum RoutingKeyMember {
    Word(#[schemars(extend("enum" = ["type", "stream", "orderingKey"]))] String),
    Literal(LiteralKey),
}

#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes a member")]
struct LiteralKey {
    #[schemars(length(max = 255))]
    literal: String,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes a member")]
enum DeclareMember {
    No(#[schemars(extend("const" = false))] bool),
    Kind(#[schemars(extend("enum" = ["topic"]))] String),
}

impl AmqpInput {
    /// The member of an endpoint, without the password.
    pub(super) fn new(endpoint: &Endpoint) -> Option<Self> {
        let target = endpoint.amqp()?;
        let username = match &endpoint.auth {
            Some(EndpointAuth::Basic { username, .. }) => Some(username.to_string()),
            Some(EndpointAuth::OAuth2(_)) | None => None,
        };
        let routing_key = match &target.routing_key {
            RoutingKey::Type => json!("type"),
            RoutingKey::Stream => json!("stream"),
            RoutingKey::OrderingKey => json!("orderingKey"),
            RoutingKey::Literal(text) => json!({ "literal": text }),
        };
        let declare = if target.declares { json!("topic") } else { json!(false) };
        Some(Self {
            exchange: target.exchange.to_string(),
            routing_key: Some(routing_key),
            declare: Some(declare),
            username,
            password: None,
        })
    }

    fn check(&self, errors: &mut Errors) -> AmqpTarget {
        check_length(&self.exchange, "/amqp/exchange", errors);
        let routing_key = match &self.routing_key {
            None => RoutingKey::Type,
            Some(value) => parse_routing_key(value, errors),
        };
        let declares = match &self.declare {
            None | Some(Value::Bool(false)) => false,
            Some(Value::String(kind)) if kind == "topic" => true,
            Some(_) => {
                errors.push("/amqp/declare", "must be `false` or `topic`");
                false
            }
        };
        if declares && (self.exchange.is_empty() || self.exchange.starts_with("amq.")) {
            errors.push("/amqp/declare", "an exchange of the broker itself cannot be declared");
        }
        AmqpTarget { exchange: self.exchange.as_str().into(), routing_key, declares }
    }

    /// The login. Without a password in the request, its secret is empty.
    fn login(&self, errors: &mut Errors) -> Option<AuthSettings> {
        let password = self.password.as_ref();
        let Some(username) = &self.username else {
            if password.is_some() {
                errors.push("/amqp/username", "is required with a password");
            }
            return None;
        };
        check_auth_text(username, 1, errors, "/amqp/username");
        check_auth_text(password.map_or("", |text| text), 0, errors, "/amqp/password");
        let sealed = Sealed::Plain(password.map(|text| text.as_bytes().into()).unwrap_or_default());
        let auth = EndpointAuth::Basic { username: username.as_str().into(), password: sealed };
        Some(AuthSettings { auth, has_secret: password.is_some(), secret_at: "/amqp/password" })
    }
}

/// Checks the length of a name or a pattern at a broker.
pub(in crate::api::v1) fn check_length(text: &str, location: &str, errors: &mut Errors) {
    if text.len() > limits::broker::NAME_BYTES_MAX || text.chars().any(char::is_control) {
        let most = limits::broker::NAME_BYTES_MAX;
        errors.push(location, format!("must be at most {most} bytes without control characters"));
    }
}

fn parse_routing_key(value: &Value, errors: &mut Errors) -> RoutingKey {
    const LOCATION: &str = "/amqp/routingKey";
    let literal = value.as_object().filter(|members| members.len() == 1);
    match (value.as_str(), literal.and_then(|members| members.get("literal")).and_then(Value::as_str)) {
        (Some("type"), _) => RoutingKey::Type,
        (Some("stream"), _) => RoutingKey::Stream,
        (Some("orderingKey"), _) => RoutingKey::OrderingKey,
        (_, Some(text)) => {
            check_length(text, "/amqp/routingKey/literal", errors);
            RoutingKey::Literal(text.into())
        }
        _ => {
            errors.push(LOCATION, "must be `type`, `stream`, `orderingKey`, or an object with `literal`");
            RoutingKey::Type
        }
    }
}

/// Moves user name and password in the URL of a broker to `amqp`. The rest of the URL stays as it
/// is, and is checked later.
pub(super) fn lift_credentials(input: &mut EndpointInput, errors: &mut Errors) {
    let Some(url) = input.url.as_deref().filter(|url| is_broker_url(url)) else { return };
    let Ok((parsed, Some(credentials))) = BrokerUrl::parse(url) else { return };
    input.url = Some(parsed.to_string());
    let Some(amqp) = &mut input.amqp else { return };
    if amqp.password.is_some() {
        errors.push("/amqp/password", "is also in the URL");
    }
    amqp.username = Some(credentials.username.into());
    amqp.password = Some(credentials.password.into());
}

/// How the deliveries of an endpoint with this input leave. Replaces `settings.auth` by the login
/// at a broker, and reports members that its URL does not allow.
pub(super) fn check_transport(
    input: &EndpointInput,
    settings: &mut EndpointSettings,
    errors: &mut Errors,
) -> EndpointTransport {
    if !input.url.as_deref().is_some_and(is_broker_url) {
        if input.amqp.is_some() {
            errors.push("/amqp", "requires the URL of a broker, such as amqps://host/vhost");
        }
        if settings.format == Format::CloudEventsBinary {
            errors.push("/format", "`cloudevents-binary` requires the URL of a broker");
        }
        return EndpointTransport::Http;
    }
    for (location, is_given, detail) in [
        ("/auth", input.auth.is_some(), "the login at a broker is in `amqp`"),
        ("/handshake", settings.handshake.is_some(), "a broker has no handshake"),
        ("/request/method", settings.request.method != RequestMethod::Post, "a message has no method"),
    ] {
        if is_given {
            errors.push(location, detail);
        }
    }
    let Some(amqp) = &input.amqp else {
        errors.push("/amqp", "is required for the URL of a broker");
        return EndpointTransport::Http;
    };
    settings.auth = amqp.login(errors);
    EndpointTransport::Amqp(amqp.check(errors))
}
