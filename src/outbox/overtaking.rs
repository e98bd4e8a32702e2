//! Records that the apply thread applies before the rest of an event with many deliveries.
//!
//! Records are applied in the order of their positions. While one tenant's event begins thousands
//! of deliveries, that order alone would delay the records of all tenants, and the reads that
//! follow them. So between two steps of the event, a later record *overtakes*: it is applied
//! early. Invariant: it gives the same rows in both orders. It commutes with the rest of the event
//! and with each record that it passes. A record waits if it changes endpoints of the event, or
//! endpoints or events of a record that waits. Another event with many deliveries begins early. No
//! event overtakes an event that is not begun: the pages of events are in the order of positions.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::freshness::{apply_step_targets, changed_endpoints};
use crate::domain::{EndpointNumber, Event, IdSet, Position, Record, Tenant};
use crate::failpoints::{self, Mutation};
use crate::limits;
use crate::projections::{Fold, LaneChange};
use crate::storage::state::State;

/// The records after an event with many deliveries. Lives until the event is applied as a whole.
pub(super) struct Overtaking {
    event: Arc<Event>,
    /// Position of the last record that was judged.
    judged: Position,
    /// A record was found that no later one may overtake.
    is_closed: bool,
    /// Endpoints of the event, of other events that are begun, and of the records that wait.
    busy: IdSet<EndpointNumber>,
    /// Endpoints that a waiting record creates, changes or deletes.
    changing: IdSet<EndpointNumber>,
    /// Events whose deliveries a waiting record changes. Their states share rows, in the order of
    /// the changes.
    changing_events: IdSet<Position>,
    /// Tenants of the events that are begun, and of the records that wait.
    behind: IdSet<Tenant>,
    /// Applied records after which their tenant has no unapplied one.
    answerable: BTreeSet<Position>,
}

/// Treatment of a record that follows the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict<'a> {
    Overtakes,
    /// An event with many deliveries: only its first delivery overtakes.
    Begins(&'a Event),
    Waits,
    /// It waits, and so do all later records.
    Closes,
}

impl Overtaking {
    /// `None` for a record that is applied in one step.
    pub(super) fn of(position: Position, record: &Record) -> Option<Self> {
        match record {
            Record::EventAccepted(event) if is_large(event) => Some(Self {
                event: Arc::clone(event),
                judged: position,
                is_closed: false,
                busy: IdSet::default(),
                changing: IdSet::default(),
                changing_events: IdSet::default(),
                behind: IdSet::from_iter([event.tenant.clone()]),
                answerable: BTreeSet::new(),
            }),
            _ => None,
        }
    }

    /// Whether a question that needs this record can be answered, although earlier ones are not
    /// applied.
    pub(super) fn can_answer(&self, needs: Position) -> bool {
        self.answerable.contains(&needs)
    }

    /// Applies records of a group before the rest of the event, until they have changed `room`
    /// deliveries. Call it with the groups in their order, also with those it has seen before.
    /// Returns whether the next group may follow.
    pub(super) fn apply_some(
        &mut self,
        state: &mut State,
        records: &[(Position, Record)],
        room: &mut usize,
        changes: &mut Vec<LaneChange>,
    ) -> bool {
        if self.busy.is_empty() {
            self.busy.extend(&self.event.targets);
        }
        let judged = self.judged;
        let unjudged = records.partition_point(|(position, _)| *position <= judged);
        for (position, record) in &records[unjudged..] {
            if self.is_closed || *room == 0 || state.early().len() >= limits::EARLY_RECORDS_MAX {
                return false;
            }
            self.judged = *position;
            let cost = self.pass(state, *position, record, changes);
            *room = room.saturating_sub(cost);
        }
        true
    }

