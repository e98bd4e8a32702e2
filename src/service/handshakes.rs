//! The handshake: asks receivers that have to agree before anything is sent to them, and takes their answers.
//!
//! An answer is committed before the lane opens; a callback's token is committed, as a hash, before the request that
//! shows it leaves. A request that a crash cuts off is made again.

use std::sync::Arc;
use std::time::Duration;

use sha2::Digest;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::context::Context;
use crate::context::environment::EXHAUSTED_PAUSE;
use crate::courier::{DescriptorsExhausted, OutboundRequest, Reply, body};
use crate::domain::{
    DisabledReason, Endpoint, EndpointId, EndpointNumber, EndpointStatus, ErrorClass, Handshake, Now,
};
use crate::outbox::draft::ChangeError;
use crate::rules::handshake;
use crate::rules::handshake::AnswerFacts;
use crate::rules::verdict::parse_retry_after;
use crate::service::endpoints::Endpoints;
use crate::service::secrets::Secrets;

/// Of a token, which is shown in hexadecimal.
const TOKEN_BYTES: usize = 32;

/// Requests for the consent of receivers, and their answers.
#[derive(Clone, Copy)]
pub struct Handshakes<'a>(pub &'a Context);

impl Handshakes<'_> {
    pub(crate) async fn ask(self, number: EndpointNumber) -> Result<(), ChangeError> {
        let Some((endpoint, callback)) = self.ready_to_ask(number).await? else { return Ok(()) };
        let Some(asked) = &endpoint.handshake else { return Ok(()) };
        let outbound_request = || {
            let headers = body::handshake_headers(&asked.origin, asked.rate, callback.as_deref())?;
            let identity = Secrets(self.0).identity(&endpoint).map_err(|error| error.to_string())?;
            let timeout = endpoint.timeout(&self.0.settings().defaults);
            Ok(OutboundRequest::options(&endpoint.url, headers, timeout)?.with_identity(identity))
        };
        let reply = loop {
            if !self.is_unchanged(&endpoint) {
                return Ok(()); // if it is due still, it is asked for as it is now
            }
            match outbound_request() {
                Ok(outbound_request) => match self.0.transport().send(outbound_request).await {
                    Ok(reply) => break reply,
                    // The same request again, with the same callback: one that nobody was shown must push out none that
                    // somebody was.
                    Err(DescriptorsExhausted) => tokio::time::sleep(EXHAUSTED_PAUSE).await,
                },
                Err(reason) => break Reply::failed(ErrorClass::Request, reason),
            }
        };
        self.take_answer(&endpoint, asked, &reply).await
    }

    fn is_unchanged(self, endpoint: &Endpoint) -> bool {
        self.0.outbox().registry(|registry| {
            registry.endpoint(endpoint.number).is_some_and(|now| now.revision == endpoint.revision)
        })
    }

    /// The endpoint as it is to be asked, and the callback's URL, whose token is durable from now on.
    async fn ready_to_ask(
        self,
        number: EndpointNumber,
    ) -> Result<Option<(Arc<Endpoint>, Option<String>)>, ChangeError> {
        let Some(endpoint) = self.0.outbox().endpoint(number) else {
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
        let changed = self.change(number, |current| {
            let pending = current.handshake.as_ref().filter(|_| is_due(current))?;
            Some(handshake::with_callback(pending, hash(&token)))
        });
        Ok(changed.await?.map(|endpoint| (endpoint, Some(url))))
    }

    /// Commits what came of a request. It counts for what was asked; when that has changed meanwhile, or the receiver
    /// has agreed by callback, it is nobody's answer any more.
    async fn take_answer(
        self,
        endpoint: &Endpoint,
        asked: &Handshake,
        reply: &Reply,
    ) -> Result<(), ChangeError> {
        let outcome = match &reply.outcome {
            Ok(status) => Ok(*status),
            Err((class, words)) => Err((*class, words.as_str())),
        };
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
        let changed = self.change(endpoint.number, |current| {
            let present = current.handshake.as_ref()?;
            let same = current.url == endpoint.url && present.asks_as(asked) && present.consent.is_none();
            same.then(|| {
                handshake::answered(present, judged.clone(), reply.network, &settings.asking, wait, now)
            })
        });
        let Some(changed) = changed.await? else { return Ok(()) };
        tracing::info!(endpoint = %changed.id, answer = judged.as_ref().map_or_else(String::as_str, |_| "agreed"), "handshake");
        if judged.is_err() && changed.status == EndpointStatus::Active {
            let asked = changed.handshake.as_ref().and_then(|handshake| handshake.asked.as_ref());
            let asked_for =
                asked.map_or(Duration::ZERO, |asked| handshake::asked_for(asked, &settings.asking));
            let is_the_same = |known: &Endpoint| known.revision == changed.revision;
            if outcome == Ok(410) {
                Endpoints(self.0).disable(changed.number, DisabledReason::Gone, is_the_same).await;
            } else if asked_for >= settings.disable_after {
                Endpoints(self.0).disable(changed.number, DisabledReason::Failing, is_the_same).await;
            }
        }
        Ok(())
    }

    /// A receiver agrees by callback. `allowed_rate` is the header of that name.
    ///
    /// # Errors
    /// [`ChangeError::NotFound`] for a token that is none, or is good no more: which of the two is not said.
    /// [`ChangeError::NotAllowed`] for a rate that is none; the token stays good.
    pub async fn grant(
        self,
        id: &EndpointId,
        token: &str,
        allowed_rate: Option<&str>,
    ) -> Result<(), ChangeError> {
        let endpoint = self.0.outbox().registry(|registry| registry.endpoint_by_id(id).cloned());
        let endpoint = endpoint.ok_or(ChangeError::NotFound)?;
        let shown = hash(token);
        let find = |current: &Endpoint| {
            let handshake = current.handshake.as_ref()?;
            let good = handshake.callbacks.iter().any(|known| bool::from(known.ct_eq(&shown)));
            good.then(|| handshake.clone())
        };
        let requested = find(&endpoint).ok_or(ChangeError::NotFound)?.rate;
        let rate = handshake::allowed_rate(allowed_rate, requested).map_err(ChangeError::NotAllowed)?;
        let now = self.0.now().wall;
        let changed = self.change(endpoint.number, |current| {
            // Who is asked for another rate has new callbacks.
            find(current).map(|present| handshake::agreed_to(present, rate, now))
        });
        let changed = changed.await?.ok_or(ChangeError::NotFound)?;
        self.0.metrics().handshake("agreed");
        tracing::info!(endpoint = %changed.id, "a receiver agreed by callback");
        Ok(())
    }

    /// Changes an endpoint's handshake, as often as somebody else changes the endpoint in between; `None` when there is
    /// nothing to change. The time of the operator's last change stays.
    async fn change(
        self,
        number: EndpointNumber,
        change: impl Fn(&Endpoint) -> Option<Handshake>,
    ) -> Result<Option<Arc<Endpoint>>, ChangeError> {
        loop {
            let current = self.0.outbox().endpoint(number);
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
