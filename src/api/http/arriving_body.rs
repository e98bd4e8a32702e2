//! Receives request bodies: size limit, deadline, minimum rate, and room in memory.
//!
//! Owns the budget of all unfinished bodies. Parties share it: a party that needs room gets its
//! share from the slowest body of the party with the most bytes. Small bodies need no room.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::http::problem::Problem;
use crate::api::http::shared_room::{RoomFull, RoomGuard, RoomLimits, SharedRoom};
use crate::domain::Party;
use crate::limits::{self, SMALL_BODY_BYTES};

/// For a request that exceeds the budget.
const OVERLOADED: Problem = Problem::Overloaded { retry_after: Duration::from_secs(1) };

/// Budget for the bodies of all requests in progress, in bytes. Parties share it.
pub struct BodyBudget(SharedRoom<Party>);

impl BodyBudget {
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(SharedRoom::new(RoomLimits { bytes, party_bytes: bytes, own_give_way_after: None }))
    }
}

/// A body, and its share of the budget until dropped.
pub type HeldBody = (Bytes, Option<RoomGuard<Party>>);

/// Limits of one body.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    pub bytes: usize,
    /// Deadline for the whole body.
    pub timeout: Duration,
    /// Minimum bytes per second; 0: none.
    pub rate_min: usize,
}

/// Reads a body for a party.
///
/// # Errors
/// 413 above the limit, 408 after the timeout or below the minimum rate, 400 if truncated, 415 if
/// encoded, 429 without budget.
pub async fn read(
    body: Body,
    headers: &HeaderMap,
    limits: BodyLimits,
    budget: &BodyBudget,
    party: &Party,
) -> Result<HeldBody, Problem> {
    let is_plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(header::CONTENT_ENCODING).iter().all(is_plain) {
        return Err(Problem::UnsupportedContentEncoding);
    }
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if announced.and_then(|text| text.parse::<u64>().ok()).is_some_and(|length| length > limits.bytes as u64)
    {
        return Err(Problem::PayloadTooLarge { limit: limits.bytes });
    }
    let mut arriving = ArrivingBody { first: Bytes::new(), rest: BytesMut::new(), held: None };
    match tokio::time::timeout(limits.timeout, arriving.collect(body, limits, budget, party)).await {
        Ok(result) => result?,
        Err(_) => return Err(Problem::RequestTimeout),
    }
    Ok(arriving.end(budget))
}

/// The part of a body that has arrived.
struct ArrivingBody {
    first: Bytes,
    rest: BytesMut,
    held: Option<(RoomGuard<Party>, Arc<Notify>)>,
}

impl ArrivingBody {
    fn len(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    async fn collect(
        &mut self,
        mut body: Body,
        limits: BodyLimits,
        budget: &BodyBudget,
        party: &Party,
    ) -> Result<(), Problem> {
        let mut rate = ArrivalRate::new(limits.rate_min);
        loop {
            let evicted = self.held.as_ref().map(|(_, evict)| Arc::clone(evict));
            let evicted = async {
                match &evicted {
                    Some(evicted) => evicted.notified().await,
                    None => std::future::pending().await,
                }
            };
            let frame = tokio::select! {
                biased;
                () = evicted => return Err(OVERLOADED),
                frame = body.frame() => frame,
                () = tokio::time::sleep_until(rate.window_end) => {
                    rate.check(self.len())?;
                    continue;
                }
            };
            let Some(frame) = frame else { return Ok(()) };
            let frame = frame.map_err(|_| Problem::Malformed("the body is truncated".to_owned()))?;
            let Ok(data) = frame.into_data() else { continue };
            self.add(data, limits, budget, party)?;
        }
    }

    /// Charges received bytes, not announced ones: announcing costs a client nothing.
    fn add(
        &mut self,
        data: Bytes,
        limits: BodyLimits,
        budget: &BodyBudget,
        party: &Party,
    ) -> Result<(), Problem> {
        let (before, length) = (self.len(), self.len() + data.len());
        if length > limits.bytes {
            return Err(Problem::PayloadTooLarge { limit: limits.bytes });
        }
        if length > SMALL_BODY_BYTES {
            let more = if self.held.is_some() { data.len() } else { before + data.len() };
            let (guard, _) = self.held.get_or_insert_with(|| {
                let evict = Arc::new(Notify::new());
                (budget.0.enter(party.clone(), Arc::clone(&evict)), evict)
            });
            budget.0.take(guard, more).map_err(|RoomFull| OVERLOADED)?;
        }
        if before == 0 {
            self.first = data;
        } else {
            self.rest.extend_from_slice(&std::mem::take(&mut self.first));
            self.rest.extend_from_slice(&data);
        }
        Ok(())
    }

    fn end(self, budget: &BodyBudget) -> HeldBody {
        let body = if self.rest.is_empty() { self.first } else { self.rest.freeze() };
        let guard = self.held.map(|(guard, _)| guard);
        if let Some(guard) = &guard {
            budget.0.keep(guard);
        }
        (body, guard)
    }
}

/// Measures the rate at which a body arrives, in windows.
struct ArrivalRate {
    rate_min: usize,
    window_end: Instant,
    /// Bytes at the start of the window.
    before: usize,
}

impl ArrivalRate {
    fn new(rate_min: usize) -> Self {
        Self { rate_min, window_end: Instant::now() + limits::BODY_RATE_WINDOW, before: 0 }
    }

