//! What the gauges show of the store: asked for once a second, in bounded looks, never by the delivery loop itself.

use crate::context::Context;
use crate::context::overdue::Behind;
use crate::context::signal::Signal;
use crate::domain::Ordering;

/// Tells the gauges, and the delivery loop what it cannot know.
pub(crate) async fn measure(context: Context, mut behind: Behind) {
    let outbox = context.outbox();
    // Counting behind an order looks at every endpoint: not where none has one.
    let ordered =
        outbox.registry(|registry| registry.endpoints().any(|endpoint| endpoint.ordering != Ordering::None));
    let now = context.now().wall;
    let looked = if ordered {
        outbox
            .read(move |state| {
                let waiting = state.lanes().into_iter().filter(|(_, lane)| lane.waiting > 0);
                let waiting: Vec<_> = waiting.map(|(endpoint, _)| endpoint).collect();
                behind.look(&waiting, |endpoint, from, limit| state.due_behind(endpoint, from, now, limit));
                behind
            })
            .await
    } else {
        Ok(Behind::default())
    };
    if let Ok(behind) = looked {
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
