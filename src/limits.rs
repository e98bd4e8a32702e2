//! Every bound of the program in one place. The compiler checks how the bounds relate.
//!
//! Owns: maximum sizes ("bound") and maximum counts at once ("limit"). A constant that ends in
//! `_DEFAULT` can be configured; the configuration carries the value in force. Must never know any
//! other module.

pub mod broker;
mod event_types;
mod selection;

use std::time::Duration;

pub use event_types::*;
pub use selection::*;

// ---- ingest ----

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
/// Bound of the `metadata` of an event, endpoint or tenant, in bytes of JSON.
pub const METADATA_BYTES_MAX: usize = 16 * 1024;
/// Most attributes of a CloudEvent.
pub const ATTRIBUTES_MAX: usize = 64;
/// Longest name of a CloudEvent's extension, in bytes.
pub const ATTRIBUTE_NAME_BYTES_MAX: usize = 64;
/// Longest value of a CloudEvent's attribute, in bytes.
pub const ATTRIBUTE_BYTES_MAX: usize = 2_048;
/// Most checks of streams in one atomic request.
pub const CHECKS_MAX: usize = 1_000;
/// Default bound of uncommitted event bytes (admission).
pub const ADMISSION_BYTES_DEFAULT: usize = 64 * 1024 * 1024;
/// Default limit of uncommitted events (admission).
pub const ADMISSION_EVENTS_DEFAULT: usize = 100_000;

/// Maximum nesting of `data` and `metadata`. Common JSON parsers accept this depth.
pub const JSON_DEPTH_MAX: usize = 100;

// ---- server ----

/// Default limit of connections to the API at once (`server.max_connections`).
pub const CONNECTIONS_DEFAULT: usize = 4_096;
/// Default limit of connections without a key from one address
/// (`server.max_connections_per_address`).
pub const CONNECTIONS_PER_ADDRESS_DEFAULT: usize = 256;
/// Connections that the kernel accepts before the listener takes them. The kernel's own limit is
/// `net.core.somaxconn`. Without room a client tries again after a second.
pub const LISTEN_BACKLOG: u32 = 4_096;
/// Limit of connections to the ops listener at once.
pub const OPS_CONNECTIONS_MAX: usize = 64;
/// Bound of a request's line and headers, and of a connection's read-ahead, in bytes.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Default bound of all request bodies in memory (`server.max_body_bytes`), in bytes.
pub const BODY_BYTES_DEFAULT: usize = 128 * 1024 * 1024;
/// A body of at most this many bytes is never rejected for lack of room.
pub const SMALL_BODY_BYTES: usize = 16 * 1024;
/// Default minimum rate at which a body arrives (`server.min_body_rate`), in bytes per second.
pub const BODY_RATE_DEFAULT: usize = 1_024;
/// Time over which the rate of a body is measured; the first such time is its grace.
pub const BODY_RATE_WINDOW: Duration = Duration::from_secs(10);
/// A computation about this many bytes leaves the thread that serves other requests: about a
/// millisecond.
pub const HEAVY_WORK_BYTES: usize = 64 * 1024;
/// Items of a page that is serialised likewise.
pub const HEAVY_PAGE_ITEMS: usize = 8;
/// Limit of concurrent read requests; further ones queue.
pub const READS_MAX: usize = 32;
/// Limit of requests that wait for something.
pub const WAITERS_MAX: usize = 2_000;
/// Default limit of streams of events at once (`server.max_streams`). A lone party has three
/// quarters.
pub const STREAMS_DEFAULT: usize = 1_000;
/// Time in which a client must take the response to a request that was ended for the connection of
/// another party.
pub const ENDED_REQUEST_GRACE: Duration = Duration::from_secs(1);
/// Waiting requests, or streams, of a party for each place that is free. With `n` busy parties each
/// gets `3 / (3n + 1)` of the places.
pub const WAITERS_SHARE: usize = 3;

