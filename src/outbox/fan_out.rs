//! Admission by deliveries: how many a tenant may have on their way into the state.
//!
//! A small request can begin a million deliveries, so requests and bytes alone do not bound the
//! work of the state. Each event is matched before its unit enters the commit queue, and its
//! deliveries count until the state has applied them. A tenant with too many gets "overloaded".
//! Other tenants are not affected.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use self::turns::{Turn, Turns};
use super::draft::{EventDraft, Matched, Unavailable};
use super::subscriptions::{Candidates, Subscriptions, Verdicts};
use super::unit::{Command, Outcome};
use crate::domain::{IdMap, Party, Tenant};
use crate::failpoints::{self, Mutation};
use crate::limits;

mod turns;

/// Approximate number of deliveries that the state applies per second, for the retry hint.
const APPLIED_PER_SECOND: usize = 25_000;

/// Unapplied deliveries of each tenant that has any.
#[derive(Debug, Default)]
pub(super) struct FanOut {
    unapplied: Mutex<IdMap<Tenant, usize>>,
    turns: Arc<Turns>,
}

/// Admitted deliveries of a unit. They count until the last clone is dropped.
#[derive(Debug)]
pub struct FanOutPermit {
    fan_out: Arc<FanOut>,
    tenants: IdMap<Tenant, usize>,
    /// The unit needs a turn.
    needs_turn: bool,
    turn: Option<Turn>,
}

impl FanOutPermit {
    fn targets(&self) -> usize {
        self.tenants.values().sum()
    }

    /// Waits for the unit's turn, if it needs one. Its party is that of the tenant with the most
    /// deliveries.
    ///
    /// # Errors
    /// After [`limits::FAN_OUT_WAIT_MAX`].
    pub(super) async fn in_turn(mut self) -> Result<Self, Unavailable> {
        let largest = self.tenants.iter().max_by_key(|(_, targets)| **targets);
        let Some((tenant, _)) = largest.filter(|_| self.needs_turn) else { return Ok(self) };
        let turn = self.fan_out.turns.request(&Party::of(Some(tenant)), self.targets());
        match tokio::time::timeout(limits::FAN_OUT_WAIT_MAX, turn).await {
            Ok(Ok(turn)) => {
                self.turn = Some(turn);
                Ok(self)
            }
            Ok(Err(_)) => Err(Unavailable::Stopping),
            Err(_) => Err(Unavailable::Overloaded { retry_after: limits::FAN_OUT_WAIT_MAX }),
        }
    }
}

impl FanOut {
    /// Admits the deliveries of a unit, by tenant. A tenant without any may begin as many as one
    /// request can.
    ///
    /// # Errors
    /// When a tenant would have more than [`limits::UNAPPLIED_TARGETS_MAX`].
    pub(super) fn admit(
        self: &Arc<Self>,
        tenants: IdMap<Tenant, usize>,
    ) -> Result<FanOutPermit, Unavailable> {
        let mut unapplied = self.unapplied.lock().expect("no holder of this lock panics");
        let mut needs_turn = tenants.values().sum::<usize>() > limits::APPLY_STEP_TARGETS;
        for (tenant, targets) in &tenants {
            let present = unapplied.get(tenant).copied().unwrap_or(0);
            if present > 0 && present + targets > limits::UNAPPLIED_TARGETS_MAX {
                let excess = present + targets - limits::UNAPPLIED_TARGETS_MAX;
                let seconds = excess.min(present).div_ceil(APPLIED_PER_SECOND);
                let retry_after = Duration::from_secs(seconds as u64);
                tracing::debug!(%tenant, present, targets, "deliveries not admitted");
                return Err(Unavailable::Overloaded { retry_after });
            }
            needs_turn |= present > limits::FAN_OUT_BUSY_TARGETS;
        }
        for (tenant, targets) in &tenants {
            *unapplied.entry(tenant.clone()).or_default() += targets;
        }
        drop(unapplied);
        Ok(FanOutPermit { fan_out: self.clone(), tenants, needs_turn, turn: None })
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.unapplied.lock().unwrap().is_empty()
    }
}

impl Drop for FanOutPermit {
    fn drop(&mut self) {
        let mut unapplied = self.fan_out.unapplied.lock().expect("no holder of this lock panics");
        for (tenant, targets) in &self.tenants {
            if let Some(present) = unapplied.get_mut(tenant) {
                *present -= targets;
                if *present == 0 {
                    unapplied.remove(tenant);
                }
            }
        }
    }
}

/// A step of the matching of a request's events.
pub(super) enum MatchStep {
    /// The event was matched by its type, with this work.
    Matched(usize),
    /// The labels and the content of the event at this index must be looked at.
    ByContent { index: usize, candidates: Candidates, known: Verdicts, steps: usize },
}

