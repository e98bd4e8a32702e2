//! Starts, stops and restarts the sources.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::amqp::AmqpClient;
use super::{Intake, SourceClient, SourceFailure, SourceOptions, StopSignal};
use crate::context::Context;
use crate::courier::Courier;
use crate::domain::{Position, Source, SourceName, SourceState, SourceStatus};
use crate::limits::broker::{RECONNECT_INITIAL, RECONNECT_MAX, STABLE_AFTER};
use crate::panics;
use crate::service::Sources;

/// A running source.
struct Running {
    revision: Position,
    epoch: u64,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Runs all sources until `draining` is ready. Returns when the messages that they took are
/// settled.
pub async fn run(
    context: Context,
    courier: Courier,
    options: SourceOptions,
    draining: impl Future<Output = ()> + Send,
) {
    let mut draining = pin!(draining);
    let mut running: HashMap<SourceName, Running> = HashMap::new();
    // Sources that were paused or deleted, until their messages are settled.
    let mut ending = JoinSet::new();
    loop {
        reconcile(&context, &courier, options, &mut running, &mut ending);
        while ending.try_join_next().is_some() {}
        tokio::select! {
            () = context.source_board().changed() => {}
            () = &mut draining => break,
        }
    }
    for source in running.values() {
        source.stop.send_replace(true);
    }
    for source in running.into_values() {
        // A panic is logged where it happens.
        drop(source.task.await);
    }
    while ending.join_next().await.is_some() {}
}

/// Makes the running sources those that are registered and active.
fn reconcile(
    context: &Context,
    courier: &Courier,
    options: SourceOptions,
    running: &mut HashMap<SourceName, Running>,
    ending: &mut JoinSet<()>,
) {
    let sources = Sources(context).all();
    let board = context.source_board();
    board.retain(|name| sources.iter().any(|source| source.name == *name));
    let epoch = board.epoch();
    let is_current = |name: &SourceName, known: &Running| {
        let found = sources.iter().find(|source| source.name == *name);
        found.is_some_and(|found| found.revision == known.revision) && known.epoch == epoch
    };
    let mut earlier_tasks: HashMap<SourceName, JoinHandle<()>> = HashMap::new();
    running.retain(|name, known| {
        if is_current(name, known) {
            return true;
        }
        known.stop.send_replace(true);
        let task = std::mem::replace(&mut known.task, tokio::spawn(async {}));
        earlier_tasks.insert(name.clone(), task);
        false
    });
    for source in &sources {
        board.insert(&source.name, context.now().wall);
        let earlier = earlier_tasks.remove(&source.name);
        if source.status == SourceStatus::Paused {
            ending.spawn(show_paused(context.clone(), source.name.clone(), earlier));
            continue;
        }
        if running.contains_key(&source.name) {
            continue;
        }
        let (stop, stopped) = watch::channel(false);
        let client = AmqpClient::new(context.clone(), courier.clone(), source.clone());
        let work = keep_running(context.clone(), source.clone(), options, Box::new(client), stopped);
        let work = async move {
            if let Some(earlier) = earlier {
                drop(earlier.await);
            }
            work.await;
        };
        let known =
            Running { revision: source.revision, epoch, stop, task: tokio::spawn(panics::contained(work)) };
        running.insert(source.name.clone(), known);
    }
    for task in earlier_tasks.into_values() {
        ending.spawn(async { drop(task.await) });
    }
    context.metrics().source_states(&board.states());
}

/// Shows a source as paused when its messages are settled, unless it was resumed in between.
async fn show_paused(context: Context, name: SourceName, earlier: Option<JoinHandle<()>>) {
    if let Some(earlier) = earlier {
        drop(earlier.await);
    }
    let is_paused = Sources(&context)
        .all()
        .iter()
        .any(|source| source.name == name && source.status == SourceStatus::Paused);
    if is_paused {
        let now = context.now().wall;
        context.source_board().update(&name, |report| report.enter(SourceState::Paused, now));
        context.metrics().source_states(&context.source_board().states());
    }
}

/// Runs a source again after each failure, until it is stopped.
async fn keep_running(
    context: Context,
    source: Arc<Source>,
    options: SourceOptions,
    mut client: Box<dyn SourceClient>,
    stop: StopSignal,
) {
    let intake = Intake::new(context.clone(), &source, options, stop.clone());
    let board = context.source_board();
    let mut backoff = RECONNECT_INITIAL;
    while !*stop.borrow() {
        let now = context.now();
        board.update(&source.name, |report| report.enter(SourceState::Connecting, now.wall));
        let failure = match panics::caught(client.run(&intake, stop.clone())).await {
            Ok(Ok(()) | Err(SourceFailure::Stopping)) => break,
            Ok(Err(failure)) => failure,
            Err(panics::Panicked) => SourceFailure::Panicked,
        };
        let ended = context.now();
        let text = failure.to_string();
        tracing::warn!(source = %source.name, error = text, "source disconnected");
        board.update(&source.name, |report| {
            report.enter(SourceState::Failed, ended.wall);
            report.last_error = Some((ended.wall, text.into()));
            report.unacknowledged = 0;
        });
        context.metrics().source_states(&board.states());
        if ended.monotonic.saturating_sub(now.monotonic) > STABLE_AFTER {
            backoff = RECONNECT_INITIAL;
        }
        let mut stopped = stop.clone();
        tokio::select! {
            () = tokio::time::sleep(backoff) => {}
            _ = stopped.wait_for(|stop| *stop) => break,
        }
        backoff = (2 * backoff).min(RECONNECT_MAX);
    }
}
