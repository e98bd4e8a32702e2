//! The disk reserve: free space that new events must leave.
//!
//! Publishers can fill a disk. Below the reserve the commit thread rejects what stores something
//! new, so that outcomes of attempts, deletions, pauses and purges still fit. The commit thread
//! reads the free space before each group with new data: one system call, about a microsecond.
//!
//! Changes of endpoints, jobs and moves of consumers fit too, but a tenant could repeat them until
//! the reserve is full. So each tenant has a part of the reserve for them, and all tenants together
//! have half of it, until space is free again. The operator's changes have no limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::unit::{Refusal, Unit, UnitAnswer, UnitReply};
use crate::domain::{IdMap, Tenant};
use crate::limits;
use crate::storage::disk::Disk;

/// The reserve of the journal's disk; cheap to clone.
#[derive(Clone)]
pub(super) struct DiskReserve {
    disk: Arc<dyn Disk>,
    bytes: Arc<AtomicU64>,
}

/// Free bytes that leave no room for events beside the reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskShortage {
    pub free: u64,
    pub reserve: u64,
}

/// Bytes of the reserve that tenants' changes have used since less than the reserve was free.
#[derive(Default)]
pub(super) struct ReserveUse {
    all: u64,
    tenants: IdMap<Tenant, u64>,
}

impl ReserveUse {
    /// Returns false if the tenant's part, or that of all tenants, has no room for the bytes.
    fn take(&mut self, tenant: &Tenant, bytes: u64, reserve: u64) -> bool {
        let own = self.tenants.get(tenant).copied().unwrap_or(0);
        let fits = own + bytes <= reserve / limits::DISK_RESERVE_TENANT_SHARE
            && self.all + bytes <= reserve / limits::DISK_RESERVE_TENANTS_SHARE;
        if fits {
            self.all += bytes;
            self.tenants.insert(tenant.clone(), own + bytes);
        }
        fits
    }
}

impl DiskReserve {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, bytes: Arc::new(AtomicU64::new(limits::DISK_RESERVE_DEFAULT)) }
    }

    pub(super) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of the reserve in force, and free bytes. `None` if the disk does not tell.
    fn reserve_and_free(&self) -> Option<(u64, u64)> {
        let space = self.disk.space()?;
        let reserve = self.bytes.load(Ordering::Relaxed).min(space.total / limits::DISK_RESERVE_SHARE);
        Some((reserve, space.free))
    }

    /// `None`: an event of any size fits beside the reserve, or the disk does not tell.
    pub(super) fn shortage(&self) -> Option<DiskShortage> {
        let (reserve, free) = self.reserve_and_free()?;
        let is_short = reserve > 0 && free < reserve + limits::EVENT_BYTES_MAX as u64;
        is_short.then_some(DiskShortage { free, reserve })
    }

    /// The shortage that ends only when there is room for two full batches, or for twice the
    /// reserve of a small disk. It keeps the log from repeating itself.
    pub(super) fn lasting_shortage(&self) -> Option<DiskShortage> {
        let (reserve, free) = self.reserve_and_free()?;
        let margin = reserve.min(2 * limits::BATCH_BYTES_MAX as u64);
        (free < reserve + margin).then_some(DiskShortage { free, reserve })
    }

    /// Takes the units out of a group that would use the reserve, or more of it than their tenant
    /// may. Returns the answers for them.
    pub(super) fn reject_excess(
        &self,
        used: &mut ReserveUse,
        group: &mut Vec<Unit>,
    ) -> Vec<(UnitReply, UnitAnswer)> {
        if !group.iter().any(|unit| unit.is_growth() || unit.reserve_user().is_some()) {
            return Vec::new();
        }
        let Some((reserve, free)) = self.reserve_and_free() else { return Vec::new() };
        let mut room = free.saturating_sub(reserve);
        if room > 0 {
            *used = ReserveUse::default();
        }
        let mut rejected = Vec::new();
        for unit in std::mem::take(group) {
            let bytes = unit.weight().1 as u64;
            let mut fits_reserve = || match unit.reserve_user() {
                Some(tenant) if reserve > 0 => used.take(tenant, unit.journal_bytes(), reserve),
                _ => true,
            };
            if bytes < room || (!unit.is_growth() && fits_reserve()) {
                room = room.saturating_sub(bytes);
                group.push(unit);
            } else if let Some(reply) = unit.reply {
                rejected.push((reply, Err(Refusal::DiskFull)));
            }
        }
        rejected
    }
}

