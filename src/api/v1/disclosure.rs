//! Disclosure of receivers' replies and attempt failures to callers.
//!
//! An internal receiver is one at an address that only `egress.allow_networks` permits. Its replies
//! may contain internal pages, redirect targets, or errors of services without HTTP, which a tenant
//! must not read. The record of an attempt keeps all details, and the receiver's network at the
//! time. Callers bound to a tenant only see the status of an internal receiver. Failures without a
//! status have one class and text, which does not distinguish closed, open and TLS ports.

use std::borrow::Cow;

use crate::domain::{Asked, Attempt, Audience, ErrorClass, LastAttempt, Network, ShownClass};
use crate::rules::handshake::AGREED;

const NO_REPLY: &str =
    "no HTTP reply from inside the operator's network; only keys without a tenant see the reason";
const NO_CONSENT: &str =
    "no consent from inside the operator's network; only keys without a tenant see the reason";
/// One text for all DNS failures: their details depend on whether an internal name exists.
const UNRESOLVED: &str = "the host name could not be resolved";

/// A failure as shown to a caller.
pub struct Failure<'a> {
    pub class: &'static str,
    pub text: Cow<'a, str>,
}

impl Failure<'_> {
    /// Class and text in one line; a status needs no class.
    #[must_use]
    pub fn line(&self) -> String {
        if self.class == ErrorClass::Status.as_str() {
            return self.text.clone().into_owned();
        }
        format!("{}: {}", self.class, self.text)
    }
}

/// The failure of an attempt; `None` for a success.
#[must_use]
pub fn failure(attempt: &Attempt, audience: Audience) -> Option<Failure<'_>> {
    let (class, text) = attempt.error.as_ref()?;
    Some(shown((*class, text), attempt.network, attempt.status, audience))
}

/// The failure of a delivery's last attempt; `None` for a success.
#[must_use]
pub fn last_failure(last: &LastAttempt, audience: Audience) -> Option<Failure<'_>> {
    let failure = last.failure.as_ref()?;
    Some(shown((failure.class, &failure.text), failure.network, last.status, audience))
}

fn shown(
    (class, text): (ErrorClass, &str),
    network: Network,
    status: Option<u16>,
    audience: Audience,
) -> Failure<'_> {
    let seen = ShownClass::of(class, network, status, audience);
    let text = match (seen, audience, network, status) {
        (ShownClass::NoReply, ..) => NO_REPLY.into(),
        (_, Audience::Operator, ..) => text.into(),
        (ShownClass::Class(ErrorClass::Dns), ..) => UNRESOLVED.into(),
        (_, _, Network::Internal, Some(status)) => format!("status {status}").into(),
        _ => text.into(),
    };
    Failure { class: seen.as_str(), text }
}

/// Whether the caller may see the details of the exchange with the receiver.
#[must_use]
pub fn is_shown(attempt: &Attempt, audience: Audience) -> bool {
    audience == Audience::Operator || attempt.network == Network::Public
}

/// The reply's body as text.
#[must_use]
pub fn body(attempt: &Attempt, audience: Audience) -> Option<String> {
    is_shown(attempt, audience).then(|| String::from_utf8_lossy(&attempt.reply).into_owned())
}

/// The result of the last handshake request.
#[must_use]
pub fn handshake_answer(asked: &Asked, audience: Audience) -> String {
    let is_shown = audience == Audience::Operator || asked.network == Network::Public;
    let unresolved = format!("{}: ", ErrorClass::Dns.as_str());
    match &*asked.answer {
        AGREED => AGREED.to_owned(),
        answer if audience == Audience::Tenant && answer.starts_with(&unresolved) => {
            format!("{unresolved}{UNRESOLVED}")
        }
        answer if is_shown => answer.to_owned(),
        _ => NO_CONSENT.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Timestamp;

    fn attempt(class: ErrorClass, text: &str, status: Option<u16>, network: Network) -> Attempt {
        let error = Some((class, text.into()));
        Attempt { status, error, reply: "secret".into(), network, ..Attempt::for_tests() }
    }

    fn line(attempt: &Attempt, audience: Audience) -> String {
        failure(attempt, audience).unwrap().line()
    }

    #[test]
    fn tenant_reads_only_replies_from_the_public_network() {
        for (network, audience, shown) in [
            (Network::Public, Audience::Tenant, true),
            (Network::Internal, Audience::Tenant, false),
            (Network::Public, Audience::Operator, true),
            (Network::Internal, Audience::Operator, true),
        ] {
            let attempt = attempt(ErrorClass::Status, "status 500", Some(500), network);
            assert_eq!(
                body(&attempt, audience).as_deref(),
                shown.then_some("secret"),
                "{network:?} {audience:?}"
            );
        }
    }

    #[test]
    fn tenant_sees_only_the_status_of_an_internal_redirect() {
        let text = "status 302: redirects are not followed (to http://10.9.8.7/?token=T)";
        let internal = attempt(ErrorClass::Status, text, Some(302), Network::Internal);
        assert_eq!(line(&internal, Audience::Tenant), "status 302");
        assert_eq!(line(&internal, Audience::Operator), text);
        let public = attempt(ErrorClass::Status, text, Some(302), Network::Public);
        assert_eq!(line(&public, Audience::Tenant), text);
    }

    #[test]
    fn tenant_cannot_distinguish_internal_failures() {
        let mut lines = std::collections::BTreeSet::new();
        for class in ErrorClass::ALL {
            let internal = attempt(class, class.as_str(), None, Network::Internal);
            assert!(line(&internal, Audience::Operator).contains(class.as_str()), "{class:?}");
            if class != ErrorClass::Dns {
                lines.insert(line(&internal, Audience::Tenant));
            }
        }
        assert_eq!(Vec::from_iter(lines), [format!("noReply: {NO_REPLY}")]);
    }

    #[test]
    fn tenant_sees_one_text_for_dns_failures() {
        for text in ["the host name has no address", "the name servers did not answer in time"] {
            let failed = attempt(ErrorClass::Dns, text, None, Network::Public);
            assert_eq!(line(&failed, Audience::Tenant), format!("dns: {UNRESOLVED}"));
            assert_eq!(line(&failed, Audience::Operator), format!("dns: {text}"));
        }
    }

    #[test]
    fn only_operators_see_an_internal_handshake_answer() {
        let asked = |answer: &str, network| Asked {
            since: Timestamp::ZERO,
            count: 1,
            at: Timestamp::ZERO,
            answer: answer.into(),
            network,
            next_at: Timestamp::ZERO,
        };
        let detail = "tls: the certificate is for `db.corp`";
        let internal = asked(detail, Network::Internal);
        assert_eq!(handshake_answer(&internal, Audience::Tenant), NO_CONSENT);
        assert_eq!(handshake_answer(&internal, Audience::Operator), detail);
        assert_eq!(handshake_answer(&asked(detail, Network::Public), Audience::Tenant), detail);
        assert_eq!(handshake_answer(&asked(AGREED, Network::Internal), Audience::Tenant), AGREED);
        let dns = asked("dns: the host name has no address", Network::Public);
        assert_eq!(handshake_answer(&dns, Audience::Tenant), format!("dns: {UNRESOLVED}"));
    }
}
