//! Overview over endpoints: statistics by hour, and lanes.
//!
//! Reads in bounded steps, so that other queries get their turn.

use std::collections::{BTreeMap, HashMap};

use crate::context::Context;
use crate::context::home::Home;
use crate::context::signal::LaneAnswer;
use crate::domain::{EndpointId, EndpointNumber, Position, QueueName, Tenant, Timestamp};
use crate::lanes::{CircuitState, WaitReason, with_order};
use crate::limits;
use crate::outbox::ReadModel;
use crate::outbox::draft::Unavailable;
use crate::outbox::registry::Registry;
use crate::projections::counters::Lane;
use crate::projections::stats::Hour;
use crate::service::endpoints::Endpoints;
use crate::service::pages::cut;
use crate::service::queues::Queues;
use crate::service::types::{LaneView, Scope};

/// Counts of one hour.
pub type HourCounts = Hour;

/// Statistics over the endpoints of a scope.
#[derive(Clone, Debug, Default)]
pub struct OverviewStats {
    pub sum: HourCounts,
    /// Accepted events.
    pub events: u64,
    /// Hours with a count, by number since the Unix epoch, oldest first.
    pub hours: Vec<OverviewHour>,
    /// Pending deliveries and dead letters now.
    pub pending: u64,
    pub dead_letters: u64,
}

/// Counts of one hour over the endpoints of a scope.
#[derive(Clone, Debug, Default)]
pub struct OverviewHour {
    /// Number of the hour since the Unix epoch.
    pub number: u64,
    /// Accepted events.
    pub events: u64,
    pub counts: HourCounts,
}

/// Order of a list of lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneOrder {
    /// Newest endpoint first.
    Endpoint,
    /// The lane whose next delivery has the earliest due time first.
    OldestDue,
}

/// Place of a lane in a list of lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LanePlace {
    /// Due time of the next delivery, in the order [`LaneOrder::OldestDue`].
    pub due: Timestamp,
    pub endpoint: EndpointNumber,
}

impl LanePlace {
    /// Whether the place is behind another one.
    fn follows(self, other: Self, order: LaneOrder) -> bool {
        match order {
            LaneOrder::Endpoint => self.endpoint < other.endpoint,
            LaneOrder::OldestDue => (self.due, self.endpoint) > (other.due, other.endpoint),
        }
    }
}

/// A lane with its endpoint or queue.
#[derive(Clone, Debug, PartialEq)]
pub struct ListedLane {
    pub place: LanePlace,
    pub endpoint_id: EndpointId,
    /// Of a queue.
    pub queue: Option<QueueName>,
    pub tenant: Tenant,
    /// The messages of a queue under a running lease are in flight.
    pub lane: LaneView,
}

/// A lane with pending deliveries, before its report.
struct Candidate {
    endpoint: EndpointNumber,
    id: EndpointId,
    queue: Option<QueueName>,
    tenant: Tenant,
    pending: u64,
    waiting: u64,
    due: Option<Timestamp>,
}

impl Candidate {
    fn place(&self) -> LanePlace {
        LanePlace { due: self.due.unwrap_or(Timestamp::MAX), endpoint: self.endpoint }
    }
}

/// Operations on all endpoints of a scope.
#[derive(Clone, Copy)]
pub struct Overview<'a>(pub &'a Context);

