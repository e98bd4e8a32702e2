//! The consumers of the registry, with their places.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::domain::{Consumer, ConsumerKey, ConsumerName, ConsumerPlace, Record, Tenant};

/// A consumer and its place after the last commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerStatus {
    pub consumer: Arc<Consumer>,
    pub place: ConsumerPlace,
}

/// All consumers. [`crate::limits::CONSUMERS_MAX`] bounds their number.
#[derive(Debug, Default)]
pub struct ConsumerDirectory {
    all: BTreeMap<ConsumerKey, ConsumerStatus>,
}

impl ConsumerDirectory {
    pub(super) fn apply(&mut self, record: &Record) {
        match record {
            Record::ConsumerPut(consumer) => {
                let status = ConsumerStatus { consumer: consumer.clone(), place: consumer.place };
                self.all.insert(consumer.key.clone(), status);
            }
            Record::ConsumerMoved { key, position, at } => {
                self.set_place(key, ConsumerPlace { position: *position, moved_at: Some(*at) });
            }
            Record::ConsumerDeleted { key, .. } => drop(self.all.remove(key)),
            _ => {}
        }
    }

    /// Sets the place of a consumer, as its last move says.
    pub fn set_place(&mut self, key: &ConsumerKey, place: ConsumerPlace) {
        if let Some(known) = self.all.get_mut(key) {
            known.place = place;
        }
    }

    #[must_use]
    pub fn get(&self, key: &ConsumerKey) -> Option<&ConsumerStatus> {
        self.all.get(key)
    }

    /// ConsumerDirectory with this name, of any tenant.
    pub fn named<'a>(&'a self, name: &'a ConsumerName) -> impl Iterator<Item = &'a ConsumerStatus> {
        self.all.values().filter(move |known| known.consumer.key.name == *name)
    }

    /// ConsumerDirectory after a key, by tenant and name.
    pub fn after(&self, key: Option<&ConsumerKey>) -> impl Iterator<Item = &ConsumerStatus> {
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.all.range::<ConsumerKey, _>((from, Bound::Unbounded)).map(|(_, known)| known)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// ConsumerDirectory of a tenant.
    pub fn of_tenant(&self, tenant: &Tenant) -> impl Iterator<Item = &ConsumerStatus> {
        self.all.values().filter(move |known| known.consumer.key.tenant.as_ref() == Some(tenant))
    }
}
