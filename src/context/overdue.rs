//! Overdue deliveries behind others of their ordering key. Lanes see only the queue heads.

use crate::domain::{EndpointNumber, IdMap, Timestamp};
use crate::limits;
use crate::projections::pending::{DueBehind, OrderId};

/// Oldest overdue delivery behind the heads of ordering queues, per endpoint.
#[derive(Clone, Debug, Default)]
pub(crate) struct Behind {
    /// Endpoints with deliveries behind others, and the due time of their oldest overdue one.
    pub(crate) oldest_due: IdMap<EndpointNumber, Option<Timestamp>>,
    /// Start of the next scan, and the oldest due time found so far at that endpoint.
    next: (EndpointNumber, OrderId),
    so_far: Option<Timestamp>,
}

impl Behind {
    /// Scans up to [`limits::OVERDUE_ROWS_CHECKED_MAX`] rows, and continues there next time.
    /// Partial results only lower an oldest due time; a complete scan replaces it.
    pub(crate) fn scan(
        &mut self,
        waiting: &[EndpointNumber],
        due_behind: impl Fn(EndpointNumber, OrderId, usize) -> DueBehind,
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

    /// For each endpoint its queues: the oldest due time, and the number of rows to read for it.
    struct Queues(Vec<Vec<(u64, usize)>>);

    impl Queues {
        /// Scans once and returns the number of rows read.
        fn scan(&self, behind: &mut Behind) -> usize {
            let rows_read = RefCell::new(0);
            let all = 1..=u32::try_from(self.0.len()).unwrap();
            let waiting: Vec<_> = all.map(EndpointNumber).collect();
            behind.scan(&waiting, |endpoint, from, limit| {
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
                *rows_read.borrow_mut() += step.looked_at;
                step
            });
            rows_read.into_inner()
        }
    }

    fn oldest(behind: &Behind, endpoint: u32) -> Option<Timestamp> {
        behind.oldest_due.get(&EndpointNumber(endpoint)).copied().flatten()
    }

    #[test]
    fn complete_scan_replaces_all_results() {
        let mut queues = Queues(vec![vec![(9, 2), (7, 2)], vec![(8, 2)]]);
        let mut behind = Behind::default();
        for _ in 0..3 {
            assert_eq!(queues.scan(&mut behind), 6);
            assert_eq!((oldest(&behind, 1), oldest(&behind, 2)), (Some(at(7)), Some(at(8))));
        }
        queues.0[0].pop();
        queues.scan(&mut behind);
        assert_eq!(oldest(&behind, 1), Some(at(9)), "stale due time of a removed queue");
        queues.0.pop();
        queues.scan(&mut behind);
        assert!(!behind.oldest_due.contains_key(&EndpointNumber(2)), "endpoint without a queue");
    }

    #[test]
    fn partial_scans_take_turns_and_results_last_one_round() {
        // The first endpoint takes two and a half scans, the others a tenth each.
        let many: Vec<_> = (0..25).map(|number| (100 - number, MOST / 10)).collect();
        let mut queues = Queues(vec![many, vec![(3, MOST / 10)], vec![(2, MOST / 10)]]);
        let mut behind = Behind::default();
        assert_eq!(queues.scan(&mut behind), MOST);
        assert_eq!((oldest(&behind, 1), oldest(&behind, 2)), (Some(at(91)), None), "first partial scan");
        queues.scan(&mut behind);
        assert_eq!(oldest(&behind, 1), Some(at(81)));
        assert_eq!(queues.scan(&mut behind), 7 * MOST / 10, "the remaining rows, each once");
        assert_eq!([1, 2, 3].map(|number| oldest(&behind, number)), [76, 3, 2].map(|due| Some(at(due))));
        // After the oldest is sent, only a complete scan notices.
        queues.0[0][24].0 = 200;
        for _ in 0..2 {
            queues.scan(&mut behind);
            assert_eq!(oldest(&behind, 1), Some(at(76)));
        }
        queues.scan(&mut behind);
        assert_eq!(oldest(&behind, 1), Some(at(77)));
    }
}
