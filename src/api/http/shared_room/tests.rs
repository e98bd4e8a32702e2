//! Tests of the shared room: shares, evictions, and a random model.

use futures_util::FutureExt as _;

use super::*;
use crate::failpoints;

type Room = SharedRoom<u8>;
type Held = (RoomGuard<u8>, Arc<Notify>);

fn room(bytes: usize, own_give_way_after: Option<Duration>) -> Room {
    SharedRoom::new(RoomLimits { bytes, party_bytes: bytes, own_give_way_after })
}

fn enter(room: &Room, party: u8, bytes: usize) -> Result<Held, RoomFull> {
    let evict = Arc::new(Notify::new());
    let guard = room.enter(party, Arc::clone(&evict));
    room.take(&guard, bytes).map(|()| (guard, evict))
}

fn is_evicted(held: &Held) -> bool {
    held.1.notified().now_or_never().is_some()
}

#[tokio::test(start_paused = true)]
async fn one_party_may_use_all_room_until_another_needs_it() {
    let room = room(100, None);
    let mut first = Vec::new();
    for _ in 0..10 {
        first.push(enter(&room, 1, 10).unwrap());
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    assert!(enter(&room, 1, 10).is_err(), "the party's next holder was admitted");
    let other: Vec<_> = (0..5).map(|_| enter(&room, 2, 10).unwrap()).collect();
    let evicted: Vec<_> = first.iter().map(is_evicted).collect();
    assert_eq!(evicted, [true, true, true, true, true, false, false, false, false, false], "oldest first");
    assert!(enter(&room, 2, 10).is_err(), "the second party exceeds its half");
    let third = enter(&room, 3, 10);
    assert!(third.is_ok());
    assert_eq!(room.used(), 100);
    drop((first, other, third));
    assert_eq!(room.used(), 0);
    assert!(lock(&room.ledger).parties.is_empty());
}

#[tokio::test(start_paused = true)]
async fn stalled_holder_gives_way_first() {
    let room = room(100, None);
    let stalled = enter(&room, 1, 50).unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    let active = enter(&room, 1, 40).unwrap();
    room.take(&active.0, 10).unwrap();
    assert!(enter(&room, 2, 10).is_ok());
    assert!(is_evicted(&stalled) && !is_evicted(&active));
    assert!(room.take(&stalled.0, 1).is_err(), "an evicted holder takes more");
}

#[tokio::test(start_paused = true)]
async fn kept_holder_is_not_evicted() {
    let room = room(100, None);
    let complete = enter(&room, 1, 100).unwrap();
    room.keep(&complete.0);
    assert!(enter(&room, 2, 10).is_err() && !is_evicted(&complete));
    drop(complete);
    assert!(enter(&room, 2, 10).is_ok());
}

#[tokio::test(start_paused = true)]
async fn old_holder_gives_way_to_the_next_of_its_party() {
    let room = room(100, Some(Duration::from_secs(1)));
    let first = enter(&room, 1, 60).unwrap();
    assert!(enter(&room, 1, 60).is_err(), "the first is not slow yet");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(enter(&room, 1, 60).is_ok() && is_evicted(&first));
}

#[tokio::test(start_paused = true)]
async fn single_holder_may_exceed_the_room() {
    let room = room(100, Some(Duration::from_secs(1)));
    let large = enter(&room, 1, 1_000).unwrap();
    assert!(enter(&room, 2, 10).is_ok(), "another party is shut out");
    assert!(is_evicted(&large));
}

#[tokio::test(start_paused = true)]
async fn forced_bytes_are_counted() {
    let room = room(100, None);
    let (first, _) = enter(&room, 1, 100).unwrap();
    let next = room.enter(1, Arc::default());
    room.take_regardless(&next, 50);
    assert_eq!(room.used(), 150);
    drop((first, next));
    assert_eq!(room.used(), 0);
}

/// Random parties and sizes: the room is never exceeded, and a party below its share is admitted.
#[tokio::test(start_paused = true)]
async fn room_agrees_with_its_promises() {
    const BYTES: usize = 1_000;
    const PARTIES: u8 = 4;
    let seed = failpoints::seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let room = room(BYTES, None);
    let mut held: Vec<(u8, usize, Held)> = Vec::new();
    for _ in 0..5_000 {
        tokio::time::advance(Duration::from_millis(1)).await;
        if random.u8(0..3) == 0 && !held.is_empty() {
            drop(held.swap_remove(random.usize(0..held.len())));
        }
        let (party, bytes) = (random.u8(0..PARTIES), random.usize(1..50));
        let own: usize = held.iter().filter(|(of, ..)| *of == party).map(|(_, bytes, _)| bytes).sum();
        match enter(&room, party, bytes) {
            Ok(entered) => held.push((party, bytes, entered)),
            Err(RoomFull) => {
                let share = BYTES / usize::from(PARTIES);
                assert!(own + bytes > share, "seed {seed}: {own} and {bytes} of {share} were rejected");
            }
        }
        held.retain(|(.., entered)| !is_evicted(entered));
        let sum: usize = held.iter().map(|(_, bytes, _)| bytes).sum();
        assert_eq!(room.used(), sum, "seed {seed}");
        assert!(sum <= BYTES, "seed {seed}: {sum} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn holder_with_progress_does_not_give_way() {
    let room = room(100, Some(Duration::from_secs(1)));
    let (active, stalled) = (enter(&room, 1, 50).unwrap(), enter(&room, 1, 50).unwrap());
    tokio::time::advance(Duration::from_secs(1)).await;
    active.0.progress();
    let _next = enter(&room, 1, 50).unwrap();
    assert!(is_evicted(&stalled) && !is_evicted(&active));
    stalled.0.progress(); // without effect
    assert!(enter(&room, 1, 50).is_err(), "no holder is slow");
}

#[tokio::test(start_paused = true)]
async fn holder_that_waits_for_its_first_bytes_is_not_evicted() {
    let room = room(100, Some(Duration::from_secs(1)));
    let evict = Arc::<Notify>::default();
    let waiting: Held = (room.enter(1, evict.clone()), evict);
    tokio::time::advance(Duration::from_secs(5)).await;
    let _young = enter(&room, 1, 100).unwrap();
    assert!(enter(&room, 1, 50).is_err(), "no holder with bytes is slow");
    assert!(!is_evicted(&waiting));
}
