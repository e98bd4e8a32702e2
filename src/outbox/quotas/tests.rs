//! Tests of the writer's quota checks: what is committed and not yet applied counts.

use std::sync::{Arc, RwLock};

use tokio::sync::oneshot;

use super::*;
use crate::domain::{
    Idempotency, QuotaOverride, QuotaOverrides, Quotas, TenantDelivery, TenantSettings, Timestamp,
};
use crate::failpoints::{TestOverrides, fails_with};
use crate::outbox::decide::{CommitEnvironment, CommittedGroup, Committer};
use crate::outbox::draft::EventDraft;
use crate::outbox::recent_keys::Prepared;
use crate::outbox::unit::{Command, Outcome, Unit};
use crate::projections::usage::Usage;
use crate::rules::tests as examples;
use crate::storage::disk::MemoryDisk;
use crate::storage::journal::{Journal, JournalOptions};

struct Clock;

impl CommitEnvironment for Clock {
    fn now(&mut self) -> Timestamp {
        Timestamp::from_millis(3_000_000_000_000)
    }

    fn random(&mut self) -> u128 {
        7
    }
}

/// A writer whose tenants have two endpoints each, and the board that an apply thread would write.
struct Writer {
    committer: Committer,
    board: Arc<UsageBoard>,
}

impl Writer {
    fn new(defaults: Quotas) -> Self {
        let (journal, _) = Journal::open(Arc::new(MemoryDisk::new()), JournalOptions::new(1)).unwrap();
        let mut registry = Registry::default();
        registry.set_default_quotas(defaults);
        for (number, tenant) in [(1, "acme"), (2, "acme"), (3, "other"), (4, Tenant::OPERATOR)] {
            registry.apply(&Record::EndpointPut(Arc::new(examples::endpoint(number, tenant, &[]))));
        }
        let board = Arc::new(UsageBoard::default());
        let registry = Arc::new(RwLock::new(registry));
        Self { committer: Committer::new(journal, registry, board.clone(), Box::new(Clock)), board }
    }

    /// Commits one unit. Returns its outcomes, and the last position.
    fn commit(&mut self, commands: Vec<Command>) -> (Vec<Outcome>, Option<Arc<CommittedGroup>>) {
        let (reply, _answer) = oneshot::channel();
        let unit = Unit { commands, prepared: Prepared::default(), reply: Some(reply) };
        let mut result = self.committer.commit(vec![unit]);
        (result.replies.pop().unwrap().1.unwrap(), result.committed)
    }

    fn publish(&mut self, tenant: &str) -> Outcome {
        self.commit(vec![event(tenant)]).0.pop().unwrap()
    }

    fn applied(&self, position: u64, tenant: &str, pending: u64) {
        let usage = Usage { pending, bytes: 100 * pending, ..Usage::default() };
        self.board.update(Position(position), [(tenant.parse().unwrap(), usage)]);
    }
}

fn event(tenant: &str) -> Command {
    let (tenant, event_type) = (tenant.parse().unwrap(), "order.paid".parse().unwrap());
    Command::Publish(Box::new(EventDraft::new(tenant, event_type, "{}".into())))
}

fn refused(outcome: &Outcome) -> Option<(Quota, u64, u64)> {
    match outcome {
        Outcome::QuotaExceeded(exceeded) => Some((exceeded.quota, exceeded.limit, exceeded.value)),
        _ => None,
    }
}

fn pending_quota(limit: u64) -> Quotas {
    Quotas::default().with(Quota::PendingDeliveries, Some(limit))
}

fn settings(tenant: &str, quota: Quota, limit: QuotaOverride, revision: u64) -> Command {
    let mut quotas = QuotaOverrides::default();
    quotas.set(quota, limit);
    Command::PutTenant(Box::new(TenantSettings {
        tenant: tenant.parse().unwrap(),
        name: "".into(),
        metadata: None,
        quotas,
        delivery: TenantDelivery::default(),
        created_at: Timestamp::ZERO,
        updated_at: Timestamp::ZERO,
        revision: Position(revision),
    }))
}

fn lagging_state_admits_no_event_too_many() {
    let mut writer = Writer::new(pending_quota(5));
    // Within one unit, and across commits that the state has not applied.
    let (outcomes, _) = writer.commit(vec![event("acme"), event("acme"), event("acme")]);
    let full = Some((Quota::PendingDeliveries, 5, 6));
    assert_eq!(outcomes.iter().map(refused).collect::<Vec<_>>(), [None, None, full]);
    assert_eq!(refused(&writer.publish("acme")), full);
    assert_eq!(refused(&writer.publish("other")), None);
    // The state has applied both events: they count once.
    writer.applied(2, "acme", 4);
    assert_eq!(refused(&writer.publish("acme")), full);
    writer.applied(3, "acme", 3);
    assert_eq!(refused(&writer.publish("acme")), None);
    assert_eq!(refused(&writer.publish("acme")), Some((Quota::PendingDeliveries, 5, 7)));
    writer.applied(9, "acme", 0);
    assert!(writer.committer.unapplied_load_is_empty("acme"));
}

