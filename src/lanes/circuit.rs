//! The circuit breaker: probes a receiver that is down instead of sending its backlog.

use std::time::Duration;

use crate::domain::DueKey;
use crate::domain::closed_list::closed_list;
use crate::failpoints::{self, Mutation};

#[derive(Clone, Copy, Debug)]
pub struct BreakerConfig {
    /// Consecutive failures that open the circuit, at least 1.
    pub failures_to_open: u32,
    /// Wait before the first probe; doubles with each failed probe, up to `probe_max`.
    pub probe_initial: Duration,
    pub probe_max: Duration,
}

closed_list! {
    pub enum CircuitState {
        Closed => "closed",
        Open => "open",
        /// A probe is in flight.
        HalfOpen => "halfOpen",
    }
}

#[derive(Clone, Copy, Debug)]
struct Opened {
    probe_at: Duration,
    wait: Duration,
    probe: Option<DueKey>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Circuit {
    failures: u32,
    opened: Option<Opened>,
}

impl Circuit {
    pub(super) fn state(&self) -> CircuitState {
        match self.opened {
            None => CircuitState::Closed,
            Some(Opened { probe: None, .. }) => CircuitState::Open,
            Some(Opened { probe: Some(_), .. }) => CircuitState::HalfOpen,
        }
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// `Some` while requests are blocked: until this time, or (inner `None`) until the probe ends.
    pub(super) fn blocked_until(&self, now: Duration) -> Option<Option<Duration>> {
        match self.opened? {
            Opened { probe: Some(_), .. } => Some(None),
            Opened { probe_at, .. } if probe_at > now => Some(Some(probe_at)),
            Opened { .. } => None,
        }
    }

    /// A request that is sent while the circuit is open is its probe.
    pub(super) fn on_sent(&mut self, key: DueKey) {
        if let Some(opened) = &mut self.opened {
            opened.probe = Some(key);
        }
    }

    pub(super) fn on_success(&mut self) {
        *self = Self::default();
    }

    /// Late failures of requests from before the circuit opened only count.
    pub(super) fn on_failure(&mut self, key: DueKey, config: &BreakerConfig, now: Duration) {
        self.failures = self.failures.saturating_add(1);
        match &mut self.opened {
            Some(opened) if opened.probe == Some(key) => {
                let wait = opened.wait.saturating_mul(2).min(config.probe_max);
                *opened = Opened { probe_at: now + wait, wait, probe: None };
            }
            Some(_) => {}
            None if failpoints::is_active(Mutation::NeverOpenCircuit) => {}
            None if self.failures >= config.failures_to_open => {
                let wait = config.probe_initial;
                self.opened = Some(Opened { probe_at: now + wait, wait, probe: None });
            }
            None => {}
        }
    }

    /// An inconclusive probe; another one may be sent.
    pub(super) fn on_neutral(&mut self, key: DueKey) {
        if let Some(opened) = &mut self.opened
            && opened.probe == Some(key)
        {
            opened.probe = None;
        }
    }
}
