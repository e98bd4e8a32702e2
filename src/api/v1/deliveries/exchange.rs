//! Responses: the HTTP exchange of an attempt.
//!
//! For a receiver in the operator's network, keys bound to a tenant see the status, the duration
//! and their own request only: an address, a phase or a header would describe that network.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::api::text::{Span, Word};
use crate::api::v1::disclosure;
use crate::domain::{Attempt, Audience, ClosedList, DeadReason, Next, PhaseTimes, RetryRule};
use crate::service::types::RequestView;

/// The words of the rule that decided what follows an attempt.
#[derive(Clone, Copy)]
pub struct NextRule;

impl ClosedList for NextRule {
    const WORDS: &'static [&'static str] = &{
        let mut words = [""; RetryRule::ALL.len() + DeadReason::ALL.len()];
        let mut index = 0;
        while index < words.len() {
            words[index] = if index < RetryRule::ALL.len() {
                RetryRule::WORDS[index]
            } else {
                DeadReason::WORDS[index - RetryRule::ALL.len()]
            };
            index += 1;
        }
        words
    };
}

/// The request of an attempt. It was sent if the attempt has a `remoteAddress` or a `response`.
#[derive(Serialize, JsonSchema)]
pub struct AttemptRequestBody {
    pub method: String,
    pub url: String,
    /// By name in lower case. Signatures and credentials have the value `***`.
    pub headers: BTreeMap<String, String>,
}

impl AttemptRequestBody {
    fn new(view: &RequestView) -> Self {
        Self {
            method: view.method.clone(),
            url: view.url.to_string(),
            headers: joined(view.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))),
        }
    }
}

/// The reply to an attempt.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptResponseBody {
    pub status_code: Option<u16>,
    /// By name in lower case; lines of one name are joined with a comma. Credentials have the value
    /// `***`. Null after a success. At most 4 KiB are kept.
    pub headers: Option<BTreeMap<String, String>>,
    /// As `responseBody`.
    pub body: Option<String>,
}

/// Durations of the phases of an attempt. A phase that did not happen, or did not end, is absent: a
/// reused connection has only `firstByte`.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TimingBody {
    /// Resolution of the host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Span>,
    /// TCP connection; behind a proxy, until the tunnel is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<Span>,
    /// TLS handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Span>,
    /// From the start of the request to the first byte of the reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte: Option<Span>,
    /// As `duration`.
    pub total: Span,
}

/// The exchange of an attempt.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExchangeBody {
    /// Null in attempts of older versions, of an erased event, and if the request could not be
    /// built.
    pub request: Option<AttemptRequestBody>,
    /// Null without a reply.
    pub response: Option<AttemptResponseBody>,
    /// Address and port of the receiver. Null without a connection, behind a proxy, and for keys
    /// bound to a tenant if the receiver is internal.
    pub remote_address: Option<String>,
    /// Whether the request was sent on an idle connection. Null without a connection to show.
    pub reused: Option<bool>,
    pub timing: TimingBody,
    /// The rule that decided what follows: `retryPolicy` or `retryAfter` set `nextAttemptAt`; any
    /// other word is the reason why no attempt follows. Null after a success.
    #[schemars(with = "Option<Word<NextRule>>")]
    pub rule: Option<&'static str>,
}

impl ExchangeBody {
    pub(super) fn new(attempt: &Attempt, request: Option<&RequestView>, audience: Audience) -> Self {
        let is_shown = disclosure::is_shown(attempt, audience);
        let connection = attempt.exchange.connection;
        let headers = &attempt.exchange.headers;
        let has_reply = attempt.status.is_some() || !headers.is_empty();
        let times = if is_shown { connection.times } else { PhaseTimes::default() };
        let address = connection.remote_address.filter(|_| is_shown);
        let is_connected = address.is_some() || times.first_byte.is_some();
        Self {
            request: request.map(AttemptRequestBody::new),
            response: has_reply.then(|| AttemptResponseBody {
                status_code: attempt.status,
                headers: Some(headers)
                    .filter(|headers| is_shown && !headers.is_empty())
                    .map(|headers| joined(headers.iter().map(|(name, value)| (&**name, &**value)))),
                body: disclosure::body(attempt, audience),
            }),
            remote_address: address.map(|address| address.to_string()),
            reused: is_connected.then_some(connection.is_reused),
            timing: TimingBody {
                dns: times.dns.map(Span),
                connect: times.connect.map(Span),
                tls: times.tls.map(Span),
                first_byte: times.first_byte.map(Span),
                total: Span(attempt.duration),
            },
            rule: match attempt.next {
                Next::Delivered => None,
                Next::RetryAt(_) => attempt.exchange.rule.map(RetryRule::as_str),
                Next::Dead(reason) => Some(reason.as_str()),
            },
        }
    }
}

/// Headers by name. Lines of one name are joined with a comma (RFC 9110, section 5.3).
fn joined<'a>(lines: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::<String, String>::new();
    for (name, value) in lines {
        match headers.get_mut(name) {
            Some(known) => {
                known.push_str(", ");
                known.push_str(value);
            }
            None => {
                headers.insert(name.to_owned(), value.to_owned());
            }
        }
    }
    headers
}
