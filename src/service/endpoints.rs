//! Endpoints: changing, reading, listing, statistics, lane reports.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::context::Context;
use crate::context::home::Home;
use crate::context::records::UNEXPECTED_OUTCOME;
use crate::context::responses::Remember;
use crate::context::signal::{LaneAnswer, Signal};
use crate::courier::guard::RefusedUrl;
use crate::domain::{
    DisabledReason, Endpoint, EndpointId, EndpointNumber, EndpointStatus, EndpointUid, Label, Pattern,
    Position, Tenant, Timestamp,
};
use crate::lanes::{WaitReason, with_order};
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::outbox::unit::{Command, Outcome};
use crate::projections::counters;
use crate::projections::reads::Cursor;
use crate::rules::matching::NoRoomForPatterns;
use crate::service::pages::cut;
use crate::service::secrets::Secrets;
use crate::service::system_events::SystemEvents;
use crate::service::types::{EndpointStats, LaneView, Page, Scope};

/// Several tenants have an endpoint with the uid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("several tenants have an endpoint with this uid; use its id")]
pub struct AmbiguousUid;

/// Conditions of a list.
#[derive(Clone, Debug, Default)]
pub struct EndpointFilter {
    pub tenant: Option<Tenant>,
    /// `active`, `paused` or `disabled`.
    pub status: Option<&'static str>,
    pub uid: Option<EndpointUid>,
    pub label: Option<Label>,
}

impl EndpointFilter {
    /// Whether the endpoint meets the conditions, except the one on the tenant.
    fn includes(&self, endpoint: &Endpoint) -> bool {
        self.status.is_none_or(|status| status == status_name(&endpoint.status))
            && self.uid.as_ref().is_none_or(|uid| endpoint.uid.as_ref() == Some(uid))
            && self.label.as_ref().is_none_or(|label| endpoint.selection.labels.contains(label))
    }
}

/// Operations on endpoints.
#[derive(Clone, Copy)]
pub struct Endpoints<'a>(pub &'a Context);

