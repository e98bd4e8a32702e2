//! Rows of the state.

use super::consume;
use super::files::{SAMPLE, delivery};
use balto::domain::{EndpointNumber, Position, Timestamp};
use balto::projections::reads::Filter;
use balto::projections::states::{StatePlace, state_of};
use balto::projections::{Rows, counters, idempotency, pages, pending, reads, retention, stats, streams};

pub(super) fn row_seeds() -> Vec<Vec<u8>> {
    vec![vec![], vec![0, 0, 0, 255], (0..=255).collect(), vec![7; 40]]
}

/// Rows whose values are changed, truncated or extended: row, offset, operation and value, four
/// bytes each.
pub(super) fn rows(bytes: &[u8]) {
    let mut rows = SAMPLE.rows.clone();
    let keys: Vec<_> = rows.keys().cloned().collect();
    for edit in bytes.chunks_exact(4) {
        let key = &keys[usize::from(u16::from_le_bytes([edit[0], edit[1] & 3])) % keys.len()];
        let value = rows.get_mut(key).expect("the key is from the rows");
        let place = usize::from(edit[2]) % (value.len() + 1);
        match edit[1] >> 6 {
            0 if place < value.len() => value[place] = edit[3],
            1 => value.truncate(place),
            2 => value.insert(place, edit[3]),
            _ => value.extend([edit[2], edit[3]]),
        }
    }
    read_everything(&rows);
    let mut again = rows.clone();
    let cutoffs = retention::Cutoffs { events: Some(Timestamp::MAX), stream_events: Some(Timestamp::MAX) };
    let horizon = retention::horizon(&again, cutoffs, 0, 100);
    let expiry = retention::Expiry { cutoffs, horizon };
    retention::forget(&mut again, (&mut pages::Blocks::default(), 1), expiry, 0, 100);
    idempotency::forget_expired(&mut again, Timestamp::MAX);
}

fn read_everything(rows: &dyn Rows) {
    let filter = Filter::default();
    let status =
        |states: &mut dyn Iterator<Item = _>| balto::rules::event_status::event_status(states).as_str();
    for event in (0..40).step_by(7).map(Position) {
        consume((reads::delivery(rows, delivery(event.0)), reads::deliveries_of(rows, event)));
        consume((reads::dead_letter(rows, delivery(event.0)), reads::has_event(rows, event)));
        consume(pending::detail(rows, delivery(event.0)));
        for place in [StatePlace::Page, StatePlace::Part(0), StatePlace::Part(1 << 31)] {
            consume(state_of(rows, delivery(event.0), place));
        }
    }
    consume((reads::events(rows, &filter, None, 100, status), reads::deliveries(rows, &filter, None, 100)));
    consume((reads::dead_letters(rows, &filter, None, 100), counters::all(rows)));
    for endpoint in (0..4).map(EndpointNumber) {
        let hours = stats::window(rows, endpoint, Timestamp::ZERO, Timestamp::MAX);
        consume((hours.percentile(0.5), reads::oldest_pending(rows, endpoint)));
        consume(pending::refill(rows, endpoint, None, 100));
        consume(pending::endpoint_deliveries(rows, endpoint, 100));
    }
    for scope in [[0; 16], [7; 16]] {
        consume(idempotency::known(rows, &scope));
    }
    let (tenant, stream) = ("acme".parse().expect("a tenant"), "order-42".parse().expect("a stream"));
    consume(streams::head(rows, &tenant, &stream));
}
