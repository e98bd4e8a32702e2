//! Bounds of connections to AMQP brokers.

use std::time::Duration;

/// Connections to brokers that deliver events, at the same time. Each has one thread.
pub const CONNECTIONS_MAX: usize = 128;
/// Channels of one such connection: one for each exchange.
pub const CHANNELS_MAX: usize = 64;
/// Time without a message after which such a connection is closed.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval of heartbeats, in seconds. Two missing ones end a connection.
pub const HEARTBEAT_SECONDS: u16 = 20;
/// Bytes that a broker may send before the first message.
pub const READ_BYTES_MIN: usize = 256 * 1024;
/// Longest name of an exchange or a queue, and longest routing key, in bytes: a short string of
/// AMQP.
pub const NAME_BYTES_MAX: usize = 255;
/// Pause of a lane whose broker takes no messages.
pub const BLOCKED_PAUSE: Duration = Duration::from_secs(1);
/// Most bytes of a message's headers: with the properties, they fit one frame of the smallest
/// configured size in use (131,072 bytes).
pub const HEADERS_BYTES_MAX: usize = 100_000;

// ---- sources ----

/// Sources. Each has one thread for its connection.
pub const SOURCES_MAX: usize = 64;
/// Most messages of one commit.
pub const BATCH_MESSAGES_MAX: usize = 256;
/// Time that a message waits for others of its commit.
pub const BATCH_WAIT: Duration = Duration::from_millis(5);
/// Timeout of a connection with its handshakes.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause after the first failed connection. It doubles with each failure.
pub const RECONNECT_INITIAL: Duration = Duration::from_secs(1);
/// Longest pause between two connections.
pub const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// Time after which a connection counts as stable: the next pause is the first again.
pub const STABLE_AFTER: Duration = Duration::from_secs(10);
/// Pause before messages are offered to the store again.
pub const HOLD_PAUSE: Duration = Duration::from_secs(1);
/// Time for which messages are held while the store refuses them. A broker closes the channel of a
/// consumer that does not acknowledge for 30 minutes.
pub const HOLD_MAX: Duration = Duration::from_secs(600);
/// Bytes of the body of an invalid message that its operator event keeps.
pub const PARKED_BYTES_MAX: usize = 512 * 1024;
/// Bytes of the headers that it keeps.
pub const PARKED_HEADERS_BYTES_MAX: usize = 64 * 1024;
const _: () = assert!(PARKED_BYTES_MAX / 3 * 4 + 2 * PARKED_HEADERS_BYTES_MAX < super::EVENT_BYTES_MAX);
const _: () = assert!(BATCH_MESSAGES_MAX <= super::BATCH_EVENTS_MAX);