    /// Applies a record if it overtakes. Returns the cost, in deliveries.
    fn pass(
        &mut self,
        state: &mut State,
        position: Position,
        record: &Record,
        changes: &mut Vec<LaneChange>,
    ) -> usize {
        let (is_whole, is_begun) =
            (state.early().whole.contains(&position), state.early().begun.contains(&position));
        let verdict = match record {
            // It has overtaken an earlier event.
            Record::EventAccepted(event) if is_begun => Verdict::Begins(event),
            _ if is_whole => Verdict::Overtakes,
            _ => self.judge(state.fold(), position, record),
        };
        match verdict {
            Verdict::Overtakes => {
                if owners(state.fold(), record).iter().all(|owner| !self.behind.contains(owner)) {
                    self.answerable.insert(position);
                }
                if is_whole {
                    return 0;
                }
                state.apply_early(position, record, changes);
                record.deliveries(position).len().max(1)
            }
            Verdict::Begins(event) => {
                if event.targets != self.event.targets {
                    self.busy.extend(&event.targets);
                }
                self.behind.insert(event.tenant.clone());
                if !is_begun {
                    state.begin_early(position, event, changes);
                }
                1 + event.targets.len() / TARGETS_LISTED_PER_DELIVERY
            }
            Verdict::Waits => {
                self.wait_for(state, position, record);
                0
            }
            Verdict::Closes => {
                self.is_closed = true;
                0
            }
        }
    }

    fn judge<'a>(&self, fold: &Fold, position: Position, record: &'a Record) -> Verdict<'a> {
        match record {
            Record::EventAccepted(event) => {
                let waits = |endpoint: &EndpointNumber| {
                    self.changing.contains(endpoint)
                        || self.busy.contains(endpoint) && fold.is_ordered(*endpoint)
                };
                let large = is_large(event);
                let begins_with = if large { 1 } else { event.targets.len() };
                match event.targets[..begins_with].iter().any(waits) {
                    true => Verdict::Closes,
                    false if large => Verdict::Begins(event),
                    false => Verdict::Overtakes,
                }
            }
            // It concerns the pages of events.
            Record::HorizonMoved { .. } => Verdict::Closes,
            Record::EventErased { .. } => Verdict::Waits,
            other => {
                let waits = changed_endpoints(other).iter().any(|endpoint| self.busy.contains(endpoint))
                    || other.deliveries(position).iter().any(|one| self.changing_events.contains(&one.event));
                match waits && !failpoints::is_active(Mutation::OvertakeOwn) {
                    true => Verdict::Waits,
                    false => Verdict::Overtakes,
                }
            }
        }
    }

    fn wait_for(&mut self, state: &State, position: Position, record: &Record) {
        self.behind.extend(owners(state.fold(), record));
        let endpoints = match record {
            // It changes the rows of all deliveries of its event.
            Record::EventErased { event, .. } => {
                self.changing_events.insert(*event);
                state.targets_of(*event)
            }
            other => changed_endpoints(other),
        };
        self.changing_events.extend(record.deliveries(position).iter().map(|delivery| delivery.event));
        if matches!(record, Record::EndpointPut(_) | Record::EndpointDeleted { .. }) {
            self.changing.extend(&endpoints);
        }
        self.busy.extend(endpoints);
    }
}

/// Endpoints in the list of an event's endpoints that cost as much as a delivery.
const TARGETS_LISTED_PER_DELIVERY: usize = 1_000;

/// Whether an event is applied in steps.
pub(super) fn is_large(event: &Event) -> bool {
    event.targets.len() > apply_step_targets()
}

/// Tenants whose questions see the record.
fn owners(fold: &Fold, record: &Record) -> Vec<Tenant> {
    match record {
        Record::EventAccepted(event) => vec![event.tenant.clone()],
        Record::EventErased { tenant, .. } => vec![tenant.clone()],
        Record::EndpointPut(endpoint) => vec![endpoint.tenant.clone()],
        other => {
            let endpoints = changed_endpoints(other);
            endpoints.iter().filter_map(|endpoint| fold.tenant_of(*endpoint).cloned()).collect()
        }
    }
}
