//! Matching of events to endpoints, before their units enter the commit queue.

use std::sync::RwLockReadGuard;

use super::Outbox;
use super::fan_out::{self, MatchStep};
use super::subscriptions::{Candidates, Selected, Subscriptions, Verdicts};
use super::unit::Command;
use crate::domain::{EndpointNumber, Event, IdMap, Tenant};
use crate::filters::EventFacts;
use crate::limits;

impl Outbox {
    /// Matches events to endpoints, so that the writer need not. The writer matches again if an
    /// endpoint changes in between. Returns the number of deliveries by tenant.
    pub(super) async fn match_events(&self, commands: &mut [Command]) -> IdMap<Tenant, usize> {
        let (mut next, mut steps, mut tenants) = (0, 0, IdMap::default());
        loop {
            let step = {
                let subscriptions = self.subscriptions();
                fan_out::match_next(&subscriptions, commands, &mut next, &mut tenants)
            };
            steps += match step {
                None => break,
                Some(MatchStep::Matched(steps)) => steps,
                Some(MatchStep::ByContent { index, candidates, known, steps }) => {
                    if let Command::Publish(draft) = &mut commands[index] {
                        let selected = select_in_steps(candidates, draft.facts(), known).await;
                        fan_out::add_matched(draft, selected.into(), &mut tenants);
                    }
                    steps
                }
            };
            if steps > limits::MATCH_STEPS_MAX {
                steps = 0;
                tokio::task::yield_now().await;
            }
        }
        tenants
    }

    /// The index of endpoints by what they want, under its read lock. The caller must not block.
    pub fn subscriptions(&self) -> RwLockReadGuard<'_, Subscriptions> {
        self.inner.subscriptions.read().expect("no holder of this lock panics")
    }

    /// The endpoints that want an event now, ascending.
    pub async fn wanted_by(&self, event: &Event) -> Vec<EndpointNumber> {
        let candidates = self.subscriptions().candidates(&event.tenant, &event.event_type).0;
        select_in_steps(candidates, event.into(), Verdicts::default()).await.targets
    }
}

/// Selects by labels and content. Other requests get a turn after [`limits::MATCH_STEPS_MAX`].
async fn select_in_steps(candidates: Candidates, facts: EventFacts<'_>, known: Verdicts) -> Selected {
    let mut selecting = candidates.start(known);
    while !selecting.advance(facts, limits::MATCH_STEPS_MAX) {
        tokio::task::yield_now().await;
    }
    selecting.finish()
}