/// A stream of events ends after this time, and its client connects again.
pub const STREAM_LIFETIME: Duration = Duration::from_secs(3_600);
/// A request that waits, or a stream of events, notices at the latest after this time that its key
/// is not valid any more.
pub const KEY_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time without a byte on a stream of events. Proxies close idle connections after 60 s.
pub const STREAM_HEARTBEAT: Duration = Duration::from_secs(15);
/// Where no event matches, a stream tells its position after this time.
pub const STREAM_ID_INTERVAL: Duration = Duration::from_secs(5);
/// The same after this many positions.
pub const STREAM_ID_POSITIONS: u64 = 10_000;
/// Shortest time between two writes at the end of the log: several commits share one write.
pub const STREAM_PAUSE: Duration = Duration::from_millis(5);
/// The same after a write of at least [`STREAM_BUSY_BYTES`]: the writes of many busy streams would
/// take the processors from the publishers.
pub const STREAM_BUSY_PAUSE: Duration = Duration::from_millis(25);
pub const STREAM_BUSY_BYTES: usize = 8 * 1024;
/// Bound of a page that a stream of events holds, in bytes, if it has more than one event.
pub const STREAM_PAGE_BYTES: usize = 64 * 1024;
/// Bounds of the pause that a stream asks of its client before it connects again.
pub const STREAM_RETRY_MIN: Duration = Duration::from_secs(2);
/// See [`STREAM_RETRY_MIN`].
pub const STREAM_RETRY_MAX: Duration = Duration::from_secs(4);
const _: () = assert!(STREAM_RETRY_MIN.as_millis() < STREAM_RETRY_MAX.as_millis());
/// Maximum of the query parameter `wait`.
pub const WAIT_MAX: Duration = Duration::from_secs(60);
/// Bound of response bytes that the clients of one key, or one address without a key, have not
/// read.
pub const UNREAD_BYTES_PER_CALLER_MAX: usize = 16 * 1024 * 1024;
/// Bound of response bytes that all clients together have not read.
pub const UNREAD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Response bytes of a connection that the kernel takes before it can send them
/// (`TCP_NOTSENT_LOWAT`). The daemon holds the further ones, which count as unread.
pub const UNSENT_BYTES_MAX: u32 = 128 * 1024;
/// Bytes that an unread response counts as at least: the cost of its connection.
pub const UNREAD_RESPONSE_BYTES_MIN: usize = 16 * 1024;
/// Time in which a read waits for slow clients of its caller to give way.
pub const UNREAD_WAIT_MAX: Duration = Duration::from_secs(20);
/// File descriptors reserved for storage, the listeners and the resolver.
pub const DESCRIPTORS_RESERVED: usize = 64;
/// Addresses with their own counter of failed authentications; further ones share a counter.
pub const AUTH_FAILURE_COUNTERS_MAX: usize = 4_096;
/// Failed authentications that an address may make in a burst before it is throttled.
pub const AUTH_FAILURES_BURST: u32 = 300;
/// Time after which an address may make one more failed authentication.
pub const AUTH_FAILURES_INTERVAL: Duration = Duration::from_secs(1);
/// A key of at least this many bytes cannot be guessed, so it is checked even while its address is
/// throttled.
pub const UNGUESSABLE_KEY_BYTES_MIN: usize = 32;

// ---- endpoints ----

