//! States of streams at random versions, compared with the model's own fold of the records.
//!
//! Between two questions the rules may change, events may be erased, the state may be rebuilt, and
//! the daemon may restart. A question that overlaps changes of the rules must get the state by the
//! rules of one moment between its beginning and its end. One that overlaps an erasure may get the
//! state before or after it, and is not compared.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::operations::{ALL_TENANTS, check_refusal};
use super::types;
use super::world::{Inner, World};
use crate::context::Context;
use crate::domain::{Event, EventType, Position, Record, StreamName, Tenant};
use crate::service::StreamStates;
use crate::service::stream_states::{FoldError, FoldedState, StateBound};
use crate::service::streams::StreamReadError;

/// The effect of an event's data and stream version on a state. Returns whether the rules apply;
/// if not, the state is unchanged.
type SampleFold = fn(&mut Value, Value, u64) -> bool;

/// Rules of types, and what they mean.
pub(super) const RULES: [(&str, SampleFold); 3] = [
    (r#"[{"op":"copy","from":"/data","path":"/state"}]"#, last),
    (
        r#"[{"op":"add","path":"/state","value":{"seen":[]}},
            {"op":"copy","from":"/event/streamVersion","path":"/state/seen/-"}]"#,
        begin,
    ),
    // The first operation is taken back if the second one fails.
    (
        r#"[{"op":"copy","from":"/data","path":"/state/last"},
            {"op":"copy","from":"/event/streamVersion","path":"/state/seen/-"}]"#,
        add,
    ),
];

/// The last data is the state.
fn last(state: &mut Value, data: Value, _: u64) -> bool {
    *state = data;
    true
}

/// Begins a list of versions.
fn begin(state: &mut Value, _: Value, version: u64) -> bool {
    *state = json!({ "seen": [version] });
    true
}

/// Adds to the list of versions, if the state has one.
fn add(state: &mut Value, data: Value, version: u64) -> bool {
    let Some(seen) = state.get_mut("seen").and_then(Value::as_array_mut) else { return false };
    seen.push(json!(version));
    state["last"] = data;
    true
}

/// A stream of a tenant.
#[derive(Clone, Debug)]
pub(super) struct StreamKey {
    tenant: Tenant,
    stream: StreamName,
}

impl StreamKey {
    pub(super) fn of(event: &Event) -> Option<Self> {
        let (stream, _) = event.stream.as_ref()?;
        Some(Self { tenant: event.tenant.clone(), stream: stream.clone() })
    }

    fn draw(inner: &mut Inner) -> Option<Self> {
        let streams: Vec<_> = inner.model.streams.keys().cloned().collect();
        if streams.is_empty() {
            return None;
        }
        let (tenant, stream) = inner.chance.pick(&streams);
        let legal = "a legal name";
        Some(Self { tenant: tenant.parse().expect(legal), stream: stream.parse().expect(legal) })
    }

    /// Half of the questions are about the last version.
    fn draw_bound(&self, inner: &mut Inner) -> StateBound {
        let times: Vec<_> = self.events(inner).map(|(_, event, _)| event.accepted_at).collect();
        let chance = &mut inner.chance;
        StateBound {
            until_version: chance.percent(40).then(|| chance.within(0, times.len() as u64 + 1)),
            until: (chance.percent(20) && !times.is_empty()).then(|| *chance.pick(&times)),
        }
    }

    /// The last version within a bound.
    fn last(&self, inner: &Inner, bound: StateBound) -> u64 {
        let is_before = |event: &Event| bound.until.is_none_or(|until| event.accepted_at < until);
        let before = self.events(inner).filter(|(_, event, _)| is_before(event));
        let before = before.map(|(.., version)| version).max().unwrap_or(0);
        bound.until_version.map_or(before, |until| until.min(before))
    }

    fn erased(&self, inner: &Inner) -> Vec<Position> {
        let erased = self.events(inner).filter(|(_, event, _)| event.erased_at.is_some());
        erased.map(|(position, ..)| position).collect()
    }

    /// The events of the stream by version, also those that retention has removed.
    fn events<'a>(&'a self, inner: &'a Inner) -> impl Iterator<Item = (Position, &'a Event, u64)> {
        inner.model.oracle.events.iter().filter_map(|(position, event)| {
            let (_, version) = event.stream.as_ref().filter(|(stream, _)| *stream == self.stream)?;
            (event.tenant == self.tenant).then_some((*position, &**event, *version))
        })
    }
}

/// For each type with rules, the index of its rules in [`RULES`].
type RuleIndexes = BTreeMap<EventType, usize>;

