//! Scripted receivers: replace the network, and check each request.

mod scripts;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use standardwebhooks::Webhook;

use super::chance::Chance;
use super::model::LAG_MAX;
use super::operations::policy_defaults;
use super::world::{Callback, Inner, RETRY_AFTER_SECONDS, World, civil, now};
use crate::context::environment::{Entropy, FileReads, Transport};
use crate::courier::guard::RefusedUrl;
use crate::courier::{NotSent, OutboundMessage, OutboundRequest, ReceiverReply};
use crate::domain::{
    DeliveryKey, DeliveryState, Endpoint, EndpointNumber, ErrorClass, Event, Now, RateLimit, Sealed, Tenant,
    Timestamp,
};
use crate::rules::signature::is_live;
use scripts::{check_handshake, check_rates, draw_handshake_reply, draw_script, record_retry_after};

/// Current behavior of a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behavior {
    Healthy,
    Slow,
    Hangs,
    Fails,
    Gone,
    Throttles,
    /// Replies with a `Retry-After` of four seconds. Only on request of a test.
    Asks,
    Resets,
    /// Takes the request, but the reply is lost.
    LosesReply,
    Any,
}

impl Behavior {
    pub(super) const ALL: [Self; 9] = [
        Self::Healthy,
        Self::Slow,
        Self::Hangs,
        Self::Fails,
        Self::Gone,
        Self::Throttles,
        Self::Resets,
        Self::LosesReply,
        Self::Any,
    ];
}

/// Prefix of callback URLs.
pub(super) const CALLBACK_BASE: &str = "http://balto.test/v1/handshakes/";

/// State of a receiver.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) behavior: Behavior,
    /// For the endpoint's rate, and for the rate that the receiver granted.
    buckets: [Bucket; 2],
    /// The last `Retry-After`.
    pause: Option<RequestedPause>,
}

/// A receiver's `Retry-After`, sent in this life at this time.
#[derive(Clone, Copy, Debug)]
struct RequestedPause {
    life: u32,
    at: Now,
    until: Duration,
}

/// Maximum time between a lane's decision and its request, without a slow journal read.
const DECISION_AGE_MAX: Duration = Duration::from_millis(20);

impl Default for Receiver {
    fn default() -> Self {
        Self { behavior: Behavior::Healthy, buckets: Default::default(), pause: None }
    }
}

/// Spent tokens of a rate. Neither a restart nor a change of the endpoint refunds them.
#[derive(Debug, Default)]
struct Bucket {
    spent: f64,
    at: Timestamp,
    /// Rates at the last request.
    rates: Vec<RateLimit>,
}

/// All receivers of a simulated world.
#[derive(Clone, Debug)]
pub(crate) struct Receivers {
    pub(super) world: World,
}

/// Outcome of one request.
struct Script {
    wait: Duration,
    /// Whether the receiver takes the delivery.
    takes: bool,
    outcome: Result<u16, ErrorClass>,
    retry_after: Option<&'static str>,
    webhook_delivery: Option<&'static str>,
}

#[async_trait]
impl Transport for Receivers {
    async fn send(&self, outbound_request: OutboundRequest) -> Result<ReceiverReply, NotSent> {
        if self.world.with(|inner| inner.exhausted) {
            self.world.count("exhausted");
            return Err(NotSent::DescriptorsExhausted);
        }
        Ok(self.answer(&outbound_request).await)
    }

    async fn publish(&self, _: OutboundMessage) -> Result<ReceiverReply, NotSent> {
        self.world.record_violation("message to a broker, although no endpoint has one".to_owned());
        Ok(ReceiverReply::failed(ErrorClass::Connect, "invariant violated".to_owned()))
    }

    async fn check_url(&self, url: &str) -> Result<Box<str>, RefusedUrl> {
        Ok(url.into())
    }

    async fn check_broker_url(&self, url: &str) -> Result<Box<str>, RefusedUrl> {
        Ok(url.into())
    }
}

impl Entropy for Receivers {
    fn fill(&self, bytes: &mut [u8]) {
        self.world.chance(|chance| bytes.fill_with(|| chance.next() as u8));
    }
}

#[async_trait]
impl FileReads for Receivers {
    async fn run(&self, read: Box<dyn FnOnce() + Send>) {
        self.delay_read().await;
        read();
    }
}

