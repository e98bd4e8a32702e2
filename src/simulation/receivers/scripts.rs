//! Checks and replies of a receiver.

use super::*;
use crate::domain::ReceiverAnswer;

/// `before`: former versions of the endpoint that the lane may still use. `decided`: before the
/// read of the event.
pub(super) fn check_rates(
    inner: &mut Inner,
    endpoint: &Endpoint,
    before: &[Arc<Endpoint>],
    decided: Timestamp,
) -> Result<(), String> {
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
        check_rate(&rates, bucket, decided)?;
    }
    Ok(())
}

/// Records a `Retry-After` like the rules: whole seconds, bounded. Scripted dates are past.
pub(super) fn record_retry_after(inner: &mut Inner, endpoint: EndpointNumber, retry_after: Option<&str>) {
    let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some(text) = retry_after.filter(is_number) else { return };
    let seconds = text.parse::<u64>().unwrap_or(u64::MAX).min(RETRY_AFTER_SECONDS);
    let (life, at) = (inner.life, now());
    let until = at.monotonic + Duration::from_secs(seconds);
    let receiver = inner.receivers.entry(endpoint).or_default();
    let before = receiver.pause.filter(|pause| pause.life == life && pause.until > until);
    receiver.pause = before.or(Some(RequestedPause { life, at, until }));
}

/// Checks the documented token bucket at the time of the decision. Allows one more request, because
/// the commit of a reservation may lie before the decision. The lane may use any of `rates`; if one
/// is unlimited, nothing is checked.
fn check_rate(rates: &[Option<RateLimit>], bucket: &mut Bucket, decided: Timestamp) -> Result<(), String> {
    let Some(rates) = rates.iter().copied().collect::<Option<Vec<_>>>() else { return Ok(()) };
    // Since the last request, the rate may have changed.
    let earlier = std::mem::replace(&mut bucket.rates, rates.clone());
    let gained = |time: Duration| {
        let gained = |rate: &RateLimit| time.as_secs_f64() * f64::from(rate.limit) / rate.per.as_secs_f64();
        rates.iter().chain(&earlier).map(gained).fold(0.0, f64::max)
    };
    let burst = rates.iter().map(|rate| rate.burst).max().map_or(0.0, f64::from);
    // Reads take different times, so decisions may arrive out of order: the token of an early one
    // has been gained again in part.
    let cost = (1.0 - gained(bucket.at.since(decided))).max(0.0);
    bucket.spent = (bucket.spent.min(burst + 1.0) - gained(decided.since(bucket.at))).max(0.0) + cost;
    bucket.at = bucket.at.max(decided);
    if bucket.spent > burst + 1.01 { Err(format!("the rate {rates:?} is exceeded")) } else { Ok(()) }
}

/// Checks that the endpoint needs consent at this URL, and that the callback is valid.
pub(super) fn check_handshake(
    inner: &mut Inner,
    endpoint: EndpointNumber,
    url: &str,
    origin: &str,
    callback: &str,
) -> Result<(), String> {
    let known = inner.model.subscriber(endpoint).ok_or("unknown endpoint")?;
    let (id, token) = match callback.strip_prefix(CALLBACK_BASE).and_then(|end| end.rsplit_once('.')) {
        Some((id, token)) => (id, token),
        None if callback.is_empty() => ("", ""),
        None => return Err(format!("malformed callback URL {callback}")),
    };
    let hash: [u8; 32] = Sha256::digest(token).into();
    let pending = known.endpoint.handshake.as_ref().filter(|handshake| handshake.consent.is_none());
    let is_expected = pending.is_some_and(|handshake| {
        *known.endpoint.url == *url
            && handshake.origin.as_str() == origin
            && (token.is_empty() || handshake.callbacks.contains(&hash))
    });
    if !is_expected {
        return Err(format!("unexpected for {:?}, callback {callback}", known.endpoint));
    }
    if !token.is_empty() {
        let endpoint = id.parse().map_err(|_| "invalid endpoint id")?;
        inner.callbacks.push(Callback {
            endpoint,
            token: token.to_owned(),
            url: url.to_owned(),
            used: false,
        });
    }
    Ok(())
}

/// The delay of the reply, the reply, and whether it grants consent.
pub(super) fn draw_handshake_reply(
    chance: &mut Chance,
    behavior: Behavior,
    origin: &str,
    timeout: Duration,
) -> (Duration, ReceiverReply, bool) {
    let script = draw_script(chance, behavior, timeout);
    let mut reply = ReceiverReply::failed(ErrorClass::Reset, "as scripted".to_owned());
    reply.outcome =
        script.outcome.map(ReceiverAnswer::Status).map_err(|class| (class, "as scripted".to_owned()));
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

pub(super) fn draw_script(chance: &mut Chance, behavior: Behavior, timeout: Duration) -> Script {
    let millis = |chance: &mut Chance, high: u64| Duration::from_millis(chance.within(0, high));
    let wait = millis(chance, 30);
    let mut script =
        Script { wait, takes: false, outcome: Ok(500), retry_after: None, webhook_delivery: None };
    let behavior = if behavior == Behavior::Any { *chance.pick(&Behavior::ALL) } else { behavior };
    match behavior {
        Behavior::Healthy | Behavior::Any => {
            script.takes = true;
            script.outcome = Ok(*chance.pick(&[200, 201, 204]));
        }
        Behavior::Slow => {
            script.takes = true;
            script.wait = millis(chance, timeout.as_millis() as u64 - 1);
            script.outcome = Ok(200);
        }
        Behavior::Hangs => (script.wait, script.outcome) = (timeout, Err(ErrorClass::Timeout)),
        Behavior::Fails => {
            script.outcome = Ok(*chance.pick(&[500, 502, 503, 404, 400, 301, 408, 422]));
            let header = *chance.pick(&[0, 0, 0, 0, 0, 1, 2]);
            script.webhook_delivery = [None, Some("abort-message"), Some("disable")][header];
        }
        Behavior::Gone => script.outcome = Ok(*chance.pick(&[410, 500, 500])),
        Behavior::Throttles => {
            script.outcome = Ok(*chance.pick(&[429, 503]));
            let values =
                ["0", "1", "4", "99999999999999", "-1", "soon", "Sun, 06 Nov 1994 08:49:37 GMT", "1e9"];
            script.retry_after = Some(*chance.pick(&values));
        }
        Behavior::Asks => (script.outcome, script.retry_after) = (Ok(429), Some("4")),
        Behavior::Resets => script.outcome = Err(ErrorClass::Reset),
        Behavior::LosesReply => {
            script.takes = true;
            let hangs = chance.percent(50);
            script.outcome = Err(if hangs { ErrorClass::Timeout } else { ErrorClass::Reset });
            script.wait = if hangs { timeout } else { script.wait };
        }
    }
    script
}
