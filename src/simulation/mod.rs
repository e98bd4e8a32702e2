//! The whole engine in a simulated world, on one thread, by a seed.
//!
//! Real: the services, the delivery loop and its tasks, the lanes, the rules, the writer, the journal, the fold and
//! the state's checkpoints. Simulated: clocks, chance, the disk (written and durable images), the rows' store (a map,
//! written all or none), the threads of writer and state (their turns are taken when chance says so) and receivers.
//! The same seed always gives the same trace, byte for byte. A failure prints its seed and the command that replays it.

mod receivers;

mod chance;
mod life;
mod model;
mod operations;
mod tests;
mod walks;
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use life::{End, Life};
use world::World;

use crate::domain::{DeliveryState, Record};
use crate::failpoints::{Mutation, TestOverrides};

/// Lives of one seed: more are a sign that it does not end.
const LIVES_MAX: u32 = 60;

/// What a seed came to.
#[derive(Debug)]
struct Report {
    trace: String,
    broken: Option<String>,
    happened: BTreeMap<&'static str, u64>,
}

thread_local! {
    /// What has panicked on this thread while it simulates.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// A panic within a task is caught by its runtime: it is written down here.
fn listen_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let kept = PANICS.with_borrow_mut(|panics| match panics {
                Some(panics) => {
                    panics.push(info.to_string());
                    true
                }
                None => false,
            });
            if !kept {
                usual(info);
            }
        }));
    });
}

fn run(seed: u64, bug: Option<Mutation>) -> Report {
    listen_for_panics();
    PANICS.set(Some(Vec::new()));
    world::begin_time();
    let world = World::new(seed);
    TestOverrides { bounds: world.plan().bounds.into_iter().collect(), mutation: bug }.activate();
    let ended = catch_unwind(AssertUnwindSafe(|| live_through(&world)));
    TestOverrides::default().activate();
    let panics = PANICS.take().unwrap_or_default();
    let broken = match ended {
        Ok(Ok(())) => None,
        Ok(Err(broken)) => Some(broken),
        Err(_) => Some("a panic".to_owned()),
    };
    world.with(|inner| Report {
        broken: panics
            .into_iter()
            .next()
            .map(|panic| format!("panicked: {panic}"))
            .or_else(|| inner.broken.take())
            .or(broken),
        trace: std::mem::take(&mut inner.trace),
        happened: std::mem::take(&mut inner.happened),
    })
}

/// Life after life, until all is done.
fn live_through(world: &World) -> Result<(), String> {
    for life in 1..=LIVES_MAX {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let end = runtime.block_on(async {
            let end = match Life::begin(world) {
                Ok(life) => Ok(life.live().await),
                Err(broken) => Err(broken),
            };
            world::end_life();
            end
        });
        drop(runtime);
        let end = match end {
            // The power failed while it was opening.
            Err(_) if !world.is_alive() => End::PowerCut,
            other => other?,
        };
        if world.is_broken() {
            return Err("see above".to_owned());
        }
        let disk = world.disk();
        let after = match (disk.disk_after_power_cut(), end) {
            (Some(survivor), _) => survivor,
            (None, End::PowerCut) => disk.crash(world.chance(chance::Chance::next)),
            (None, End::Done | End::Stopped | End::Killed) => disk,
        };
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
    Err(format!("it did not end within {LIVES_MAX} lives"))
}

/// The books of the model and of the receivers agree.
fn check_end(world: &World) -> Result<(), String> {
    world.with(|inner| {
        for (key, known) in &inner.model.oracle.deliveries {
            match known.state {
                DeliveryState::Pending => return Err(format!("{key:?} is still pending")),
                DeliveryState::Delivered if !inner.received.contains(key) => {
                    return Err(format!("{key:?} counts as delivered, and no receiver has it"));
                }
                DeliveryState::Delivered => *inner.happened.entry("delivered").or_default() += 1,
                DeliveryState::Dead(_) => *inner.happened.entry("dead").or_default() += 1,
                DeliveryState::Cancelled | DeliveryState::Purged => {}
            }
        }
        Ok(())
    })
}

/// A record in a few words.
fn brief(record: &Record) -> String {
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
