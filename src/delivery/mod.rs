//! The delivery loop and its tasks: attempts, handshake requests, gauges, background tasks.
//!
//! [`dispatcher`] owns the lanes and starts every task. Tasks report to it by signals
//! ([`context::signal`](crate::context)). The loop itself must never wait for the outbox.

mod attempt;
mod background;
mod dispatcher;
pub mod erasure;
mod gauges;
mod handshake;
mod intake;
pub mod jobs;
pub mod key_uses;
mod lane_policy;
mod lane_upkeep;
mod payload_cache;
pub mod rebuilding;
pub mod resealing;
pub mod retention;
mod sending;
mod stalls;

use std::sync::Arc;

use crate::context::clock::Clock;
use crate::context::environment::Environment;
use crate::context::{Context, Settings};
use crate::metrics::Metrics;
use crate::outbox::OpenedOutbox;
use crate::vault::Vault;

pub use dispatcher::{Dispatcher, Run};

/// Builds the context over an opened outbox, and the delivery loop. The caller runs the loop.
#[must_use]
pub fn assemble(
    opened: OpenedOutbox,
    environment: Environment,
    vault: Arc<Vault>,
    clock: Clock,
    metrics: Arc<Metrics>,
    settings: Settings,
) -> (Context, Dispatcher) {
    clock.raise_to(opened.last_time);
    let (context, signals) = Context::new(opened.outbox, environment, vault, clock, metrics, settings);
    let dispatcher = Dispatcher::new(context.clone(), opened.notices, signals);
    (context, dispatcher)
}