/// Most topic patterns of one endpoint.
pub const PATTERNS_MAX: usize = 256;
/// Most `*` and `#` of one topic pattern in canonical form.
pub const PATTERN_WILDCARDS_MAX: usize = 8;
/// Most `*` and `#` of all topic patterns of one endpoint.
pub const ENDPOINT_WILDCARDS_MAX: usize = 512;
/// Bound of all topic patterns of one endpoint, in bytes.
pub const ENDPOINT_PATTERN_BYTES_MAX: usize = 16 * 1024;
/// Most states (parts plus one) of a tenant's different patterns with wildcards that begin with the
/// same word, or with a wildcard. An event is compared with two such groups: an event type of 128
/// words takes 2 x 128 x 65,536 / 64 steps of a few nanoseconds.
pub const PATTERN_STATES_MAX: usize = 65_536;
const _: () = assert!(ENDPOINT_WILDCARDS_MAX >= PATTERNS_MAX); // each pattern may have one
const _: () = assert!(ENDPOINT_PATTERN_BYTES_MAX >= EVENT_TYPE_BYTES_MAX);
// The patterns of several endpoints fit: a pattern of n bytes has at most n / 2 + 2 states.
const _: () = assert!(PATTERN_STATES_MAX >= 4 * (ENDPOINT_PATTERN_BYTES_MAX / 2 + 2 * PATTERNS_MAX));
/// Most custom headers of one endpoint.
pub const HEADERS_MAX: usize = 50;
/// Longest custom header value, in bytes.
pub const HEADER_VALUE_BYTES_MAX: usize = 4_096;
/// Longest URL of an endpoint, in bytes.
pub const URL_BYTES_MAX: usize = 2_048;
/// Maximum keys in `secrets.key`: the current one, and older ones during a rotation.
pub const SECRETS_KEYS_MAX: usize = 16;
/// Maximum valid secrets of one endpoint: the current one, and older ones during their overlap.
pub const SECRETS_MAX: usize = 10;
/// Shortest and longest HMAC key, in bytes (Standard Webhooks).
pub const SECRET_BYTES_MIN: usize = 24;
/// See [`SECRET_BYTES_MIN`].
pub const SECRET_BYTES_MAX: usize = 64;
/// Shortest and longest secret of a signature preset with text secrets, in bytes.
pub const SECRET_TEXT_BYTES_MIN: usize = 16;
/// See [`SECRET_TEXT_BYTES_MIN`].
pub const SECRET_TEXT_BYTES_MAX: usize = 255;
/// Minimum distinct bytes of a new secret. 1 in 27,000 secrets of 16 random hexadecimal digits has
/// fewer.
pub const SECRET_DISTINCT_BYTES_MIN: usize = 6;
/// Minimum letters and digits of a new secret outside common words.
pub const SECRET_UNCOMMON_BYTES_MIN: usize = 8;
const _: () = assert!(SECRET_UNCOMMON_BYTES_MIN < SECRET_TEXT_BYTES_MIN);
/// Maximum signature schemes of one endpoint.
pub const SIGNATURES_MAX: usize = 5;
/// Longest template of a custom signature, in bytes.
pub const SIGNATURE_TEMPLATE_BYTES_MAX: usize = 256;
/// Longest template of a request body, in bytes.
pub const BODY_TEMPLATE_BYTES_MAX: usize = 16 * 1024;
/// Largest rendered request body, in bytes.
pub const RENDERED_BYTES_MAX: usize = 256 * 1024;
/// Work of one rendering: an instruction of the template costs 1, and 64 bytes of data cost 1.
pub const RENDERING_FUEL: u64 = 100_000;
/// Endpoints whose compiled template is kept.
pub const COMPILED_TEMPLATES_MAX: usize = 1_000;
/// Parsed URLs that are kept. Each takes about four times the length of its text: at most 8 KiB, so
/// 32 MiB in all; usually below 1 KiB.
pub const REQUEST_URLS_MAX: usize = 4_096;
/// Longest content type of requests, in bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;
/// Longest user name, password, client id, client secret, scope or audience, in bytes.
pub const AUTH_TEXT_BYTES_MAX: usize = 1_024;
/// Further parameters of a token request.
pub const TOKEN_PARAMETERS_MAX: usize = 16;
/// Longest name of a further parameter of a token request, in bytes.
pub const TOKEN_PARAMETER_NAME_BYTES_MAX: usize = 64;
/// All further parameters of a token request, names and values, in bytes.
pub const TOKEN_PARAMETERS_BYTES_MAX: usize = 4 * 1024;
/// Longest access token, in bytes.
pub const ACCESS_TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Endpoints whose access token is kept.
pub const ACCESS_TOKENS_MAX: usize = 10_000;
/// Lifetime of an access token whose server does not say it.
pub const ACCESS_TOKEN_LIFETIME_DEFAULT: Duration = Duration::from_secs(300);
/// Longest time that an access token is kept.
pub const ACCESS_TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// An access token is renewed this long before it expires.
pub const ACCESS_TOKEN_MARGIN: Duration = Duration::from_secs(30);
/// Longest DNS name (RFC 1035), in bytes.
pub const DNS_NAME_BYTES_MAX: usize = 253;
/// Maximum valid callback URLs of one endpoint's handshake; the most recent ones are kept.
pub const CALLBACKS_MAX: usize = 16;
/// Limit of concurrent handshakes over all endpoints. They use no delivery slots.
pub const HANDSHAKES_MAX: usize = 256;
/// Limit of concurrent handshakes at one host and port.
pub const HANDSHAKES_PER_HOST_MAX: usize = 32;
const _: () = assert!(8 * HANDSHAKES_PER_HOST_MAX <= HANDSHAKES_MAX);
/// Default timeout of a handshake request (`handshake.timeout`).
pub const HANDSHAKE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// Test events of one endpoint in [`TEST_SENDS_PERIOD`].
pub const TEST_SENDS_MAX: usize = 10;
/// See [`TEST_SENDS_MAX`].
pub const TEST_SENDS_PERIOD: Duration = Duration::from_secs(60);
/// Bound of an endpoint's client certificate with its chain, in bytes of PEM.
pub const CLIENT_CERTIFICATE_BYTES_MAX: usize = 32 * 1024;
/// Most certificates in a client certificate's chain.
pub const CLIENT_CERTIFICATES_MAX: usize = 8;
/// Bound of a client certificate's private key, in bytes of PEM.
pub const CLIENT_KEY_BYTES_MAX: usize = 16 * 1024;
/// Highest limit of concurrent requests that an endpoint's policy may set.
pub const IN_FLIGHT_PER_ENDPOINT_MAX: u32 = 1_000;
/// Most attempts that a retry policy may set.
pub const ATTEMPTS_MAX: u32 = 100;
/// Attempt positions kept per delivery. Older ones leave the list but stay in the count.
pub const ATTEMPTS_KEPT_MAX: usize = 128;

// ---- delivery ----

