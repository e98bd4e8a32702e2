//! Eviction order at the limit, limits per address, and shares of parties.

use futures_util::FutureExt;

use super::*;
use crate::api::http::problem::Problem;

/// Evicts the first connection in order. Returns false without one.
fn evict_first(connections: &ConnectionLimit) -> bool {
    let chosen = connections.lock().idle.pop_first();
    connections.evict(chosen)
}

/// The response is ready, and hyper has taken it.
fn respond(slot: &ConnectionSlot, is_authenticated: bool) {
    slot.on_response_begun(is_authenticated, false);
    slot.on_response_taken();
}

#[tokio::test]
async fn longest_idle_connection_is_evicted_and_busy_ones_stay() {
    let connections = ConnectionLimit::new(3);
    let first = connections.take().await;
    let second = connections.take().await;
    let third = connections.take().await;
    assert!(first.begin(), "the first gets a request");
    let mut fourth = std::pin::pin!(connections.take());
    assert!(fourth.as_mut().now_or_never().is_none(), "there was a fourth slot");
    assert!(
        second.evicted().now_or_never().is_some(),
        "the second has been idle longest and was not evicted"
    );
    assert!(first.evicted().now_or_never().is_none() && third.evicted().now_or_never().is_none());
    assert!(!second.begin(), "a request after the eviction was accepted");
    assert!(fourth.as_mut().now_or_never().is_none(), "it took a slot that is not free");
    assert!(third.evicted().now_or_never().is_none(), "two were evicted for one");
    drop(second);
    assert!(fourth.now_or_never().is_some());
    assert_eq!((connections.taken(), connections.take_evicted(), connections.take_evicted()), (2, 1, 0));
}

#[tokio::test]
async fn authenticated_connection_is_evicted_last() {
    let connections = ConnectionLimit::new(2);
    let known = connections.take().await;
    assert!(known.begin());
    respond(&known, true);
    known.on_written();
    let silent = connections.take().await;
    assert!(connections.evict_unauthenticated());
    assert!(silent.evicted().now_or_never().is_some() && known.evicted().now_or_never().is_none());
    assert!(!connections.evict_unauthenticated(), "an authenticated connection was evicted");
    assert!(evict_first(&connections));
    assert!(known.evicted().now_or_never().is_some());
    drop(known);
    drop(silent);
    assert_eq!((connections.taken(), evict_first(&connections)), (0, false));
}

#[tokio::test]
async fn new_connection_waits_while_all_are_busy() {
    let connections = ConnectionLimit::new(1);
    let only = connections.take().await;
    assert!(only.begin());
    let mut next = std::pin::pin!(connections.take());
    assert!(next.as_mut().now_or_never().is_none());
    respond(&only, false);
    assert!(next.as_mut().now_or_never().is_none(), "the response is not written yet");
    only.on_written();
    assert!(!only.begin(), "its next request kept the new connection out");
    assert!(next.as_mut().now_or_never().is_none());
    assert!(only.evicted().now_or_never().is_some(), "it is idle again and was not evicted");
    drop(only);
    assert!(next.now_or_never().is_some());
}

#[tokio::test]
async fn slow_reader_without_a_key_is_idle() {
    let connections = ConnectionLimit::new(1);
    let slow = connections.take().await;
    assert!(slow.begin());
    respond(&slow, false);
    slow.on_stalled();
    slow.on_stalled();
    assert!(!slow.is_idle(), "its response is not written: a shutdown waits for it");
    let mut next = std::pin::pin!(connections.take());
    assert!(next.as_mut().now_or_never().is_none());
    assert!(slow.evicted().now_or_never().is_some(), "it keeps the slot");
    drop(slow);
    let next = next.now_or_never().expect("the slot is free");

    assert!(next.begin());
    respond(&next, false);
    next.on_stalled();
    next.on_written();
    assert!(next.is_idle(), "the response was read after all");
    assert!(next.begin() && !evict_first(&connections), "the next request protects it");
    next.on_stalled();
    respond(&next, true);
    assert!(!evict_first(&connections), "an authenticated connection was evicted");
    next.on_stalled();
    assert!(!evict_first(&connections), "a slow authenticated reader was evicted");
    next.on_written();
    assert!(evict_first(&connections));
    drop(next);
    assert_eq!((connections.taken(), evict_first(&connections)), (0, false), "a released connection is left");
}