impl super::Outbox {
    /// Sets the free space that new events leave, in bytes; 0: none.
    pub fn set_disk_reserve(&self, bytes: u64) {
        self.inner.reserve.set_bytes(bytes);
    }

    /// Whether less than the disk reserve is free, so that new events are rejected.
    #[must_use]
    pub fn disk_shortage(&self) -> Option<DiskShortage> {
        self.inner.reserve.shortage()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::domain::{
        ActOutcome, Actor, AuditEntry, ConsumerKey, ConsumerMove, MoveKind, Position, Record, Role, Timestamp,
    };
    use crate::outbox::draft::EventDraft;
    use crate::outbox::recent_keys::Prepared;
    use crate::outbox::unit::Command;
    use crate::rules::tests::endpoint;
    use crate::storage::disk::{DiskSpace, MemoryDisk};

    const KIB: u64 = 1_024;

    fn reserve(total: u64, free: u64) -> DiskReserve {
        let disk = MemoryDisk::new();
        disk.set_space(DiskSpace { total, free });
        DiskReserve::new(Arc::new(disk))
    }

    fn unit(command: Command) -> Unit {
        let (reply, _answer) = oneshot::channel();
        Unit { commands: vec![command], prepared: Prepared::default(), reply: Some(reply) }
    }

    fn event(bytes: usize) -> Unit {
        let data = vec![b'x'; bytes].into();
        let draft = EventDraft::new("acme".parse().unwrap(), "a".parse().unwrap(), data);
        unit(Command::Publish(Box::new(draft)))
    }

    fn key_deletion() -> Unit {
        let id = "key_01AAAAAAAAAAAAAAAAAAAAAAAA".parse().unwrap();
        unit(Command::Record(Record::KeyDeleted { id, at: Timestamp::default() }))
    }

    #[test]
    fn only_growth_that_needs_the_reserve_is_rejected() {
        let reserve = reserve(1 << 40, limits::DISK_RESERVE_DEFAULT + 100 * KIB);
        let mut group = vec![event(60_000), key_deletion(), event(60_000), event(10)];
        let rejected = reserve.reject_excess(&mut ReserveUse::default(), &mut group);
        assert_eq!((group.len(), rejected.len()), (3, 1), "the small event still fits");
        assert!(matches!(rejected[0].1, Err(Refusal::DiskFull)));
        let free = limits::DISK_RESERVE_DEFAULT + 100 * KIB;
        let expected = DiskShortage { free, reserve: limits::DISK_RESERVE_DEFAULT };
        assert_eq!(reserve.shortage(), Some(expected), "no room for every event");
    }

    #[test]
    fn deletions_pass_on_a_full_disk() {
        let reserve = reserve(1 << 40, 0);
        let mut group = vec![event(1), key_deletion()];
        assert_eq!(reserve.reject_excess(&mut ReserveUse::default(), &mut group).len(), 1);
        assert_eq!(group.len(), 1);
        let expected = DiskShortage { free: 0, reserve: limits::DISK_RESERVE_DEFAULT };
        assert_eq!(reserve.shortage(), Some(expected));
    }

    /// The audit entry of an act with a key of this tenant, or with the operator's.
    fn act_of(actor: Option<&str>) -> Command {
        Command::Audit(Arc::new(AuditEntry {
            at: Timestamp::default(),
            actor: Actor { key: None, role: Role::Admin, tenant: actor.map(|name| name.parse().unwrap()) },
            action: "pauseEndpoint".into(),
            target: None,
            tenant: Some("acme".parse().unwrap()),
            address: None,
            outcome: ActOutcome::Done,
        }))
    }

    /// A pause of an endpoint with patterns of a kilobyte, with a key of this tenant.
    fn pause_by(actor: Option<&str>) -> Unit {
        let patterns: Vec<_> = (0..8).map(|number| format!("{number}{}", "x".repeat(127))).collect();
        let mut unit = unit(Command::PutEndpoint(Box::new(endpoint(1, "acme", &patterns))));
        unit.commands.push(act_of(actor));
        unit
    }

    #[test]
    fn progress_counts_for_the_tenant_and_a_reset_for_its_actor() {
        let key = ConsumerKey { tenant: Some("acme".parse().unwrap()), name: "search".parse().unwrap() };
        let at = Timestamp::default();
        let wanted = ConsumerMove { key, to: Position(7), kind: MoveKind::Commit, at };
        let mut progress = unit(Command::MoveConsumer(Box::new(wanted)));
        assert_eq!(progress.reserve_user().map(Tenant::as_str), Some("acme"));
        progress.commands.push(act_of(None));
        assert_eq!(progress.reserve_user(), None, "the operator's reset");
        assert_eq!(pause_by(Some("acme")).reserve_user().map(Tenant::as_str), Some("acme"));
        assert_eq!(key_deletion().reserve_user(), None);
        let own = unit(Command::PutEndpoint(Box::new(endpoint(1, "acme", &[]))));
        assert_eq!(own.reserve_user(), None, "a change of the daemon");
    }

    #[test]
    fn changes_of_one_tenant_leave_the_reserve_to_others() {
        const RESERVE: u64 = 4 << 20;
        let disk = MemoryDisk::new();
        let space = |free| disk.set_space(DiskSpace { total: 1 << 40, free });
        space(RESERVE - 1);
        let reserve = DiskReserve::new(Arc::new(disk.clone()));
        reserve.set_bytes(RESERVE);
        let mut used = ReserveUse::default();
        let mut accepted = |actor: Option<&str>, count: usize| {
            let mut group: Vec<_> = (0..count).map(|_| pause_by(actor)).collect();
            let rejected = reserve.reject_excess(&mut used, &mut group);
            assert_eq!(group.len() + rejected.len(), count);
            group.len()
        };
        let most = accepted(Some("acme"), 1_000);
        assert!((50..120).contains(&most), "{most} changes of a kilobyte in an eighth of a megabyte");
        assert_eq!(accepted(Some("acme"), 1), 0);
        assert_eq!(accepted(None, 1_000), 1_000, "the operator");
        let others: usize = (0..32).map(|tenant| accepted(Some(&format!("t{tenant}")), 1_000)).sum();
        assert!((14 * most..=16 * most).contains(&others), "half of the reserve: {others}");
        space(RESERVE + 1);
        assert_eq!(accepted(Some("acme"), 1), 1, "space is free again");
    }

    #[test]
    fn small_disk_has_a_small_reserve_and_zero_turns_it_off() {
        let reserve = reserve(16 << 20, 4 << 20);
        assert_eq!(reserve.shortage(), None, "an eighth is 2 MiB");
        reserve.set_bytes(0);
        let mut group = vec![event(1_000)];
        assert!(reserve.reject_excess(&mut ReserveUse::default(), &mut group).is_empty());
    }

    #[test]
    fn disk_of_unknown_size_has_no_reserve() {
        let reserve = DiskReserve::new(Arc::new(MemoryDisk::new()));
        let mut group = vec![event(1_000)];
        assert!(
            reserve.reject_excess(&mut ReserveUse::default(), &mut group).is_empty()
                && reserve.shortage().is_none()
        );
    }
}
