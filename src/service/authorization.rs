//! Authorization of requests: HTTP Basic, and access tokens of OAuth 2.0 client credentials.
//!
//! A token request passes the same address guard and TLS as a delivery. There is one at a time per
//! endpoint, and those who wait for it share its result. A token is renewed before it expires.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use url::form_urlencoded;

use crate::context::Context;
use crate::context::access_tokens::TokenState;
use crate::courier::{NotSent, OutboundRequest, ReceiverReply, body};
use crate::domain::{ClientAuthentication, Endpoint, EndpointAuth, ErrorClass, OAuthClient};
use crate::limits;
use crate::service::secrets::Secrets;

/// Authorizes requests.
#[derive(Clone, Copy)]
pub(crate) struct Authorizations<'a>(pub(crate) &'a Context);

/// Value of the header `Authorization`.
pub(crate) struct Authorization {
    pub(crate) value: String,
    /// A token from an earlier attempt. The receiver may have revoked it.
    pub(crate) kept: Option<Arc<str>>,
}

/// Why a request cannot be authorized.
pub(crate) enum AuthorizationError {
    /// The token request was not sent.
    NotSent(NotSent),
    /// The attempt failed without a request to the receiver.
    Failed(Box<ReceiverReply>),
}

impl AuthorizationError {
    fn request(reason: impl ToString) -> Self {
        Self::Failed(Box::new(ReceiverReply::failed(ErrorClass::Request, reason.to_string())))
    }
}

impl Authorizations<'_> {
    /// The authorization of a request; `None` if the endpoint has none. `rejected` is a kept token
    /// that the receiver rejected.
    pub(crate) async fn header(
        self,
        endpoint: &Endpoint,
        rejected: Option<&str>,
    ) -> Result<Option<Authorization>, AuthorizationError> {
        let Some(auth) = &endpoint.auth else { return Ok(None) };
        let secret = Secrets(self.0).open_auth(endpoint, auth).map_err(AuthorizationError::request)?;
        match auth {
            EndpointAuth::Basic { username, .. } => {
                Ok(Some(Authorization { value: basic(username, &secret), kept: None }))
            }
            EndpointAuth::OAuth2(client) => {
                let (token, is_kept) = self.token(endpoint, client, &secret, rejected).await?;
                let value = format!("Bearer {token}");
                Ok(Some(Authorization { value, kept: is_kept.then_some(token) }))
            }
        }
    }

    /// The endpoint's token, and whether it was kept from an earlier attempt.
    async fn token(
        self,
        endpoint: &Endpoint,
        client: &OAuthClient,
        secret: &str,
        rejected: Option<&str>,
    ) -> Result<(Arc<str>, bool), AuthorizationError> {
        let asked_at = self.0.now().monotonic;
        let slot = self.0.access_tokens().slot(endpoint.number, endpoint.revision);
        let mut state = slot.state.lock().await;
        let now = self.0.now().monotonic;
        match &*state {
            TokenState::Token { token, renew_at } if *renew_at > now && rejected != Some(&**token) => {
                return Ok((token.clone(), true));
            }
            // The request that this one waited for.
            TokenState::Failed { at, reply } if *at >= asked_at => {
                return Err(AuthorizationError::Failed(reply.clone()));
            }
            TokenState::Token { .. } | TokenState::Failed { .. } | TokenState::Unknown => {}
        }
        let reply = self.request_token(endpoint, client, secret).await?;
        let now = self.0.now().monotonic;
        match read_token(&reply) {
            Ok(read) => {
                let margin = limits::ACCESS_TOKEN_MARGIN.min(read.lifetime / 10);
                let token: Arc<str> = read.token.into();
                *state = TokenState::Token { token: token.clone(), renew_at: now + read.lifetime - margin };
                Ok((token, false))
            }
            Err(failed) => {
                *state = TokenState::Failed { at: now, reply: failed.clone() };
                Err(AuthorizationError::Failed(failed))
            }
        }
    }

    async fn request_token(
        self,
        endpoint: &Endpoint,
        client: &OAuthClient,
        secret: &str,
    ) -> Result<ReceiverReply, AuthorizationError> {
        let form = token_form(client, secret);
        let authorization = (client.authentication == ClientAuthentication::Basic).then(|| {
            // RFC 6749, section 2.3.1.
            let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
            basic(&encoded(&client.id), &encoded(secret))
        });
        let headers = body::token_headers(authorization.as_deref()).map_err(AuthorizationError::request)?;
        let timeout = endpoint.timeout(&self.0.settings().defaults);
        let token_endpoint = self.0.request_urls().get(&client.token_url);
        let token_endpoint = token_endpoint.map_err(AuthorizationError::request)?;
        let request = OutboundRequest::new(token_endpoint, headers, Bytes::from(form), timeout);
        let request = request.for_tenant(endpoint.tenant.as_str());
        self.0.transport().send(request).await.map_err(AuthorizationError::NotSent)
    }
}

/// The body of a token request (RFC 6749, section 4.4.2).
fn token_form(client: &OAuthClient, secret: &str) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "client_credentials");
    let named = [("scope", &client.scope), ("audience", &client.audience), ("resource", &client.resource)];
    for (name, value) in named {
        if let Some(value) = value {
            form.append_pair(name, value);
        }
    }
    for (name, value) in &client.parameters {
        form.append_pair(name, value);
    }
    if client.authentication == ClientAuthentication::Post {
        form.append_pair("client_id", &client.id).append_pair("client_secret", secret);
    }
    form.finish()
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

