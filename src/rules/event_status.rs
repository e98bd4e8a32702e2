//! What an event's deliveries amount to: who has it, of those that it was meant for.
//!
//! A delivery that was cancelled is one that its endpoint did not get, like one that was given up. So an event of which all
//! are cancelled is `failed`: of the five words it is the one that is true, since no endpoint has it and none will get it.
//! Refused: to leave cancelled ones out. Then an event that nobody got would be `unmatched`, which says that nobody wanted
//! it, and one that half of its endpoints got would be `delivered`.

use crate::domain::{DeliveryState, EventStatus};

/// `pending` while any is pending; `unmatched` without any; `delivered` when all are; `failed` when none is; else
/// `partial`.
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
    fn the_status_sums_up_the_deliveries() {
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