impl Overview<'_> {
    /// Sums the hours that overlap the window, over live and deleted endpoints.
    ///
    /// The counters are as old as the first [`limits::STATS_ENDPOINTS_PER_STEP`] endpoints; further
    /// endpoints are read later.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn stats(
        self,
        scope: &Scope,
        since: Timestamp,
        until: Timestamp,
    ) -> Result<OverviewStats, Unavailable> {
        let numbers = |registry: &Registry| registry.numbers_of(scope.0.as_ref()).collect::<Vec<_>>();
        let endpoints = self.0.outbox_of(scope.0.as_ref()).registry(numbers);
        let mut steps = endpoints.chunks(limits::STATS_ENDPOINTS_PER_STEP);
        let first = steps.next().unwrap_or_default().to_vec();
        let tenant = scope.0.clone();
        let (accepted, (pending, dead_letters), mut counted) = self
            .0
            .outbox_of(scope.0.as_ref())
            .read(move |state| {
                let now = match &tenant {
                    Some(tenant) => {
                        let usage = state.usage(tenant);
                        (usage.pending, usage.dead)
                    }
                    None => (state.totals().pending, state.totals().dead),
                };
                // Endpoints of all tenants take the events of all.
                let of_events = tenant.as_ref().filter(|tenant| !tenant.is_every());
                (state.tenant_hours(of_events, since, until), now, hours_of(state, &first, since, until))
            })
            .await?;
        for step in steps {
            let step = step.to_vec();
            let outbox = self.0.outbox_of(Home::All);
            counted.extend(outbox.read(move |state| hours_of(state, &step, since, until)).await?);
        }
        let mut hours: BTreeMap<u64, OverviewHour> = BTreeMap::new();
        for (hour, counts) in counted {
            hours.entry(hour).or_default().counts.add(&counts);
        }
        for (hour, counts) in accepted {
            // Attempts are those of the endpoints.
            hours.entry(hour).or_default().events = counts.events;
        }
        let (mut sum, mut events) = (Hour::default(), 0);
        for (number, hour) in &mut hours {
            hour.number = *number;
            sum.add(&hour.counts);
            events += hour.events;
        }
        Ok(OverviewStats { sum, events, hours: hours.into_values().collect(), pending, dead_letters })
    }

    /// Lanes after a place, with pending deliveries that wait for this reason (any if `None`), and
    /// whether there are more.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn lanes(
        self,
        scope: &Scope,
        reason: Option<WaitReason>,
        order: LaneOrder,
        after: Option<LanePlace>,
        limit: usize,
    ) -> Result<(Vec<ListedLane>, bool), Unavailable> {
        let mut candidates = self.candidates(scope).await?;
        match order {
            LaneOrder::Endpoint => candidates.reverse(),
            LaneOrder::OldestDue => {
                self.find_due_times(&mut candidates).await?;
                candidates.sort_by_key(|candidate| (candidate.place().due, candidate.endpoint));
            }
        }
        candidates.retain(|candidate| after.is_none_or(|after| candidate.place().follows(after, order)));
        let mut lanes = Vec::new();
        let mut candidates = candidates.into_iter().peekable();
        while candidates.peek().is_some() && lanes.len() <= limit {
            // Reports cost the delivery loop time: no more than the list may need.
            let wanted = if reason.is_some() { limits::LANES_EXPLAINED_AT_ONCE } else { limit + 1 };
            let some: Vec<_> =
                candidates.by_ref().take(wanted.min(limits::LANES_EXPLAINED_AT_ONCE)).collect();
            lanes.extend(self.explain(some, reason).await?);
        }
        let more = cut(&mut lanes, limit);
        Ok((lanes, more))
    }

    /// Live endpoints and queues of the scope with pending deliveries, by number.
    async fn candidates(self, scope: &Scope) -> Result<Vec<Candidate>, Unavailable> {
        let counted = match &scope.0 {
            Some(tenant) => self.lanes_of(tenant).await?,
            None => self.0.outbox_of(Home::All).read(|state| state.lanes()).await?,
        };
        Ok(self.0.outbox_of(scope.0.as_ref()).registry(|registry| {
            let counted = counted.into_iter().filter(|(_, lane)| lane.pending > 0);
            let candidates = counted.filter_map(|(number, lane)| {
                let endpoint = registry.endpoint(number)?;
                Some(Candidate {
                    endpoint: number,
                    id: endpoint.id.clone(),
                    queue: endpoint.queue().map(|target| target.name.clone()),
                    tenant: endpoint.tenant.clone(),
                    pending: lane.pending,
                    waiting: lane.waiting,
                    due: None,
                })
            });
            candidates.collect()
        }))
    }

    /// Counters of the live endpoints of a tenant, by number.
    async fn lanes_of(self, tenant: &Tenant) -> Result<Vec<(EndpointNumber, Lane)>, Unavailable> {
        let live = |registry: &Registry| {
            registry.endpoints_of(Some(tenant)).map(|endpoint| endpoint.number).collect::<Vec<_>>()
        };
        let numbers = self.0.outbox_of(tenant).registry(live);
        let mut lanes = Vec::with_capacity(numbers.len());
        for step in numbers.chunks(limits::STATS_ENDPOINTS_PER_STEP) {
            let step = step.to_vec();
            let of_step = move |state: &dyn ReadModel| -> Vec<_> {
                step.into_iter().map(|number| (number, state.lane(number))).collect()
            };
            lanes.extend(self.0.outbox_of(tenant).read_of(Some(tenant), of_step).await?);
        }
        Ok(lanes)
    }

    async fn find_due_times(self, candidates: &mut [Candidate]) -> Result<(), Unavailable> {
        let now = self.0.now().wall;
        for step in candidates.chunks_mut(limits::STATS_ENDPOINTS_PER_STEP) {
            let numbers: Vec<_> = step.iter().map(|candidate| candidate.endpoint).collect();
            let due = self.0.outbox_of(Home::All).read(move |state| {
                let first = |number| {
                    let due = state.sendable(number, None, 1).0.first().map(|(key, _)| key.due);
                    due.into_iter().chain(returned_at(state, number, now)).min()
                };
                numbers.into_iter().map(|number| (number, first(number))).collect::<HashMap<_, _>>()
            });
            let due = due.await?;
            for candidate in step {
                candidate.due = due.get(&candidate.endpoint).copied().flatten();
            }
        }
        Ok(())
    }

    /// The reports of some lanes, in order, that wait for this reason.
    async fn explain(
        self,
        candidates: Vec<Candidate>,
        reason: Option<WaitReason>,
    ) -> Result<Vec<ListedLane>, Unavailable> {
        let asked = candidates.iter().map(|candidate| self.explain_one(candidate));
        let reports = futures_util::future::try_join_all(asked).await?;
        let lanes = candidates.into_iter().zip(reports).filter_map(|(candidate, report)| {
            let found = with_order(report.reason, candidate.waiting > 0);
            if reason.is_some() && found != reason {
                return None;
            }
            let place = candidate.place();
            let lane = LaneView {
                reason: found.map(WaitReason::as_str),
                pending: candidate.pending,
                waiting_for_order: candidate.waiting,
                in_flight: report.in_flight as u64,
                next_due: report.next_due.or(candidate.due),
                until: report.until,
                circuit: report.circuit,
                consecutive_failures: report.consecutive_failures,
            };
            let Candidate { id, queue, tenant, .. } = candidate;
            Some(ListedLane { place, endpoint_id: id, queue, tenant, lane })
        });
        Ok(lanes.collect())
    }

    async fn explain_one(self, candidate: &Candidate) -> Result<LaneAnswer, Unavailable> {
        if candidate.queue.is_none() {
            return Endpoints(self.0).explain(candidate.endpoint).await;
        }
        let report = Queues(self.0).report(candidate.endpoint).await?;
        Ok(LaneAnswer {
            reason: report.reason,
            in_flight: report.leased,
            window: report.window,
            next_due: report.oldest_due(),
            until: None,
            circuit: CircuitState::Closed.as_str(),
            consecutive_failures: 0,
        })
    }
}

/// End of the first lease of a queue that has run out or was released, among its oldest messages.
fn returned_at(state: &dyn ReadModel, queue: EndpointNumber, now: Timestamp) -> Option<Timestamp> {
    let oldest = state.leases(queue, Position(0), limits::RECEIVE_MESSAGES_MAX);
    let returned = oldest.iter().filter(|(_, lease)| lease.is_released || lease.until <= now);
    returned.map(|(_, lease)| lease.until).min()
}

/// The hours of some endpoints that overlap the window.
fn hours_of(
    state: &dyn ReadModel,
    endpoints: &[EndpointNumber],
    since: Timestamp,
    until: Timestamp,
) -> Vec<(u64, HourCounts)> {
    endpoints.iter().flat_map(|number| state.hours(*number, since, until)).collect()
}
