//! Metrics of sources.

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

use super::register;
use crate::domain::{SourceOutcome, SourceState};

#[derive(Clone)]
pub(super) struct SourceMetrics {
    messages: IntCounterVec,
    sources: IntGaugeVec,
}

impl SourceMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let messages =
            Opts::new("balto_source_messages_total", "Acknowledged messages of sources, by outcome.");
        let sources = Opts::new("balto_sources", "Sources, by state.");
        let made = Self {
            messages: register(registry, IntCounterVec::new(messages, &["outcome"])),
            sources: register(registry, IntGaugeVec::new(sources, &["state"])),
        };
        for outcome in SourceOutcome::ALL {
            made.messages.with_label_values(&[outcome.as_str()]);
        }
        made.set_states(&[]);
        made
    }

    pub(super) fn count(&self, outcome: SourceOutcome, count: u64) {
        self.messages.with_label_values(&[outcome.as_str()]).inc_by(count);
    }

    pub(super) fn set_states(&self, states: &[SourceState]) {
        for state in SourceState::ALL {
            let count = states.iter().filter(|one| **one == state).count();
            self.sources.with_label_values(&[state.as_str()]).set(count as i64);
        }
    }
}