/// Default limit of concurrent requests over all endpoints (`delivery.max_in_flight`).
pub const IN_FLIGHT_DEFAULT: usize = 1_024;
/// Default limit of concurrent requests to one host and port (`egress.host_max_in_flight`).
pub const HOST_IN_FLIGHT_DEFAULT: usize = 512;
/// Default limit of concurrent requests to one address (`egress.address_max_in_flight`).
pub const ADDRESS_IN_FLIGHT_DEFAULT: usize = 640;
/// Pause of an endpoint whose address was at its limit.
pub const ADDRESS_LIMIT_PAUSE: Duration = Duration::from_millis(500);
/// Timeout of a host name lookup for an attempt.
pub const DNS_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a host name lookup while an endpoint is saved. It is shorter because an API client
/// waits, and an unresolved host is accepted.
pub const DNS_TIMEOUT_AT_SAVE: Duration = Duration::from_secs(2);
/// Time to wait for the second address family after the first has answered (RFC 8305, section 3).
pub const DNS_FAMILY_WAIT: Duration = Duration::from_millis(50);
/// Time after which a silent name server is joined by the next one.
pub const NAME_SERVER_HEAD_START: Duration = Duration::from_millis(250);
/// Minimum time between two checks of `/etc/hosts` and `/etc/resolv.conf` for changes.
pub const DNS_FILES_INTERVAL: Duration = Duration::from_secs(2);
/// Names in the DNS cache; entries expire with their time to live.
pub const DNS_CACHE_NAMES_MAX: u64 = 4_096;
/// Delay before the next address of a host is tried in parallel (RFC 8305, section 5).
pub const CONNECT_HEAD_START: Duration = Duration::from_millis(250);
/// Addresses of a host that one attempt tries. The guard checks all of them.
pub const ADDRESSES_TRIED_MAX: usize = 8;
/// Idle connections kept to one host and port.
pub const IDLE_CONNECTIONS_PER_HOST_MAX: usize = 512;
/// Client certificates with a connection pool at the same time.
pub const CLIENTS_WITH_CERTIFICATE_MAX: usize = 256;
/// Bound of a reply's head (status line and headers) from a receiver or a proxy, in bytes.
pub const REPLY_HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most header lines of a reply.
pub const REPLY_HEADERS_MAX: usize = 256;
/// Time from the complete head of a reply until its body and the rest of the request must be
/// transferred.
pub const REPLY_BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// Balto instances that an event may pass; one more is treated as a loop.
pub const HOPS_MAX: u32 = 8;
/// Closed endpoints checked per second for expired deliveries. Each check scans up to
/// [`BULK_STEP_DELIVERIES`] rows. Further endpoints take turns.
pub const CLOSED_ENDPOINTS_CHECKED_MAX: usize = 16;
/// Rows checked per second for overdue deliveries behind the head of their ordering queue. Further
/// rows take turns.
pub const OVERDUE_ROWS_CHECKED_MAX: usize = 5_000;
/// Delivery keys that a lane holds in memory; the rest of its backlog stays on disk.
pub const LANE_WINDOW_MAX: usize = 128;
/// A lane requests a refill when its window falls below this.
pub const LANE_WINDOW_LOW: usize = 48;
/// Bytes of a reply's body that are read and kept with the attempt.
pub const REPLY_BYTES_MAX: usize = 16 * 1024;
/// Bytes read from a receiver for one request, including status lines, headers, chunk framing and
/// TLS padding.
pub const REPLY_WIRE_BYTES_MAX: usize = 256 * 1024;
/// Bytes kept of a failed attempt's error message. A receiver's certificate can make it long.
pub const ERROR_BYTES_MAX: usize = 512;
/// Bytes of the last error message in the row of a delivery, for lists.
pub const LAST_ERROR_BYTES_MAX: usize = 200;
/// Bytes of a failed reply's headers that its attempt keeps: names and values.
pub const REPLY_HEADERS_BYTES_KEPT_MAX: usize = 4 * 1024;
/// Bytes kept of a redirect's `Location`. It is shown and never followed.
pub const LOCATION_BYTES_MAX: usize = 256;
/// Longest delay that a receiver's `Retry-After` can request.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// Part of an endpoint's rate that one record reserves ahead, as time, to save a record per
/// request. A crash loses at most this much of the rate.
pub const RATE_RESERVED_AHEAD: Duration = Duration::from_secs(1);
/// How long after its reservation a request may leave at least: the time of a commit. A crash costs
/// an endpoint with a slow rate at most that much.
pub const RATE_RESERVATION_LEAD_MIN: Duration = Duration::from_millis(100);
/// The same at most, where commits are slow or slots are rare.
pub const RATE_RESERVATION_LEAD_MAX: Duration = Duration::from_secs(600);
const _: () = assert!(RATE_RESERVATION_LEAD_MIN.as_millis() < RATE_RESERVED_AHEAD.as_millis());
/// Bytes of events held in memory between acceptance and first send.
pub const PAYLOAD_CACHE_BYTES_MAX: usize = 32 * 1024 * 1024;

