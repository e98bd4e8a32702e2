//! Scripted receivers: what a outbound_request meets instead of the network, and what they check of each request.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use standardwebhooks::Webhook;

use super::chance::Chance;
use super::model::LAG_MAX;
use super::operations::policy_defaults;
use super::world::{Callback, Inner, RETRY_AFTER_SECONDS, World, civil, now, wall};
use crate::context::environment::{Entropy, FileReads, Transport};
use crate::courier::guard::RefusedUrl;
use crate::courier::{DescriptorsExhausted, OutboundRequest, Reply};
use crate::domain::{
    DeliveryKey, DeliveryState, Endpoint, EndpointNumber, ErrorClass, Event, Now, RateLimit, Sealed,
    Timestamp,
};
use crate::rules::signature::is_live;

/// How a receiver behaves for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Healthy,
    Slow,
    Hangs,
    Fails,
    Gone,
    Throttles,
    /// It asks to be left alone for four seconds, and that only when a test says so.
    Asks,
    Resets,
    /// It takes the request, and its answer is lost.
    Unheard,
    Any,
}

impl Manner {
    pub(super) const ALL: [Self; 9] = [
        Self::Healthy,
        Self::Slow,
        Self::Hangs,
        Self::Fails,
        Self::Gone,
        Self::Throttles,
        Self::Resets,
        Self::Unheard,
        Self::Any,
    ];
}

/// What the URLs of callbacks begin with.
pub(super) const CALLBACK_BASE: &str = "http://balto.test/v1/handshakes/";

/// A receiver's books.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) manner: Manner,
    /// For the endpoint's own rate, and for the one that the receiver has agreed to.
    buckets: [Bucket; 2],
    /// It has asked to be left alone.
    asked: Option<Asked>,
}

/// That a receiver asked to be left alone, in this life: when, and until when.
#[derive(Clone, Copy, Debug)]
struct Asked {
    life: u32,
    at: Now,
    until: Duration,
}

/// Between a lane's decision and its request there may be a read of the journal.
const DECIDED_BEFORE: Duration = Duration::from_millis(20);

impl Default for Receiver {
    fn default() -> Self {
        Self { manner: Manner::Healthy, buckets: Default::default(), asked: None }
    }
}

/// What was taken of a rate. Neither a restart nor a change of the endpoint gives it back.
#[derive(Debug, Default)]
struct Bucket {
    spent: f64,
    at: Timestamp,
}

/// All receivers of a simulated world.
#[derive(Clone, Debug)]
pub(crate) struct Receivers {
    pub(super) world: World,
}

/// What comes of one request.
struct Script {
    wait: Duration,
    /// The receiver has taken it.
    takes: bool,
    outcome: Result<u16, ErrorClass>,
    retry_after: Option<&'static str>,
    webhook_delivery: Option<&'static str>,
}

#[async_trait]
impl Transport for Receivers {
    async fn send(&self, outbound_request: OutboundRequest) -> Result<Reply, DescriptorsExhausted> {
        if self.world.with(|inner| inner.exhausted) {
            self.world.count("exhausted");
            return Err(DescriptorsExhausted);
        }
        Ok(self.answer(&outbound_request).await)
    }

    async fn check_url(&self, url: &str) -> Result<Box<str>, RefusedUrl> {
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
        self.wait_for_the_disk().await;
        read();
    }
}