#[tokio::test]
async fn written_interim_response_ends_the_stall() {
    let connections = ConnectionLimit::new(1);
    let only = connections.take().await;
    assert!(only.begin());
    only.on_stalled();
    only.on_written();
    assert!(!only.is_idle() && !evict_first(&connections), "its request is in progress");
}

#[tokio::test]
async fn pipelined_request_protects_its_connection() {
    let connections = ConnectionLimit::new(1);
    let only = connections.take().await;
    assert!(only.begin());
    respond(&only, false);
    assert!(only.begin(), "the second request arrives before the first response is written");
    only.on_written();
    assert!(!only.is_idle() && !evict_first(&connections));
}

const ATTACKER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

fn limited(connections: usize) -> Arc<ConnectionLimit> {
    let unlimited = vec!["10.0.0.0/8".parse().unwrap()];
    ConnectionLimit::with_address_limit(100, AddressLimit { connections, unlimited })
}

#[tokio::test]
async fn stalled_reader_is_evicted_before_older_idle_connections() {
    let connections = ConnectionLimit::new(2);
    let idle = connections.take().await;
    let slow = connections.take().await;
    assert!(slow.begin());
    respond(&slow, false);
    slow.on_stalled();
    let mut next = std::pin::pin!(connections.take());
    assert!(next.as_mut().now_or_never().is_none());
    assert!(slow.evicted().now_or_never().is_some() && idle.evicted().now_or_never().is_none());
    drop(slow);
    assert!(next.now_or_never().is_some());
}

#[tokio::test]
async fn address_at_its_limit_loses_its_own_idle_connection() {
    let connections = limited(2);
    let other = connections.take_for("192.0.2.2".parse().unwrap()).await.unwrap();
    let first = connections.take_for(ATTACKER).await.unwrap();
    let second = connections.take_for(ATTACKER).await.unwrap();
    assert!(first.begin());
    let third = connections.take_for(ATTACKER).await.unwrap();
    assert!(second.evicted().now_or_never().is_some() && first.evicted().now_or_never().is_none());
    assert!(other.evicted().now_or_never().is_none(), "another address pays");
    drop(second);
    assert!(third.begin());
    assert!(connections.take_for(ATTACKER).await.is_none(), "both are busy");
    drop((first, third));
    assert!(connections.take_for(ATTACKER).await.is_some());
    assert_eq!(connections.lock().addresses.len(), 1, "the other address alone is counted");
}

#[tokio::test]
async fn authenticated_and_exempt_connections_do_not_count() {
    let connections = limited(1);
    let known = connections.take_for(ATTACKER).await.unwrap();
    assert!(known.begin());
    respond(&known, true);
    known.on_written();
    let next = connections.take_for(ATTACKER).await.unwrap();
    assert!(known.evicted().now_or_never().is_none(), "a connection with a key gave way");
    drop((known, next));
    let proxy: IpAddr = "10.1.2.3".parse().unwrap();
    let first = connections.take_for(proxy).await.unwrap();
    assert!(first.begin() && connections.take_for(proxy).await.is_some());
    assert!(connections.lock().addresses.is_empty());
}

#[test]
fn ipv6_network_counts_as_one_address() {
    let limit = AddressLimit { connections: 1, unlimited: Vec::new() };
    let counted = |text: &str| limit.counted(text.parse().unwrap());
    assert_eq!(counted("2001:db8:0:1::1"), counted("2001:db8:0:1:ffff::2"));
    assert_ne!(counted("2001:db8:0:1::1"), counted("2001:db8:0:2::1"));
    assert_eq!(counted("::ffff:192.0.2.1"), Some(ATTACKER));
}

async fn seated(connections: &Arc<ConnectionLimit>, party: &Party) -> (Arc<ConnectionSlot>, RequestSeat) {
    let slot = Arc::new(connections.take().await);
    assert!(slot.begin());
    let seat = RequestSeat::new(&slot);
    seat.enter(party);
    (slot, seat)
}

fn tenant(name: &str) -> Party {
    Party::Tenant(name.into())
}