impl Endpoints<'_> {
    pub fn get(self, scope: &Scope, id: &EndpointId) -> Option<Arc<Endpoint>> {
        let found = self.0.outbox_of(id).registry(|registry| registry.endpoint_by_id(id).cloned());
        found.filter(|endpoint| endpoint.queue().is_none() && scope.covers(&endpoint.tenant))
    }

    /// The endpoint with this id, or else with this uid.
    ///
    /// # Errors
    /// When several tenants of the scope have an endpoint with this uid.
    pub fn find(self, scope: &Scope, id_or_uid: &str) -> Result<Option<Arc<Endpoint>>, AmbiguousUid> {
        if let Some(found) = id_or_uid.parse().ok().and_then(|id| self.get(scope, &id)) {
            return Ok(Some(found));
        }
        let Ok(uid) = id_or_uid.parse::<EndpointUid>() else { return Ok(None) };
        self.0.outbox_of(scope.0.as_ref()).registry(|registry| {
            let mut found = registry.endpoints_by_uid(&uid).filter(|one| scope.covers(&one.tenant));
            match (found.next(), found.next()) {
                (_, Some(_)) => Err(AmbiguousUid),
                (one, None) => Ok(one.cloned()),
            }
        })
    }

    /// The endpoints that have this uid, or had it when they were deleted, by number. Empty: none
    /// in the scope.
    ///
    /// # Errors
    /// When endpoints of several tenants have the uid.
    pub fn with_uid(self, scope: &Scope, uid: &EndpointUid) -> Result<Vec<EndpointNumber>, AmbiguousUid> {
        let live = self.find(scope, uid.as_str())?;
        self.0.outbox_of(scope.0.as_ref()).registry(|registry| {
            let owner = |number: &EndpointNumber| registry.tenant_of(*number);
            let former = registry.former_endpoints(uid);
            let former = former.filter(|number| owner(number).is_some_and(|tenant| scope.covers(tenant)));
            let all: Vec<_> = former.chain(live.map(|endpoint| endpoint.number)).collect();
            let is_ambiguous = all.windows(2).any(|pair| owner(&pair[0]) != owner(&pair[1]));
            if is_ambiguous { Err(AmbiguousUid) } else { Ok(all) }
        })
    }

    /// The number in delivery keys. Deleted endpoints keep theirs, so that filters find deliveries.
    #[must_use]
    pub fn number(self, scope: &Scope, id: &EndpointId) -> Option<EndpointNumber> {
        self.0.outbox_of(id).registry(|registry| {
            let number = registry.number_of(id)?;
            registry.tenant_of(number).is_some_and(|tenant| scope.covers(tenant)).then_some(number)
        })
    }

    #[must_use]
    pub fn is_live(self, number: EndpointNumber) -> bool {
        self.0.outbox_of(number).endpoint(number).is_some()
    }

    /// The id of an endpoint, also of a deleted one.
    #[must_use]
    pub fn id_of(self, number: EndpointNumber) -> Option<String> {
        self.0.outbox_of(number).registry(|registry| registry.id_of(number).map(ToString::to_string))
    }

    /// The id of an endpoint, or the name of a live queue.
    #[must_use]
    pub fn name(self, number: EndpointNumber) -> Option<String> {
        self.0.outbox_of(number).registry(|registry| {
            let queue = registry.endpoint(number).and_then(|endpoint| endpoint.queue());
            let id = || registry.id_of(number).map(ToString::to_string);
            queue.map(|target| target.name.to_string()).or_else(id)
        })
    }

    /// Newest first.
    #[must_use]
    pub fn list(
        self,
        scope: &Scope,
        filter: &EndpointFilter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Page<Arc<Endpoint>> {
        let is_wanted = |endpoint: &Endpoint| endpoint.queue().is_none() && filter.includes(endpoint);
        self.page(scope, filter.tenant.as_ref(), after, limit, is_wanted)
    }

    /// Endpoints and queues of the scope, and of the tenant if there is one, newest first.
    pub(crate) fn page(
        self,
        scope: &Scope,
        tenant: Option<&Tenant>,
        after: Option<Cursor>,
        limit: usize,
        is_wanted: impl Fn(&Endpoint) -> bool,
    ) -> Page<Arc<Endpoint>> {
        let is_listed = |endpoint: &&Arc<Endpoint>| {
            scope.covers(&endpoint.tenant)
                && after.is_none_or(|cursor| endpoint.number < cursor.endpoint)
                && is_wanted(endpoint)
        };
        let mut items: Vec<_> = self.0.outbox_of(tenant).registry(|registry| {
            let of_tenant = registry.endpoints_of(tenant.or(scope.0.as_ref())).rev();
            of_tenant.filter(is_listed).take(limit + 1).cloned().collect()
        });
        let more = cut(&mut items, limit);
        let last = items.last().filter(|_| more).map(|endpoint| endpoint.number);
        let next = last.map(|endpoint| Cursor { endpoint, ..Cursor::at(Position(0)) });
        Page { items, next, as_of: self.0.outbox_of(Home::All).journal().last_position() }
    }

    /// The writer sets number and revision, and seals secrets. The commit stores the response.
    ///
    /// # Errors
    /// When the commit failed.
    pub async fn create(
        self,
        mut endpoint: Endpoint,
        remember: Option<Remember>,
    ) -> Result<Arc<Endpoint>, ChangeError> {
        endpoint.number = EndpointNumber(0);
        self.put(endpoint, remember).await
    }

    /// Replaces the endpoint. The same commit stores the response.
    ///
    /// # Errors
    /// [`ChangeError::Conflict`] when the current revision is not `endpoint.revision`.
    pub async fn update(
        self,
        mut endpoint: Endpoint,
        remember: Option<Remember>,
    ) -> Result<Arc<Endpoint>, ChangeError> {
        endpoint.updated_at = self.0.now().wall;
        self.put(endpoint, remember).await
    }

    pub(crate) async fn put(
        self,
        mut endpoint: Endpoint,
        remember: Option<Remember>,
    ) -> Result<Arc<Endpoint>, ChangeError> {
        Secrets(self.0).open_sealed_values(&mut endpoint)?;
        let commands = vec![Command::PutEndpoint(Box::new(endpoint))];
        match self.0.commit(commands, remember).await?.into_iter().next() {
            Some(Outcome::Endpoint(endpoint)) => Ok(endpoint),
            _ => unreachable!("{UNEXPECTED_OUTCOME}"),
        }
    }

    /// Deletes an endpoint. A background task turns its pending deliveries into dead letters.
    ///
    /// # Errors
    /// When the scope lacks the endpoint, or the commit failed.
    pub async fn delete(self, scope: &Scope, id: &EndpointId) -> Result<(), ChangeError> {
        let endpoint = self.get(scope, id).ok_or(ChangeError::NotFound)?.number;
        self.delete_number(scope, endpoint).await
    }

    pub(crate) async fn delete_number(
        self,
        scope: &Scope,
        endpoint: EndpointNumber,
    ) -> Result<(), ChangeError> {
        let _alone = self.0.exclusive(&scope.party()).await;
        let command = Command::DeleteEndpoint { endpoint, at: self.0.now().wall };
        match self.0.submit(vec![command]).await?.first() {
            Some(Outcome::Conflict) => Err(ChangeError::NotFound),
            _ => Ok(()),
        }
    }

    /// Disables an endpoint with an operator event. Retries conflicts while the reason holds.
    pub(crate) async fn disable(
        self,
        number: EndpointNumber,
        reason: DisabledReason,
        holds: impl Fn(&Endpoint) -> bool,
    ) {
        loop {
            let current = self.0.outbox_of(number).endpoint(number);
            let Some(current) = current else { return };
            if matches!(current.status, EndpointStatus::Disabled { .. }) || !holds(&current) {
                return;
            }
            let at = self.0.now().wall;
            let mut changed = Endpoint::clone(&current);
            changed.status = EndpointStatus::Disabled { reason, at };
            match self.update(changed, None).await {
                Ok(endpoint) => {
                    tracing::warn!(endpoint = %endpoint.id, reason = reason.as_str(), "endpoint disabled");
                    SystemEvents(self.0).publish_disabled(&endpoint, reason).await;
                    return;
                }
                Err(ChangeError::Conflict) => {}
                Err(error) => {
                    tracing::error!(endpoint = %current.id, %error, "disabling endpoint failed");
                    return;
                }
            }
        }
    }

    /// # Errors
    /// When the outbox is unavailable.
    pub async fn stats(
        self,
        endpoint: EndpointNumber,
        since: Timestamp,
        until: Timestamp,
    ) -> Result<EndpointStats, Unavailable> {
        self.0
            .outbox_of(endpoint)
            .read(move |state| {
                let hours = state.statistics(endpoint, since, until);
                let lane = state.lane(endpoint);
                EndpointStats {
                    since,
                    until,
                    attempts: hours.attempts,
                    delivered: hours.delivered,
                    failed_attempts: hours.failed(),
                    success_rate: hours.success_rate(),
                    dead: hours.dead,
                    cancelled: hours.cancelled,
                    latency_p50: hours.percentile(0.50),
                    latency_p95: hours.percentile(0.95),
                    latency_p99: hours.percentile(0.99),
                    backlog: lane.pending,
                    oldest_pending: state.oldest_pending(endpoint),
                }
            })
            .await
    }

    /// Numbers of its deliveries.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn counters(self, endpoint: EndpointNumber) -> Result<counters::Lane, Unavailable> {
        self.0.outbox_of(endpoint).read(move |state| state.lane(endpoint)).await
    }

    /// While the disk is full, the state may not answer. The lane then counts the deliveries that
    /// it has in memory.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn lane(self, endpoint: EndpointNumber) -> Result<LaneView, Unavailable> {
        let counted = match self.0.outbox_of(endpoint).read(move |state| state.lane(endpoint)).await {
            Ok(counted) => Some(counted),
            Err(Unavailable::DiskFull) => None,
            Err(error) => return Err(error),
        };
        let report = self.explain(endpoint).await?;
        let in_flight = report.in_flight as u64;
        let counted = counted.unwrap_or_else(|| counters::Lane {
            pending: report.window as u64 + in_flight,
            ..counters::Lane::default()
        });
        let reason = with_order(report.reason, counted.waiting > 0);
        Ok(LaneView {
            reason: reason.map(WaitReason::as_str),
            pending: counted.pending,
            waiting_for_order: counted.waiting,
            in_flight,
            next_due: report.next_due,
            until: report.until,
            circuit: report.circuit,
            consecutive_failures: report.consecutive_failures,
        })
    }

    pub(crate) async fn explain(self, endpoint: EndpointNumber) -> Result<LaneAnswer, Unavailable> {
        let (answer, report) = oneshot::channel();
        self.0.signal(Signal::Explain { endpoint, answer });
        report.await.map_err(|_| Unavailable::Stopping)
    }

    /// Checks a URL by the rules for outbound connections, and returns its canonical form.
    ///
    /// # Errors
    /// The reason, as a message for the client.
    pub async fn check_url(self, url: &str) -> Result<Box<str>, RefusedUrl> {
        self.0.transport().check_url(url).await
    }

    /// As [`Self::check_url`], for the URL of a broker.
    ///
    /// # Errors
    /// The reason, as a message for the client.
    pub async fn check_broker_url(self, url: &str) -> Result<Box<str>, RefusedUrl> {
        self.0.transport().check_broker_url(url).await
    }

    /// Checks whether the tenant may have these topic patterns, in place of those of `replaced`.
    ///
    /// # Errors
    /// When the tenant's patterns together exceed their bound.
    pub fn check_patterns(
        self,
        tenant: &Tenant,
        patterns: &[Pattern],
        replaced: Option<EndpointNumber>,
    ) -> Result<(), NoRoomForPatterns> {
        self.0.outbox_of(tenant).subscriptions().matcher().check_room(tenant, patterns, replaced)
    }

    /// Checks a custom header.
    ///
    /// # Errors
    /// The reason, as a message for the client.
    pub fn check_header(self, name: &str, value: &str) -> Result<(), String> {
        crate::courier::body::validate_header(name, value)
    }

    #[must_use]
    pub fn new_id(self) -> EndpointId {
        self.0.new_id("ep_").parse().expect("a ULID contains only letters and digits")
    }
}

/// The API's name of an endpoint's status.
#[must_use]
fn status_name(status: &EndpointStatus) -> &'static str {
    match status {
        EndpointStatus::Active => "active",
        EndpointStatus::Paused => "paused",
        EndpointStatus::Disabled { .. } => "disabled",
    }
}
