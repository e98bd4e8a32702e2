//! The query parameters of the operations, as the OpenAPI document and the checks know them.

use super::{Kind, Param, param};
use crate::domain::{
    ClosedList as _, DeadReason, DeliveryStatus, EndpointStatusName, EventStatus, JobKind, JobStatus,
    ShownClass,
};
use crate::limits;
use crate::service::types::WaitReason;

/// Dot-separated words.
pub const WORDS: &str = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$";
pub(in crate::api) const NAME: Kind = Kind::Text(WORDS, limits::NAME_BYTES_MAX);
pub const ID: Kind = Kind::Text("^[A-Za-z0-9_-]+$", limits::EVENT_ID_BYTES_MAX);

pub const TENANT: Param = param("tenant", "Only this tenant", NAME);
/// A tenant, or `*`.
pub const OWNER_WORDS: &str = r"^(\*|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)$";
const OWNER_NAME: Kind = Kind::Text(OWNER_WORDS, limits::NAME_BYTES_MAX);
const OWNER: Param =
    param("tenant", "Only this tenant; `*`: only endpoints and queues of all tenants", OWNER_NAME);
pub const TYPE: Param = param("type", "Only this event type", NAME);
const TYPE_PATTERN: Param = param(
    "type",
    "Only event types that match this topic pattern",
    Kind::Text(r"^([A-Za-z0-9_-]+|[*#])(\.([A-Za-z0-9_-]+|[*#]))*$", limits::EVENT_TYPE_BYTES_MAX),
);
const STATUS_CODE: Param = param(
    "statusCode",
    "Only deliveries whose last attempt got this HTTP status",
    Kind::Text("^[1-5][0-9][0-9]$", 3),
);
pub const ERROR_CLASSES: &[&str] = ShownClass::WORDS;
const ERROR_CLASS: Param = param(
    "errorClass",
    "Only deliveries whose last attempt failed with this error class",
    Kind::Word(ERROR_CLASSES),
);
const ID_START: Param = param(
    "q",
    "Only deliveries with this id of a delivery, an event or an endpoint, or with a generated id that starts so",
    ID,
);
const SINCE: Param = param("since", "Only events accepted at or after this time", Kind::Time);
const UNTIL: Param = param("until", "Only events accepted before this time", Kind::Time);
pub const LIMIT: Param = param("limit", "Items per page, 1 to 250; default 50", Kind::Limit);
pub const CURSOR: Param = param("cursor", "`next` of the previous page", Kind::Text("^[A-Za-z0-9_-]+$", 128));
pub const ENDPOINT: Param =
    param("endpointId", "Only this endpoint, by its id, also if it is deleted, or by its uid", RESOURCE_NAME);
pub const EVENT_STATUSES: &[&str] = EventStatus::WORDS;
pub const ENDPOINT_STATUSES: &[&str] = EndpointStatusName::WORDS;
pub const DELIVERY_STATUSES: &[&str] = DeliveryStatus::WORDS;
pub const REASONS: &[&str] = DeadReason::WORDS;

pub const EVENTS: &[Param] = &[
    TENANT,
    TYPE,
    param("stream", "Only this stream", STREAM),
    param("status", "Only events with this status", Kind::Word(EVENT_STATUSES)),
    SINCE,
    UNTIL,
    LIMIT,
    CURSOR,
];
pub const ENDPOINTS: &[Param] = &[
    OWNER,
    param("status", "Only endpoints with this status", Kind::Word(ENDPOINT_STATUSES)),
    param("uid", "Only the endpoint with this uid, in each tenant", RESOURCE_NAME),
    param(
        "label",
        "Only endpoints with this label",
        Kind::Text("^[A-Za-z0-9_.:-]+$", limits::LABEL_BYTES_MAX),
    ),
    LIMIT,
    CURSOR,
];
/// The tenant of a named resource.
const OF_TENANT: Param =
    param("tenant", "The tenant of the queue, or `*`; default: that of the key, or `default`", OWNER_NAME);
pub const QUEUE: Param = param(
    "queue",
    "Only this queue, of `tenant`, or of the tenant of the key, or `default`",
    Kind::Text("^[A-Za-z0-9_.-]+$", 64),
);
pub const QUEUES: &[Param] = &[OWNER, LIMIT, CURSOR];
pub const ONE_QUEUE: &[Param] = &[OF_TENANT];
pub const LEASES: &[Param] = &[OF_TENANT, LIMIT, CURSOR];
pub const QUEUE_WINDOW: &[Param] = &[OF_TENANT, WINDOW[0], WINDOW[1]];

