//! Counter cache of a group of records, which under load has dozens of records of one endpoint.
//!
//! Invariant: counters are read from the rows only after [`Tallies::write`].

use std::collections::HashMap;

use super::counters::{self, Lane};
use super::stats::{self, Hour};
use super::tenant_hours::{self, TenantHour};
use super::type_usage::TypeUsage;
use super::usage::{self, Usage};
use super::{Rows, stats::hour_of, type_usage};
use crate::domain::{EndpointNumber, EventType, EventVersion, IdMap, Tenant, Timestamp};

/// Counters changed since the last write.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    lanes: IdMap<EndpointNumber, Lane>,
    hours: IdMap<(EndpointNumber, u64), Hour>,
    tenant_hours: IdMap<Tenant, IdMap<u64, TenantHour>>,
    usage: IdMap<Tenant, Usage>,
    types: HashMap<(EventType, EventVersion), TypeUsage>,
    /// Usage written since it was last taken; `None` without a reader.
    changed: Option<IdMap<Tenant, Usage>>,
}

impl Tallies {
    pub(super) fn lane(&mut self, rows: &dyn Rows, endpoint: EndpointNumber) -> &mut Lane {
        self.lanes.entry(endpoint).or_insert_with(|| counters::lane(rows, endpoint))
    }

    pub(super) fn hour(&mut self, rows: &dyn Rows, endpoint: EndpointNumber, at: Timestamp) -> &mut Hour {
        let hour = hour_of(at);
        self.hours.entry((endpoint, hour)).or_insert_with(|| stats::hour(rows, endpoint, hour))
    }

    pub(super) fn tenant_hour(&mut self, rows: &dyn Rows, tenant: &Tenant, at: Timestamp) -> &mut TenantHour {
        if !self.tenant_hours.contains_key(tenant) {
            self.tenant_hours.insert(tenant.clone(), IdMap::default());
        }
        let (hours, hour) = (self.tenant_hours.get_mut(tenant).expect("it was inserted"), hour_of(at));
        hours.entry(hour).or_insert_with(|| tenant_hours::hour(rows, hour, tenant))
    }

    pub(super) fn usage(&mut self, rows: &dyn Rows, tenant: &Tenant) -> &mut Usage {
        // A tenant has many records in a group: its name is copied once.
        if !self.usage.contains_key(tenant) {
            self.usage.insert(tenant.clone(), usage::usage(rows, tenant));
        }
        self.usage.get_mut(tenant).expect("it was inserted")
    }

    pub(super) fn type_usage(
        &mut self,
        rows: &dyn Rows,
        name: &EventType,
        version: &EventVersion,
    ) -> &mut TypeUsage {
        let key = (name.clone(), version.clone());
        self.types.entry(key).or_insert_with(|| type_usage::usage(rows, name, version))
    }

    /// Drops the counts of a deleted type.
    pub(super) fn forget_type(&mut self, name: &EventType) {
        self.types.retain(|(other, _), _| other != name);
    }

    pub(super) fn watch_usage(&mut self) {
        self.changed = Some(IdMap::default());
    }

    pub(super) fn take_changed_usage(&mut self) -> IdMap<Tenant, Usage> {
        self.changed.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn write(&mut self, rows: &mut dyn Rows) {
        for (endpoint, lane) in self.lanes.drain() {
            counters::put(rows, endpoint, &lane);
        }
        for ((endpoint, hour), counts) in self.hours.drain() {
            stats::put(rows, endpoint, hour, &counts);
        }
        for (tenant, hours) in self.tenant_hours.drain() {
            for (hour, counts) in hours {
                tenant_hours::put(rows, hour, &tenant, &counts);
            }
        }
        for ((name, version), counts) in self.types.drain() {
            type_usage::put(rows, &name, &version, &counts);
        }
        for (tenant, counts) in self.usage.drain() {
            usage::put(rows, &tenant, &counts);
            if let Some(changed) = &mut self.changed {
                changed.insert(tenant, counts);
            }
        }
    }

    pub(super) fn are_written(&self) -> bool {
        let Self { lanes, hours, tenant_hours, usage, types, changed: _ } = self;
        lanes.is_empty()
            && hours.is_empty()
            && tenant_hours.is_empty()
            && usage.is_empty()
            && types.is_empty()
    }
}