#[tokio::test(start_paused = true)]
async fn party_above_its_share_gives_way() {
    let connections = ConnectionLimit::new(4);
    let (evil, good) = (tenant("evil"), tenant("good"));
    let (quiet, _seat) = seated(&connections, &good).await;
    respond(&quiet, true);
    quiet.on_written();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(seated(&connections, &evil).await);
    }
    let mut waits: Vec<_> = held
        .iter()
        .map(|(_, seat)| Box::pin(seat.endable(&evil, std::future::pending::<Result<(), Problem>>())))
        .collect();
    assert!(waits.iter_mut().all(|wait| wait.as_mut().now_or_never().is_none()));
    let mut newcomer = std::pin::pin!(connections.take());
    assert!(newcomer.as_mut().now_or_never().is_none());
    let newest = waits.pop().unwrap().now_or_never();
    assert!(matches!(newest, Some(Err(Problem::Overloaded { .. }))), "the newest request was not ended");
    assert!(waits.iter_mut().all(|wait| wait.as_mut().now_or_never().is_none()), "two were ended for one");
    assert!(quiet.evicted().now_or_never().is_none(), "the connection of another party was closed");
    let (ended, _) = &held[2];
    respond(ended, true);
    ended.on_written();
    assert!(ended.evicted().now_or_never().is_some(), "it is idle and was not closed");
    drop(waits);
    held.pop();
    assert!(newcomer.now_or_never().is_some());
}

#[tokio::test]
async fn connection_is_busy_between_two_parts_of_a_response() {
    let connections = ConnectionLimit::new(1);
    let slot = connections.take().await;
    assert!(slot.begin());
    slot.on_response_begun(true, false);
    slot.on_written();
    assert!(!slot.is_idle() && !evict_first(&connections), "the rest of the response is lost");
    slot.on_response_taken();
    slot.on_written();
    assert!(slot.is_idle() && evict_first(&connections));
}

#[tokio::test(start_paused = true)]
async fn stream_of_the_party_above_its_share_ends() {
    let connections = ConnectionLimit::new(3);
    let evil = tenant("evil");
    let good = seated(&connections, &tenant("good")).await;
    let held = [seated(&connections, &evil).await, seated(&connections, &evil).await];
    let small = good.1.begin_stream(&tenant("good"));
    let [old, new] = [&held[0], &held[1]].map(|(slot, seat)| {
        slot.on_response_begun(true, true);
        seat.begin_stream(&evil)
    });
    assert!(new.ended().now_or_never().is_none(), "ended without a newcomer");
    let mut newcomer = std::pin::pin!(connections.take());
    assert!(newcomer.as_mut().now_or_never().is_none());
    assert!(new.ended().now_or_never().is_some(), "the newest stream goes on");
    assert!(old.ended().now_or_never().is_none(), "two were ended for one");
    assert!(small.ended().now_or_never().is_none(), "the stream of another party was ended");
    assert!(held[1].0.evicted().now_or_never().is_none(), "closed before the last block is written");
    held[1].0.on_response_taken();
    held[1].0.on_written();
    assert!(held[1].0.evicted().now_or_never().is_some(), "it is idle and was not closed");
    drop((old, new, small));
    let [first, second] = held;
    drop(second);
    assert!(newcomer.now_or_never().is_some());
    drop((first, good));
    assert!(connections.lock().parties.is_empty());
}

#[tokio::test(start_paused = true)]
async fn ended_request_of_a_stuck_client_is_closed() {
    let connections = ConnectionLimit::new(2);
    let evil = tenant("evil");
    let first = seated(&connections, &evil).await;
    let second = seated(&connections, &evil).await;
    let mut wait = Box::pin(second.1.endable(&evil, std::future::pending::<Result<(), Problem>>()));
    assert!(wait.as_mut().now_or_never().is_none());
    let connections_of_newcomer = Arc::clone(&connections);
    let newcomer = tokio::spawn(async move { connections_of_newcomer.take().await });
    assert!(wait.await.is_err());
    second.0.evicted().await;
    drop(second);
    drop(newcomer.await.unwrap());
    assert!(first.0.evicted().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn idle_connection_of_the_party_above_its_share_is_closed_first() {
    let connections = ConnectionLimit::new(3);
    let mut held = Vec::new();
    for party in ["good", "evil", "evil"] {
        let (slot, _) = seated(&connections, &tenant(party)).await;
        respond(&slot, true);
        slot.on_written();
        held.push(slot);
    }
    assert!(connections.take().now_or_never().is_none());
    let evicted: Vec<_> = held.iter().map(|slot| slot.evicted().now_or_never().is_some()).collect();
    assert_eq!(evicted, [false, true, false], "not the longest idle one of the larger party");
    drop(held);
    assert!(connections.lock().parties.is_empty());
}
