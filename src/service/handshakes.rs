//! Handshakes: asks receivers for consent before the first delivery, and commits their replies.
//!
//! Commits consent before the lane opens. Commits the hash of a callback token before the request
//! that carries the token. After a crash, repeats an interrupted request.

use std::sync::Arc;
use std::time::Duration;

use sha2::Digest;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::context::Context;
use crate::context::environment::EXHAUSTED_PAUSE;
use crate::courier::{NotSent, OutboundRequest, ReceiverReply, body};
use crate::domain::{
    DisabledReason, Endpoint, EndpointId, EndpointNumber, EndpointStatus, ErrorClass, Handshake, Now,
};
use crate::outbox::draft::ChangeError;
use crate::rules::handshake;
use crate::rules::handshake::AnswerFacts;
use crate::rules::verdict::parse_retry_after;
use crate::service::endpoints::Endpoints;
use crate::service::secrets::Secrets;

/// Bytes of a callback token. Its text form is hexadecimal.
const TOKEN_BYTES: usize = 32;

/// Requests for the consent of receivers, and their replies.
#[derive(Clone, Copy)]
pub struct Handshakes<'a>(pub &'a Context);

impl Handshakes<'_> {
    /// Sends one handshake request, if one is due, and commits the reply.
    pub(crate) async fn request_consent(self, number: EndpointNumber) -> Result<(), ChangeError> {
        let Some((endpoint, callback)) = self.prepare_request(number).await? else { return Ok(()) };
        let Some(asked) = &endpoint.handshake else { return Ok(()) };
        let outbound_request = || {
            let headers = body::handshake_headers(&asked.origin, asked.rate, callback.as_deref())?;
            let identity = Secrets(self.0).identity(&endpoint).map_err(|error| error.to_string())?;
            let timeout = self.0.settings().handshake_timeout;
            let request =
                OutboundRequest::options(self.0.request_urls().get(&endpoint.url)?, headers, timeout);
            Ok(request.with_identity(identity).for_tenant(endpoint.tenant.as_str()))
        };
        let reply = loop {
            if !self.is_unchanged(&endpoint) {
                return Ok(()); // the next tick sends a request that is still due
            }
            match outbound_request() {
                Ok(outbound_request) => match self.0.transport().send(outbound_request).await {
                    Ok(reply) => break reply,
                    // Repeats the request with the same callback. An unsent token must not replace
                    // a sent one.
                    Err(NotSent::DescriptorsExhausted | NotSent::AddressLimit | NotSent::BrokerBlocked) => {
                        tokio::time::sleep(EXHAUSTED_PAUSE).await
                    }
                },
                Err(reason) => break ReceiverReply::failed(ErrorClass::Request, reason),
            }
        };
        self.commit_reply(&endpoint, asked, &reply).await
    }

    fn is_unchanged(self, endpoint: &Endpoint) -> bool {
        self.0.outbox_of(endpoint.number).registry(|registry| {
            registry.endpoint(endpoint.number).is_some_and(|now| now.revision == endpoint.revision)
        })
    }

    /// If a request is due, commits the hash of a callback token and returns endpoint and callback
    /// URL.
    async fn prepare_request(
        self,
        number: EndpointNumber,
    ) -> Result<Option<(Arc<Endpoint>, Option<String>)>, ChangeError> {
        let Some(endpoint) = self.0.outbox_of(number).endpoint(number) else {
            return Ok(None);
        };
        let now = self.0.now().wall;
        let is_due = |endpoint: &Endpoint| handshake::next_request(endpoint).is_some_and(|at| at <= now);
        if !is_due(&endpoint) {
            return Ok(None);
        }
        let wanted = endpoint.handshake.as_ref().is_some_and(|handshake| handshake.callback);
        let base = self.0.settings().callback_base.clone().filter(|_| wanted);
        let Some(base) = base else { return Ok(Some((endpoint, None))) };
        let token: String =
            self.0.random_bytes::<TOKEN_BYTES>().iter().map(|byte| format!("{byte:02x}")).collect();
        let url = format!("{base}{}.{token}", endpoint.id);
        let changed = self.update_handshake(number, |current| {
            let pending = current.handshake.as_ref().filter(|_| is_due(current))?;
            Some(handshake::add_callback(pending, hash(&token)))
        });
        Ok(changed.await?.map(|endpoint| (endpoint, Some(url))))
    }

    /// Commits the outcome of a request. Ignores it if the URL or the handshake's terms have
    /// changed since, or the receiver has consented by callback.
    async fn commit_reply(
        self,
        endpoint: &Endpoint,
        asked: &Handshake,
        reply: &ReceiverReply,
    ) -> Result<(), ChangeError> {
        let outcome = reply.status();
        let facts = AnswerFacts {
            outcome,
            allowed_origin: reply.allowed_origin.as_deref(),
            allowed_rate: reply.allowed_rate.as_deref(),
        };
        let judged = handshake::judge(asked, &facts);
        self.0.metrics().handshake(if judged.is_ok() { "agreed" } else { "refused" });
        let (Now { wall: now, .. }, date) = self.0.now_and_civil();
        let settings = self.0.settings();
        let wait = reply.retry_after.as_deref().filter(|_| matches!(outcome, Ok(429 | 503)));
        let wait = wait.and_then(|text| parse_retry_after(text, date));
        let changed = self.update_handshake(endpoint.number, |current| {
            let present = current.handshake.as_ref()?;
            let same =
                current.url == endpoint.url && present.has_same_terms(asked) && present.consent.is_none();
            same.then(|| {
                handshake::record_answer(present, judged.clone(), reply.network, &settings.asking, wait, now)
            })
        });
        let Some(changed) = changed.await? else { return Ok(()) };
        tracing::info!(endpoint = %changed.id, answer = judged.as_ref().map_or_else(String::as_str, |_| "agreed"), "handshake");
        if judged.is_err() && changed.status == EndpointStatus::Active {
            let asked = changed.handshake.as_ref().and_then(|handshake| handshake.asked.as_ref());
            let asking_time =
                asked.map_or(Duration::ZERO, |asked| handshake::asking_time(asked, &settings.asking));
            let is_unchanged = |known: &Endpoint| known.revision == changed.revision;
            if outcome == Ok(410) {
                Endpoints(self.0).disable(changed.number, DisabledReason::Gone, is_unchanged).await;
            } else if asking_time >= settings.disable_after {
                Endpoints(self.0).disable(changed.number, DisabledReason::Failing, is_unchanged).await;
            }
        }
        Ok(())
    }

    /// Records a receiver's consent by callback. `allowed_rate` is the header of that name.
    ///
    /// # Errors
    /// [`ChangeError::NotFound`] for an unknown or expired token.
    /// [`ChangeError::NotAllowed`] for a malformed rate; the token stays valid.
    pub async fn grant(
        self,
        id: &EndpointId,
        token: &str,
        allowed_rate: Option<&str>,
    ) -> Result<(), ChangeError> {
        let endpoint = self.0.outbox_of(id).registry(|registry| registry.endpoint_by_id(id).cloned());
        let endpoint = endpoint.ok_or(ChangeError::NotFound)?;
        let shown = hash(token);
        let find = |current: &Endpoint| {
            let handshake = current.handshake.as_ref()?;
            let is_valid = handshake.callbacks.iter().any(|known| bool::from(known.ct_eq(&shown)));
            is_valid.then(|| handshake.clone())
        };
        let requested = find(&endpoint).ok_or(ChangeError::NotFound)?.rate;
        let rate = handshake::allowed_rate(allowed_rate, requested).map_err(ChangeError::NotAllowed)?;
        let now = self.0.now().wall;
        let changed = self.update_handshake(endpoint.number, |current| {
            // A change of the requested rate replaces the callbacks.
            find(current).map(|present| handshake::grant_consent(present, rate, now))
        });
        let changed = changed.await?.ok_or(ChangeError::NotFound)?;
        self.0.metrics().handshake("agreed");
        tracing::info!(endpoint = %changed.id, "handshake granted by callback");
        Ok(())
    }

    /// Changes an endpoint's handshake, and retries after a conflict. Returns `None` if the
    /// endpoint was deleted or `change` returns `None`. Keeps `updated_at`.
    async fn update_handshake(
        self,
        number: EndpointNumber,
        change: impl Fn(&Endpoint) -> Option<Handshake>,
    ) -> Result<Option<Arc<Endpoint>>, ChangeError> {
        loop {
            let current = self.0.outbox_of(number).endpoint(number);
            let Some(current) = current else { return Ok(None) };
            let Some(handshake) = change(&current) else { return Ok(None) };
            let changed = Endpoint { handshake: Some(handshake), ..Endpoint::clone(&current) };
            match Endpoints(self.0).put(changed, None).await {
                Ok(endpoint) => return Ok(Some(endpoint)),
                Err(ChangeError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
