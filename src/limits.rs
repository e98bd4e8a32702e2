//! Every bound of the program in one place, with its relations to the others checked at compile time.
//!
//! Owns: maximum sizes ("bound"), maximum counts at once ("limit"). What an operator may change is only a default
//! here; the configuration carries the value in force. Must never know any other module.

use std::time::Duration;

// ---- ingest ----------------------------------------------------------------------------------------------------

/// Default bound of one event's request body, in bytes (`ingest.max_event_bytes`).
pub const EVENT_BYTES_DEFAULT: usize = 256 * 1024;
/// Hard bound of one event's request body, in bytes; the configuration cannot exceed it.
pub const EVENT_BYTES_MAX: usize = 1024 * 1024;
/// Most events in one batch request.
pub const BATCH_EVENTS_MAX: usize = 1_000;
/// Bound of a batch request's body, in bytes.
pub const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bound of any other request body, in bytes.
pub const REQUEST_BYTES_MAX: usize = 256 * 1024;
/// Longest event type, in bytes (RabbitMQ's bound of a routing key).
pub const EVENT_TYPE_BYTES_MAX: usize = 255;
/// Longest id that a publisher may choose, in bytes.
pub const EVENT_ID_BYTES_MAX: usize = 64;
/// Longest tenant, stream and ordering key, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Bound of an event's or endpoint's `metadata`, in bytes of JSON.
pub const METADATA_BYTES_MAX: usize = 16 * 1024;
/// Most attributes of a CloudEvent.
pub const ATTRIBUTES_MAX: usize = 64;
/// Longest name of a CloudEvent's extension, in bytes.
pub const ATTRIBUTE_NAME_BYTES_MAX: usize = 64;
/// Longest value of a CloudEvent's attribute, in bytes.
pub const ATTRIBUTE_BYTES_MAX: usize = 2_048;
/// Default bound of event bytes that wait for their commit (admission).
pub const ADMISSION_BYTES_DEFAULT: usize = 64 * 1024 * 1024;
/// Default limit of events that wait for their commit (admission).
pub const ADMISSION_EVENTS_DEFAULT: usize = 100_000;

/// Deepest nesting of `data` and `metadata`: every receiver's parser can take it.
pub const JSON_DEPTH_MAX: usize = 100;

// ---- server ----------------------------------------------------------------------------------------------------

/// Default limit of connections to the API at once (`server.max_connections`).
pub const CONNECTIONS_DEFAULT: usize = 4_096;
/// Limit of connections to the ops listener at once.
pub const OPS_CONNECTIONS_MAX: usize = 64;
/// Bound of a request's line and headers, and of what a connection reads ahead, in bytes.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Default bound of the request bodies that are held at once (`server.max_body_bytes`), in bytes.
pub const BODY_BYTES_DEFAULT: usize = 128 * 1024 * 1024;
/// Reads that are answered at once; the others wait their turn.
pub const READS_MAX: usize = 32;
/// File descriptors that are left for the store, the listeners and the resolver.
pub const DESCRIPTORS_RESERVED: usize = 64;
/// Addresses whose wrong keys are counted one by one; further ones are counted together.
pub const FAILING_ADDRESSES_MAX: usize = 4_096;
/// Wrong keys that an address may send at once before it is held off.
pub const FAILURES_BURST: u32 = 300;
/// One more wrong key after each of these.
pub const FAILURES_INTERVAL: Duration = Duration::from_secs(1);
/// A key of at least this many bytes cannot be guessed, and is judged however many wrong ones came before.
pub const UNGUESSABLE_KEY_BYTES_MIN: usize = 32;

// ---- endpoints -------------------------------------------------------------------------------------------------

