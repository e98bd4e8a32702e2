//! Streams and idempotency keys of the recent commits.
//!
//! The commit thread judges an append against the state at preparation and against all later
//! commits. This module holds the later commits. Its size is bounded: each evicted entry raises the
//! floor, and a request prepared below the floor must be prepared again. An append to streams that
//! are all here is prepared without the state.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::domain::{Position, StreamName, Tenant};
use crate::failpoints::{self, Bound, Mutation};
use crate::outbox::fan_out::FanOutPermit;
use crate::projections::idempotency::Known;

/// Maximum number of entries.
const ENTRIES_MAX: usize = 65_536;

/// Streams and idempotency keys of a request, read before it entered the queue.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    /// Position that the source of the answers had applied.
    pub as_of: Position,
    pub scopes: HashMap<[u8; 16], Known>,
    pub streams: HashMap<(Tenant, StreamName), u64>,
    /// The deliveries of the events, admitted.
    pub permit: Option<Arc<FanOutPermit>>,
}

#[derive(Debug)]
enum RecentName {
    Scope([u8; 16]),
    Stream(Tenant, StreamName),
}

#[derive(Debug, Default)]
pub(super) struct RecentKeys {
    scopes: HashMap<[u8; 16], Known>,
    streams: HashMap<(Tenant, StreamName), (u64, Position)>,
    order: VecDeque<(Position, RecentName)>,
    floor: Position,
}

impl RecentKeys {
    /// Starts empty, for a state that has applied everything up to `floor`.
    pub(super) fn new(floor: Position) -> Self {
        Self { floor, ..Self::default() }
    }

    /// Whether a request prepared at `as_of` can be judged.
    pub(super) fn covers(&self, as_of: Position) -> bool {
        as_of >= self.floor
    }

    /// Returns a scope that was committed after `as_of`. The state decides about earlier commits,
    /// because it may have deleted them.
    pub(super) fn scope(&self, scope: &[u8; 16], as_of: Position) -> Option<&Known> {
        let known = self.scopes.get(scope).filter(|known| known.position > as_of);
        known.filter(|_| !failpoints::is_active(Mutation::ForgetRecentKeys))
    }

    /// As [`Self::scope`].
    pub(super) fn stream(&self, name: &(Tenant, StreamName), as_of: Position) -> Option<u64> {
        self.streams.get(name).filter(|(_, position)| *position > as_of).map(|(version, _)| *version)
    }

    /// The versions of these streams; `None` unless all of them are here. Versions only ascend and
    /// no record deletes one, so the state has no later version.
    pub(super) fn prepare(&self, streams: &[(Tenant, StreamName)]) -> Option<Prepared> {
        // An entry may be older than the floor: a group's keys are evicted before its streams.
        let mut prepared = Prepared { as_of: self.floor, ..Prepared::default() };
        for name in streams {
            let (version, position) = self.streams.get(name)?;
            prepared.as_of = prepared.as_of.max(*position);
            prepared.streams.insert(name.clone(), *version);
        }
        if failpoints::is_active(Mutation::IgnoreLaterAppends) {
            prepared.as_of = Position(u64::MAX);
        }
        Some(prepared)
    }

    pub(super) fn put_scope(&mut self, scope: [u8; 16], known: Known) {
        self.order.push_back((known.position, RecentName::Scope(scope)));
        self.scopes.insert(scope, known);
        self.trim();
    }

    pub(super) fn put_stream(&mut self, name: (Tenant, StreamName), version: u64, position: Position) {
        self.order.push_back((position, RecentName::Stream(name.0.clone(), name.1.clone())));
        self.streams.insert(name, (version, position));
        self.trim();
    }

    fn trim(&mut self) {
        while self.order.len() > failpoints::bound(Bound::RecentEntries, ENTRIES_MAX) {
            let Some((position, name)) = self.order.pop_front() else { return };
            self.floor = self.floor.max(position);
            match name {
                RecentName::Scope(scope) => {
                    if self.scopes.get(&scope).is_some_and(|known| known.position == position) {
                        self.scopes.remove(&scope);
                    }
                }
                RecentName::Stream(tenant, stream) => {
                    let key = (tenant, stream);
                    if self.streams.get(&key).is_some_and(|(_, at)| *at == position) {
                        self.streams.remove(&key);
                    }
                }
            }
        }
    }
}
