//! Words for rows and their differences, in reports.

use crate::domain::Position;
use crate::projections::rows::{endpoint_at, u64_at};
use crate::projections::{acts, dead};

/// Offset of the tenant in the key of an hour of a tenant, behind the tag and the hour.
pub(super) const HOUR_TENANT_AT: usize = 9;

pub(super) fn difference(row: &str, is_kept: bool, is_folded: bool) -> String {
    match (is_kept, is_folded) {
        (true, false) => format!("{row} is not in the journal"),
        (false, true) => format!("{row} is missing"),
        _ => format!("{row} differs from the journal"),
    }
}

/// Description of a row.
pub(super) fn describe(key: &[u8]) -> String {
    let event = |offset| Position(u64_at(key, offset));
    match key[0] {
        b'D' => format!(
            "the due entry of event {} in the lane of endpoint {} (due {})",
            event(13),
            endpoint_at(key, 1).0,
            u64_at(key, 5)
        ),
        b'W' => format!("the entry of event {} in a queue of endpoint {}", event(13), endpoint_at(key, 1).0),
        b'P' => format!("the history of event {} for endpoint {}", event(1), endpoint_at(key, 9).0),
        b'X' => format!("the dead letter of event {} for endpoint {}", event(9), endpoint_at(key, 17).0),
        b'x' | b'o' => {
            let by = if key[0] == b'x' { "endpoint" } else { "owner" };
            let Some((_, letter)) = dead::named(key) else {
                return format!("a malformed row of the index of dead letters by {by}");
            };
            let (event, endpoint) = (letter.event, letter.endpoint.0);
            format!("the dead letter of event {event} for endpoint {endpoint} in the index by {by}")
        }
        b'u' => acts::named(key).map_or_else(
            || "a malformed row of the index of audit entries by tenant".to_owned(),
            |position| format!("the audit entry {position} in the index by tenant"),
        ),
        b'F' => format!("the targets of event {}", event(1)),
        b'H' => format!("the pending erasure of event {}", event(1)),
        b'M' => format!("the states of event {} in part {}", event(1), endpoint_at(key, 9).0),
        b'S' => format!("the head of stream {}", String::from_utf8_lossy(&key[1..]).replace('\0', " ")),
        b'V' => {
            let name = String::from_utf8_lossy(&key[1..key.len().saturating_sub(9).max(1)]);
            format!("a block of positions of stream {}", name.replace('\0', " "))
        }
        b'T' => format!("the statistics of endpoint {} in hour {}", endpoint_at(key, 1).0, u64_at(key, 5)),
        b'B' => {
            let tenant = String::from_utf8_lossy(&key[HOUR_TENANT_AT..]);
            format!("the hours of tenant {tenant} in hour {}", u64_at(key, 1))
        }
        b'y' => format!("the usage of event type {}", String::from_utf8_lossy(&key[1..]).replace('\0', " ")),
        b't' => "a row of the index of pages by tenant".to_owned(),
        b'R' => format!("the reserved rate of endpoint {}", endpoint_at(key, 1).0),
        tag => format!("a row of kind {}", char::from(tag)),
    }
}