impl Receivers {
    async fn answer(&self, outbound_request: &OutboundRequest) -> Reply {
        let (url, headers, body, timeout) = outbound_request.contents();
        let called = url.path().trim_start_matches('/').to_owned();
        let endpoint = self.world.with(|inner| inner.model.number_of(&called));
        let Some(endpoint) = endpoint else {
            self.world.breaks(format!("an endpoint {called} was sent to and is not durable"));
            return Reply::failed(ErrorClass::Connect, "a promise is broken".to_owned());
        };
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if outbound_request.is_options() {
            let asked = (header("webhook-request-origin"), header("webhook-request-callback"));
            let reply = self.be_asked(endpoint, url.as_str(), asked, timeout).await;
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
            return Reply::failed(ErrorClass::Connect, "the power has failed".to_owned());
        }
        let checked = self.world.with(|inner| request.check(inner));
        let key = match checked {
            Ok(key) => key,
            Err(broken) => {
                self.world.breaks(format!(
                    "attempt {} of {} for {endpoint:?}: {broken}",
                    request.attempt, request.id
                ));
                return Reply::failed(ErrorClass::Connect, "a promise is broken".to_owned());
            }
        };
        let script = self.world.with(|inner| {
            inner.note(format_args!("sent {} to {} attempt {}", key.event, endpoint.0, request.attempt));
            inner.count("sent");
            let manner = inner.receivers.entry(endpoint).or_default().manner;
            draw(&mut inner.chance, manner, timeout)
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
            self.world.with(|inner| note_request_to_wait(inner, endpoint, script.retry_after));
        }
        Reply {
            retry_after: script.retry_after.map(ToOwned::to_owned),
            webhook_delivery: script.webhook_delivery.map(ToOwned::to_owned),
            allowed_origin: None,
            allowed_rate: None,
            body: Bytes::from_static(b"as scripted"),
            duration: now().monotonic - started,
            ..Reply::new(script.outcome.map_err(|class| (class, "as scripted".to_owned())))
        }
    }

    /// Answers a request for consent, or checks that it should never have been made.
    async fn be_asked(
        &self,
        endpoint: EndpointNumber,
        url: &str,
        (origin, callback): (&str, &str),
        timeout: Duration,
    ) -> Reply {
        let failed = |class| Reply::failed(class, "as scripted".to_owned());
        if !self.world.is_alive() {
            return failed(ErrorClass::Connect);
        }
        if let Err(broken) = self.world.with(|inner| check_asked(inner, endpoint, url, origin, callback)) {
            self.world.breaks(format!("{endpoint:?} was asked for consent: {broken}"));
            return failed(ErrorClass::Connect);
        }
        let (wait, reply) = self.world.with(|inner| {
            inner.count("asked");
            inner.note(format_args!("asked {} at {url}", endpoint.0));
            inner.asking.insert(endpoint);
            let manner = inner.receivers.entry(endpoint).or_default().manner;
            let (wait, reply, agrees) = draw_answer(&mut inner.chance, manner, origin, timeout);
            if agrees {
                inner.model.agreed.insert((endpoint, url.into()));
            }
            (wait, reply)
        });
        tokio::time::sleep(wait).await;
        reply
    }

    /// From the seed, as everything else.
    /// How long a read of the journal takes.
    async fn wait_for_the_disk(&self) {
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

/// A request that is under way; also one whose task is dropped ends.
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
    /// How long its event was read after its lane had decided to send it.
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
    /// Whether it may have been sent. Gives which delivery it is.
    fn check(&self, inner: &mut Inner) -> Result<DeliveryKey, String> {
        let now = now();
        let known = inner.model.subscriber(self.endpoint).ok_or("nobody has such an endpoint")?;
        let (endpoint, before) = (known.endpoint.clone(), known.before.clone());
        let just_changed = now.wall.since(known.changed_at) <= LAG_MAX;
        let id = self.id.parse().map_err(|_| "no id")?;
        let event =
            inner.model.event_by_id(&endpoint.tenant, &id).ok_or("it was sent before it was durable")?;
        let key = DeliveryKey { event, endpoint: self.endpoint };
        let accepted = inner.model.oracle.events.get(&event).ok_or("it should never have been accepted")?;
        // As the endpoint is now, however long the event was read.
        self.check_contents(&endpoint, accepted)?;
        self.check_consent(&endpoint)?;
        if inner.model.is_closed(self.endpoint) {
            return Err("the endpoint is closed".to_owned());
        }
        self.check_state(inner, key, now.wall)?;
        self.check_wish(inner, now)?;
        self.check_limits(inner, &endpoint, if just_changed { &before } else { &[] })?;
        if self.held <= DECIDED_BEFORE {
            check_rates(inner, &endpoint, if just_changed { &before } else { &[] })?;
        }
        Ok(key)
    }

    fn check_contents(&self, endpoint: &Endpoint, event: &Event) -> Result<(), String> {
        let tail = [&event.data[..], b"}"].concat();
        if !self.body.ends_with(&tail) {
            return Err("its data are not those that were accepted".to_owned());
        }
        let timestamp = self.timestamp.parse().map_err(|_| "no timestamp")?;
        let live = endpoint.secrets.iter().filter(|secret| is_live(secret, civil()));
        let signed = live.map(|secret| {
            let Sealed::Plain(key) = &secret.key else { return None };
            let key = Webhook::from_bytes(key.to_vec()).ok()?;
            key.sign(self.id, timestamp, self.body).ok()
        });
        // One for each key that is live, the current one first.
        let signed: Option<Vec<_>> = signed.collect();
        if signed.is_none_or(|signed| signed.join(" ") != self.signature) {
            return Err(format!("its signatures are not those of its live secrets: {}", self.signature));
        }
        Ok(())
    }

    fn check_state(&self, inner: &mut Inner, key: DeliveryKey, now: Timestamp) -> Result<(), String> {
        let known = inner.model.oracle.deliveries.get(&key).ok_or("it was never meant for this endpoint")?;
        if inner.in_flight.contains_key(&key) {
            return Err("it is in flight already".to_owned());
        }
        if self.attempt != known.progress.attempts + 1 {
            return Err(format!("{} attempts are recorded", known.progress.attempts));
        }
        if !inner.attempts.insert((inner.life, key, self.attempt)) {
            return Err("this attempt was made before".to_owned());
        }
        let jumps = inner.plan.clock_jumps;
        let since_sent =
            |at: Option<Timestamp>, sent: Timestamp| at.is_some_and(|at| jumps || sent.since(at) <= LAG_MAX);
        // On its way when somebody changed it, maybe.
        let decided = now.minus(self.held);
        if since_sent(inner.model.touched(key), decided) {
            return Ok(());
        }
        if known.state != DeliveryState::Pending {
            return Err(format!("it was sent although it is {known:?}"));
        }
        if known.due > now && !inner.plan.clock_jumps {
            return Err(format!("it is due at {:?}", known.due));
        }
        // On its way when its place changed, maybe: where it was, it was free to go.
        if since_sent(inner.model.reordered(key), decided) {
            return Ok(());
        }
        if !known.sendable {
            return Err("another delivery of its ordering key is before it".to_owned());
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

    /// Whoever stands at this URL has agreed, where it has to.
    fn check_consent(&self, endpoint: &Endpoint) -> Result<(), String> {
        let agrees = *endpoint.url == *self.url
            && match &endpoint.handshake {
                None => self.origin.is_empty(),
                Some(handshake) => handshake.consent.is_some() && handshake.origin.as_str() == self.origin,
            };
        if agrees {
            return Ok(());
        }
        Err(format!("{} has not agreed to {:?}: {:?}", self.url, self.origin, endpoint.handshake))
    }

    /// A receiver that asked to be left alone is, also by the next life of the daemon.
    fn check_wish(&self, inner: &Inner, now: Now) -> Result<(), String> {
        let held = inner.model.oracle.held_since(self.endpoint);
        if let Some((until, since)) = held
            && now.wall > since.plus(LAG_MAX + self.held)
            && now.wall.plus(Duration::from_millis(1)) < until
            && !inner.plan.clock_jumps
        {
            return Err(format!("it had asked at {since:?} to be left alone until {until:?}"));
        }
        let asked = inner.receivers.get(&self.endpoint).and_then(|receiver| receiver.asked);
        let Some(asked) = asked.filter(|asked| asked.life == inner.life) else { return Ok(()) };
        let known = inner.model.subscriber(self.endpoint);
        // Who opens an endpoint again ends the wait.
        let changed = known.is_none_or(|known| known.changed_at >= asked.at.wall);
        let within = now.monotonic > asked.at.monotonic + DECIDED_BEFORE + self.held
            && now.monotonic + Duration::from_millis(1) < asked.until;
        if within && !changed && !inner.plan.clock_jumps {
            return Err(format!("it had asked to be left alone until {:?}", asked.until));
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
        let own = inner.in_flight.keys().filter(|key| key.endpoint == self.endpoint).count();
        // What was sent before a limit was lowered may still be there.
        if own >= limit && before.is_empty() {
            return Err(format!("{own} are in flight already, and the limit is {limit}"));
        }
        // Those of deleted endpoints, also one that is just being sent, are nobody's any more.
        let is_living = |endpoint| inner.model.subscriber(endpoint).is_some_and(|known| !known.deleted);
        let living = |key: &&DeliveryKey| is_living(key.endpoint);
        if !is_living(self.endpoint) {
            return Ok(());
        }
        let all = inner.in_flight.keys().filter(living).count();
        match (inner.plan.max_in_flight, inner.plan.host_max_in_flight) {
            (limit, _) if all >= limit => Err("the global limit is reached".to_owned()),
            (_, limit) if limit > 0 && all >= limit => Err("the host's limit is reached".to_owned()),
            _ => Ok(()),
        }
    }
}

/// `before` is what the lane may still go by.
fn check_rates(inner: &mut Inner, endpoint: &Endpoint, before: &[Arc<Endpoint>]) -> Result<(), String> {
    let allowed = |endpoint: &Endpoint| {
        let rate = endpoint.handshake.as_ref().and_then(|handshake| handshake.consent?.rate);
        rate.map(|limit| RateLimit { limit, per: Duration::from_secs(60), burst: 1 })
    };
    let versions: Vec<&Endpoint> =
        std::iter::once(endpoint).chain(before.iter().map(AsRef::as_ref)).collect();
    let rates = [
        versions.iter().map(|version| version.rate_limit).collect::<Vec<_>>(),
        versions.iter().map(|version| allowed(version)).collect(),
    ];
    let buckets = &mut inner.receivers.entry(endpoint.number).or_default().buckets;
    for (rates, bucket) in rates.into_iter().zip(buckets) {
        check_rate(&rates, bucket)?;
    }
    Ok(())
}

/// What the rules make of `Retry-After`: whole seconds, up to a bound; the dates that are scripted lie in the past.
fn note_request_to_wait(inner: &mut Inner, endpoint: EndpointNumber, retry_after: Option<&str>) {
    let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some(text) = retry_after.filter(is_number) else { return };
    let seconds = text.parse::<u64>().unwrap_or(u64::MAX).min(RETRY_AFTER_SECONDS);
    let (life, at) = (inner.life, now());
    let until = at.monotonic + Duration::from_secs(seconds);
    let receiver = inner.receivers.entry(endpoint).or_default();
    let before = receiver.asked.filter(|asked| asked.life == life && asked.until > until);
    receiver.asked = before.or(Some(Asked { life, at, until }));
}

/// A token bucket, as the rate is documented; one request of grace, because a read of the journal, or
/// the commit of a reservation, may stand between the lane's decision and the request. Of several
/// rates any may be the one that the lane goes by; one without a limit counts nothing.
fn check_rate(rates: &[Option<RateLimit>], bucket: &mut Bucket) -> Result<(), String> {
    let now = wall();
    let Some(rates) = rates.iter().copied().collect::<Option<Vec<_>>>() else { return Ok(()) };
    let gained = |rate: &RateLimit| {
        now.since(bucket.at).as_secs_f64() * f64::from(rate.limit) / rate.per.as_secs_f64()
    };
    let burst = rates.iter().map(|rate| rate.burst).max().map_or(0.0, f64::from);
    let gained = rates.iter().map(gained).fold(0.0, f64::max);
    bucket.spent = (bucket.spent.min(burst + 1.0) - gained).max(0.0) + 1.0;
    bucket.at = now;
    if bucket.spent > burst + 1.01 { Err(format!("the rate {rates:?} is exceeded")) } else { Ok(()) }
}

/// Only who wants to be asked is asked, where it stands, and a callback that is shown is good.
fn check_asked(
    inner: &mut Inner,
    endpoint: EndpointNumber,
    url: &str,
    origin: &str,
    callback: &str,
) -> Result<(), String> {
    let known = inner.model.subscriber(endpoint).ok_or("nobody has such an endpoint")?;
    let (id, token) = match callback.strip_prefix(CALLBACK_BASE).and_then(|end| end.rsplit_once('.')) {
        Some((id, token)) => (id, token),
        None if callback.is_empty() => ("", ""),
        None => return Err(format!("{callback} leads nowhere")),
    };
    let hash: [u8; 32] = Sha256::digest(token).into();
    let pending = known.endpoint.handshake.as_ref().filter(|handshake| handshake.consent.is_none());
    let fits = pending.is_some_and(|handshake| {
        *known.endpoint.url == *url
            && handshake.origin.as_str() == origin
            && (token.is_empty() || handshake.callbacks.contains(&hash))
    });
    if !fits {
        return Err(format!("not as it is: {:?} {callback}", known.endpoint));
    }
    if !token.is_empty() {
        let endpoint = id.parse().map_err(|_| "no id")?;
        inner.callbacks.push(Callback {
            endpoint,
            token: token.to_owned(),
            url: url.to_owned(),
            used: false,
        });
    }
    Ok(())
}

/// After how long the answer comes, the answer, and whether it is consent.
fn draw_answer(
    chance: &mut Chance,
    manner: Manner,
    origin: &str,
    timeout: Duration,
) -> (Duration, Reply, bool) {
    let script = draw(chance, manner, timeout);
    let mut reply = Reply::failed(ErrorClass::Reset, "as scripted".to_owned());
    reply.outcome = script.outcome.map_err(|class| (class, "as scripted".to_owned()));
    reply.retry_after = script.retry_after.map(ToOwned::to_owned);
    let agrees = script.takes && reply.outcome.is_ok();
    if agrees {
        let upper = origin.to_uppercase();
        reply.allowed_origin = Some((*chance.pick(&[origin, "*", &upper])).to_owned());
        let rates = [None, Some("*"), Some("90"), Some("600"), Some("3000")];
        reply.allowed_rate = chance.pick(&rates).map(ToOwned::to_owned);
    } else if chance.percent(30) {
        reply.allowed_origin = Some((*chance.pick(&["other.example", "", "*, *"])).to_owned());
    }
    (script.wait, reply, agrees)
}

fn draw(chance: &mut Chance, manner: Manner, timeout: Duration) -> Script {
    let millis = |chance: &mut Chance, high: u64| Duration::from_millis(chance.within(0, high));
    let wait = millis(chance, 30);
    let mut script =
        Script { wait, takes: false, outcome: Ok(500), retry_after: None, webhook_delivery: None };
    let manner = if manner == Manner::Any { *chance.pick(&Manner::ALL) } else { manner };
    match manner {
        Manner::Healthy | Manner::Any => {
            script.takes = true;
            script.outcome = Ok(*chance.pick(&[200, 201, 204]));
        }
        Manner::Slow => {
            script.takes = true;
            script.wait = millis(chance, timeout.as_millis() as u64 - 1);
            script.outcome = Ok(200);
        }
        Manner::Hangs => (script.wait, script.outcome) = (timeout, Err(ErrorClass::Timeout)),
        Manner::Fails => {
            script.outcome = Ok(*chance.pick(&[500, 502, 503, 404, 400, 301, 408, 422]));
            let header = *chance.pick(&[0, 0, 0, 0, 0, 1, 2]);
            script.webhook_delivery = [None, Some("abort-message"), Some("disable")][header];
        }
        Manner::Gone => script.outcome = Ok(*chance.pick(&[410, 500, 500])),
        Manner::Throttles => {
            script.outcome = Ok(*chance.pick(&[429, 503]));
            let lies =
                ["0", "1", "4", "99999999999999", "-1", "soon", "Sun, 06 Nov 1994 08:49:37 GMT", "1e9"];
            script.retry_after = Some(*chance.pick(&lies));
        }
        Manner::Asks => (script.outcome, script.retry_after) = (Ok(429), Some("4")),
        Manner::Resets => script.outcome = Err(ErrorClass::Reset),
        Manner::Unheard => {
            script.takes = true;
            let hangs = chance.percent(50);
            script.outcome = Err(if hangs { ErrorClass::Timeout } else { ErrorClass::Reset });
            script.wait = if hangs { timeout } else { script.wait };
        }
    }
    script
}
