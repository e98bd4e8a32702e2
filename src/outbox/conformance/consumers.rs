//! Random work on consumers, and a simple model of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Store;
use super::work::Work;
use crate::domain::{
    Consumer, ConsumerFilter, ConsumerKey, ConsumerMove, ConsumerPlace, Event, MoveKind, Position, Record,
    StreamChoice, Tenant, VersionPin,
};
use crate::outbox::registry::ConsumerStatus;
use crate::outbox::unit::{Command, Outcome};
use crate::rules::matching::want;

/// Every consumer, and the records that define its place.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConsumerModel {
    pub(crate) all: BTreeMap<ConsumerKey, (Arc<Consumer>, ConsumerPlace)>,
    last_moves: BTreeMap<ConsumerKey, Position>,
}

impl ConsumerModel {
    pub(super) fn apply(&mut self, position: Position, record: &Record) {
        match record {
            Record::ConsumerPut(consumer) => {
                let place = self.all.get(&consumer.key).map_or(consumer.place, |(_, place)| *place);
                self.all.insert(consumer.key.clone(), (consumer.clone(), place));
                self.last_moves.remove(&consumer.key);
            }
            Record::ConsumerMoved { key, position: to, at } => {
                if let Some((_, place)) = self.all.get_mut(key) {
                    *place = ConsumerPlace { position: *to, moved_at: Some(*at) };
                    self.last_moves.insert(key.clone(), position);
                }
            }
            Record::ConsumerDeleted { key, .. } => {
                self.all.remove(key);
                self.last_moves.remove(key);
            }
            _ => {}
        }
    }

    /// Whether the consumer's place depends on this record.
    pub(crate) fn is_last_move(&self, key: &ConsumerKey, position: Position) -> bool {
        self.last_moves.get(key) == Some(&position)
    }

    pub(crate) fn statuses(&self) -> Vec<ConsumerStatus> {
        let status = |(consumer, place): &(Arc<Consumer>, ConsumerPlace)| ConsumerStatus {
            consumer: consumer.clone(),
            place: *place,
        };
        self.all.values().map(status).collect()
    }

    pub(super) fn count_of(&self, tenant: &Tenant) -> usize {
        self.all.keys().filter(|key| key.tenant.as_ref() == Some(tenant)).count()
    }

    /// Judges a command that concerns a consumer. Returns the record to write, or the outcome.
    pub(super) fn judge(&self, command: &Command) -> Result<Record, Outcome> {
        match command {
            Command::PutConsumer(wanted) => match self.all.get(&wanted.key) {
                None => Ok(Record::ConsumerPut(Arc::new(Consumer::clone(wanted)))),
                Some((known, place))
                    if (&known.filter, &known.versions, &known.description)
                        == (&wanted.filter, &wanted.versions, &wanted.description) =>
                {
                    Err(Outcome::Consumer(ConsumerStatus { consumer: known.clone(), place: *place }))
                }
                Some((known, place)) => {
                    let changed =
                        Consumer { created_at: known.created_at, place: *place, ..Consumer::clone(wanted) };
                    Ok(Record::ConsumerPut(Arc::new(changed)))
                }
            },
            Command::MoveConsumer(wanted) => {
                let Some((known, place)) = self.all.get(&wanted.key) else { return Err(Outcome::Conflict) };
                let actual = place.position;
                let is_behind = wanted.to < actual;
                let is_refused = match wanted.kind {
                    MoveKind::Reset => false,
                    MoveKind::Commit => is_behind,
                    MoveKind::CommitFrom(from) => from != actual || is_behind,
                };
                if is_refused {
                    return Err(Outcome::ConsumerMoved { actual });
                }
                if wanted.kind == MoveKind::Commit && wanted.to == actual {
                    return Err(Outcome::Consumer(ConsumerStatus { consumer: known.clone(), place: *place }));
                }
                Ok(Record::ConsumerMoved { key: wanted.key.clone(), position: wanted.to, at: wanted.at })
            }
            Command::DeleteConsumer { key, at } if self.all.contains_key(key) => {
                Ok(Record::ConsumerDeleted { key: key.clone(), at: *at })
            }
            _ => Err(Outcome::Conflict),
        }
    }
}

/// Whether a consumer reads an event.
pub(crate) fn reads(consumer: &Consumer, event: &Event) -> bool {
    let stream = event.stream.as_ref().map(|(stream, _)| stream.as_str());
    let in_streams = match &consumer.filter.streams {
        StreamChoice::Any => true,
        StreamChoice::One(wanted) => stream == Some(wanted.as_str()),
        StreamChoice::Prefix(prefix) => stream.is_some_and(|stream| stream.starts_with(&**prefix)),
    };
    let of_tenant = match &consumer.key.tenant {
        Some(tenant) => *tenant == event.tenant,
        None => event.tenant.as_str() != Tenant::OPERATOR,
    };
    of_tenant && in_streams && want(&consumer.filter.types, &event.event_type)
}

impl<S: Store> Work<S> {
    /// A definition, a move or a deletion of one of a few consumers.
    pub(super) fn consumer(&mut self) -> Command {
        let tenant = self.random.choice([None, Some("default"), Some("other")]).expect("three");
        let key = ConsumerKey {
            tenant: tenant.map(|name| name.parse().expect("a legal tenant")),
            name: "search".parse().expect("a legal name"),
        };
        let model = &self.oracle.oracle.consumers;
        let known = model.all.get(&key).map(|(_, place)| place.position);
        let (last, at) = (self.oracle.oracle.last.0, self.now);
        match self.random.u32(0..10) {
            0 => Command::DeleteConsumer { key, at },
            1..4 => {
                let types: &[&str] =
                    self.random.choice([&[][..], &["order.*"], &["#.paid", "user.#"]]).expect("three");
                let stream = self.random.choice(["stream-1", "stream-"]).expect("two");
                let streams = match self.random.u32(0..3) {
                    0 => StreamChoice::One(stream.parse().expect("a legal stream")),
                    1 => StreamChoice::Prefix(stream.into()),
                    _ => StreamChoice::Any,
                };
                let position = Position(self.random.u64(0..=last));
                Command::PutConsumer(Box::new(Consumer {
                    key,
                    versions: match streams {
                        StreamChoice::Prefix(_) => {
                            vec![("order.paid".parse().expect("a legal type"), VersionPin::Latest)]
                        }
                        _ => Vec::new(),
                    },
                    filter: ConsumerFilter {
                        types: types.iter().map(|text| text.parse().expect("a legal pattern")).collect(),
                        streams,
                    },
                    description: "".into(),
                    created_at: at,
                    updated_at: at,
                    place: ConsumerPlace { position, moved_at: None },
                }))
            }
            _ => {
                let from = known.filter(|_| self.percent(80));
                let from = from.unwrap_or_else(|| Position(self.random.u64(0..=last)));
                let ahead = if self.percent(80) { from.0.min(last)..=last } else { 0..=last };
                let to = Position(self.random.u64(ahead));
                let kinds = [MoveKind::Commit, MoveKind::CommitFrom(from), MoveKind::Reset];
                let kind = self.random.choice(kinds).expect("three");
                Command::MoveConsumer(Box::new(ConsumerMove { key, to, kind, at }))
            }
        }
    }
}
