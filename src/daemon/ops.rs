//! The ops listener: metrics, liveness and readiness, from before recovery until the end of the
//! process.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Setup, Started, listen, on_shortage};
use crate::api;
use crate::api::http::connection_limit::ConnectionLimit;
use crate::api::http::server::Bounds;
use crate::context::Context;
use crate::courier::Courier;
use crate::delivery::Run;
use crate::limits;
use crate::metrics::CONTENT_TYPE;
use crate::outbox::{DiskShortage, Health};

/// Time limit of a request's headers, and of an answer.
const OPS_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until the returned tasks are dropped.
pub(super) async fn serve(
    setup: &Setup,
    courier: &Courier,
    started: &Started,
    run: &watch::Sender<Run>,
    connections: &Arc<ConnectionLimit>,
) -> anyhow::Result<(JoinSet<()>, SocketAddr)> {
    let listener = listen(setup.config.server.ops_listen, "server.ops_listen")?;
    let address = listener.local_addr()?;
    let mut tasks = JoinSet::new();
    let router = router(setup, started, run, connections);
    tasks.spawn(api::http::server::serve(listener, router, bounds(courier), std::future::pending()));
    Ok((tasks, address))
}

fn bounds(courier: &Courier) -> Bounds {
    Bounds {
        connections: ConnectionLimit::new(limits::OPS_CONNECTIONS_MAX),
        header_timeout: OPS_TIMEOUT,
        answer_timeout: OPS_TIMEOUT,
        on_shortage: on_shortage(courier),
        tls: None,
    }
}

fn router(
    setup: &Setup,
    started: &Started,
    run: &watch::Sender<Run>,
    connections: &Arc<ConnectionLimit>,
) -> axum::Router {
    let directory = setup.config.store.path.clone();
    let (started, run, connections) = (started.clone(), run.subscribe(), connections.clone());
    let ready = Arc::new(move || match (*run.borrow(), started.get()) {
        (Run::Draining | Run::Cut, _) => Err("draining".to_owned()),
        (Run::On, None) => Err("recovering".to_owned()),
        (Run::On, Some(context)) => check_store(context),
    });
    let (metrics, is_ready) = (setup.metrics.clone(), ready.clone());
    let shown = Arc::new(move || {
        metrics.on_scrape(is_ready().is_ok(), free_bytes(&directory));
        metrics.connections(connections.taken(), connections.take_evicted());
        (CONTENT_TYPE, metrics.encode())
    });
    api::ops::router(shown, ready, setup.ops_site.clone())
}

/// Whether the store can make anything durable; the error is the reason why not.
fn check_store(context: &Context) -> Result<(), String> {
    let stall = context.stall();
    match &*context.health().borrow() {
        Health::Good => match (stall, context.disk_shortage()) {
            (Some(stall), _) => Err(stall.to_string()),
            (None, Some(DiskShortage { free, reserve })) => Err(format!(
                "the disk has {free} free bytes, too few for events beside the {reserve} of store.reserve_bytes: free space, or lower it"
            )),
            (None, None) => Ok(()),
        },
        Health::DiskFull => Err("the disk is full".to_owned()),
        Health::Failed(reason) => Err(reason.to_string()),
    }
}

/// Free bytes for an unprivileged process on the disk of `directory`.
fn free_bytes(directory: &Path) -> u64 {
    rustix::fs::statvfs(directory).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}