/// Matches the next unmatched event of the commands. Returns `None` when no event is left, or those
/// so far exceed what one request may begin.
pub(super) fn match_next(
    subscriptions: &Subscriptions,
    commands: &mut [Command],
    next: &mut usize,
    tenants: &mut IdMap<Tenant, usize>,
) -> Option<MatchStep> {
    let total: usize = tenants.values().sum();
    let (before, rest) = commands.split_at_mut(*next);
    let (skipped, draft) = rest.iter_mut().enumerate().find_map(|(index, command)| match command {
        Command::Publish(draft) if draft.only.is_none() => Some((index, draft)),
        _ => None,
    })?;
    if total > limits::REQUEST_TARGETS_MAX {
        return None;
    }
    // The events of a batch often have the same type.
    let same = before.last().and_then(Command::draft).filter(|previous| {
        previous.tenant == draft.tenant && previous.event_type == draft.event_type && previous.only.is_none()
    });
    let of_type = same.and_then(|previous| previous.matched.as_ref());
    let is_shared = |matched: &&Matched| {
        matched.verdicts.is_none() || failpoints::is_active(Mutation::ShareFilterResults)
    };
    let of_type = of_type.filter(is_shared).cloned();
    let own = draft.matched.take();
    let verdicts = own.as_ref().and_then(|matched| matched.verdicts.clone());
    let known = own.or(of_type);
    let known = known.filter(|matched| matched.revision == subscriptions.matcher().revision());
    let index = *next + skipped;
    *next = index + 1;
    if let Some(matched) = known {
        add_matched(draft, matched, tenants);
        return Some(MatchStep::Matched(1));
    }
    let (candidates, cost) = subscriptions.candidates(&draft.tenant, &draft.event_type);
    let steps = 1 + cost.steps + candidates.len();
    if !candidates.is_by_type() {
        let known = verdicts.map(|verdicts| Verdicts::clone(&verdicts)).unwrap_or_default();
        return Some(MatchStep::ByContent { index, candidates, known, steps });
    }
    let mut by_type = candidates.start(Verdicts::default());
    by_type.advance(draft.facts(), usize::MAX);
    add_matched(draft, by_type.finish().into(), tenants);
    Some(MatchStep::Matched(steps))
}

/// Notes the targets of an event, and counts them.
pub(super) fn add_matched(draft: &mut EventDraft, matched: Matched, tenants: &mut IdMap<Tenant, usize>) {
    if !matched.targets.is_empty() {
        *tenants.entry(draft.tenant.clone()).or_default() += matched.targets.len();
    }
    draft.matched = Some(matched);
}

/// Parts of a request whose events are independent.
pub(super) struct Parts {
    /// Each part is a unit.
    pub(super) units: Vec<Vec<Command>>,
    /// Outcomes of the events after those that one request may begin.
    pub(super) rejected: Vec<Outcome>,
}

/// Splits matched commands, so that no part has more than [`limits::UNIT_TARGETS`] deliveries
/// besides those of its last event.
pub(super) fn split(commands: Vec<Command>) -> Parts {
    let mut parts = Parts { units: Vec::new(), rejected: Vec::new() };
    let (mut unit, mut in_unit, mut total) = (Vec::new(), 0, 0);
    for command in commands {
        let matched = command.draft().and_then(|draft| draft.matched.as_ref());
        let targets = matched.map_or(0, |matched| matched.targets.len());
        total += targets;
        if total > limits::REQUEST_TARGETS_MAX {
            // Later events must not overtake this one.
            parts.rejected.push(Outcome::TooManyTargets);
            continue;
        }
        in_unit += targets;
        unit.push(command);
        if in_unit >= limits::UNIT_TARGETS {
            parts.units.push(std::mem::take(&mut unit));
            in_unit = 0;
        }
    }
    if !unit.is_empty() {
        parts.units.push(unit);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants(of: &[(&str, usize)]) -> IdMap<Tenant, usize> {
        of.iter().map(|(tenant, targets)| (tenant.parse().unwrap(), *targets)).collect()
    }

    #[test]
    fn request_with_many_deliveries_is_split_at_its_events() {
        let draft = |targets: usize| {
            let (tenant, event_type) = ("acme".parse().unwrap(), "a.b".parse().unwrap());
            let mut draft = crate::outbox::draft::EventDraft::new(tenant, event_type, "1".into());
            let targets = vec![crate::domain::EndpointNumber(1); targets].into();
            draft.matched = Some(Matched { revision: 0, targets, verdicts: None });
            Command::Publish(Box::new(draft))
        };
        let sizes = |counts: &[usize]| {
            let parts = split(counts.iter().map(|count| draft(*count)).collect());
            (parts.units.iter().map(Vec::len).collect::<Vec<_>>(), parts.rejected.len())
        };
        let most = limits::UNIT_TARGETS;
        assert_eq!(sizes(&vec![1; most]), (vec![most], 0), "one commit");
        assert_eq!(sizes(&[most, most, 1, 1]), (vec![1, 1, 2], 0));
        assert_eq!(sizes(&[most - 1, 5, 3]), (vec![2, 1], 0));
        let large = limits::EVENT_TARGETS_MAX;
        let fit = limits::REQUEST_TARGETS_MAX / large;
        let (units, rejected) = sizes(&vec![large; fit + 3]);
        assert_eq!((units.len(), rejected), (fit, 3));
    }

    #[test]
    fn tenant_at_its_limit_does_not_affect_others() {
        let fan_out = Arc::<FanOut>::default();
        let most = limits::UNAPPLIED_TARGETS_MAX;
        let all = fan_out.admit(tenants(&[("evil", most)])).unwrap();
        let refused = fan_out.admit(tenants(&[("good", 1), ("evil", 1)])).unwrap_err();
        assert!(matches!(refused, Unavailable::Overloaded { retry_after } if !retry_after.is_zero()));
        let small = fan_out.admit(tenants(&[("good", 7)])).unwrap();
        drop(all);
        let more = fan_out.admit(tenants(&[("evil", 2 * most)])).expect("a request alone is admitted");
        drop((small, more));
        assert!(fan_out.is_empty(), "no tenant is remembered");
    }
}
