//! Tenants: settings, quotas, usage, deletion.

use std::sync::Arc;
use std::time::Duration;

use crate::context::Context;
use crate::context::home::Home;
use crate::context::records::UNEXPECTED_OUTCOME;
use crate::domain::{JobKind, JobSelection, Quotas, Record, Tenant, TenantSettings, Timestamp};
use crate::limits;
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::outbox::read_model::ReadModel;
use crate::outbox::registry::{KnownJob, Used};
use crate::outbox::unit::{Command, Outcome};
use crate::projections::stats::{HOUR_MILLIS, hour_of};
use crate::projections::tenant_hours::TenantHour;
use crate::projections::usage::Usage;
use crate::service::jobs::{Jobs, NewJob};
use crate::service::pages::cut;

/// How long a request for a deletion waits for its end.
const DELETION_WAIT_MAX: Duration = Duration::from_secs(2);

/// A tenant with its limits and usage.
#[derive(Clone, Debug)]
pub struct TenantView {
    pub tenant: Tenant,
    /// `None`: the tenant exists by use only.
    pub settings: Option<Arc<TenantSettings>>,
    /// The limits in effect.
    pub quotas: Quotas,
    /// Usage of its endpoints and keys.
    pub used: Used,
    /// Usage of its deliveries and events.
    pub usage: Usage,
    /// Events and attempts of the last hour, estimated.
    pub last_hour: TenantHour,
}

impl TenantView {
    fn exists(&self) -> bool {
        self.settings.is_some() || self.usage != Usage::default() || self.used != Used::default()
    }
}

/// Resources that a deletion covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantDeletion {
    pub endpoints: u64,
    pub keys: u64,
    pub consumers: u64,
    pub sources: u64,
    /// Deliveries that were pending. They become dead letters in the background.
    pub pending_deliveries: u64,
}

/// The counts of the current hour, and of the hour before the part that the last 60 minutes
/// overlap.
fn last_hour(state: &dyn ReadModel, tenant: &Tenant, now: Timestamp) -> TenantHour {
    let mut sum = TenantHour::default();
    for (hour, counts) in state.tenant_hours(Some(tenant), now.minus(Duration::from_millis(HOUR_MILLIS)), now)
    {
        let is_current = hour == hour_of(now);
        let passed = now.millis() % HOUR_MILLIS;
        sum.add(&if is_current { counts } else { counts.part(HOUR_MILLIS - passed, HOUR_MILLIS) });
    }
    sum
}

/// Operations on tenants.
#[derive(Clone, Copy)]
pub struct Tenants<'a>(pub &'a Context);

