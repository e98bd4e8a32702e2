//! Gauges of the outbox, read once a second in bounded steps. A task reads them, not the loop.

use crate::context::Context;
use crate::context::home::Home;
use crate::context::overdue::Behind;
use crate::context::signal::Signal;
use crate::domain::Ordering;

/// Updates the gauges, and sends the overdue deliveries behind others to the delivery loop.
pub(crate) async fn update_gauges(context: Context, mut behind: Behind) {
    let outbox = context.outbox_of(Home::All);
    context.metrics().waiting(context.waits().callers());
    context.metrics().streams(context.waits().streams().callers());
    // The scan visits every endpoint. Skip it when none has an ordering.
    let ordered =
        outbox.registry(|registry| registry.endpoints().any(|endpoint| endpoint.ordering != Ordering::None));
    let now = context.now().wall;
    let scanned = if ordered {
        outbox
            .read(move |state| {
                let waiting = state.lanes().into_iter().filter(|(_, lane)| lane.waiting > 0);
                let waiting: Vec<_> = waiting.map(|(endpoint, _)| endpoint).collect();
                behind.scan(&waiting, |endpoint, from, limit| state.due_behind(endpoint, from, now, limit));
                behind
            })
            .await
    } else {
        Ok(Behind::default())
    };
    if let Ok(behind) = scanned {
        context.signal(Signal::Behind(behind));
    }
    if let Ok((totals, size)) = outbox.read(|state| (state.totals(), state.size_bytes())).await {
        context.metrics().store(
            totals.pending,
            totals.dead,
            outbox.journal().size_bytes(),
            size,
            outbox.lag(),
        );
    }
}
