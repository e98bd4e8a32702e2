//! Responses that their clients have not read yet.
//!
//! Owns their bound in bytes: per caller and in all. A read gives its turn back when its response
//! has room here; from then on the response counts, until it is written to the socket. At a
//! caller's bound its slowest client is disconnected; without a slow one, the next read waits for
//! it. At the bound of all, the caller with the most unread bytes gives way.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::http::problem::Problem;
use crate::api::http::reply::{Reply, WritePermit};
use crate::api::http::shared_room::{RoomFull, RoomGuard, RoomLimits, SharedRoom};
use crate::domain::KeyId;
use crate::limits;

/// A response without progress for this time has a slow reader.
const SLOW_READER_AGE: Duration = Duration::from_secs(2);

/// Interval in which a read looks for room.
const ROOM_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// A client with its own bound of unread responses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    Key(KeyId),
    /// The administrator's key, and requests without a key with `--dev`.
    Administrator,
    /// A request without a key, by its [`address_block`](crate::domain::address_block).
    Address(IpAddr),
}

/// Closes the connection of a request.
#[derive(Clone, Debug, Default)]
pub struct ConnectionCloser(pub Arc<Notify>);

impl WritePermit for RoomGuard<Caller> {
    fn on_progress(&self) {
        self.progress();
    }
}

/// The ledger of unread responses.
pub struct UnreadResponses(SharedRoom<Caller>);

impl Default for UnreadResponses {
    fn default() -> Self {
        Self(SharedRoom::new(RoomLimits {
            bytes: limits::UNREAD_BYTES_MAX,
            party_bytes: limits::UNREAD_BYTES_PER_CALLER_MAX,
            own_give_way_after: Some(SLOW_READER_AGE),
        }))
    }
}

impl UnreadResponses {
    /// Counts a response until it is written. A read waits for room, because a slow client of the
    /// caller gives way after [`SLOW_READER_AGE`].
    ///
    /// # Errors
    /// 429 for a read that found no room within [`limits::UNREAD_WAIT_MAX`]. The response of a
    /// change is never rejected.
    pub async fn hold(
        &self,
        reply: Reply,
        is_read: bool,
        caller: Caller,
        closer: ConnectionCloser,
    ) -> Result<Reply, Problem> {
        if reply.body().is_empty() {
            return Ok(reply);
        }
        let guard = self.0.enter(caller, closer.0);
        let bytes = reply.body().len().max(limits::UNREAD_RESPONSE_BYTES_MIN);
        if !is_read {
            self.0.take_regardless(&guard, bytes);
            return Ok(reply.hold_until_written(guard));
        }
        let deadline = Instant::now() + limits::UNREAD_WAIT_MAX;
        while self.0.take(&guard, bytes) == Err(RoomFull) {
            if Instant::now() >= deadline {
                return Err(Problem::UnreadResponses { limit: limits::UNREAD_BYTES_PER_CALLER_MAX });
            }
            tokio::time::sleep(ROOM_CHECK_INTERVAL).await;
        }
        Ok(reply.hold_until_written(guard))
    }

    /// Unread bytes of all callers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.used()
    }
}
