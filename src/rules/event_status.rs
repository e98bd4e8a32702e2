//! What an event's deliveries amount to.

use crate::domain::DeliveryState;

/// `pending` while any is pending; `unmatched` without any; `delivered` when all are; `failed` when none is; else
/// `partial`.
pub fn event_status(states: impl Iterator<Item = DeliveryState>) -> &'static str {
    let (mut all, mut delivered) = (0, 0);
    for state in states {
        match state {
            DeliveryState::Pending => return "pending",
            DeliveryState::Delivered => delivered += 1,
            DeliveryState::Dead(_) | DeliveryState::Cancelled | DeliveryState::Purged => {}
        }
        all += 1;
    }
    match (all, delivered) {
        (0, _) => "unmatched",
        (all, delivered) if all == delivered => "delivered",
        (_, 0) => "failed",
        _ => "partial",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::DeadReason;

    #[test]
    fn the_status_sums_up_the_deliveries() {
        use DeliveryState::{Cancelled, Delivered, Pending};
        let dead = DeliveryState::Dead(DeadReason::Gone);
        let cases: [(&[DeliveryState], &str); 7] = [
            (&[], "unmatched"),
            (&[Delivered, Pending], "pending"),
            (&[dead, Pending], "pending"),
            (&[Delivered, Delivered], "delivered"),
            (&[Delivered, dead], "partial"),
            (&[dead, Cancelled], "failed"),
            (&[Cancelled], "failed"),
        ];
        for (states, expected) in cases {
            assert_eq!(event_status(states.iter().copied()), expected, "{states:?}");
        }
    }
}