/// The rules at a position, and those after each later change.
fn rules_since(inner: &Inner, since: Position) -> Vec<RuleIndexes> {
    let mut all = vec![RuleIndexes::new()];
    for (position, record) in &inner.model.records {
        let (name, rules) = match record {
            Record::TypePut(definition) => (&definition.name, definition.state.as_deref()),
            Record::TypeDeleted { name, .. } => (name, None),
            _ => continue,
        };
        let mut changed = all.last().cloned().unwrap_or_default();
        match RULES.iter().position(|(known, _)| Some(*known) == rules) {
            Some(index) => changed.insert(name.clone(), index),
            None => changed.remove(name),
        };
        if *position <= since {
            all.clear();
        }
        all.push(changed);
    }
    all
}

/// A state as the model folds it.
#[derive(Debug, PartialEq)]
struct ModelState {
    position: Position,
    state: Value,
    /// Versions of the events whose rules do not apply.
    problems: Vec<u64>,
}

impl ModelState {
    fn fold(inner: &Inner, key: &StreamKey, rules: &RuleIndexes, version: u64) -> Self {
        let mut folded = Self { position: Position(0), state: Value::Null, problems: Vec::new() };
        for (position, event, at) in key.events(inner).filter(|(_, _, at)| *at <= version) {
            folded.position = position;
            let Some(index) = rules.get(&event.event_type) else { continue };
            let data = serde_json::from_slice(&event.data).ok().filter(|_| event.erased_at.is_none());
            let applies = data.is_some_and(|data| RULES[*index].1(&mut folded.state, data, at));
            folded.problems.extend((!applies).then_some(at));
        }
        folded
    }

    fn of(folded: &FoldedState) -> Option<Self> {
        let problems = folded.problems.iter().map(|problem| problem.version).collect();
        let state = serde_json::from_str(&folded.state).ok()?;
        Some(Self { position: folded.position, state, problems })
    }
}

/// Asks for states of random streams, sometimes with a change of the rules in between.
pub(super) async fn look(context: &Context, world: &World) {
    let Some(mut key) = world.with(StreamKey::draw) else { return };
    loop {
        let bound = world.with(|inner| key.draw_bound(inner));
        look_at(context, world, &key, bound).await;
        match world.chance(|chance| chance.within(0, 9)) {
            0..3 => types::change_type(context, world).await,
            3..6 => {}
            6 | 7 => key = world.with(StreamKey::draw).unwrap_or(key),
            _ => return,
        }
    }
}

/// Asks for the state of a stream, and compares it.
pub(super) async fn look_at(context: &Context, world: &World, key: &StreamKey, bound: StateBound) {
    let (first, began) = world.with(|inner| (key.last(inner, bound), inner.model.last()));
    let (is_erasing, erased) = world.with(|inner| (inner.erasures_running > 0, key.erased(inner)));
    let (tenant, stream) = (&key.tenant, &key.stream);
    let folded = match StreamStates(context).get(&ALL_TENANTS, tenant, stream, bound).await {
        Ok(folded) => folded,
        Err(FoldError::Read(StreamReadError::Unavailable(error))) => {
            return check_refusal(world, "state of a stream", &error);
        }
        // Retention has removed the first events.
        Err(FoldError::Read(_)) if world.plan().keep.is_some() => return,
        Err(error) => return world.record_violation(format!("state of {tenant}/{stream}: {error}")),
    };
    let violation = world.with(|inner| {
        let last = key.last(inner, bound);
        if !(first..=last).contains(&folded.version) {
            return Some(format!("version {}, not {first} to {last}", folded.version));
        }
        if is_erasing || erased != key.erased(inner) {
            inner.count("statesOvertaken");
            return None;
        }
        let rules = rules_since(inner, began);
        let fold = |rules| ModelState::fold(inner, key, rules, folded.version);
        let wanted: Vec<_> = rules.iter().map(fold).collect();
        inner.count("statesCompared");
        if rules.len() > 1 {
            inner.count("statesDuringChanges");
        }
        if folded.version < key.last(inner, StateBound::default()) {
            inner.count("pastStates");
        }
        if wanted.iter().any(|wanted| !wanted.problems.is_empty()) {
            inner.count("stateProblems");
        }
        let is_right = ModelState::of(&folded).is_some_and(|folded| wanted.contains(&folded));
        (!is_right).then(|| format!("version {}: {folded:?}, not {wanted:?}", folded.version))
    });
    match violation {
        Some(violation) => world.record_violation(format!("state of {tenant}/{stream}: {violation}")),
        None => world.note(format_args!("state of {tenant}/{stream} at {}", folded.version)),
    }
}
