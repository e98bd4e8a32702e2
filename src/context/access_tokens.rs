//! Access tokens of endpoints with OAuth 2.0, one per endpoint. Never stored on disk.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::courier::ReceiverReply;
use crate::domain::{EndpointNumber, IdMap, Position};
use crate::limits;

#[derive(Default)]
pub(crate) struct AccessTokens(Mutex<IdMap<EndpointNumber, Arc<TokenSlot>>>);

/// The token of one revision of an endpoint.
pub(crate) struct TokenSlot {
    revision: Position,
    /// Held during a request to the token server, so that there is one at a time.
    pub(crate) state: tokio::sync::Mutex<TokenState>,
}

/// The last answer of the token server. Times are of the monotonic clock.
#[derive(Default)]
pub(crate) enum TokenState {
    #[default]
    Unknown,
    Token {
        token: Arc<str>,
        renew_at: Duration,
    },
    Failed {
        at: Duration,
        reply: Box<ReceiverReply>,
    },
}

impl AccessTokens {
    /// The slot of an endpoint. A new revision drops the token of the former one. When too many
    /// endpoints have a token, all are dropped.
    pub(crate) fn slot(&self, endpoint: EndpointNumber, revision: Position) -> Arc<TokenSlot> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(&endpoint).filter(|slot| slot.revision == revision) {
            return slot.clone();
        }
        if slots.len() >= limits::ACCESS_TOKENS_MAX && !slots.contains_key(&endpoint) {
            slots.clear();
        }
        let slot = Arc::new(TokenSlot { revision, state: tokio::sync::Mutex::default() });
        slots.insert(endpoint, slot.clone());
        slot
    }
}
