//! The query parameters of streams.

use crate::api::http::problem::Problem;
use crate::api::v1::feed::query::types;
use crate::api::v1::lists::{Kind, LIMIT, NAME, PATTERNS, Param, Query, VERSIONS, param};
use crate::domain::Expected;
use crate::limits;
use crate::service::stream_states::StateBound;
use crate::service::streams::{Direction, ReadStart, StreamRead};

const STREAM_TENANT: Param =
    param("tenant", "The tenant of the stream; default: the key's, or `default`", NAME);
const UNTIL_VERSION: Param = param("untilVersion", "Only events up to this version", Kind::Position);
const UNTIL: Param = param("until", "Only events accepted before this time", Kind::Time);
pub const ONE_STREAM: &[Param] = &[STREAM_TENANT];
pub const APPEND: &[Param] = &[
    STREAM_TENANT,
    param(
        "expectedVersion",
        "For CloudEvents: append only if the stream has this version; default: `any`",
        Kind::Text("^(none|exists|any|[1-9][0-9]{0,17})$", 18),
    ),
];
pub const STREAM_AND_WAIT: &[Param] = &[
    STREAM_TENANT,
    param("afterVersion", "With `wait`: wait until the version is above this one", Kind::Position),
    param("wait", "Wait for an event after `afterVersion`, for at most this time (60s)", Kind::Wait),
];
pub const DIRECTIONS: &[&str] = &["forwards", "backwards"];
pub const STREAM_EVENTS: &[Param] = &[
    STREAM_TENANT,
    param(
        "fromVersion",
        "The first version, or `oldest`; default: 1, or the last one when reading backwards",
        Kind::Text("^(oldest|[1-9][0-9]{0,17})$", 18),
    ),
    param("direction", "Order of the events; default: `forwards`", Kind::Word(DIRECTIONS)),
    UNTIL_VERSION,
    UNTIL,
    param(
        "types",
        "Only types that match one of these topic patterns, separated by commas",
        Kind::Text(PATTERNS, limits::FEED_PATTERNS_MAX * (limits::EVENT_TYPE_BYTES_MAX + 1)),
    ),
    VERSIONS,
    param(
        "limit",
        "Events per page, 1 to 1,000; default 100",
        Kind::Count(limits::STREAM_PAGE_EVENTS_MAX, limits::STREAM_PAGE_EVENTS_DEFAULT),
    ),
];
pub const STREAM_STATE: &[Param] = &[STREAM_TENANT, UNTIL_VERSION, UNTIL];
/// The cursor has a stream's name in base64.
pub const STREAMS: &[Param] = &[
    STREAM_TENANT,
    param("prefix", "Only streams whose names begin with this text", Kind::Any(limits::NAME_BYTES_MAX)),
    LIMIT,
    param("cursor", "`next` of the previous page", Kind::Text("^[A-Za-z0-9_-]+$", 352)),
];
/// The condition of an append of CloudEvents.
///
/// # Errors
/// 422 that names the parameter.
pub(super) fn expected_version(query: &Query) -> Result<Option<Expected>, Problem> {
    Ok(match query.text("expectedVersion") {
        None => None,
        Some("none") => Some(Expected::NoStream),
        Some("exists") => Some(Expected::Exists),
        Some("any") => Some(Expected::Any),
        Some(_) => match query.number("expectedVersion") {
            Ok(Some(version)) if version > 0 => Some(Expected::Version(version)),
            _ => {
                let detail = "must be a version, from 1, or `none`, `exists` or `any`";
                return Err(Problem::parameter("expectedVersion", detail));
            }
        },
    })
}

/// The wanted events of `GET /v1/streams/{stream}/events`.
///
/// # Errors
/// 422 that names the parameter.
pub(super) fn wanted_events(query: &Query) -> Result<StreamRead, Problem> {
    let start = match query.text("fromVersion") {
        None => ReadStart::End,
        Some("oldest") => ReadStart::Oldest,
        Some(_) => match query.number("fromVersion") {
            Ok(Some(version)) if version > 0 => ReadStart::Version(version),
            _ => return Err(Problem::parameter("fromVersion", "must be `oldest` or a version, from 1")),
        },
    };
    let direction = match query.word("direction", DIRECTIONS)? {
        Some("backwards") => Direction::Backwards,
        _ => Direction::Forwards,
    };
    let (most, usual) = (limits::STREAM_PAGE_EVENTS_MAX, limits::STREAM_PAGE_EVENTS_DEFAULT);
    let limit = query.count("limit", most, usual)?;
    Ok(StreamRead {
        start,
        direction,
        until_version: query.number("untilVersion")?,
        until: query.time("until")?,
        types: types(query)?,
        limit,
    })
}

/// The wanted version of `GET /v1/streams/{stream}/state`.
///
/// # Errors
/// 422 that names the parameter.
pub(super) fn state_bound(query: &Query) -> Result<StateBound, Problem> {
    Ok(StateBound { until_version: query.number("untilVersion")?, until: query.time("until")? })
}
