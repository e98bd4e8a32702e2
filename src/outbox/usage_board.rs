//! Usage of tenants as the state has applied it, for the quota checks of the writer.
//!
//! The apply thread writes it after each group, and the commit thread reads it. Counts and position
//! change together, so the writer can add what it committed after that position. Records that the
//! state has applied early count twice until then: slightly too much, never too little.

use std::sync::{Mutex, MutexGuard};

use crate::domain::{IdMap, Position, Tenant};
use crate::projections::usage::Usage;

/// Pending deliveries and stored bytes of a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) pending: u64,
    pub(crate) bytes: u64,
}

impl Load {
    pub(crate) fn add(&mut self, more: Self) {
        self.pending += more.pending;
        self.bytes += more.bytes;
    }

    pub(crate) fn subtract(&mut self, less: Self) {
        self.pending = self.pending.saturating_sub(less.pending);
        self.bytes = self.bytes.saturating_sub(less.bytes);
    }
}

/// One entry for each tenant that has pending deliveries or stored events.
#[derive(Debug, Default)]
pub(crate) struct UsageBoard(Mutex<Board>);

#[derive(Debug, Default)]
struct Board {
    applied: Position,
    loads: IdMap<Tenant, Load>,
}

impl Board {
    fn update(&mut self, applied: Position, changed: impl IntoIterator<Item = (Tenant, Usage)>) {
        self.applied = applied;
        for (tenant, usage) in changed {
            let load = Load { pending: usage.pending, bytes: usage.bytes };
            if load == Load::default() {
                self.loads.remove(&tenant);
            } else {
                self.loads.insert(tenant, load);
            }
        }
    }
}

impl UsageBoard {
    fn lock(&self) -> MutexGuard<'_, Board> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// Records the usage that changed up to a position.
    pub(crate) fn update(&self, applied: Position, changed: impl IntoIterator<Item = (Tenant, Usage)>) {
        self.lock().update(applied, changed);
    }

    /// Replaces the usage of all tenants.
    pub(crate) fn replace(&self, applied: Position, all: impl IntoIterator<Item = (Tenant, Usage)>) {
        let mut board = self.lock();
        board.loads.clear();
        board.update(applied, all);
    }

    /// The tenant's load, and the position that it reflects.
    pub(crate) fn load(&self, tenant: &Tenant) -> (Position, Load) {
        let board = self.lock();
        (board.applied, board.loads.get(tenant).copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenant_without_load_leaves_the_board() {
        let board = UsageBoard::default();
        let acme: Tenant = "acme".parse().unwrap();
        let usage = Usage { pending: 3, bytes: 70, ..Usage::default() };
        board.update(Position(5), [(acme.clone(), usage)]);
        assert_eq!(board.load(&acme), (Position(5), Load { pending: 3, bytes: 70 }));
        board.update(Position(9), [(acme.clone(), Usage { keys: 1, ..Usage::default() })]);
        assert_eq!(board.load(&acme), (Position(9), Load::default()));
        assert!(board.lock().loads.is_empty());
        board.update(Position(10), [(acme.clone(), usage)]);
        board.replace(Position(11), []);
        assert_eq!(board.load(&acme), (Position(11), Load::default()));
    }
}
