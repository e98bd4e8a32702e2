//! Projections: the state and the consumers, with how far each has come.

use std::time::Duration;

use crate::context::Context;
use crate::context::home::Home;
use crate::context::rebuilds::RebuildStatus;
use crate::domain::{ConsumerKey, Position, Tenant, Timestamp};
use crate::outbox::Health;
use crate::outbox::draft::Unavailable;
use crate::projections::fold::Totals;
use crate::service::pages::cut;
use crate::storage::journal::JournalReader;

/// The state.
#[derive(Clone, Debug)]
pub struct StateProgress {
    pub position: Position,
    /// Records that it has not applied, and the age of the first of them.
    pub lag: ProjectionLag,
    pub totals: Totals,
    pub endpoints: u64,
    pub keys: u64,
    pub tenants: u64,
    pub consumers: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// The rebuild that runs, or the last one since the start of the process.
    pub rebuild: Option<RebuildStatus>,
}

/// The part of the log that a projection has not processed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProjectionLag {
    pub records: u64,
    /// Age of the first of them.
    pub age: Duration,
}

/// A consumer, as a projection of the user's application.
#[derive(Clone, Debug)]
pub struct ConsumerProgress {
    pub key: ConsumerKey,
    pub position: Position,
    pub lag: ProjectionLag,
}

/// Operations on projections.
#[derive(Clone, Copy)]
pub struct Projections<'a>(pub &'a Context);

impl Projections<'_> {
    /// The state.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn state(self) -> Result<StateProgress, Unavailable> {
        let outbox = self.0.outbox_of(Home::All);
        let (position, totals, bytes) =
            outbox.read(|state| (state.applied(), state.totals(), state.size_bytes())).await?;
        let lag = self.lag(position).await?;
        let registry = outbox.registry(|registry| {
            let (endpoints, keys) = (registry.endpoints().count(), registry.keys().count());
            [endpoints, keys, registry.tenants().len(), registry.consumers().len()].map(|count| count as u64)
        });
        let [endpoints, keys, tenants, consumers] = registry;
        let rebuild = self.0.rebuilds().status();
        Ok(StateProgress { position, lag, totals, endpoints, keys, tenants, consumers, bytes, rebuild })
    }

    /// Begins a rebuild of the state from the journal, in the background. Returns `false` while
    /// another one runs.
    ///
    /// # Errors
    /// When less than the disk reserve is free, or the outbox has failed.
    pub async fn rebuild_state(self) -> Result<bool, Unavailable> {
        match &*self.0.health().borrow() {
            Health::Good => {}
            Health::DiskFull => return Err(Unavailable::DiskFull),
            Health::Failed(reason) => return Err(Unavailable::Failed(reason.clone())),
        }
        if self.0.disk_shortage().is_some() {
            return Err(Unavailable::DiskFull);
        }
        if self.0.rebuilds().is_running() {
            return Ok(false);
        }
        self.0.record_act(None).await?;
        Ok(self.0.rebuilds().request(self.0.now().wall, self.0.outbox_of(Home::All).applied()))
    }

    /// Consumers after a key, by tenant and name, and whether there are more. `tenant`: only those
    /// of this tenant.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn consumers(
        self,
        tenant: Option<&Tenant>,
        after: Option<&ConsumerKey>,
        limit: usize,
    ) -> Result<(Vec<ConsumerProgress>, bool), Unavailable> {
        let mut known: Vec<_> = self.0.outbox_of(tenant).registry(|registry| {
            let all = registry.consumers().after(after);
            let own = all.filter(|known| tenant.is_none() || known.consumer.key.tenant.as_ref() == tenant);
            own.take(limit + 1).cloned().collect()
        });
        let more = cut(&mut known, limit);
        let mut list = Vec::with_capacity(known.len());
        for status in known {
            let (key, position) = (status.consumer.key.clone(), status.place.position);
            let lag = self.lag(position).await?;
            list.push(ConsumerProgress { key, position, lag });
        }
        Ok((list, more))
    }

    async fn lag(self, position: Position) -> Result<ProjectionLag, Unavailable> {
        let reader = self.0.outbox_of(Home::All).journal().clone();
        let records = reader.last_position().0.saturating_sub(position.0);
        if records == 0 {
            return Ok(ProjectionLag::default());
        }
        let first = self.0.blocking(move || time_after(&reader, position)).await?;
        let age = first.map(|at| self.0.now().wall.since(at)).unwrap_or_default();
        Ok(ProjectionLag { records, age })
    }
}

/// Commit time of the first record after a position; `None` if it cannot be read.
fn time_after(reader: &JournalReader, position: Position) -> Option<Timestamp> {
    let batch = reader.raw_from(position.next()).ok()??;
    batch.records.first().map(|record| record.time)
}
