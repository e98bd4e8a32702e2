//! Lists: pages of bounded size, filled from the state in bounded steps.

use std::time::Duration;

use crate::context::Context;
use crate::context::home::Home;
use crate::domain::{EndpointNumber, Position, Tenant};
use crate::failpoints::Bound;
use crate::outbox::ReadModel;
use crate::outbox::draft::Unavailable;
use crate::outbox::registry::Registry;
use crate::projections::reads::{Cursor, EndpointChoice, Filter, Found};
use crate::service::types::{Page, Scope};
use crate::{failpoints, limits};

/// Most listed endpoints whose owners are compared.
const LISTED_MAX: usize = 64;

/// Fills pages.
#[derive(Clone, Copy)]
pub(crate) struct Pages<'a>(pub &'a Context);

impl Pages<'_> {
    /// Fills a page in bounded steps. The items concern `tenant`, or all tenants. Returns a partial
    /// page after [`limits::LIST_STEPS_MAX`] steps, and an empty one only at the end or after
    /// [`limits::LIST_SEARCH_MAX`].
    pub(crate) async fn collect<T: Send + 'static>(
        self,
        tenant: Option<&Tenant>,
        after: Option<Cursor>,
        limit: usize,
        step: impl Fn(&dyn ReadModel, Option<Cursor>, usize) -> Found<T> + Clone + Send + 'static,
    ) -> Result<Page<T>, Unavailable> {
        let tenant = tenant.filter(|tenant| !tenant.is_every());
        let mut page = Page { items: Vec::new(), next: after, as_of: Position(0) };
        let started = self.0.now().monotonic;
        for steps in 1.. {
            let (step, after, wanted) = (step.clone(), page.next, limit - page.items.len());
            let question = move |state: &dyn ReadModel| (step(state, after, wanted), state.applied());
            let (found, as_of) = self.0.outbox_of(tenant).read_of(tenant, question).await?;
            page.as_of = as_of;
            page.items.extend(found.items);
            page.next = found.next;
            if is_done(&page, limit, steps, self.0.now().monotonic - started) {
                break;
            }
        }
        Ok(page)
    }

    /// The owner of an endpoint, also of a deleted one: a tenant, or all tenants.
    pub(crate) fn owner_of(self, endpoint: EndpointNumber) -> Option<Tenant> {
        self.0.outbox_of(endpoint).registry(|registry| registry.tenant_of(endpoint).cloned())
    }

    /// The filter within the scope; `None` if the filter's tenant is outside the scope.
    pub(crate) fn scoped(self, scope: &Scope, filter: Filter) -> Option<Filter> {
        let mut filter = self.with_owners(filter);
        if let Some(own) = &scope.0 {
            if filter.tenant.as_ref().is_some_and(|tenant| tenant != own) {
                return None;
            }
            filter.tenant = Some(own.clone());
        }
        Some(filter)
    }

    /// The filter, with the endpoints and queues of all tenants, and with the tenant of the
    /// endpoint's events.
    pub(crate) fn with_owners(self, filter: Filter) -> Filter {
        let shared = self.0.outbox_of(Home::All).registry(|registry| registry.shared_endpoints());
        // An endpoint gets only events of its tenant, also by replays, and one of all tenants those
        // of any.
        let owner = filter.endpoint.and_then(|number| self.owner_of(number));
        let owner = owner.filter(|owner| !owner.is_every());
        let tenant = filter.tenant.clone().or_else(|| self.common_owner(&filter));
        Filter { shared, tenant, events_of: owner.or(filter.events_of), ..filter }
    }

    /// The owner of some listed endpoints, if all have the same. Their deliveries are its.
    fn common_owner(self, filter: &Filter) -> Option<Tenant> {
        let Some(EndpointChoice::Listed(listed)) = &filter.endpoints else { return None };
        let mut owners = listed.iter().take(LISTED_MAX + 1).map(|number| self.owner_of(*number));
        let first = owners.next().flatten()?;
        let is_common = listed.len() <= LISTED_MAX && owners.all(|owner| owner.as_ref() == Some(&first));
        is_common.then_some(first)
    }

    /// Whether the scope covers a delivery of an event of this tenant. Those of an endpoint
    /// of all tenants, and of one whose record is damaged, are the operator's.
    pub(crate) fn covers(self, scope: &Scope, tenant: &str, endpoint: EndpointNumber) -> bool {
        let is_own = || {
            let of_tenant =
                |registry: &Registry| registry.tenant_of(endpoint).is_some_and(|owner| !owner.is_every());
            self.0.outbox_of(endpoint).registry(of_tenant)
        };
        scope.covers_name(tenant) && (scope.0.is_none() || is_own())
    }

    pub(crate) fn empty<T>(self) -> Page<T> {
        Page { items: Vec::new(), next: None, as_of: self.0.outbox_of(Home::All).journal().last_position() }
    }
}

/// Cuts a list to its limit. Returns whether it was longer.
pub(crate) fn cut<T>(items: &mut Vec<T>, limit: usize) -> bool {
    let is_longer = items.len() > limit;
    items.truncate(limit);
    is_longer
}

/// Whether to return the page after this number of steps and this search time.
pub(crate) fn is_done<T>(page: &Page<T>, limit: usize, steps: usize, searched: Duration) -> bool {
    let is_partial =
        !page.items.is_empty() && steps >= failpoints::bound(Bound::ListSteps, limits::LIST_STEPS_MAX);
    page.next.is_none() || page.items.len() >= limit || is_partial || searched >= limits::LIST_SEARCH_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_page_is_returned_only_at_the_end_or_the_time_limit() {
        let more = Some(Cursor::at(Position(9)));
        let soon = Duration::from_millis(1);
        let page = |items: usize, next| Page { items: vec![(); items], next, as_of: Position(0) };
        assert!(
            !is_done(&page(0, more), 50, limits::LIST_STEPS_MAX * 100, soon),
            "empty page before the end"
        );
        assert!(!is_done(&page(1, more), 50, limits::LIST_STEPS_MAX - 1, soon), "steps are left");
        assert!(is_done(&page(1, more), 50, limits::LIST_STEPS_MAX, soon), "no steps are left");
        assert!(is_done(&page(50, more), 50, 1, soon), "the page is full");
        assert!(is_done(&page(0, None), 50, 1, soon), "the list is complete");
        assert!(is_done(&page(0, more), 50, 1, limits::LIST_SEARCH_MAX), "the time limit has passed");
    }
}