impl Receivers {
    async fn answer(&self, outbound_request: &OutboundRequest) -> ReceiverReply {
        let (url, headers, body, timeout) = outbound_request.contents();
        let called = url.path().trim_start_matches('/').to_owned();
        let endpoint = self.world.with(|inner| inner.model.number_of(&called));
        let Some(endpoint) = endpoint else {
            self.world.record_violation(format!("request to the endpoint {called}, which is not durable"));
            return ReceiverReply::failed(ErrorClass::Connect, "invariant violated".to_owned());
        };
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if outbound_request.is_options() {
            let terms = (header("webhook-request-origin"), header("webhook-request-callback"));
            let reply = self.answer_handshake(endpoint, url.as_str(), terms, timeout).await;
            self.world.with(|inner| inner.asking.remove(&endpoint));
            return reply;
        }
        let task = tokio::task::try_id();
        let held = self.world.with(|inner| inner.held.take_if(|(id, _)| Some(*id) == task));
        let request = Request {
            endpoint,
            held: held.map_or(Duration::ZERO, |(_, held)| held),
            id: header("webhook-id"),
            attempt: header("balto-attempt").parse().unwrap_or(0),
            timestamp: header("webhook-timestamp"),
            signature: header("webhook-signature"),
            origin: header("webhook-request-origin"),
            url: url.as_str(),
            body,
        };
        if !self.world.is_alive() {
            return ReceiverReply::failed(ErrorClass::Connect, "the power has failed".to_owned());
        }
        let checked = self.world.with(|inner| request.check(inner));
        let key = match checked {
            Ok(key) => key,
            Err(violation) => {
                self.world.record_violation(format!(
                    "attempt {} of {} for {endpoint:?}: {violation}",
                    request.attempt, request.id
                ));
                return ReceiverReply::failed(ErrorClass::Connect, "invariant violated".to_owned());
            }
        };
        let script = self.world.with(|inner| {
            inner.note(format_args!("sent {} to {} attempt {}", key.event, endpoint.0, request.attempt));
            inner.count("sent");
            count_contention(inner, endpoint);
            let behavior = inner.receivers.entry(endpoint).or_default().behavior;
            draw_script(&mut inner.chance, behavior, timeout)
        });
        let _flight = Flight::start(&self.world, key);
        let started = now().monotonic;
        tokio::time::sleep(script.wait).await;
        if script.takes && self.world.is_alive() {
            self.world.with(|inner| {
                inner.received.insert(key);
                inner.note(format_args!("{} took {} ({:?})", endpoint.0, key.event, script.outcome));
            });
        }
        if matches!(script.outcome, Ok(429 | 503)) {
            self.world.with(|inner| {
                // A former URL does not hold the lane of the present one.
                let known = inner.model.subscriber(endpoint);
                if known.is_some_and(|known| *known.endpoint.url == *request.url) {
                    record_retry_after(inner, endpoint, script.retry_after);
                }
            });
        }
        ReceiverReply {
            retry_after: script.retry_after.map(ToOwned::to_owned),
            webhook_delivery: script.webhook_delivery.map(ToOwned::to_owned),
            allowed_origin: None,
            allowed_rate: None,
            body: Bytes::from_static(b"as scripted"),
            duration: now().monotonic - started,
            ..ReceiverReply::new(script.outcome.map_err(|class| (class, "as scripted".to_owned())))
        }
    }

    /// Checks and answers a handshake request.
    async fn answer_handshake(
        &self,
        endpoint: EndpointNumber,
        url: &str,
        (origin, callback): (&str, &str),
        timeout: Duration,
    ) -> ReceiverReply {
        let failed = |class| ReceiverReply::failed(class, "as scripted".to_owned());
        if !self.world.is_alive() {
            return failed(ErrorClass::Connect);
        }
        if let Err(violation) =
            self.world.with(|inner| check_handshake(inner, endpoint, url, origin, callback))
        {
            self.world.record_violation(format!("handshake request to {endpoint:?}: {violation}"));
            return failed(ErrorClass::Connect);
        }
        let (wait, reply) = self.world.with(|inner| {
            inner.count("handshakeRequests");
            inner.note(format_args!("handshake request to {} at {url}", endpoint.0));
            inner.asking.insert(endpoint);
            let behavior = inner.receivers.entry(endpoint).or_default().behavior;
            let (wait, reply, agrees) = draw_handshake_reply(&mut inner.chance, behavior, origin, timeout);
            if agrees {
                inner.model.agreed.insert((endpoint, url.into()));
            }
            (wait, reply)
        });
        tokio::time::sleep(wait).await;
        reply
    }

    /// Delays a journal read by a random time.
    async fn delay_read(&self) {
        let (dice, millis) = self.world.with(|inner| {
            let dice = inner.chance.within(0, 39);
            (dice, if inner.plan.slow_reads { inner.chance.within(50, 2_000) } else { 7 })
        });
        let started = now().monotonic;
        match dice {
            0 | 1 => tokio::time::sleep(Duration::from_millis(millis)).await,
            2..5 => tokio::time::sleep(Duration::from_millis(7)).await,
            5..16 => tokio::task::yield_now().await,
            _ => {}
        }
        while self.world.with(|inner| inner.reads_wait) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let held = tokio::task::try_id().map(|task| (task, now().monotonic.saturating_sub(started)));
        self.world.with(|inner| inner.held = held);
    }
}

