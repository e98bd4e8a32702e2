//! Decisions about consumers: definition, moves, deletion.

use std::sync::Arc;

use super::{Committer, StagedGroup, read};
use crate::domain::{
    Consumer, ConsumerKey, ConsumerMove, ConsumerPlace, MoveKind, Quota, QuotaExceeded, Record, Timestamp,
};
use crate::failpoints::{self, Mutation};
use crate::limits;
use crate::outbox::registry::ConsumerStatus;
use crate::outbox::unit::Outcome;

impl Committer {
    /// Creates a consumer, or changes its definition. A changed one keeps its place. An equal one
    /// is not written again.
    pub(super) fn put_consumer(&self, wanted: &Consumer, staged: &mut StagedGroup) -> Outcome {
        let known = read(&self.registry).consumers().get(&wanted.key).cloned();
        let mut consumer = wanted.clone();
        let is_new = known.is_none();
        match known {
            Some(known) => {
                let place = self.place(&wanted.key, staged).unwrap_or(known.place);
                let is_same = known.consumer.filter == wanted.filter
                    && known.consumer.versions == wanted.versions
                    && known.consumer.description == wanted.description;
                if is_same {
                    return Outcome::Consumer(ConsumerStatus { place, ..known });
                }
                (consumer.created_at, consumer.place) = (known.consumer.created_at, place);
            }
            None => {
                if let Some(refused) = self.check_new_consumer(wanted) {
                    return refused;
                }
            }
        }
        let (consumer, place) = (Arc::new(consumer.clone()), consumer.place);
        staged.push(Record::ConsumerPut(consumer.clone()));
        staged.consumers.insert(wanted.key.clone(), Some(place));
        let status = ConsumerStatus { consumer, place };
        if is_new { Outcome::ConsumerCreated(status) } else { Outcome::Consumer(status) }
    }

    fn check_new_consumer(&self, wanted: &Consumer) -> Option<Outcome> {
        let registry = read(&self.registry);
        if registry.consumers().len() >= limits::CONSUMERS_MAX {
            return Some(Outcome::TooManyConsumers);
        }
        let tenant = wanted.key.tenant.as_ref()?;
        let (limit, value) =
            (registry.quotas(tenant).limit(Quota::Consumers), registry.used(tenant).consumers + 1);
        QuotaExceeded::check(Quota::Consumers, limit, value).err().map(Outcome::QuotaExceeded)
    }

    pub(super) fn move_consumer(&self, wanted: &ConsumerMove, staged: &mut StagedGroup) -> Outcome {
        let Some(place) = self.place(&wanted.key, staged) else { return Outcome::Conflict };
        let is_fenced = !failpoints::is_active(Mutation::IgnoreFence) || wanted.kind == MoveKind::Commit;
        if is_fenced && !wanted.kind.allows(place.position, wanted.to) {
            return Outcome::ConsumerMoved { actual: place.position };
        }
        let is_repeated = wanted.kind == MoveKind::Commit && wanted.to == place.position;
        let place = if is_repeated {
            place
        } else {
            let place = ConsumerPlace { position: wanted.to, moved_at: Some(wanted.at) };
            staged.push(Record::ConsumerMoved {
                key: wanted.key.clone(),
                position: wanted.to,
                at: wanted.at,
            });
            staged.consumers.insert(wanted.key.clone(), Some(place));
            place
        };
        let known = read(&self.registry).consumers().get(&wanted.key).cloned();
        known.map_or(Outcome::Conflict, |known| Outcome::Consumer(ConsumerStatus { place, ..known }))
    }

    pub(super) fn delete_consumer(
        &self,
        key: &ConsumerKey,
        at: Timestamp,
        staged: &mut StagedGroup,
    ) -> Outcome {
        if self.place(key, staged).is_none() {
            return Outcome::Conflict;
        }
        staged.consumers.insert(key.clone(), None);
        Outcome::Written(staged.push(Record::ConsumerDeleted { key: key.clone(), at }))
    }

    /// The place of a consumer after the commands of the group so far; `None` if it does not exist.
    fn place(&self, key: &ConsumerKey, staged: &StagedGroup) -> Option<ConsumerPlace> {
        match staged.consumers.get(key) {
            Some(place) => *place,
            None => read(&self.registry).consumers().get(key).map(|known| known.place),
        }
    }
}