pub const DELIVERIES: &[Param] = &[
    ENDPOINT,
    QUEUE,
    param("eventId", "Only this event", ID),
    OWNER,
    param("status", "Only deliveries with this status", Kind::Word(DELIVERY_STATUSES)),
    STATUS_CODE,
    ERROR_CLASS,
    TYPE_PATTERN,
    ID_START,
    SINCE,
    UNTIL,
    LIMIT,
    CURSOR,
];
pub const DEAD_LETTERS: &[Param] = &[
    ENDPOINT,
    QUEUE,
    OWNER,
    STATUS_CODE,
    ERROR_CLASS,
    TYPE_PATTERN,
    ID_START,
    param("reason", "Only dead letters with this reason", Kind::Word(REASONS)),
    param("since", "Only deliveries that died at or after this time", Kind::Time),
    param("until", "Only deliveries that died before this time", Kind::Time),
    LIMIT,
    CURSOR,
];
pub const JOB_KINDS: &[&str] = JobKind::WORDS;
pub const JOB_STATUSES: &[&str] = JobStatus::WORDS;
pub const JOBS: &[Param] = &[
    param("tenant", "Only jobs that change data of this tenant, or of `*`", OWNER_NAME),
    param("kind", "Only jobs of this kind", Kind::Word(JOB_KINDS)),
    param("status", "Only jobs with this status", Kind::Word(JOB_STATUSES)),
    LIMIT,
    CURSOR,
];
pub const AUDIT: &[Param] = &[
    param("tenant", "Only acts that concern this tenant, or `*`", OWNER_NAME),
    param("actor", "Only acts with this key; `admin`: with the configured admin key", ID),
    param("action", "Only this operation, by its `operationId`", ID),
    param("target", "Only acts on the resource with this id or name", Kind::Any(limits::NAME_BYTES_MAX)),
    param("since", "Only acts at or after this time", Kind::Time),
    param("until", "Only acts before this time", Kind::Time),
    LIMIT,
    CURSOR,
];
pub const KEYS: &[Param] = &[LIMIT, CURSOR];
/// The cursor has a tenant's name in base64.
pub const TENANTS: &[Param] =
    &[LIMIT, param("cursor", "`next` of the previous page", Kind::Text("^[A-Za-z0-9_-]+$", 352))];
/// The cursor has a tenant and a name in base64.
const CONSUMER_CURSOR: Param =
    param("cursor", "`next` of the previous page", Kind::Text("^[A-Za-z0-9_-]+$", 440));
pub const PROJECTIONS: &[Param] = &[LIMIT, CONSUMER_CURSOR];
pub const CONSUMERS: &[Param] =
    &[param("tenant", "Only consumers of this tenant", NAME), LIMIT, CONSUMER_CURSOR];
pub const CONSUMER: &[Param] = &[param(
    "tenant",
    "The tenant of the consumer; default: the key's, or the only tenant that has this name",
    NAME,
)];
pub const CONSUMER_AND_WAIT: &[Param] = &[
    CONSUMER[0],
    param("waitPosition", "Wait until the consumer has committed this position", Kind::Position),
    param("wait", "Wait for at most this time (60s); default: 5s", Kind::Wait),
];
/// The path parameter with the name of a consumer.
pub const RESOURCE_NAME: Kind = Kind::Text("^[A-Za-z0-9_.-]+$", limits::CONSUMER_NAME_BYTES_MAX);
/// The path parameter with a tenant's name.
pub const TENANT_NAME: Kind = NAME;
pub const BOOLEANS: &[&str] = &["true", "false"];
const FORCE: Param =
    param("force", "`true`: also change what is incompatible or pinned", Kind::Word(BOOLEANS));
pub const FORCED: &[Param] = &[FORCE];
pub const TYPE_CHANGE: &[Param] =
    &[FORCE, param("dryRun", "`true`: check only, and store nothing", Kind::Word(BOOLEANS))];
