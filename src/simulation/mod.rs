//! Deterministic simulation of the whole engine on one thread, from a seed.
//!
//! Real: services, delivery loop, tasks, lanes, rules, writer, journal, fold, checkpoints.
//! Simulated: clocks, randomness, disk (written and durable image), row store (a map with atomic
//! writes), the scheduling of writer and state, receivers. A seed always gives the same trace, byte
//! for byte. A failure prints its seed and the command that replays it.

mod receivers;

mod chance;
mod consumers;
mod drain;
mod feed;
mod jobs;
mod leases;
mod life;
mod model;
mod operations;
mod read_models;
mod sources;
mod states;
mod tenants;
mod tests;
mod types;
mod walks;
mod workers;
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use life::{End, Life};
use world::World;

use crate::domain::{DeliveryState, Record};
use crate::failpoints::{Mutation, TestOverrides};

/// Maximum number of lives of one seed. A seed with more is considered endless.
const LIVES_MAX: u32 = 60;

/// Result of a seed.
#[derive(Debug)]
struct Report {
    trace: String,
    violation: Option<String>,
    happened: BTreeMap<&'static str, u64>,
}

thread_local! {
    /// Panics on this thread during a simulation.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Records panics in [`PANICS`], because the runtime catches a task's panic.
fn capture_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default_hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let recorded = PANICS.with_borrow_mut(|panics| match panics {
                Some(panics) => {
                    panics.push(info.to_string());
                    true
                }
                None => false,
            });
            if !recorded {
                default_hook(info);
            }
        }));
    });
}

fn run(seed: u64, bug: Option<Mutation>) -> Report {
    capture_panics();
    PANICS.set(Some(Vec::new()));
    world::reset_time();
    let world = World::new(seed);
    TestOverrides { bounds: world.plan().bounds.into_iter().collect(), mutation: bug }.activate();
    let ended = catch_unwind(AssertUnwindSafe(|| run_lives(&world)));
    TestOverrides::default().activate();
    let panics = PANICS.take().unwrap_or_default();
    let violation = match ended {
        Ok(Ok(())) => None,
        Ok(Err(violation)) => Some(violation),
        Err(_) => Some("panicked".to_owned()),
    };
    world.with(|inner| Report {
        violation: panics
            .into_iter()
            .next()
            .map(|panic| format!("panicked: {panic}"))
            .or_else(|| inner.violation.take())
            .or(violation),
        trace: std::mem::take(&mut inner.trace),
        happened: std::mem::take(&mut inner.happened),
    })
}

/// Runs lives until all deliveries have ended.
fn run_lives(world: &World) -> Result<(), String> {
    for life in 1..=LIVES_MAX {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let end = runtime.block_on(async {
            let end = match Life::begin(world) {
                Ok(life) => Ok(life.live().await),
                Err(violation) => Err(violation),
            };
            world::end_life();
            end
        });
        drop(runtime);
        let end = match end {
            // The power failed during the opening.
            Err(_) if !world.is_alive() => End::PowerCut,
            other => other?,
        };
        if world.has_violation() {
            return Err("invariant violated, see above".to_owned());
        }
        let disk = world.disk();
        let after = match (disk.disk_after_power_cut(), end) {
            (Some(survivor), _) => survivor,
            (None, End::PowerCut) => disk.crash(world.chance(chance::Chance::next)),
            (None, End::Done | End::Stopped | End::Killed) => disk,
        };
        if end == End::PowerCut && world.chance(|chance| chance.percent(50)) {
            world.rows.lose_unsynced();
        }
        after.clear_faults();
        after.set_bytes_max(None);
        world.set_disk(after);
        world.note(format_args!("life {life} ends: {end:?}"));
        world.count(match end {
            End::Done => "ends",
            End::Stopped => "stopped",
            End::Killed => "kills",
            End::PowerCut => "powerCuts",
        });
        if end == End::Done {
            return check_end(world);
        }
    }
    Err(format!("the seed did not end within {LIVES_MAX} lives"))
}

/// Compares the model's final states with what receivers took.
fn check_end(world: &World) -> Result<(), String> {
    world.with(|inner| {
        for (key, known) in &inner.model.oracle.deliveries {
            match known.state {
                DeliveryState::Pending => return Err(format!("{key:?} is still pending")),
                DeliveryState::Delivered if !inner.received.contains(key) => {
                    return Err(format!("{key:?} is recorded as delivered, but no receiver took it"));
                }
                DeliveryState::Delivered => *inner.happened.entry("delivered").or_default() += 1,
                DeliveryState::Dead(_) => *inner.happened.entry("dead").or_default() += 1,
                DeliveryState::Cancelled | DeliveryState::Purged => {}
            }
        }
        sources::check_end(inner)
    })
}

/// A short description of a record for the trace.
fn summarize(record: &Record) -> String {
    match record {
        Record::EventAccepted(event) => format!("event {} to {:?}", event.id, event.targets),
        Record::AttemptFinished { delivery, due, attempt } => format!(
            "attempt {} of {}/{} due {} -> {:?}",
            attempt.number,
            delivery.event,
            delivery.endpoint.0,
            due.millis(),
            attempt.next
        ),
        Record::EndpointPut(endpoint) => format!("endpoint {} {:?}", endpoint.number.0, endpoint.status),
        other => format!("{other:?}"),
    }
}