/// Most topic patterns of one endpoint.
pub const PATTERNS_MAX: usize = 256;
/// Most custom headers of one endpoint.
pub const HEADERS_MAX: usize = 50;
/// Longest custom header value, in bytes.
pub const HEADER_VALUE_BYTES_MAX: usize = 4_096;
/// Longest URL of an endpoint, in bytes.
pub const URL_BYTES_MAX: usize = 2_048;
/// Keys in `secrets.key`: the one that encrypts, and older ones of a rotation.
pub const SECRETS_KEYS_MAX: usize = 16;
/// Live secrets of one endpoint: the current one and those in their overlap.
pub const SECRETS_MAX: usize = 10;
/// Shortest and longest HMAC key, in bytes (Standard Webhooks).
pub const SECRET_BYTES_MIN: usize = 24;
/// See [`SECRET_BYTES_MIN`].
pub const SECRET_BYTES_MAX: usize = 64;
/// Shortest and longest secret of a signature preset whose secrets are plain text, in bytes.
pub const SECRET_TEXT_BYTES_MIN: usize = 16;
/// See [`SECRET_TEXT_BYTES_MIN`].
pub const SECRET_TEXT_BYTES_MAX: usize = 255;
/// Fewest different bytes of a new secret. 16 random hexadecimal digits have fewer once in 27,000 times.
pub const SECRET_DISTINCT_BYTES_MIN: usize = 6;
/// Fewest letters and digits of a new secret that belong to no common word.
pub const SECRET_UNCOMMON_BYTES_MIN: usize = 8;
const _: () = assert!(SECRET_UNCOMMON_BYTES_MIN < SECRET_TEXT_BYTES_MIN);
/// Longest DNS name (RFC 1035), in bytes.
pub const DNS_NAME_BYTES_MAX: usize = 253;
/// Callback URLs of one endpoint's handshake that are good at once: those of its last requests.
pub const CALLBACKS_MAX: usize = 16;
/// Handshakes at once, over all endpoints. They are not counted among the deliveries.
pub const HANDSHAKES_MAX: usize = 256;
/// Bound of an endpoint's client certificate with its chain, in bytes of PEM.
pub const CLIENT_CERTIFICATE_BYTES_MAX: usize = 32 * 1024;
/// Most certificates in that chain.
pub const CLIENT_CERTIFICATES_MAX: usize = 8;
/// Bound of its private key, in bytes of PEM.
pub const CLIENT_KEY_BYTES_MAX: usize = 16 * 1024;
/// Most requests at once to one endpoint that its policy may ask for.
pub const IN_FLIGHT_PER_ENDPOINT_MAX: u32 = 1_000;
/// Most attempts that a retry policy may ask for.
pub const ATTEMPTS_MAX: u32 = 100;
/// Most positions of attempts that are kept per delivery; older ones drop out of the list, never out of the count.
pub const ATTEMPTS_KEPT_MAX: usize = 128;

// ---- delivery --------------------------------------------------------------------------------------------------