/// Counts requests of several tenants at once that use all slots but the reserve.
fn count_contention(inner: &mut Inner, endpoint: EndpointNumber) {
    let is_contended = inner.in_flight.len() + 1 >= inner.plan.max_in_flight * 7 / 8;
    let tenant = |number: &EndpointNumber| Some(&inner.model.endpoints.get(number)?.endpoint.tenant);
    let own = tenant(&endpoint);
    if is_contended && inner.in_flight.keys().any(|key| tenant(&key.endpoint) != own) {
        inner.count("tenantsAtLimit");
    }
}

/// A running request. Dropping it ends the request.
struct Flight {
    world: World,
    key: DeliveryKey,
    life: u32,
}

impl Flight {
    fn start(world: &World, key: DeliveryKey) -> Self {
        let life = world.with(|inner| {
            inner.in_flight.insert(key, now().wall);
            inner.life
        });
        Self { world: world.clone(), key, life }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.world.with(|inner| {
            if inner.life == self.life {
                inner.in_flight.remove(&self.key);
            }
        });
    }
}

struct Request<'a> {
    endpoint: EndpointNumber,
    /// Duration of the journal read between the lane's decision and the request.
    held: Duration,
    id: &'a str,
    attempt: u32,
    timestamp: &'a str,
    signature: &'a str,
    origin: &'a str,
    url: &'a str,
    body: &'a [u8],
}

