//! The end of the delivery loop: running attempts finish within a limit, or are aborted.
//! Background tasks end after their current step, and continue at the next start.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::context::signal::Signal;
use crate::lanes::SendHold;

use super::{Dispatcher, Run, TICK_INTERVAL, log_panic};

impl Dispatcher {
    pub(super) async fn drain(&mut self, limit: Duration, mut run: watch::Receiver<Run>) {
        self.draining = true;
        self.lanes.hold(SendHold::Shutdown);
        self.desk.lanes.hold(SendHold::Shutdown);
        self.end_receives();
        // The next start repeats these tasks.
        self.reorder_tasks.values().chain(&self.reorder_all_task).for_each(AbortHandle::abort);
        let is_cut = async move { drop(run.wait_for(|run| *run == Run::Cut).await) };
        let mut is_over = pin!(tokio::time::timeout(limit, is_cut));
        let mut tick = tokio::time::interval(TICK_INTERVAL);
        tracing::debug!(
            attempts = self.tasks.len(),
            background = self.background.len(),
            "waiting for attempts and background tasks"
        );
        while !(self.tasks.is_empty() && self.background.is_empty()) || self.desk.has_pending_receives() {
            tokio::select! {
                biased;
                _ = &mut is_over => return self.abort_tasks().await,
                Some(ended) = self.tasks.join_next() => log_panic(&ended),
                Some(ended) = self.background.join_next() => log_panic(&ended),
                // The lanes send nothing more, so they need no further deliveries.
                Some(notice) = self.notices.recv() => {
                    self.on_notice(notice, self.context.now());
                    self.intake = None;
                }
                // Workers end their leases until the end.
                Some(signal) = self.signals.recv() => {
                    if let Signal::Queue(signal) = signal {
                        self.on_queue_signal(signal, self.context.now());
                    }
                }
                _ = tick.tick() => {
                    self.heartbeat.send_replace(());
                }
            }
        }
    }

    /// Receives that still wait for a commit get no messages. Their leases end by time.
    async fn abort_tasks(&mut self) {
        let (attempts, background) = (self.tasks.len(), self.background.len());
        let receives = self.desk.abandon_receives();
        tracing::warn!(
            attempts,
            background,
            receives,
            "aborting attempts and background tasks, repeating them at the next start; ending receives"
        );
        self.tasks.shutdown().await;
        self.background.shutdown().await;
    }
}
