//! What a caller is shown of a receiver's reply and of a failed attempt.
//!
//! Owns: the one decision on it. A receiver inside the operator's network (at an address that only `egress.allow_networks`
//! opens) answers with what a tenant must not read: pages, the place that a redirect leads to, the errors of services that
//! speak no HTTP. The record of an attempt keeps all of it, with the network in which the receiver was at the time; callers
//! that are bound to a tenant see the status and nothing else. A failure without a status has one class and one text for
//! them, so that it does not tell closed, open and TLS ports apart.

use std::borrow::Cow;

use crate::api::http::auth::Audience;
use crate::domain::{Asked, Attempt, ClosedList, ErrorClass, Network};
use crate::rules::handshake::AGREED;

/// The class of a failure without a reply, where the cause is for operators only.
const NO_REPLY_CLASS: &str = "noReply";

/// The class of a failure as a caller may see it.
#[derive(Clone, Copy)]
pub struct ShownClass;

impl ClosedList for ShownClass {
    const WORDS: &'static [&'static str] = &{
        let mut words = [NO_REPLY_CLASS; ErrorClass::ALL.len() + 1];
        let mut index = 0;
        while index < ErrorClass::ALL.len() {
            words[index] = ErrorClass::WORDS[index];
            index += 1;
        }
        words
    };
}

const NO_REPLY: &str =
    "no HTTP reply from inside the operator's network; the reason is shown to keys without a tenant";
const NO_CONSENT: &str =
    "no consent from inside the operator's network; the reason is shown to keys without a tenant";
/// One text for every answer of the name servers: they answer differently for names that exist inside.
const UNRESOLVED: &str = "the host name could not be resolved";

/// A failure as it is shown.
pub struct Failure<'a> {
    pub class: &'static str,
    pub text: Cow<'a, str>,
}

impl Failure<'_> {
    /// Class and text in one line. A status says what it is by itself.
    #[must_use]
    pub fn line(&self) -> String {
        if self.class == ErrorClass::Status.as_str() {
            return self.text.clone().into_owned();
        }
        format!("{}: {}", self.class, self.text)
    }
}

/// Why an attempt failed; `None` for a success.
#[must_use]
pub fn failure(attempt: &Attempt, audience: Audience) -> Option<Failure<'_>> {
    let (class, text) = attempt.error.as_ref()?;
    let whole = Failure { class: class.as_str(), text: Cow::Borrowed(text) };
    Some(match (audience, class, attempt.network, attempt.status) {
        (Audience::Operator, ..) => whole,
        (Audience::Tenant, ErrorClass::Dns, ..) => Failure { text: UNRESOLVED.into(), ..whole },
        (Audience::Tenant, _, Network::Public, _) => whole,
        (Audience::Tenant, _, Network::Internal, Some(status)) => {
            Failure { text: format!("status {status}").into(), ..whole }
        }
        (Audience::Tenant, _, Network::Internal, None) => {
            Failure { class: NO_REPLY_CLASS, text: NO_REPLY.into() }
        }
    })
}

/// The reply's body as text.
#[must_use]
pub fn body(attempt: &Attempt, audience: Audience) -> Option<String> {
    let is_shown = audience == Audience::Operator || attempt.network == Network::Public;
    is_shown.then(|| String::from_utf8_lossy(&attempt.reply).into_owned())
}

/// What came of a receiver's last request for consent.
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
    use crate::domain::{Next, Timestamp, Trigger};

    fn attempt(class: ErrorClass, text: &str, status: Option<u16>, network: Network) -> Attempt {
        Attempt {
            number: 1,
            trigger: Trigger::Publish,
            started_at: Timestamp::ZERO,
            duration: std::time::Duration::ZERO,
            status,
            error: Some((class, text.into())),
            reply: "secret".into(),
            network,
            next: Next::Delivered,
            hold: None,
            uptime: None,
            delay: std::time::Duration::ZERO,
        }
    }

    fn line(attempt: &Attempt, audience: Audience) -> String {
        failure(attempt, audience).unwrap().line()
    }

    #[test]
    fn tenant_reads_bodies_of_the_public_network_only() {
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
    fn redirect_from_inside_is_its_status_to_a_tenant() {
        let text = "status 302: redirects are not followed (to http://10.9.8.7/?token=T)";
        let inside = attempt(ErrorClass::Status, text, Some(302), Network::Internal);
        assert_eq!(line(&inside, Audience::Tenant), "status 302");
        assert_eq!(line(&inside, Audience::Operator), text);
        let public = attempt(ErrorClass::Status, text, Some(302), Network::Public);
        assert_eq!(line(&public, Audience::Tenant), text);
    }

    #[test]
    fn failures_inside_are_all_the_same_to_a_tenant() {
        let mut lines = std::collections::BTreeSet::new();
        for class in ErrorClass::ALL {
            let inside = attempt(class, class.as_str(), None, Network::Internal);
            assert!(line(&inside, Audience::Operator).contains(class.as_str()), "{class:?}");
            if class != ErrorClass::Dns {
                lines.insert(line(&inside, Audience::Tenant));
            }
        }
        assert_eq!(Vec::from_iter(lines), [format!("{NO_REPLY_CLASS}: {NO_REPLY}")]);
    }

    #[test]
    fn failed_resolution_has_one_text_for_tenants() {
        for text in ["the host name has no address", "the name servers did not answer in time"] {
            let failed = attempt(ErrorClass::Dns, text, None, Network::Public);
            assert_eq!(line(&failed, Audience::Tenant), format!("dns: {UNRESOLVED}"));
            assert_eq!(line(&failed, Audience::Operator), format!("dns: {text}"));
        }
    }

    #[test]
    fn handshake_answer_from_inside_is_for_operators() {
        let asked = |answer: &str, network| Asked {
            since: Timestamp::ZERO,
            count: 1,
            at: Timestamp::ZERO,
            answer: answer.into(),
            network,
            next_at: Timestamp::ZERO,
        };
        let detail = "tls: the certificate is for `db.corp`";
        let inside = asked(detail, Network::Internal);
        assert_eq!(handshake_answer(&inside, Audience::Tenant), NO_CONSENT);
        assert_eq!(handshake_answer(&inside, Audience::Operator), detail);
        assert_eq!(handshake_answer(&asked(detail, Network::Public), Audience::Tenant), detail);
        assert_eq!(handshake_answer(&asked(AGREED, Network::Internal), Audience::Tenant), AGREED);
        let dns = asked("dns: the host name has no address", Network::Public);
        assert_eq!(handshake_answer(&dns, Audience::Tenant), format!("dns: {UNRESOLVED}"));
    }
}