// ---- queues ----

/// Limit of messages under lease over all queues. The memory of their leases depends on it.
pub const LEASES_MAX: usize = 500_000;
/// Most messages that one queue may have under lease (`maxLeased`).
pub const LEASED_PER_QUEUE_MAX: usize = 100_000;
/// Default of `maxLeased`.
pub const LEASED_DEFAULT: u64 = 10_000;
/// Longest lease that a queue may allow (`maxLease`).
pub const LEASE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Most deliveries that a queue may allow per message (`maxDeliveries`), and the default.
pub const DELIVERIES_MAX: u32 = 1_000;
pub const DELIVERIES_DEFAULT: u64 = 20;
/// Most messages of one receive.
pub const RECEIVE_MESSAGES_MAX: usize = 100;
/// Default bound of a receive's events, in bytes, and the largest.
pub const RECEIVE_BYTES_DEFAULT: usize = 2 * 1024 * 1024;
pub const RECEIVE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most receipts of one request.
pub const RECEIPTS_MAX: usize = 1_000;
/// Longest delay of a returned message.
pub const NACK_DELAY_MAX: Duration = Duration::from_secs(12 * 3600);
const _: () = assert!(LEASED_PER_QUEUE_MAX < LEASES_MAX); // one queue leaves leases for others
const _: () = assert!(RECEIVE_BYTES_DEFAULT >= EVENT_BYTES_MAX);
const _: () = assert!(REQUEST_BYTES_MAX >= RECEIPTS_MAX * 64); // a full request of receipts fits

// ---- storage ----