impl Request<'_> {
    /// Checks whether the request is allowed, and returns its delivery.
    fn check(&self, inner: &mut Inner) -> Result<DeliveryKey, String> {
        let now = now();
        let known = inner.model.subscriber(self.endpoint).ok_or("unknown endpoint")?;
        let (endpoint, before) = (known.endpoint.clone(), known.before.clone());
        let just_changed = now.wall.since(known.changed_at) <= LAG_MAX;
        let id = self.id.parse().map_err(|_| "invalid webhook-id")?;
        let event = inner
            .model
            .event_by_id(&self.tenant(&endpoint)?, &id)
            .ok_or("sent before the event was durable")?;
        let key = DeliveryKey { event, endpoint: self.endpoint };
        let accepted = inner.model.oracle.events.get(&event).ok_or("the event was not accepted")?;
        // Against the current endpoint, regardless of the duration of the read.
        self.check_contents(&endpoint, accepted)?;
        self.check_consent(&endpoint)?;
        if inner.model.is_closed(self.endpoint) {
            return Err("the endpoint is closed".to_owned());
        }
        self.check_state(inner, key, now.wall)?;
        self.check_retry_after(inner, now)?;
        self.check_limits(inner, &endpoint, if just_changed { &before } else { &[] })?;
        let former: &[_] = if just_changed { &before } else { &[] };
        check_rates(inner, &endpoint, former, now.wall.minus(self.held))?;
        Ok(key)
    }

    /// The tenant of the event: the owner of the endpoint, or that in the body.
    fn tenant(&self, endpoint: &Endpoint) -> Result<Tenant, String> {
        if !endpoint.tenant.is_every() {
            return Ok(endpoint.tenant.clone());
        }
        let body: serde_json::Value = serde_json::from_slice(self.body).map_err(|error| error.to_string())?;
        let named: Option<Tenant> = body["tenant"].as_str().and_then(|name| name.parse().ok());
        let named = named.filter(|named| endpoint.tenant.takes_from(named));
        named.ok_or_else(|| format!("an endpoint of all tenants got {body}"))
    }

    fn check_contents(&self, endpoint: &Endpoint, event: &Event) -> Result<(), String> {
        let tail = [&event.data[..], b"}"].concat();
        if !self.body.ends_with(&tail) {
            return Err("the data differ from the accepted data".to_owned());
        }
        let timestamp = self.timestamp.parse().map_err(|_| "invalid webhook-timestamp")?;
        let live = endpoint.secrets.iter().filter(|secret| is_live(secret, civil()));
        let signed = live.map(|secret| {
            let Sealed::Plain(key) = &secret.key else { return None };
            let key = Webhook::from_bytes(key.to_vec()).ok()?;
            key.sign(self.id, timestamp, self.body).ok()
        });
        // One signature per live key, the current key first.
        let signed: Option<Vec<_>> = signed.collect();
        if signed.is_none_or(|signed| signed.join(" ") != self.signature) {
            return Err(format!("the signatures do not match the live secrets: {}", self.signature));
        }
        Ok(())
    }

    fn check_state(&self, inner: &mut Inner, key: DeliveryKey, now: Timestamp) -> Result<(), String> {
        let known =
            inner.model.oracle.deliveries.get(&key).ok_or("the event does not target this endpoint")?;
        if inner.in_flight.contains_key(&key) {
            return Err("the delivery is already in flight".to_owned());
        }
        if self.attempt != known.progress.attempts + 1 {
            return Err(format!("{} attempts are recorded", known.progress.attempts));
        }
        if !inner.attempts.insert((inner.life, key, self.attempt)) {
            return Err("repeated attempt number".to_owned());
        }
        let jumps = inner.plan.clock_jumps;
        let since_sent =
            |at: Option<Timestamp>, sent: Timestamp| at.is_some_and(|at| jumps || sent.since(at) <= LAG_MAX);
        // The request may have left before the change.
        let decided = now.minus(self.held);
        if since_sent(inner.model.touched(key), decided) {
            return Ok(());
        }
        if known.state != DeliveryState::Pending {
            return Err(format!("the delivery is not pending: {known:?}"));
        }
        if known.due > now && !inner.plan.clock_jumps {
            return Err(format!("sent before its due time {:?}", known.due));
        }
        // The request may have left from the former queue.
        if since_sent(inner.model.reordered(key), decided) {
            return Ok(());
        }
        if !known.sendable {
            return Err("an earlier delivery of its ordering key is pending".to_owned());
        }
        let beside = |(other, sent): &(&DeliveryKey, &Timestamp)| {
            let changed = since_sent(inner.model.touched(**other), **sent)
                || since_sent(inner.model.reordered(**other), **sent)
                || other.endpoint != key.endpoint;
            let other = inner.model.oracle.deliveries.get(*other).filter(|_| !changed);
            known.queue.is_some()
                && other
                    .is_some_and(|other| other.queue == known.queue && other.state == DeliveryState::Pending)
        };
        match inner.in_flight.iter().find(beside) {
            Some((other, _)) => Err(format!("{other:?} of the same ordering key is in flight")),
            None => Ok(()),
        }
    }

    /// Checks that the receiver at this URL has consented, if the endpoint has a handshake.
    fn check_consent(&self, endpoint: &Endpoint) -> Result<(), String> {
        let agrees = *endpoint.url == *self.url
            && match &endpoint.handshake {
                None => self.origin.is_empty(),
                Some(handshake) => handshake.consent.is_some() && handshake.origin.as_str() == self.origin,
            };
        if agrees {
            return Ok(());
        }
        Err(format!("no consent of {} to {:?}: {:?}", self.url, self.origin, endpoint.handshake))
    }

    /// Checks that the receiver's `Retry-After` is respected, also after a restart.
    fn check_retry_after(&self, inner: &Inner, now: Now) -> Result<(), String> {
        let held = inner.model.oracle.held_since(self.endpoint);
        if let Some((until, since)) = held
            && now.wall > since.plus(LAG_MAX + self.held)
            && now.wall.plus(Duration::from_millis(1)) < until
            && !inner.plan.clock_jumps
        {
            return Err(format!("sent during the hold from {since:?} to {until:?}"));
        }
        let pause = inner.receivers.get(&self.endpoint).and_then(|receiver| receiver.pause);
        let Some(pause) = pause.filter(|pause| pause.life == inner.life) else { return Ok(()) };
        let known = inner.model.subscriber(self.endpoint);
        // Resuming an endpoint ends the pause.
        let changed = known.is_none_or(|known| known.changed_at >= pause.at.wall);
        let within = now.monotonic > pause.at.monotonic + DECISION_AGE_MAX + self.held
            && now.monotonic + Duration::from_millis(1) < pause.until;
        if within && !changed && !inner.plan.clock_jumps {
            return Err(format!("sent during a Retry-After until {:?}", pause.until));
        }
        Ok(())
    }

    fn check_limits(
        &self,
        inner: &Inner,
        endpoint: &Endpoint,
        before: &[Arc<Endpoint>],
    ) -> Result<(), String> {
        let defaults = policy_defaults();
        let limits = before.iter().map(|before| before.max_in_flight(&defaults));
        let limit = limits.fold(endpoint.max_in_flight(&defaults), u32::max) as usize;
        let count = inner.in_flight.keys().filter(|key| key.endpoint == self.endpoint).count();
        // Requests from before a lowered limit may still run.
        if count >= limit && before.is_empty() {
            return Err(format!("{count} requests are in flight, the limit is {limit}"));
        }
        // Requests to deleted endpoints do not count.
        let exists = |endpoint| inner.model.subscriber(endpoint).is_some_and(|known| !known.deleted);
        if !exists(self.endpoint) {
            return Ok(());
        }
        let all = inner.in_flight.keys().filter(|key| exists(key.endpoint)).count();
        match (inner.plan.max_in_flight, inner.plan.host_max_in_flight) {
            (limit, _) if all >= limit => Err("the global limit is reached".to_owned()),
            (_, limit) if limit > 0 && all >= limit => Err("the host's limit is reached".to_owned()),
            _ => Ok(()),
        }
    }
}
