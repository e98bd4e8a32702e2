//! Messages on their way to workers, from the decision of a lane until its record is applied.

use std::collections::HashMap;

use crate::domain::{EndpointNumber, TakenMessage};
use crate::lanes::queue::WaiterNumber;

/// The receive of each message on its way. A message can be on its way twice, from two places: the
/// record that ended its lease may be applied after a take from this lease was decided. The second
/// take then has effect, and the first one has none.
#[derive(Debug, Default)]
pub(super) struct Takes(HashMap<(EndpointNumber, TakenMessage), WaiterNumber>);

impl Takes {
    pub(super) fn begin(&mut self, queue: EndpointNumber, messages: &[TakenMessage], waiter: WaiterNumber) {
        self.0.extend(messages.iter().map(|taken| ((queue, *taken), waiter)));
    }

    /// The receive that the message was for.
    pub(super) fn end(&mut self, queue: EndpointNumber, taken: TakenMessage) -> Option<WaiterNumber> {
        self.0.remove(&(queue, taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Position, TakenFrom, Timestamp};

    const QUEUE: EndpointNumber = EndpointNumber(3);

    /// Each take ends for the receive that made it. Otherwise the first receive would never end,
    /// and the second one would get nothing for its lease.
    #[test]
    fn message_taken_from_two_places_ends_both_receives() {
        let (lapsed, due) = (TakenFrom::Lease(Position(52)), TakenFrom::Due(Timestamp::from_millis(44_151)));
        let [first, second] = [lapsed, due].map(|from| TakenMessage { event: Position(45), from });
        let mut takes = Takes::default();
        takes.begin(QUEUE, &[first], WaiterNumber(1));
        takes.begin(QUEUE, &[second], WaiterNumber(2));
        assert_eq!(takes.end(EndpointNumber(4), first), None);
        assert_eq!(takes.end(QUEUE, first), Some(WaiterNumber(1)));
        assert_eq!(takes.end(QUEUE, second), Some(WaiterNumber(2)));
        assert_eq!(takes.end(QUEUE, second), None);
    }
}
