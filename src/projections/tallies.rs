//! Counter cache of a group of records, which under load has dozens of records of one endpoint.
//!
//! Invariant: counters are read from the rows only after [`Tallies::write`].

use std::collections::HashMap;

use super::counters::{self, Lane};
use super::stats::{self, Hour};
use super::{Rows, stats::hour_of};
use crate::domain::{EndpointNumber, Timestamp};

/// Counters changed since the last write.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    lanes: HashMap<EndpointNumber, Lane>,
    hours: HashMap<(EndpointNumber, u64), Hour>,
}

impl Tallies {
    pub(super) fn lane(&mut self, rows: &dyn Rows, endpoint: EndpointNumber) -> &mut Lane {
        self.lanes.entry(endpoint).or_insert_with(|| counters::lane(rows, endpoint))
    }

    pub(super) fn hour(&mut self, rows: &dyn Rows, endpoint: EndpointNumber, at: Timestamp) -> &mut Hour {
        let hour = hour_of(at);
        self.hours.entry((endpoint, hour)).or_insert_with(|| stats::hour(rows, endpoint, hour))
    }

    pub(super) fn write(&mut self, rows: &mut dyn Rows) {
        for (endpoint, lane) in self.lanes.drain() {
            counters::put(rows, endpoint, &lane);
        }
        for ((endpoint, hour), counts) in self.hours.drain() {
            stats::put(rows, endpoint, hour, &counts);
        }
    }

    pub(super) fn are_written(&self) -> bool {
        self.lanes.is_empty() && self.hours.is_empty()
    }
}