/// Most records in one group commit.
pub const COMMIT_RECORDS_MAX: usize = 8_192;
/// Bound of one group commit, in bytes.
pub const COMMIT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// An atomic request above this many bytes is alone in its group commit.
pub const ATOMIC_SHARED_BYTES_MAX: usize = 1024 * 1024;
/// Most records in one group commit while parties compete: one full batch.
pub const SHARED_COMMIT_RECORDS: usize = 1_024;
/// Bound of one group commit while parties compete, in bytes.
pub const SHARED_COMMIT_BYTES: usize = 2 * 1024 * 1024;
/// Most deliveries that the events of one request may create. Larger requests are rejected.
pub const REQUEST_TARGETS_MAX: usize = 1_000_000;
/// Most deliveries that one event may create. A row of the state holds all its targets.
pub const EVENT_TARGETS_MAX: usize = 12_000;
/// A group commit is closed when its events create at least this many deliveries.
pub const COMMIT_TARGETS: usize = 250_000;
/// Most deliveries of one tenant that are queued or not applied by the state yet. A single request
/// may begin as many at once.
pub const UNAPPLIED_TARGETS_MAX: usize = REQUEST_TARGETS_MAX;
/// Most unapplied deliveries of units that begin many. Each delays the commits and reads of all
/// tenants by some microseconds. A larger unit is alone.
pub const FAN_OUT_TARGETS_MAX: usize = 1_000;
/// Deliveries at which a request with independent events is split into several commits.
pub const UNIT_TARGETS: usize = 500;
const _: () = assert!(2 * UNIT_TARGETS <= FAN_OUT_TARGETS_MAX); // one is applied while one is written
/// Unapplied deliveries of a tenant from which on its units with few deliveries take turns too. Far
/// above what single posts have under load.
pub const FAN_OUT_BUSY_TARGETS: usize = 5_000;
const _: () = assert!(FAN_OUT_BUSY_TARGETS > FAN_OUT_TARGETS_MAX);
/// How long a unit waits for its turn before it is rejected as overloaded.
pub const FAN_OUT_WAIT_MAX: Duration = Duration::from_secs(20);
/// Deliveries of an event that the state applies before it looks for questions of others and for
/// its next checkpoint: a few milliseconds.
pub const APPLY_STEP_TARGETS: usize = 250;
/// Most records that are applied before the rest of a partly applied event. The cursor of a
/// checkpoint lists them, with two bytes each.
pub const EARLY_RECORDS_MAX: usize = 16_384;
/// Rows that may change before a checkpoint is written while an event is partly applied. Questions
/// wait for a checkpoint, so it is smaller than usual.
pub const PART_CHECKPOINT_ROWS_MAX: usize = 1_000;
const _: () = assert!(PART_CHECKPOINT_ROWS_MAX >= 2 * APPLY_STEP_TARGETS); // two rows per delivery
const _: () = assert!(PART_CHECKPOINT_ROWS_MAX <= CHECKPOINT_ROWS_MAX);
/// Steps of work that a request's events may take to be matched before other requests get a turn.
pub const MATCH_STEPS_MAX: usize = 100_000;
/// Lane changes that the delivery loop takes in before it looks after running attempts.
pub const INTAKE_TARGETS_MAX: usize = 4_096;
/// Overhead of an event's record beside the posted bytes and the targets, in bytes.
pub const EVENT_RECORD_BYTES_MAX: usize = 2_048;
/// Most bytes of one target in an event's record: a varint of 32 bits.
pub const TARGET_RECORD_BYTES_MAX: usize = 5;
/// A frame is closed when it reaches this many bytes, so that reading one record back stays cheap.
pub const FRAME_BYTES_TARGET: usize = 64 * 1024;
/// Limit of uncommitted attempt outcomes. At the limit no attempt starts.
pub const OUTCOMES_MAX: usize = 50_000;
/// Bound of uncommitted attempt outcomes with their replies, in bytes.
pub const OUTCOME_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Default of the free space that new events leave (`store.reserve_bytes`), in bytes.
pub const DISK_RESERVE_DEFAULT: u64 = 64 * 1024 * 1024;
/// The reserve is at most the disk's size divided by this.
pub const DISK_RESERVE_SHARE: u64 = 8;
/// The changes of one tenant use at most the reserve divided by this, those of all tenants the
/// reserve divided by the next.
pub const DISK_RESERVE_TENANT_SHARE: u64 = 32;
pub const DISK_RESERVE_TENANTS_SHARE: u64 = 2;
/// A disk operation that takes longer than this makes the daemon unready.
pub const DISK_SILENCE_MAX: Duration = Duration::from_secs(5);
/// Bound of committed events not yet applied by the state and the delivery loop, in bytes.
pub const UNAPPLIED_BYTES_MAX: usize = 80 * 1024 * 1024;
/// Bound of one frame, in bytes. One atomic batch must fit.
pub const FRAME_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A segment is sealed when it reaches this many bytes.
pub const SEGMENT_BYTES_TARGET: u64 = 64 * 1024 * 1024;
/// Zero bytes preallocated behind the end of the active segment, so that most commits do not change
/// the file's length.
pub const SEGMENT_PREALLOCATED_BYTES: usize = 1024 * 1024;
/// Bound of a value in sled, in bytes. sled moves larger leaves to blob files that it never syncs.
pub const STATE_VALUE_BYTES_MAX: usize = 100_000;
/// Rows that may change before a checkpoint is written. As many again may change while the
/// checkpoint before becomes durable.
pub const CHECKPOINT_ROWS_MAX: usize = 2_000;
/// Bytes that may change before a checkpoint is written, as for [`CHECKPOINT_ROWS_MAX`]. Questions
/// wait for a checkpoint, about 20 ms for a megabyte.
pub const CHECKPOINT_BYTES_MAX: usize = 1024 * 1024;
/// Longest time between two checkpoints.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// sled's file is compacted only above this length, in bytes.
pub const STATE_COPY_BYTES_MIN: u64 = 256 * 1024 * 1024;
/// sled's page cache, in bytes of pages on disk. The same pages take three to five times as much
/// memory.
pub const STATE_CACHE_BYTES: u64 = 16 * 1024 * 1024;

// ---- tenants ----

/// Longest display name of a tenant, in bytes.
pub const TENANT_NAME_BYTES_MAX: usize = 255;
/// Most tenants with settings.
pub const TENANT_SETTINGS_MAX: usize = 100_000;
/// Defaults of the quotas of a tenant (`quotas.*`): far above what one healthy tenant needs.
pub const QUOTA_ENDPOINTS_DEFAULT: u64 = 10_000;
pub const QUOTA_PATTERN_BYTES_DEFAULT: u64 = 4 * 1024 * 1024;
pub const QUOTA_WILDCARD_PARTS_DEFAULT: u64 = 100_000;
pub const QUOTA_HEADER_BYTES_DEFAULT: u64 = 16 * 1024 * 1024;
pub const QUOTA_KEYS_DEFAULT: u64 = 1_000;
pub const QUOTA_CONSUMERS_DEFAULT: u64 = 100;
pub const QUOTA_PENDING_DELIVERIES_DEFAULT: u64 = 10_000_000;
/// Largest limit of a quota. Exact as a JSON number.
pub const QUOTA_MAX: u64 = 1 << 53;
/// Smallest limit of `bytesPerSecond`. A second's worth admits the largest event.
pub const QUOTA_BYTES_PER_SECOND_MIN: u64 = EVENT_BYTES_MAX as u64;
/// Largest limit of `eventsPerSecond` and of `bytesPerSecond`. GCRA's interval stays exact.
pub const QUOTA_EVENTS_PER_SECOND_MAX: u64 = 1_000_000;
pub const QUOTA_BYTES_PER_SECOND_MAX: u64 = 10 * 1024 * 1024 * 1024;
/// Tenants whose rate is tracked before idle ones are removed.
pub const TENANT_RATES_SWEEP: usize = 1_024;
/// Endpoints of one step of a tenant's deletion. A step is one commit.
pub const TENANT_DELETION_STEP: usize = 256;
/// Endpoints whose statistics one query step reads before other queries get their turn.
pub const STATS_ENDPOINTS_PER_STEP: usize = 64;
/// Most hours in one overview.
pub const STATS_HOURS_MAX: u64 = 31 * 24;
/// Lanes that are explained at the same time for a list of lanes.
pub const LANES_EXPLAINED_AT_ONCE: usize = 256;