    /// Judges the window that ends, and begins the next one.
    fn check(&mut self, length: usize) -> Result<(), Problem> {
        let wanted = self.rate_min.saturating_mul(limits::BODY_RATE_WINDOW.as_secs() as usize);
        if length - self.before < wanted {
            return Err(Problem::BodyTooSlow { rate: self.rate_min });
        }
        self.before = length;
        self.window_end += limits::BODY_RATE_WINDOW;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use tokio::sync::mpsc;

    use super::*;

    const LIMITS: BodyLimits =
        BodyLimits { bytes: 100_000, timeout: Duration::from_secs(3_600), rate_min: 1_024 };

    fn tenant(name: &str) -> Party {
        Party::Tenant(name.into())
    }

    async fn read_all(
        body: impl Into<Body>,
        limits: BodyLimits,
        budget: &BodyBudget,
        party: &str,
    ) -> Result<HeldBody, Problem> {
        read(body.into(), &HeaderMap::new(), limits, budget, &tenant(party)).await
    }

    /// A body that arrives as it is sent.
    fn slow_body() -> (mpsc::UnboundedSender<Bytes>, Body) {
        let (sender, receiver) = mpsc::unbounded_channel::<Bytes>();
        let chunks = futures_util::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|chunk| (chunk, receiver))
        });
        (sender, Body::from_stream(chunks.map(Ok::<_, std::io::Error>)))
    }

    #[tokio::test]
    async fn body_above_its_limit_is_rejected() {
        let budget = BodyBudget::new(1_000);
        let limits = BodyLimits { bytes: 10, ..LIMITS };
        let problem = read_all(vec![b'x'; 11], limits, &budget, "a").await.err();
        assert_eq!(problem, Some(Problem::PayloadTooLarge { limit: 10 }));
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("99999999999999"));
        let announced = read(Body::empty(), &headers, limits, &budget, &Party::Operator).await;
        assert_eq!(announced.err().map(|problem| problem.status()), Some(413));
        assert_eq!(read_all("0123456789", limits, &budget, "a").await.ok().unwrap().0, "0123456789");
    }

    #[tokio::test]
    async fn body_above_the_budget_is_rejected_until_others_end() {
        let budget = BodyBudget::new(50_000);
        let large = || vec![b'x'; 40_000];
        let first = read_all(large(), LIMITS, &budget, "a").await.ok().unwrap();
        let problem = read_all(large(), LIMITS, &budget, "a").await.err();
        assert_eq!(problem, Some(OVERLOADED));
        let small = read_all(vec![b'x'; SMALL_BODY_BYTES], LIMITS, &budget, "a").await;
        assert!(small.is_ok(), "a small body needs no room");
        drop(first);
        assert!(read_all(large(), LIMITS, &budget, "a").await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn unfinished_body_gives_way_to_another_party() {
        let budget = Arc::new(BodyBudget::new(50_000));
        let (sender, body) = slow_body();
        sender.send(vec![b'x'; 45_000].into()).unwrap();
        let held = tokio::spawn({
            let budget = budget.clone();
            async move { read_all(body, LIMITS, &budget, "evil").await.err() }
        });
        while budget.0.used() == 0 {
            tokio::task::yield_now().await;
        }
        let other = read_all(vec![b'x'; 30_000], LIMITS, &budget, "good").await;
        assert!(other.is_ok(), "the other party has no share");
        assert_eq!(held.await.unwrap(), Some(OVERLOADED));
        drop((other, sender));
        assert_eq!(budget.0.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_body_ends_after_its_grace() {
        let budget = BodyBudget::new(50_000);
        let (sender, body) = slow_body();
        sender.send(vec![b'x'; 40_000].into()).unwrap();
        let started = Instant::now();
        let problem = read_all(body, LIMITS, &budget, "a").await.err();
        assert_eq!(problem, Some(Problem::BodyTooSlow { rate: 1_024 }));
        assert_eq!(started.elapsed(), 2 * limits::BODY_RATE_WINDOW, "the first window had bytes");
        assert_eq!(budget.0.used(), 0);
        drop(sender);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_but_steady_body_arrives() {
        let budget = BodyBudget::new(50_000);
        let (sender, body) = slow_body();
        tokio::spawn(async move {
            for _ in 0..60 {
                tokio::time::sleep(Duration::from_millis(999)).await;
                drop(sender.send(vec![b'x'; 1_024].into()));
            }
        });
        assert_eq!(read_all(body, LIMITS, &budget, "a").await.ok().unwrap().0.len(), 60 * 1_024);
        let (sender, body) = slow_body();
        let limits = BodyLimits { rate_min: 0, timeout: Duration::from_secs(60), ..LIMITS };
        let problem = read_all(body, limits, &budget, "a").await.err();
        assert_eq!(problem, Some(Problem::RequestTimeout), "without a minimum rate");
        drop(sender);
    }

    #[tokio::test]
    async fn encoded_body_is_rejected() {
        for (encoding, rejected) in [("gzip", true), ("identity, br", true), ("Identity", false)] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
            let result = read(Body::from("{}"), &headers, LIMITS, &BodyBudget::new(10), &Party::NoKey).await;
            assert_eq!(result.err(), rejected.then_some(Problem::UnsupportedContentEncoding), "{encoding}");
        }
    }
}
