//! Events and attempts without their content.

use bytes::Bytes;

use crate::domain::{Attempt, Event, Timestamp};

/// The event without its content.
pub(super) fn erase(event: &Event, at: Timestamp) -> Event {
    let mut event = event.clone();
    event.metadata = None;
    event.labels.clear();
    event.attributes.retain(|(name, _)| **name == *"traceparent");
    (event.data, event.erased_at) = (Bytes::new(), Some(at));
    event
}

/// The attempt without its content.
pub(super) fn erase_attempt(attempt: &Attempt) -> Attempt {
    let mut attempt = attempt.clone();
    attempt.reply = Bytes::new();
    attempt.exchange.headers.clear();
    if let Some((_, text)) = &mut attempt.error {
        let status = attempt.status.map(|status| format!("status {status}").into());
        *text = status.unwrap_or_else(|| "erased".into());
    }
    attempt
}
