//! The status of an event, from the states of its deliveries.
//!
//! A cancelled delivery counts as a failed one, so an event whose deliveries are all cancelled is
//! `failed`: no endpoint has it or will get it. Ignoring cancelled deliveries would make that event
//! `unmatched`, and a partly delivered one `delivered`.

use crate::domain::{DeliveryState, EventStatus};

/// `pending` if any delivery is pending, `unmatched` if there is none, `delivered` if all are
/// delivered, `failed` if none is, otherwise `partial`.
pub fn event_status(states: impl Iterator<Item = DeliveryState>) -> EventStatus {
    let (mut all, mut delivered) = (0, 0);
    for state in states {
        match state {
            DeliveryState::Pending => return EventStatus::Pending,
            DeliveryState::Delivered => delivered += 1,
            DeliveryState::Dead(_) | DeliveryState::Cancelled | DeliveryState::Purged => {}
        }
        all += 1;
    }
    match (all, delivered) {
        (0, _) => EventStatus::Unmatched,
        (all, delivered) if all == delivered => EventStatus::Delivered,
        (_, 0) => EventStatus::Failed,
        _ => EventStatus::Partial,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::DeadReason;

    #[test]
    fn status_summarizes_the_deliveries() {
        use DeliveryState::{Cancelled, Delivered, Pending, Purged};
        let dead = DeliveryState::Dead(DeadReason::Gone);
        let cases: [(&[DeliveryState], &str); 12] = [
            (&[], "unmatched"),
            (&[Delivered, Pending], "pending"),
            (&[dead, Pending], "pending"),
            (&[Delivered, Delivered], "delivered"),
            (&[Delivered, dead], "partial"),
            (&[dead, Cancelled], "failed"),
            (&[dead, Delivered, Cancelled], "partial"),
            (&[Cancelled], "failed"),
            (&[Cancelled, Cancelled], "failed"),
            (&[Cancelled, Delivered], "partial"),
            (&[Cancelled, Pending], "pending"),
            (&[Purged, Delivered], "partial"),
        ];
        for (states, expected) in cases {
            assert_eq!(event_status(states.iter().copied()).as_str(), expected, "{states:?}");
        }
    }
}
