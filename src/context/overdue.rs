//! The oldest overdue delivery behind others of its ordering key. Lanes see only the head of each ordering queue.

use std::collections::HashMap;

use crate::domain::{EndpointNumber, Timestamp};
use crate::limits;
use crate::projections::pending::{DueBehind, OrderHash};

/// What stands behind other deliveries of its order, which lanes do not know of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Behind {
    /// Endpoints at which something does, and the due time of the oldest that is due; at most one for each endpoint.
    pub(crate) oldest_due: HashMap<EndpointNumber, Option<Timestamp>>,
    /// Where the next look begins, and what was found before it of that endpoint.
    next: (EndpointNumber, OrderHash),
    so_far: Option<Timestamp>,
}

impl Behind {
    /// Looks at [`limits::OVERDUE_ROWS_CHECKED_MAX`] rows of the endpoints at which something waits, by number, and goes on from
    /// there the next time. What it finds of an endpoint counts at once, until all of the endpoint was looked at again.
    pub(crate) fn look(
        &mut self,
        waiting: &[EndpointNumber],
        due_behind: impl Fn(EndpointNumber, OrderHash, usize) -> DueBehind,
    ) {
        self.oldest_due.retain(|endpoint, _| waiting.binary_search(endpoint).is_ok());
        for endpoint in waiting {
            self.oldest_due.entry(*endpoint).or_default();
        }
        let mut left = limits::OVERDUE_ROWS_CHECKED_MAX;
        let (before, after) = waiting.split_at(waiting.partition_point(|endpoint| *endpoint < self.next.0));
        for endpoint in after.iter().chain(before) {
            if self.next.0 != *endpoint {
                (self.next, self.so_far) = ((*endpoint, 0), None);
            }
            if left == 0 {
                return;
            }
            let step = due_behind(*endpoint, self.next.1, left);
            left = left.saturating_sub(step.looked_at);
            self.so_far = earliest(self.so_far, step.oldest);
            let known = self.oldest_due.entry(*endpoint).or_default();
            if let Some(order) = step.next {
                *known = earliest(*known, self.so_far);
                self.next.1 = order;
                return;
            }
            *known = self.so_far.take();
            self.next = (EndpointNumber(endpoint.0.wrapping_add(1)), 0);
        }
    }
}

fn earliest(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const MOST: usize = limits::OVERDUE_ROWS_CHECKED_MAX;

    fn at(second: u64) -> Timestamp {
        Timestamp::from_millis(second * 1_000)
    }

    /// Endpoints with queues: of each queue the due time of what waits there, and how many rows it takes to find that.
    struct Queues(Vec<Vec<(u64, usize)>>);

    impl Queues {
        /// One look. Gives how many rows it took.
        fn look(&self, behind: &mut Behind) -> usize {
            let looked_at = RefCell::new(0);
            let all = 1..=u32::try_from(self.0.len()).unwrap();
            let waiting: Vec<_> = all.map(EndpointNumber).collect();
            behind.look(&waiting, |endpoint, from, limit| {
                let queues = &self.0[endpoint.0 as usize - 1];
                let mut step = DueBehind::default();
                for (order, (due, rows)) in queues.iter().enumerate().skip(usize::try_from(from).unwrap()) {
                    if step.looked_at >= limit {
                        step.next = Some(order as u64);
                        break;
                    }
                    step.looked_at += rows;
                    step.oldest = earliest(step.oldest, Some(at(*due)));
                }
                *looked_at.borrow_mut() += step.looked_at;
                step
            });
            looked_at.into_inner()
        }
    }

    fn oldest(behind: &Behind, endpoint: u32) -> Option<Timestamp> {
        behind.oldest_due.get(&EndpointNumber(endpoint)).copied().flatten()
    }

    #[test]
    fn what_fits_into_one_look_is_known_after_each() {
        let mut queues = Queues(vec![vec![(9, 2), (7, 2)], vec![(8, 2)]]);
        let mut behind = Behind::default();
        for _ in 0..3 {
            assert_eq!(queues.look(&mut behind), 6);
            assert_eq!((oldest(&behind, 1), oldest(&behind, 2)), (Some(at(7)), Some(at(8))));
        }
        queues.0[0].pop();
        queues.look(&mut behind);
        assert_eq!(oldest(&behind, 1), Some(at(9)), "what has gone is forgotten");
        queues.0.pop();
        queues.look(&mut behind);
        assert!(!behind.oldest_due.contains_key(&EndpointNumber(2)), "nothing waits there any more");
    }

    #[test]
    fn what_does_not_is_looked_at_in_turns_and_counts_until_its_next_turn() {
        // The first endpoint takes two looks and a half, the others a tenth each.
        let many: Vec<_> = (0..25).map(|number| (100 - number, MOST / 10)).collect();
        let mut queues = Queues(vec![many, vec![(3, MOST / 10)], vec![(2, MOST / 10)]]);
        let mut behind = Behind::default();
        assert_eq!(queues.look(&mut behind), MOST);
        assert_eq!((oldest(&behind, 1), oldest(&behind, 2)), (Some(at(91)), None), "as far as it came");
        queues.look(&mut behind);
        assert_eq!(oldest(&behind, 1), Some(at(81)));
        assert_eq!(queues.look(&mut behind), 7 * MOST / 10, "the rest, and each once");
        assert_eq!([1, 2, 3].map(|number| oldest(&behind, number)), [76, 3, 2].map(|due| Some(at(due))));
        // The oldest is sent: that is seen after the next turn through all of them.
        queues.0[0][24].0 = 200;
        for _ in 0..2 {
            queues.look(&mut behind);
            assert_eq!(oldest(&behind, 1), Some(at(76)));
        }
        queues.look(&mut behind);
        assert_eq!(oldest(&behind, 1), Some(at(77)));
    }
}