const _: () = assert!(TENANT_DELETION_STEP <= COMMIT_RECORDS_MAX); // a step fits one commit
const _: () = assert!(REQUEST_TARGETS_MAX as u64 <= QUOTA_PENDING_DELIVERIES_DEFAULT); // one request fits
const _: () = assert!(QUOTA_BYTES_PER_SECOND_MIN <= QUOTA_BYTES_PER_SECOND_MAX);

// ---- consumers ----

/// Longest name of a consumer, in bytes.
pub const CONSUMER_NAME_BYTES_MAX: usize = 64;
/// Longest description of a consumer, in bytes.
pub const CONSUMER_DESCRIPTION_BYTES_MAX: usize = 1_024;
/// Most consumers of all tenants together.
pub const CONSUMERS_MAX: usize = 1_000;
/// Index entries that are examined to count a consumer's events. Beyond it, a count is a lower
/// bound.
pub const LAG_ENTRIES_MAX: usize = 2_000;
/// How long a request waits for a position by default.
pub const POSITION_WAIT_DEFAULT: Duration = Duration::from_secs(5);
/// How long a request waits for a position at most.
pub const POSITION_WAIT_MAX: Duration = Duration::from_secs(30);

const _: () = assert!(QUOTA_CONSUMERS_DEFAULT < CONSUMERS_MAX as u64); // one tenant cannot take all
const _: () = assert!(POSITION_WAIT_DEFAULT.as_secs() <= POSITION_WAIT_MAX.as_secs());
const _: () = assert!(POSITION_WAIT_MAX.as_secs() <= WAIT_MAX.as_secs());

// ---- log ----

/// Bound of log lines buffered for standard error, in bytes. Further lines are dropped and counted.
pub const LOG_BYTES_MAX: usize = 1024 * 1024;

// ---- queries ----

/// Most items on one page of a list.
pub const PAGE_ITEMS_MAX: usize = 250;
/// A page ends early when its events reach this many bytes.
pub const PAGE_BYTES_TARGET: usize = 2 * 1024 * 1024;
/// Most events on one page of a stream.
pub const STREAM_PAGE_EVENTS_MAX: usize = 1_000;
/// Default number of events on one page of a stream.
pub const STREAM_PAGE_EVENTS_DEFAULT: usize = 100;
/// Events of a stream that one request examines at most, if it filters them.
pub const STREAM_SCAN_EVENTS_MAX: usize = 20_000;
/// Default number of items on one page of a list.
pub const PAGE_ITEMS_DEFAULT: usize = 50;
/// Index entries that one query step may scan before other queries get their turn.
pub const SCAN_ENTRIES_MAX: usize = 10_000;
/// Steps of one page of the feed. A page without a match then has a later `next`.
pub const FEED_STEPS_MAX: usize = 20;
/// Time after which a page of the feed ends, with a later `next`.
pub const FEED_SEARCH_MAX: Duration = Duration::from_secs(1);
/// Most events in one page of the feed.
pub const FEED_PAGE_ITEMS_MAX: usize = 1_000;
/// Default number of events in one page of the feed.
pub const FEED_PAGE_ITEMS_DEFAULT: usize = 100;
/// Most topic patterns of a feed.
pub const FEED_PATTERNS_MAX: usize = 32;
/// Bound of the last committed events in memory, with their encodings, in bytes.
pub const TAIL_BYTES_MAX: usize = 32 * 1024 * 1024;
const _: () = assert!(TAIL_BYTES_MAX >= 4 * 3 * EVENT_BYTES_MAX); // several of the largest events
/// Steps after which a list request returns a partial page, if it has found any item.
pub const LIST_STEPS_MAX: usize = 20;
/// Time after which a list request that has found no item returns an empty page with a cursor.
pub const LIST_SEARCH_MAX: Duration = Duration::from_secs(5);
/// Most uses of API keys that are recorded in one commit.
pub const KEY_USES_PER_COMMIT: usize = 1_000;
/// Deliveries in one step of a bulk operation. The state applies its record as a whole, in about
/// 8 ms (deaths), and questions of all tenants wait for it.
pub const BULK_STEP_DELIVERIES: usize = 100;
/// Most endpoints in one replay of an event, and deliveries in one search for overdue ones.
pub const BULK_DELIVERIES_MAX: usize = 1_000;

