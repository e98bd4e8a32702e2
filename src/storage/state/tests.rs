//! Durability of checkpoints, and tags of rows.

use std::sync::Arc;

use super::row_store::memory::{MemoryRows, PowerState};
use super::*;
use crate::domain::Event;
use crate::failpoints::fails_with;

/// The position of the state after a power cut. `is_synced`: a last checkpoint waits until all are
/// durable.
fn applied_after_a_power_cut(checkpoints: u64, is_synced: bool) -> Position {
    let rows = MemoryRows::new(Arc::new(|| PowerState::On));
    let open = || State::with_rows(RowStore::Memory(rows.clone()), Position(checkpoints)).unwrap();
    let mut state = open();
    for position in (1..=checkpoints).map(Position) {
        let event = Record::EventAccepted(Arc::new(crate::rules::tests::event()));
        state.apply_step(position, &event, false, &mut Vec::new());
        state.begin_checkpoint(Timestamp::ZERO).unwrap();
    }
    if is_synced {
        state.checkpoint(Timestamp::ZERO).unwrap();
    }
    drop(state);
    rows.lose_unsynced();
    open().applied()
}

#[test]
fn power_cut_loses_at_most_the_checkpoint_that_is_not_durable() {
    assert_eq!(applied_after_a_power_cut(1, false), Position(0));
    assert_eq!(applied_after_a_power_cut(3, false), Position(2), "each waits for the one before");
    assert_eq!(applied_after_a_power_cut(3, true), Position(3), "nothing new, but it waits");
}

fn durable_checkpoint_is_kept() {
    let rows = MemoryRows::new(Arc::new(|| PowerState::On));
    let open = || State::with_rows(RowStore::Memory(rows.clone()), Position(1)).unwrap();
    let mut state = open();
    let event = Record::EventAccepted(Arc::new(crate::rules::tests::event()));
    state.apply(Position(1), &event, false, &mut Vec::new());
    state.checkpoint(Timestamp::ZERO).unwrap();
    drop(state);
    rows.lose_unsynced();
    assert_eq!(open().applied(), Position(1));
}

#[test]
fn power_cut_keeps_a_durable_checkpoint() {
    durable_checkpoint_is_kept();
    fails_with(Mutation::RemoveBeforeSync, durable_checkpoint_is_kept);
}

#[test]
fn each_row_tag_has_one_kind_of_rows() {
    let mut tags: Vec<_> = known_tags().collect();
    tags.sort_unstable();
    let all = tags.len();
    tags.dedup();
    assert_eq!(tags.len(), all, "{}", String::from_utf8_lossy(&tags));
}

#[test]
fn checkpoint_is_needed_after_a_megabyte_in_few_rows() {
    let rows = MemoryRows::new(Arc::new(|| PowerState::On));
    let mut state = State::with_rows(RowStore::Memory(rows), Position(u64::MAX)).unwrap();
    let event_type = ["a"; 128].join(".").parse().unwrap();
    let event = Record::EventAccepted(Arc::new(Event {
        event_type,
        targets: Vec::new(),
        ..crate::rules::tests::event()
    }));
    let mut bytes = 0;
    for position in 1.. {
        if state.needs_checkpoint() {
            break;
        }
        bytes = state.rows.changed_bytes();
        state.apply(Position(position), &event, false, &mut Vec::new());
    }
    assert!(state.rows.changed_rows() < limits::CHECKPOINT_ROWS_MAX, "{} rows", state.rows.changed_rows());
    assert!(bytes < limits::CHECKPOINT_BYTES_MAX, "{bytes} bytes");
    state.begin_checkpoint(Timestamp::ZERO).unwrap();
    assert!(!state.needs_checkpoint());
}