impl Tenants<'_> {
    fn view(self, tenant: Tenant, usage: Usage, last_hour: TenantHour) -> TenantView {
        self.0.outbox_of(&tenant).registry(|registry| TenantView {
            settings: registry.tenant(&tenant).cloned(),
            quotas: registry.quotas(&tenant),
            used: registry.used(&tenant),
            usage,
            last_hour,
            tenant,
        })
    }

    /// The settings of a tenant.
    #[must_use]
    pub fn settings(self, tenant: &Tenant) -> Option<Arc<TenantSettings>> {
        self.0.outbox_of(tenant).registry(|registry| registry.tenant(tenant).cloned())
    }

    /// The tenant; `None` if nothing names it.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn get(self, tenant: &Tenant) -> Result<Option<TenantView>, Unavailable> {
        let (name, now) = (tenant.clone(), self.0.now().wall);
        let read = move |state: &dyn ReadModel| (state.usage(&name), last_hour(state, &name, now));
        let (usage, last_hour) = self.0.outbox_of(tenant).read(read).await?;
        Ok(Some(self.view(tenant.clone(), usage, last_hour)).filter(TenantView::exists))
    }

    /// Tenants after a name, by name, and whether there are more.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn list(
        self,
        after: Option<Tenant>,
        limit: usize,
    ) -> Result<(Vec<TenantView>, bool), Unavailable> {
        let name = after.clone();
        let used =
            self.0.outbox_of(Home::All).read(move |state| state.tenants(name.as_ref(), limit + 1)).await?;
        let settings: Vec<_> = self.0.outbox_of(Home::All).registry(|registry| {
            let tenants = registry.tenants_after(after.as_ref());
            tenants.take(limit + 1).map(|settings| settings.tenant.clone()).collect()
        });
        let mut all: Vec<(Tenant, Usage)> = used;
        for tenant in settings {
            if let Err(place) = all.binary_search_by(|(other, _)| other.cmp(&tenant)) {
                all.insert(place, (tenant, Usage::default()));
            }
        }
        let more = cut(&mut all, limit);
        let now = self.0.now().wall;
        let read = move |state: &dyn ReadModel| {
            let of = |(tenant, usage)| {
                let last_hour = last_hour(state, &tenant, now);
                (tenant, usage, last_hour)
            };
            all.into_iter().map(of).collect::<Vec<_>>()
        };
        let all = self.0.outbox_of(Home::All).read(read).await?.into_iter();
        Ok((all.map(|(tenant, usage, last_hour)| self.view(tenant, usage, last_hour)).collect(), more))
    }

    /// Creates or replaces settings.
    ///
    /// # Errors
    /// [`ChangeError::Conflict`] when the current revision is not `settings.revision`.
    pub async fn put(self, mut settings: TenantSettings) -> Result<Arc<TenantSettings>, ChangeError> {
        let is_new = settings.revision.0 == 0;
        let is_full = || {
            self.0
                .outbox_of(&settings.tenant)
                .registry(|registry| registry.tenants().len() >= limits::TENANT_SETTINGS_MAX)
        };
        if is_new && is_full() {
            return Err(ChangeError::NotAllowed("100,000 tenants have settings; delete one first"));
        }
        settings.updated_at = self.0.now().wall;
        let commands = vec![Command::PutTenant(Box::new(settings))];
        match self.0.commit(commands, None).await?.into_iter().next() {
            Some(Outcome::Tenant(settings)) => Ok(settings),
            _ => unreachable!("{UNEXPECTED_OUTCOME}"),
        }
    }

    /// Deletes the keys, sources, consumers, endpoints and settings of a tenant, as a job. A
    /// background task turns its pending deliveries into dead letters. Events stay until retention
    /// removes them. Waits for a short time, so that small work has ended.
    ///
    /// # Errors
    /// When the tenant is unknown, too many jobs run, or the first commit failed.
    pub async fn delete(self, tenant: &Tenant) -> Result<(TenantDeletion, KnownJob), ChangeError> {
        let (deletion, new) = self.deletion(tenant).await?;
        let job = Jobs(self.0).start(&new, None).await?;
        Ok((deletion, Jobs(self.0).wait(job, DELETION_WAIT_MAX).await))
    }

    /// Resources that a deletion of a tenant covers, and its job.
    ///
    /// # Errors
    /// When the tenant is unknown, or the outbox is unavailable.
    pub async fn deletion(self, tenant: &Tenant) -> Result<(TenantDeletion, NewJob), ChangeError> {
        let found = self.get(tenant).await?;
        let sources =
            self.0.outbox_of(tenant).registry(|registry| registry.sources_of(tenant).count()) as u64;
        if found.is_none() && sources == 0 {
            return Err(ChangeError::NotFound);
        }
        let (used, usage) = found.map(|found| (found.used, found.usage)).unwrap_or_default();
        let deletion = TenantDeletion {
            endpoints: used.endpoints,
            keys: used.keys,
            consumers: used.consumers,
            sources,
            pending_deliveries: usage.pending,
        };
        let (kind, selection) = (JobKind::DeleteTenant, JobSelection::default());
        Ok((deletion, NewJob { kind, tenant: Some(tenant.clone()), selection, rate: None }))
    }

    /// Number of keys, sources, consumers and endpoints of a tenant.
    pub(crate) fn resources(self, tenant: &Tenant) -> u64 {
        self.0.outbox_of(tenant).registry(|registry| {
            let used = registry.used(tenant);
            used.endpoints + used.keys + used.consumers + registry.sources_of(tenant).count() as u64
        })
    }

    /// The next keys, sources, consumers and endpoints to delete. Publishers are first.
    pub(crate) fn deletion_step(self, tenant: &Tenant) -> Vec<Command> {
        let at = self.0.now().wall;
        self.0.outbox_of(tenant).registry(|registry| {
            let keys = registry.keys().filter(|key| key.tenant.as_ref() == Some(tenant));
            let keys = keys.map(|key| Command::Record(Record::KeyDeleted { id: key.id.clone(), at }));
            let sources = registry.sources_of(tenant);
            let sources = sources.map(|source| Command::DeleteSource { name: source.name.clone(), at });
            let endpoints = registry.endpoints_of(Some(tenant));
            let endpoints =
                endpoints.map(|endpoint| Command::DeleteEndpoint { endpoint: endpoint.number, at });
            let consumers = registry.consumers().of_tenant(tenant);
            let consumers =
                consumers.map(|known| Command::DeleteConsumer { key: known.consumer.key.clone(), at });
            keys.chain(sources).chain(consumers).chain(endpoints).take(limits::TENANT_DELETION_STEP).collect()
        })
    }
}