/// Characters of the reason of an erasure.
pub const ERASURE_REASON_CHARS_MAX: usize = 500;

const _: () = assert!(EVENT_BYTES_MAX >= EVENT_BYTES_DEFAULT);
// An atomic batch fits one frame even if its events match the maximum number of endpoints.
const _: () = assert!(
    FRAME_BYTES_MAX
        >= BATCH_BYTES_MAX
            + BATCH_EVENTS_MAX * EVENT_RECORD_BYTES_MAX
            + REQUEST_TARGETS_MAX * TARGET_RECORD_BYTES_MAX
);
const _: () = assert!(COMMIT_BYTES_MAX >= 4 * EVENT_BYTES_MAX); // a commit always holds several events
const _: () = assert!(COMMIT_RECORDS_MAX >= BATCH_EVENTS_MAX);
const _: () = assert!(DISK_RESERVE_DEFAULT >= 4 * COMMIT_BYTES_MAX as u64); // and a checkpoint
const _: () = assert!(SHARED_COMMIT_RECORDS > BATCH_EVENTS_MAX); // a batch and the units of others
const _: () = assert!(SHARED_COMMIT_RECORDS <= COMMIT_RECORDS_MAX);
const _: () = assert!(SHARED_COMMIT_BYTES <= COMMIT_BYTES_MAX);
const _: () = assert!(SEGMENT_PREALLOCATED_BYTES as u64 <= SEGMENT_BYTES_TARGET / 8);
const _: () = assert!(2 * HOST_IN_FLIGHT_DEFAULT <= IN_FLIGHT_DEFAULT); // one host never takes more than half
// One tenant, without the reserve of an eighth, can use a host with one address up to its limit.
const _: () = assert!(ADDRESS_IN_FLIGHT_DEFAULT - ADDRESS_IN_FLIGHT_DEFAULT / 8 >= HOST_IN_FLIGHT_DEFAULT);
const _: () = assert!(REPLY_HEAD_BYTES_MAX >= 8 * 1024); // hyper takes no less
const _: () = assert!(LANE_WINDOW_LOW < LANE_WINDOW_MAX);
const _: () = assert!(CONNECTIONS_PER_ADDRESS_DEFAULT <= CONNECTIONS_DEFAULT / 8);
const _: () = assert!(UNSENT_BYTES_MAX as usize * CONNECTIONS_DEFAULT <= 512 * 1024 * 1024);
const _: () = assert!(UNREAD_BYTES_PER_CALLER_MAX >= 4 * PAGE_BYTES_TARGET);
const _: () = assert!(UNREAD_BYTES_MAX >= 4 * UNREAD_BYTES_PER_CALLER_MAX);
const _: () = assert!(ADMISSION_BYTES_DEFAULT >= 2 * BATCH_BYTES_MAX); // two full batches can wait
// The read limit covers the largest head and a body of one-byte chunks, which take six bytes each
// on the wire. If each chunk is also a separate TLS record, about half of the body is read, which
// is acceptable because only the status decides.
const _: () = assert!(REPLY_WIRE_BYTES_MAX >= 2 * REPLY_HEAD_BYTES_MAX + 6 * REPLY_BYTES_MAX);
const _: () = assert!(LOCATION_BYTES_MAX < ERROR_BYTES_MAX); // the error message contains it
const _: () = assert!(BODY_BYTES_DEFAULT >= 2 * BATCH_BYTES_MAX); // two full batches can be read
const _: () = assert!(UNAPPLIED_BYTES_MAX >= 2 * COMMIT_BYTES_MAX); // one is applied while one is written
const _: () =
    assert!(PAGE_ITEMS_DEFAULT <= PAGE_ITEMS_MAX && STREAM_PAGE_EVENTS_DEFAULT <= STREAM_PAGE_EVENTS_MAX);
const _: () = assert!(STREAM_PAGE_EVENTS_MAX >= BATCH_EVENTS_MAX); // an append can be read back at once
const _: () = assert!(STREAM_SCAN_EVENTS_MAX >= STREAM_PAGE_EVENTS_MAX);
const _: () = assert!(ATOMIC_SHARED_BYTES_MAX <= SHARED_COMMIT_BYTES);

/// Jobs that run at the same time, of all tenants together.
pub const JOBS_RUNNING_MAX: usize = 100;
/// Ended jobs that are kept.
pub const JOBS_ENDED_MAX: usize = 1_000;
/// Most deliveries per second that a paced job may ask for.
pub const JOB_RATE_MAX: u32 = 100_000;