/// Default limit of requests at once over all endpoints (`delivery.max_in_flight`).
pub const IN_FLIGHT_DEFAULT: usize = 1_024;
/// Default limit of requests at once to one host and port (`egress.host_max_in_flight`): half of all.
pub const HOST_IN_FLIGHT_DEFAULT: usize = 512;
/// A lookup of a host's addresses ends after this long, before an attempt.
pub const DNS_TIMEOUT: Duration = Duration::from_secs(5);
/// The same when an endpoint is saved: a client waits for the answer, and the host may come up later.
pub const DNS_TIMEOUT_AT_SAVE: Duration = Duration::from_secs(2);
/// Once a host has addresses of one family, those of the other are waited for this long (RFC 8305, section 3).
pub const DNS_FAMILY_WAIT: Duration = Duration::from_millis(50);
/// A name server that is silent for this long is no longer the only one that is asked.
pub const NAME_SERVER_HEAD_START: Duration = Duration::from_millis(250);
/// `/etc/hosts` and `/etc/resolv.conf` are looked at for changes no more often than this.
pub const DNS_FILES_INTERVAL: Duration = Duration::from_secs(2);
/// Names whose addresses are remembered for as long as they say.
pub const DNS_CACHE_NAMES_MAX: u64 = 4_096;
/// Before the next address of a host is tried beside the one before (RFC 8305, section 5).
pub const CONNECT_HEAD_START: Duration = Duration::from_millis(250);
/// Addresses of a host that are tried; all of them are judged.
pub const ADDRESSES_TRIED_MAX: usize = 8;
/// Idle connections that are kept to one host and port.
pub const IDLE_CONNECTIONS_PER_HOST_MAX: usize = 512;
/// Endpoints with a client certificate whose connections are kept at once.
pub const CLIENTS_WITH_CERTIFICATE_MAX: usize = 256;
/// Bound of a reply's head, in bytes: status line and headers, of a receiver or a proxy.
pub const REPLY_HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most header lines of a reply.
pub const REPLY_HEADERS_MAX: usize = 256;
/// How long a receiver has, from the complete head of its reply on, for the reply's body and for the rest of the request.
pub const REPLY_BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// Engines that an event may pass through; one more is taken for a loop.
pub const HOPS_MAX: u32 = 8;
/// Closed endpoints that are looked at per second for what has waited there for too long: each costs the state a scan of up
/// to [`BULK_DELIVERIES_MAX`] rows. When there are more they take turns.
pub const CLOSED_LOOKED_AT_MAX: usize = 16;
/// Rows of the state that are looked at per second for what is due and stands behind others of its order. When there are
/// more, they take turns.
pub const BEHIND_LOOKED_AT_MAX: usize = 5_000;
/// Keys that a lane holds in memory; the rest of its backlog stays on disk.
pub const LANE_WINDOW_MAX: usize = 128;
/// A lane asks for more when its window falls below this.
pub const LANE_WINDOW_LOW: usize = 48;
/// Bytes of a receiver's reply that are read and kept with the attempt.
pub const REPLY_BYTES_MAX: usize = 16 * 1024;
/// Bytes that are read from a receiver for one request, whatever they are: status lines, headers, chunks, padding.
pub const REPLY_WIRE_BYTES_MAX: usize = 256 * 1024;
/// Bytes that are kept of the words about an attempt that failed; a receiver's certificate can make them long.
pub const ERROR_BYTES_MAX: usize = 512;
/// Bytes that are kept of the `Location` of a redirect, which is shown and never followed.
pub const LOCATION_BYTES_MAX: usize = 256;
/// Longest wait that a receiver's `Retry-After` can ask for.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// What an endpoint reserves of its rate beyond a request, in time, so that not every request needs a
/// record of its own. A crash costs the endpoint at most that much.
pub const RATE_RESERVED_AHEAD: Duration = Duration::from_secs(1);
/// How long after its reservation a request may leave at least: the time of a commit. A crash costs
/// an endpoint with a slow rate at most that much.
pub const RATE_RESERVATION_LEAD_MIN: Duration = Duration::from_millis(100);
/// The same at most, where commits are slow or slots are rare.
pub const RATE_RESERVATION_LEAD_MAX: Duration = Duration::from_secs(600);
const _: () = assert!(RATE_RESERVATION_LEAD_MIN.as_millis() < RATE_RESERVED_AHEAD.as_millis());
/// Bytes of events held in memory between acceptance and first send.
pub const PAYLOAD_CACHE_BYTES_MAX: usize = 32 * 1024 * 1024;

// ---- store -----------------------------------------------------------------------------------------------------

/// Most records in one group commit.
pub const COMMIT_RECORDS_MAX: usize = 8_192;
/// Bound of one group commit, in bytes.
pub const COMMIT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most deliveries that the events of one request begin; what would begin more is refused.
pub const REQUEST_TARGETS_MAX: usize = 1_000_000;
/// A group commit is closed when its events begin this many deliveries, or more.
pub const COMMIT_TARGETS: usize = 250_000;
/// Most bytes of an event's record beside what its publisher posted, without its targets.
pub const EVENT_RECORD_BYTES_MAX: usize = 2_048;
/// Most bytes of a target in its event's record: a varint of 32 bits.
pub const TARGET_RECORD_BYTES_MAX: usize = 5;
/// A frame is closed when it has reached this many bytes, so that one record can be read back cheaply.
pub const FRAME_BYTES_TARGET: usize = 64 * 1024;
/// Outcomes that wait for their commit before no further attempt begins.
pub const OUTCOMES_MAX: usize = 50_000;
/// The same in bytes: replies are kept with them.
pub const OUTCOME_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A disk that has not answered for this long makes the daemon unready.
pub const DISK_SILENCE_MAX: Duration = Duration::from_secs(5);
/// Bound of committed events that the state and the delivery loop have not taken in, in bytes.
pub const UNAPPLIED_BYTES_MAX: usize = 80 * 1024 * 1024;
/// Bound of one frame, in bytes: one all-or-none append must fit.
pub const FRAME_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A segment is sealed when it has reached this many bytes.
pub const SEGMENT_BYTES_TARGET: u64 = 64 * 1024 * 1024;
/// Zeros that are written behind the end of the active segment at once, so that most commits do not make it grow.
pub const SEGMENT_ROOM_BYTES: usize = 1024 * 1024;
/// Bound of a value in sled, in bytes. Leaves with more than its segments allow become un-synced blob files.
pub const STATE_VALUE_BYTES_MAX: usize = 100_000;
/// Rows that may change between two checkpoints.
pub const CHECKPOINT_ROWS_MAX: usize = 4_000;
/// Time between two checkpoints when little happens.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// Below this length sled's file is never copied to a fresh one, in bytes.
pub const STATE_COPY_BYTES_MIN: u64 = 256 * 1024 * 1024;
/// sled's page cache, in bytes of pages as they lie on disk. In memory they take three to five times as much.
pub const STATE_CACHE_BYTES: u64 = 16 * 1024 * 1024;

