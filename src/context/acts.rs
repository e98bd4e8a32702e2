//! Acts of operators: the audit entry of an act is in the commit of its first change.
//!
//! A request for an act uses a [`Context`] that carries the act. The first commit through it that
//! changes something has the entry. A request that changes nothing leaves none.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::context::Context;
use crate::context::home::Home;
use crate::domain::{ActOutcome, Actor, AuditEntry, DeliveryKey, EndpointNumber, KeyId, Record, Tenant};
use crate::outbox::draft::Unavailable;
use crate::outbox::registry::Registry;
use crate::outbox::unit::{Command, Outcome};

/// An act, from the request for it.
#[derive(Debug)]
pub struct Act {
    pub actor: Actor,
    /// The operation, as the OpenAPI document names it.
    pub action: &'static str,
    /// Id or name of the resource in the path.
    pub target: Option<Box<str>>,
    pub address: Option<IpAddr>,
    is_recorded: AtomicBool,
}

impl Act {
    #[must_use]
    pub fn new(
        actor: Actor,
        action: &'static str,
        target: Option<Box<str>>,
        address: Option<IpAddr>,
    ) -> Self {
        Self { actor, action, target, address, is_recorded: AtomicBool::new(false) }
    }
}

/// The resource that commands change, and its tenant.
#[derive(Debug, Default, PartialEq, Eq)]
struct Subject {
    target: Option<Box<str>>,
    tenant: Option<Tenant>,
}

impl Context {
    /// The same handle, for the commits of an act.
    #[must_use]
    pub fn acting(&self, act: Act) -> Self {
        Self { act: Some(Arc::new(act)), ..self.clone() }
    }

    /// The caller; `None` outside of an act.
    pub(crate) fn actor(&self) -> Option<Actor> {
        self.act.as_ref().map(|act| act.actor.clone())
    }

    /// The entry of the act, if no commit has it yet.
    fn missing_entry(&self, commands: &[Command]) -> Option<AuditEntry> {
        let act = self.act.as_deref().filter(|act| !act.is_recorded.load(Ordering::Relaxed))?;
        let subject = self
            .outbox_of(Home::All)
            .registry(|registry| commands.iter().find_map(|command| subject(command, registry)));
        let Subject { target, tenant } = subject.unwrap_or_default();
        Some(AuditEntry {
            at: self.now().wall,
            actor: act.actor.clone(),
            action: act.action.into(),
            target: act.target.clone().or(target),
            tenant: tenant.or_else(|| act.actor.tenant.clone()),
            address: act.address,
            outcome: ActOutcome::Done,
        })
    }

    /// Commits commands, with the entry of the act if it is missing.
    pub(super) async fn commit_act(&self, mut commands: Vec<Command>) -> Result<Vec<Outcome>, Unavailable> {
        let entry = if commands.is_empty() { None } else { self.missing_entry(&commands) };
        let has_entry = entry.is_some();
        commands.extend(entry.map(|entry| Command::Audit(Arc::new(entry))));
        let mut outcomes = self.outbox_of(Home::All).commit(commands).await?;
        let of_entry = if has_entry { outcomes.pop() } else { None };
        if matches!(of_entry, Some(Outcome::Written(_))) {
            self.note_recorded();
        }
        Ok(outcomes)
    }

    fn note_recorded(&self) {
        if let Some(act) = &self.act {
            act.is_recorded.store(true, Ordering::Relaxed);
        }
    }

    /// Commits the entry of an act that is not a commit. It precedes the act.
    pub(crate) async fn record_act(&self, tenant: Option<Tenant>) -> Result<(), Unavailable> {
        let Some(entry) = self.missing_entry(&[]) else { return Ok(()) };
        let tenant = tenant.or_else(|| entry.tenant.clone());
        let entry = AuditEntry { outcome: ActOutcome::Accepted, tenant, ..entry };
        let command = Command::Record(Record::Audited(Arc::new(entry)));
        self.outbox_of(Home::All).commit(vec![command]).await?;
        self.note_recorded();
        Ok(())
    }

    /// Whether this commit must have the entry of an act.
    pub(super) fn is_act(&self) -> bool {
        self.act.is_some()
    }
}

/// The resource that a command changes; `None` if it names none.
fn subject(command: &Command, registry: &Registry) -> Option<Subject> {
    let of_endpoint = |number: EndpointNumber| {
        let target = registry.id_of(number).map(|id| id.as_str().into());
        Subject { target, tenant: registry.tenant_of(number).cloned() }
    };
    let named =
        |name: &str, tenant: Option<&Tenant>| Subject { target: Some(name.into()), tenant: tenant.cloned() };
    Some(match command {
        Command::PutEndpoint(endpoint) => {
            let queue = endpoint.queue().map(|target| target.name.as_str());
            named(queue.unwrap_or(endpoint.id.as_str()), Some(&endpoint.tenant))
        }
        Command::DeleteEndpoint { endpoint, .. } => of_endpoint(*endpoint),
        Command::PutTenant(settings) => named(settings.tenant.as_str(), Some(&settings.tenant)),
        Command::DeleteTenant { tenant, .. } => named(tenant.as_str(), Some(tenant)),
        Command::PutType(definition) => named(definition.name.as_str(), None),
        Command::DeleteType { name, .. } => named(name.as_str(), None),
        Command::PutSource(source) => named(source.name.as_str(), None),
        Command::DeleteSource { name, .. } => named(name.as_str(), None),
        Command::PutConsumer(consumer) => named(consumer.key.name.as_str(), consumer.key.tenant.as_ref()),
        Command::MoveConsumer(wanted) => named(wanted.key.name.as_str(), wanted.key.tenant.as_ref()),
        Command::DeleteConsumer { key, .. } => named(key.name.as_str(), key.tenant.as_ref()),
        Command::PutJob(job) => named(job.id.as_str(), job.tenant.as_ref()),
        Command::MoveJob { job, .. } => {
            let known = registry.jobs().by_number(*job)?;
            named(known.job.id.as_str(), known.job.tenant.as_ref())
        }
        Command::Publish(draft) => Subject { target: None, tenant: Some(draft.tenant.clone()) },
        Command::Record(record) => subject_of_record(record, registry)?,
        Command::Atomic(_)
        | Command::Check { .. }
        | Command::Audit(_)
        | Command::Claim(_)
        | Command::SealSegment => return None,
    })
}

fn subject_of_record(record: &Record, registry: &Registry) -> Option<Subject> {
    let of_key = |id: &KeyId, tenant: Option<&Tenant>| Subject {
        target: Some(id.as_str().into()),
        tenant: tenant.cloned(),
    };
    let of_deliveries = |deliveries: &[DeliveryKey]| {
        let tenant = registry.tenant_of(deliveries.first()?.endpoint).cloned();
        Some(Subject { target: None, tenant })
    };
    match record {
        Record::KeyPut(key) => Some(of_key(&key.id, key.tenant.as_ref())),
        Record::KeyDeleted { id, .. } => {
            Some(of_key(id, registry.key(id).and_then(|key| key.tenant.as_ref())))
        }
        Record::EventErased { tenant, .. } => Some(Subject { target: None, tenant: Some(tenant.clone()) }),
        Record::DeliveriesRevived { deliveries, .. }
        | Record::DeliveriesCancelled { deliveries, .. }
        | Record::DeadLettersPurged { deliveries, .. } => of_deliveries(deliveries),
        _ => None,
    }
}
