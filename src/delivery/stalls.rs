//! Log lines about an outbox that makes no progress: one when it is noticed, one at its end.

use std::time::Duration;

use crate::context::Context;
use crate::outbox::Stall;

/// The stall in the log, if any.
#[derive(Debug, Default)]
pub(super) struct StallLog {
    longest: Option<Duration>,
}

impl StallLog {
    /// Call this about once a second.
    pub(super) fn on_tick(&mut self, context: &Context) {
        self.on_stall(context.stall());
    }

    fn on_stall(&mut self, stall: Option<Stall>) {
        match (stall, self.longest) {
            (Some(stall), None) => tracing::warn!(reason = %stall, "outbox stalled"),
            (None, Some(longest)) => tracing::info!(seconds = longest.as_secs(), "outbox resumed"),
            (Some(_), Some(_)) | (None, None) => {}
        }
        self.longest = stall.map(|stall| stall.duration);
    }
}