// ---- log -------------------------------------------------------------------------------------------------------

/// Bound of the log lines that wait for standard error, in bytes. Further lines are dropped and counted.
pub const LOG_BYTES_MAX: usize = 1024 * 1024;

// ---- queries ---------------------------------------------------------------------------------------------------

/// Most items on one page of a list.
pub const PAGE_ITEMS_MAX: usize = 250;
/// A page is closed early when its events have reached this many bytes.
pub const PAGE_BYTES_TARGET: usize = 2 * 1024 * 1024;
/// Items on one page of a list when the client does not say.
pub const PAGE_ITEMS_DEFAULT: usize = 50;
/// Index entries that one query step may look at before it yields the state to others.
pub const SCAN_ENTRIES_MAX: usize = 10_000;
/// Steps after which a list request answers with what it has, if it has anything.
pub const LIST_STEPS_MAX: usize = 20;
/// How long a list request looks for its first item before it answers with an empty page and a cursor.
pub const LIST_SEARCH_MAX: Duration = Duration::from_secs(5);
/// Deliveries that one redrive, purge, cancel or replay record names.
pub const BULK_DELIVERIES_MAX: usize = 1_000;

const _: () = assert!(EVENT_BYTES_MAX >= EVENT_BYTES_DEFAULT);
// An all-or-none batch fits one frame, whatever its events match.
const _: () = assert!(
    FRAME_BYTES_MAX
        >= BATCH_BYTES_MAX
            + BATCH_EVENTS_MAX * EVENT_RECORD_BYTES_MAX
            + REQUEST_TARGETS_MAX * TARGET_RECORD_BYTES_MAX
);
const _: () = assert!(COMMIT_BYTES_MAX >= 4 * EVENT_BYTES_MAX); // a commit always holds several events
const _: () = assert!(COMMIT_RECORDS_MAX >= BATCH_EVENTS_MAX);
const _: () = assert!(SEGMENT_ROOM_BYTES as u64 <= SEGMENT_BYTES_TARGET / 8); // room is little beside what it is for
const _: () = assert!(2 * HOST_IN_FLIGHT_DEFAULT <= IN_FLIGHT_DEFAULT); // one host never takes more than half
const _: () = assert!(REPLY_HEAD_BYTES_MAX >= 8 * 1024); // hyper takes no less
const _: () = assert!(LANE_WINDOW_LOW < LANE_WINDOW_MAX);
const _: () = assert!(ADMISSION_BYTES_DEFAULT >= 2 * BATCH_BYTES_MAX); // two full batches can wait
// The largest head, and a body that comes in chunks of one byte, six on the wire, are read to what is kept of them. Where each
// such chunk is a TLS record of its own, about half of it is: what counts is the status.
const _: () = assert!(REPLY_WIRE_BYTES_MAX >= 2 * REPLY_HEAD_BYTES_MAX + 6 * REPLY_BYTES_MAX);
const _: () = assert!(LOCATION_BYTES_MAX < ERROR_BYTES_MAX); // it stands in those words
const _: () = assert!(BODY_BYTES_DEFAULT >= 2 * BATCH_BYTES_MAX); // two full batches can be read
const _: () = assert!(UNAPPLIED_BYTES_MAX >= 2 * COMMIT_BYTES_MAX); // the next group is written while one is applied
const _: () = assert!(PAGE_ITEMS_DEFAULT <= PAGE_ITEMS_MAX);
