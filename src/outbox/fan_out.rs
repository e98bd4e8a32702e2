//! Admission by deliveries: how many a tenant may have on their way into the state.
//!
//! A small request can begin a million deliveries, so requests and bytes alone do not bound the
//! work of the state. Each event is matched before its unit enters the commit queue, and its
//! deliveries count until the state has applied them. A tenant with too many gets "overloaded".
//! Other tenants are not affected.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::draft::Unavailable;
use super::unit::Command;
use crate::domain::Tenant;
use crate::limits;
use crate::rules::matching::Matcher;

/// Approximate number of deliveries that the state applies per second, for the retry hint.
const APPLIED_PER_SECOND: usize = 25_000;

/// Unapplied deliveries of each tenant that has any.
#[derive(Debug, Default)]
pub(super) struct FanOut(Mutex<HashMap<Tenant, usize>>);

/// Admitted deliveries of a unit. They count until the last clone is dropped.
#[derive(Debug)]
pub struct FanOutPermit {
    fan_out: Arc<FanOut>,
    tenants: HashMap<Tenant, usize>,
}

impl FanOut {
    /// Admits the deliveries of a unit, by tenant. A tenant without any may begin as many as one
    /// request can.
    ///
    /// # Errors
    /// When a tenant would have more than [`limits::UNAPPLIED_TARGETS_MAX`].
    pub(super) fn admit(
        self: &Arc<Self>,
        tenants: HashMap<Tenant, usize>,
    ) -> Result<FanOutPermit, Unavailable> {
        let mut unapplied = self.0.lock().expect("no holder of this lock panics");
        for (tenant, targets) in &tenants {
            let present = unapplied.get(tenant).copied().unwrap_or(0);
            if present > 0 && present + targets > limits::UNAPPLIED_TARGETS_MAX {
                let excess = present + targets - limits::UNAPPLIED_TARGETS_MAX;
                let seconds = excess.min(present).div_ceil(APPLIED_PER_SECOND);
                let retry_after = Duration::from_secs(seconds as u64);
                tracing::debug!(%tenant, present, targets, "deliveries not admitted");
                return Err(Unavailable::Overloaded { retry_after });
            }
        }
        for (tenant, targets) in &tenants {
            *unapplied.entry(tenant.clone()).or_default() += targets;
        }
        drop(unapplied);
        Ok(FanOutPermit { fan_out: self.clone(), tenants })
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }
}

impl Drop for FanOutPermit {
    fn drop(&mut self) {
        let mut unapplied = self.fan_out.0.lock().expect("no holder of this lock panics");
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

/// Matches the next unmatched event of the commands. Returns the work in steps, or `None` when no
/// event is left, or those so far exceed what one request may begin.
pub(super) fn match_next(
    matcher: &Matcher,
    commands: &mut [Command],
    next: &mut usize,
    tenants: &mut HashMap<Tenant, usize>,
) -> Option<usize> {
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
    let known = same.and_then(|previous| previous.matched.clone());
    let known = known.filter(|matched| matched.revision == matcher.revision());
    let mut steps = 1;
    let matched = known.unwrap_or_else(|| {
        let (targets, cost) = matcher.targets_with_cost(&draft.tenant, &draft.event_type);
        steps += cost.steps + targets.len();
        super::draft::Matched { revision: matcher.revision(), targets: targets.into() }
    });
    if !matched.targets.is_empty() {
        *tenants.entry(draft.tenant.clone()).or_default() += matched.targets.len();
    }
    draft.matched = Some(matched);
    *next += skipped + 1;
    Some(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants(of: &[(&str, usize)]) -> HashMap<Tenant, usize> {
        of.iter().map(|(tenant, targets)| (tenant.parse().unwrap(), *targets)).collect()
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