pub const CURL: &[Param] = &[param(
    "signed",
    "`true`: sign the request now; only for the role `admin`; default: without signatures",
    Kind::Word(BOOLEANS),
)];
pub const BUCKETS: &[&str] = &["1h"];
pub const LANE_ORDERS: &[&str] = &["oldestDue"];
pub const WAIT_REASONS: &[&str] = WaitReason::WORDS;
pub const OVERVIEW: &[Param] = &[
    OWNER,
    param("since", "Attempts from this hour on; default: 24 hours before `until`", Kind::Time),
    param(
        "until",
        "Attempts up to the hour of this time, at most 31 days after `since`; default: now",
        Kind::Time,
    ),
    param("bucket", "Also return the counts of each hour", Kind::Word(BUCKETS)),
];
pub const LANES: &[Param] = &[
    OWNER,
    param("reason", "Only lanes that wait for this reason", Kind::Word(WAIT_REASONS)),
    param(
        "sort",
        "`oldestDue`: the lane whose next delivery was due first comes first; default: newest endpoint first",
        Kind::Word(LANE_ORDERS),
    ),
    LIMIT,
    CURSOR,
];
/// Topic patterns, joined by commas.
pub(in crate::api) const PATTERNS: &str =
    r"^([A-Za-z0-9_-]+|[*#])(\.([A-Za-z0-9_-]+|[*#]))*(,([A-Za-z0-9_-]+|[*#])(\.([A-Za-z0-9_-]+|[*#]))*)*$";
pub const CURSORS: &str = "^(oldest|now|0|[1-9][0-9]*)$";
/// A stream's name, also as the path parameter.
pub const STREAM: Kind = Kind::Text(r"^[^\x00-\x1f\x7f-\x9f]+$", limits::NAME_BYTES_MAX);
pub const FEED: &[Param] = &[
    param(
        "after",
        "`next` of the previous page, `oldest` or `now`; default: `oldest`",
        Kind::Text(CURSORS, 19),
    ),
    param(
        "types",
        "Only events whose type matches one of these topic patterns, joined by commas",
        Kind::Text(PATTERNS, limits::FEED_PATTERNS_MAX * (limits::EVENT_TYPE_BYTES_MAX + 1)),
    ),
    param("stream", "Only events of this stream", STREAM),
    param(
        "streamPrefix",
        "Only events of streams whose name begins with this text; empty: of any stream",
        Kind::Any(limits::NAME_BYTES_MAX),
    ),
    TENANT,
    VERSIONS,
    param("consumer", "The events of this consumer from its position on, by its filter", RESOURCE_NAME),
    param(
        "lastEventId",
        "With `Accept: application/cloudevents-batch+json`, in place of `after`: the `id` or `sequence` of the \
         last event",
        Kind::Text("^[A-Za-z0-9_-]+$", 64),
    ),
    param(
        "timeout",
        "With `Accept: application/cloudevents-batch+json`, in place of `wait`: milliseconds (60000)",
        Kind::Text("^(0|[1-9][0-9]*)$", 5),
    ),
    FEED_LIMIT,
    FEED_WAIT,
];
/// The versions of `GET /v1/feed`, and of the events of a stream.
pub const VERSIONS: Param = param(
    "versions",
    "Convert events to these versions: `latest`, or `type:version` joined by commas; default: as published",
    Kind::Text(PINS, limits::PINS_MAX * (limits::EVENT_TYPE_BYTES_MAX + limits::VERSION_BYTES_MAX + 2)),
);
const PINS: &str = concat!(
    r"^(latest|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*:[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*",
    r"(,[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*:[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)*)$"
);
const FEED_LIMIT: Param = param(
    "limit",
    "Events per page, 1 to 1000; default 100",
    Kind::Count(limits::FEED_PAGE_ITEMS_MAX, limits::FEED_PAGE_ITEMS_DEFAULT),
);
const FEED_WAIT: Param =
    param("wait", "At the end of the log, wait for an event for at most this time (60s)", Kind::Wait);
pub const CONSUMER_FEED: &[Param] = &[CONSUMER[0], FEED_LIMIT, FEED_WAIT];
pub const ONE_EVENT: &[Param] = &[param(
    "tenant",
    "The tenant of an id that the publisher chose; default: the key's, or `default`",
    NAME,
)];
pub const EVENT_AND_WAIT: &[Param] = &[
    ONE_EVENT[0],
    param("wait", "Wait until no delivery of the event is pending, for at most this time (60s)", Kind::Wait),
];
pub const PUBLISH: &[Param] =
    &[param("tenant", "The tenant of CloudEvents; other events name it in the body", NAME)];
pub const WINDOW: &[Param] = &[
    param("since", "Attempts from this hour on; default: the last 24 hours", Kind::Time),
    param("until", "Attempts up to the hour of this time; default: now", Kind::Time),
];
pub const BACKUP: &[Param] = &[
    param("after", "The position before this part: `next` of the previous part", Kind::Position),
    param("until", "The backup's last position: `until` of the first part", Kind::Position),
    param("id", "The backup's id: `id` of the first part, if present", Kind::Text("^[0-9a-f]{32}$", 32)),
];
pub const NONE: &[Param] = &[];
