//! The HTTP exchange of an attempt: request, connection, times and the headers of the reply.

use std::net::SocketAddr;
use std::time::Duration;

use super::closed_list::closed_list;
use super::{Position, Timestamp};

/// The exchange of an attempt, as far as it got. Empty in records of older versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// `None` if the request could not be built.
    pub request: Option<SentRequest>,
    pub connection: ConnectionFacts,
    /// Set if a next attempt is due.
    pub rule: Option<RetryRule>,
    /// The headers of a reply that is not a success. Credentials are masked. At most
    /// [`limits::REPLY_HEADERS_BYTES_KEPT_MAX`](crate::limits::REPLY_HEADERS_BYTES_KEPT_MAX).
    pub headers: Vec<(Box<str>, Box<str>)>,
}

/// The facts from which the request of an attempt can be built again. Its method, URL, headers and
/// body follow from the event and from this revision of the endpoint, which stays in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentRequest {
    /// The endpoint's revision.
    pub revision: Position,
    /// The time in the request, unless it has the same second as the start of the attempt: the
    /// system's clock was set back.
    pub signed_at: Option<Timestamp>,
}

/// The connection of an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionFacts {
    /// The receiver's address. `None` without a connection, and behind a proxy.
    pub remote_address: Option<SocketAddr>,
    /// The request was sent on an idle connection.
    pub is_reused: bool,
    pub times: PhaseTimes,
}

/// Duration of each phase that ended, in whole microseconds. A reused connection has only the last
/// one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhaseTimes {
    /// Resolution of the host name.
    pub dns: Option<Duration>,
    /// TCP connection; behind a proxy, until the tunnel is open.
    pub connect: Option<Duration>,
    /// TLS handshake.
    pub tls: Option<Duration>,
    /// From the start of the request to the first byte of the reply.
    pub first_byte: Option<Duration>,
}

closed_list! {
    /// The rule that set the time of the next attempt.
    pub enum RetryRule {
        /// The endpoint's retry policy.
        RetryPolicy = 1 => "retryPolicy",
        /// The receiver's `Retry-After`, which is later.
        RetryAfter = 2 => "retryAfter",
    }
}
