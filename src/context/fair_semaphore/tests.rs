//! Tests of the fair semaphore: order of turns, cancelled requests, and a random model.

use std::collections::VecDeque;

use futures_util::FutureExt as _;

use super::*;
use crate::failpoints;

type Semaphore = FairSemaphore<u8>;

/// Requests turns for the parties, in order.
fn requests(semaphore: &Semaphore, parties: &[u8]) -> Vec<(u8, oneshot::Receiver<FairTurn<u8>>)> {
    parties.iter().map(|party| (*party, semaphore.request(party))).collect()
}

/// Gives back each turn as soon as it is handed out. Returns the parties in that order.
fn order(mut waiting: Vec<(u8, oneshot::Receiver<FairTurn<u8>>)>) -> Vec<u8> {
    let mut order = Vec::new();
    while !waiting.is_empty() {
        let ready = waiting.iter_mut().position(|(party, turn)| match turn.try_recv() {
            Ok(turn) => {
                order.push(*party);
                drop(turn);
                true
            }
            Err(_) => false,
        });
        let Some(ready) = ready else { panic!("no turn for {} requests", waiting.len()) };
        drop(waiting.remove(ready));
    }
    order
}

#[tokio::test]
async fn single_turn_alternates_between_parties() {
    let semaphore = Semaphore::new(1);
    let held = semaphore.turn(&9).await;
    let waiting = requests(&semaphore, &[1, 1, 1, 1, 2, 2, 3]);
    drop(held);
    assert_eq!(order(waiting), [1, 2, 3, 1, 2, 1, 1]);
}

/// Each party asks again when its turn ends, as a client does that waits for each response.
#[tokio::test]
async fn parties_with_one_request_each_get_equal_turns() {
    for turns in [1_usize, 3] {
        let semaphore = Semaphore::new(turns);
        let mut waiting = requests(&semaphore, &[5, 4, 3, 2, 1, 0]);
        let mut held = VecDeque::new();
        let mut counts = [0_usize; 6];
        for _ in 0..600 {
            for (party, request) in &mut waiting {
                held.extend(request.try_recv().ok().map(|turn| (*party, turn)));
            }
            let (party, turn) = held.pop_front().expect("a turn is free");
            counts[usize::from(party)] += 1;
            drop(turn);
            let own = waiting.iter_mut().find(|(other, _)| *other == party);
            own.expect("each party waits").1 = semaphore.request(&party);
        }
        let (least, most) = (counts.iter().min(), counts.iter().max());
        assert!(most.zip(least).is_some_and(|(most, least)| most - least <= turns), "{counts:?}");
    }
}

#[tokio::test]
async fn one_party_leaves_turns_for_others() {
    let semaphore = Semaphore::new(8);
    let mut first: Vec<_> = requests(&semaphore, &[1; 20]);
    let got: Vec<_> = first.iter_mut().filter_map(|(_, turn)| turn.try_recv().ok()).collect();
    assert_eq!(got.len(), 6, "three quarters of eight turns");
    let other = semaphore.turn(&2).now_or_never();
    assert!(other.is_some(), "another party waits although turns are free");
}

#[tokio::test]
async fn waiting_party_with_fewest_turns_is_next() {
    let semaphore = Semaphore::new(4);
    let mut held: Vec<_> = Vec::new();
    for party in [1, 1, 1, 2] {
        held.push(semaphore.turn(&party).await);
    }
    let mut waiting = requests(&semaphore, &[1, 1, 2, 3]);
    held.remove(0);
    assert!(waiting[3].1.try_recv().is_ok_and(|turn| turn.party == Some(3)));
    assert!(waiting[0].1.try_recv().is_err() && waiting[2].1.try_recv().is_ok());
}

#[tokio::test]
async fn cancelled_request_loses_no_turn() {
    let semaphore = Semaphore::new(1);
    let held = semaphore.turn(&1).await;
    let abandoned = semaphore.request(&1);
    let unread = semaphore.request(&2);
    let last = semaphore.request(&3);
    drop(abandoned);
    drop(held);
    // The turn was sent to a request that is dropped before it reads it.
    drop(unread);
    assert!(last.now_or_never().is_some_and(|turn| turn.is_ok()));
    assert_eq!(lock(&semaphore.0).free, 1);
    assert!(lock(&semaphore.0).parties.is_empty());
}

#[tokio::test]
async fn cancelled_requests_do_not_pile_up() {
    let semaphore = Semaphore::new(1);
    let _held = semaphore.turn(&1).await;
    (0..10_000).for_each(|_| drop(semaphore.request(&2)));
    let waiting = lock(&semaphore.0).parties[&2].waiting.len();
    assert!(waiting <= CANCELLED_SOUGHT_EVERY, "{waiting} cancelled requests are kept");
}

/// Random requests, cancellations and returns: turns are never lost or doubled, no party exceeds
/// its share, and a free turn is not withheld.
#[test]
fn semaphore_agrees_with_its_promises() {
    let seed = failpoints::seed();
    let mut random = fastrand::Rng::with_seed(seed);
    for turns in [1_usize, 2, 5, 32] {
        let semaphore = Semaphore::new(turns);
        let mut waiting = Vec::new();
        let mut held: Vec<FairTurn<u8>> = Vec::new();
        for _ in 0..2_000 {
            match random.u8(0..4) {
                0 | 1 => waiting.push(semaphore.request(&random.u8(0..5))),
                2 if !held.is_empty() => drop(held.swap_remove(random.usize(0..held.len()))),
                3 if !waiting.is_empty() => drop(waiting.swap_remove(random.usize(0..waiting.len()))),
                _ => {}
            }
            waiting.retain_mut(|turn| turn.try_recv().map(|turn| held.push(turn)).is_err());
            let state = lock(&semaphore.0);
            assert_eq!(state.free + held.len(), turns, "seed {seed}");
            let of = |party: u8| held.iter().filter(|turn| turn.party == Some(party)).count();
            assert!((0..5).all(|party| of(party) <= turns - turns / 4), "seed {seed}");
            for (party, own) in &state.parties {
                let waits = state.order.contains(&(own.held, own.place, *party));
                assert_eq!(waits, !own.waiting.is_empty(), "seed {seed}: {party} and the line differ");
            }
            let starved = state.next_party().filter(|_| state.free > 0);
            assert_eq!(starved, None, "seed {seed}: a turn is free");
        }
    }
}