#[test]
fn pending_quota_counts_unapplied_commits() {
    lagging_state_admits_no_event_too_many();
}

#[test]
fn counting_only_applied_deliveries_is_caught() {
    fails_with(Mutation::CountAppliedOnly, lagging_state_admits_no_event_too_many);
    TestOverrides::default().activate();
}

#[test]
fn reserved_tenant_has_no_quota() {
    let mut writer = Writer::new(pending_quota(0).with(Quota::StoredBytes, Some(0)));
    assert_eq!(refused(&writer.publish(Tenant::OPERATOR)), None);
    assert!(refused(&writer.publish("acme")).is_some());
}

#[test]
fn event_without_targets_needs_no_pending_quota() {
    let mut writer = Writer::new(pending_quota(0));
    assert_eq!(refused(&writer.publish("unmatched")), None);
    assert_eq!(refused(&writer.publish("other")), Some((Quota::PendingDeliveries, 0, 1)));
}

#[test]
fn own_quota_replaces_the_default() {
    let mut writer = Writer::new(Quotas::default().with(Quota::StoredBytes, Some(0)));
    assert_eq!(refused(&writer.publish("acme")).map(|(quota, ..)| quota), Some(Quota::StoredBytes));
    writer.commit(vec![settings("acme", Quota::StoredBytes, QuotaOverride::Off, 0)]);
    assert_eq!(refused(&writer.publish("acme")), None);
    let stale = writer.commit(vec![settings("acme", Quota::StoredBytes, QuotaOverride::Limit(0), 0)]);
    assert!(matches!(stale.0[..], [Outcome::Conflict]), "{:?}", stale.0);
    writer.commit(vec![settings("acme", Quota::StoredBytes, QuotaOverride::Limit(0), 1)]);
    assert!(refused(&writer.publish("acme")).is_some());
}

#[test]
fn refused_replay_commits_nothing() {
    let mut writer = Writer::new(pending_quota(3));
    writer.applied(0, "acme", 1);
    let revive = |count: u64, trigger| {
        let key = |event| DeliveryKey { event: Position(event), endpoint: EndpointNumber(1) };
        let deliveries = (1..=count).map(key).collect();
        Command::Record(Record::DeliveriesRevived { deliveries, trigger, at: Timestamp::ZERO })
    };
    let answered = Command::Record(Record::RequestAnswered {
        idempotency: Idempotency { scope: [1; 16], fingerprint: [1; 16], expires_at: None },
        status: 202,
        body: Arc::from(&b"{}"[..]),
    });
    let full = Some((Quota::PendingDeliveries, 3, 5));
    let unit = vec![revive(2, Trigger::Replay), revive(2, Trigger::Redrive), answered.clone()];
    let (outcomes, committed) = writer.commit(unit);
    assert_eq!(outcomes.iter().map(refused).collect::<Vec<_>>(), [full; 3]);
    assert!(committed.is_none(), "part of the refused unit was committed");
    // A manual retry may be of a pending delivery.
    let (outcomes, _) = writer.commit(vec![revive(4, Trigger::Manual)]);
    assert_eq!(refused(&outcomes[0]), None);
    let (outcomes, _) = writer.commit(vec![revive(1, Trigger::Replay), answered]);
    assert_eq!(outcomes.iter().map(refused).collect::<Vec<_>>(), [Some((Quota::PendingDeliveries, 3, 6)); 2]);
}

#[test]
fn tenant_with_endpoints_is_not_deleted() {
    let mut writer = Writer::new(Quotas::default());
    let delete =
        |tenant: &str| Command::DeleteTenant { tenant: tenant.parse().unwrap(), at: Timestamp::ZERO };
    let (outcomes, committed) = writer.commit(vec![delete("acme")]);
    assert!(matches!(outcomes[..], [Outcome::Conflict]) && committed.is_none(), "{outcomes:?}");
    let endpoint = |number| Command::DeleteEndpoint { endpoint: EndpointNumber(number), at: Timestamp::ZERO };
    writer.commit(vec![endpoint(1), endpoint(2)]);
    let (outcomes, _) = writer.commit(vec![delete("acme")]);
    assert!(matches!(outcomes[..], [Outcome::Written(_)]), "{outcomes:?}");
}
