//! Queries about consumers.

use crate::domain::{Consumer, ConsumerKey, ConsumerPlace, Position, Tenant};
use crate::projections::consumers;
use crate::projections::lag::{self, Lag};
use crate::rules::feed::FeedFilter;
use crate::storage::state::State;

/// The part of [`ReadModel`](super::ReadModel) about consumers.
pub trait ConsumerReads {
    /// The consumer's place; `None` if it does not exist.
    fn consumer(&self, key: &ConsumerKey) -> Option<ConsumerPlace>;
    /// The consumer's events after a position; see [`lag::count`].
    fn lag(&self, consumer: &Consumer, after: Position, entries_max: usize) -> Lag;
}

impl ConsumerReads for State {
    fn consumer(&self, key: &ConsumerKey) -> Option<ConsumerPlace> {
        consumers::row(self.rows(), key).map(|row| row.place)
    }

    fn lag(&self, consumer: &Consumer, after: Position, entries_max: usize) -> Lag {
        let filter = FeedFilter::from(consumer);
        let mut sieve = filter.sieve();
        let of = (filter.tenant.as_ref().map(Tenant::as_str), filter.only_stream());
        lag::count(self.rows(), of, after, entries_max, &mut |event| {
            sieve.wants_named(event.tenant, event.event_type, event.stream)
        })
    }
}