/// A token response (RFC 6749, section 5.1).
#[derive(Deserialize)]
struct TokenBody {
    access_token: String,
    token_type: String,
    expires_in: Option<Value>,
}

/// An error response (RFC 6749, section 5.2).
#[derive(Deserialize)]
struct TokenErrorBody {
    error: String,
}

#[derive(Debug)]
struct ReadToken {
    token: String,
    lifetime: Duration,
}

/// The token in a reply, or the failed attempt.
fn read_token(reply: &ReceiverReply) -> Result<ReadToken, Box<ReceiverReply>> {
    let failed = |class, text: String| {
        Box::new(ReceiverReply {
            network: reply.network,
            duration: reply.duration,
            url_is_forbidden: reply.url_is_forbidden,
            ..ReceiverReply::failed(class, text)
        })
    };
    let refused = |text: &str| failed(ErrorClass::Token, format!("the token server {text}"));
    match reply.status() {
        Ok(200..300) => parse_token(&reply.body).map_err(refused),
        Ok(status) => {
            let error = serde_json::from_slice::<TokenErrorBody>(&reply.body).ok().map(|body| body.error);
            // RFC 6749 lists the characters; other texts are not shown.
            let is_word = |word: &String| {
                word.len() <= 64 && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            };
            let error = error.filter(is_word).map(|word| format!(" ({word})")).unwrap_or_default();
            Err(refused(&format!("answered status {status}{error}")))
        }
        Err((ErrorClass::BlockedAddress, text)) => {
            Err(failed(ErrorClass::BlockedAddress, format!("token server: {text}")))
        }
        // The details of a failed lookup depend on whether an internal name exists.
        Err((ErrorClass::Dns, _)) => Err(refused("has a host name that could not be resolved")),
        Err((class, text)) => Err(refused(&format!("gave no answer: {}: {text}", class.as_str()))),
    }
}

fn parse_token(body: &[u8]) -> Result<ReadToken, &'static str> {
    let body: TokenBody =
        serde_json::from_slice(body).map_err(|_| "answered without `access_token` and `token_type`")?;
    if !body.token_type.eq_ignore_ascii_case("bearer") {
        return Err("gave a token that is not of the type `Bearer`");
    }
    let token = body.access_token;
    let is_legal = token.bytes().all(|byte| (b'!'..=b'~').contains(&byte));
    if token.is_empty() || token.len() > limits::ACCESS_TOKEN_BYTES_MAX || !is_legal {
        return Err("gave a token that cannot be sent in a header");
    }
    let seconds = body.expires_in.as_ref().and_then(|value| match value {
        Value::Number(number) => number.as_u64(),
        // Some servers write the number as a text.
        Value::String(text) => text.parse().ok(),
        _ => None,
    });
    let lifetime = seconds.map_or(limits::ACCESS_TOKEN_LIFETIME_DEFAULT, |seconds| {
        Duration::from_secs(seconds).min(limits::ACCESS_TOKEN_LIFETIME_MAX)
    });
    Ok(ReadToken { token, lifetime })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, body: &'static str) -> ReceiverReply {
        ReceiverReply { body: Bytes::from_static(body.as_bytes()), ..ReceiverReply::new(Ok(status)) }
    }

    #[test]
    fn token_responses_are_read_with_their_lifetime() {
        for (body, seconds) in [
            (r#"{"access_token":"a.b-c","token_type":"Bearer","expires_in":60}"#, 60),
            (r#"{"access_token":"a.b-c","token_type":"bearer","expires_in":"60","scope":"x"}"#, 60),
            (r#"{"access_token":"a.b-c","token_type":"BEARER"}"#, 300),
            (r#"{"access_token":"a.b-c","token_type":"Bearer","expires_in":18446744073709551615}"#, 86_400),
        ] {
            let read = read_token(&reply(200, body)).unwrap();
            assert_eq!((read.token.as_str(), read.lifetime.as_secs()), ("a.b-c", seconds), "{body}");
        }
    }

    #[test]
    fn bad_token_responses_are_failed_attempts() {
        for (status, body, text) in [
            (200, "", "without `access_token`"),
            (200, "<html>", "without `access_token`"),
            (200, r#"{"token_type":"Bearer"}"#, "without `access_token`"),
            (200, r#"{"access_token":"a","token_type":"mac"}"#, "`Bearer`"),
            (200, r#"{"access_token":"","token_type":"Bearer"}"#, "header"),
            (200, r#"{"access_token":"a\r\nX-A: b","token_type":"Bearer"}"#, "header"),
            (200, r#"{"access_token":"a b","token_type":"Bearer"}"#, "header"),
            (401, r#"{"error":"invalid_client"}"#, "status 401 (invalid_client)"),
            (400, r#"{"error":"<script>"}"#, "status 400"),
            (302, "", "status 302"),
        ] {
            let failed = read_token(&reply(status, body)).unwrap_err();
            let (class, found) = failed.outcome.unwrap_err();
            assert!(class == ErrorClass::Token && found.contains(text), "{body}: {found}");
            assert!(!found.contains("<script>") && failed.body.is_empty(), "{found}");
        }
    }
}
