//! The query parameters of a feed.

use std::time::Duration;

use super::handlers::FeedForm;
use crate::api::Call;
use crate::api::http::problem::Problem;
use crate::api::v1::event_types::pins;
use crate::api::v1::lists::Query;
use crate::domain::{
    EventId, EventType, InvalidName, Pattern, Position, StreamName, Tenant, VersionChoice, VersionPin,
};
use crate::limits;
use crate::rules::feed::{FeedFilter, FeedStreams};
use crate::rules::patterns::{canonical_list, check_list, check_pattern};
use crate::service::Events;
use crate::service::types::{FeedStart, generated_at};

/// Parameters of HTTP Feeds, and their form of the response.
pub const LAST_EVENT: &str = "lastEventId";
const TIMEOUT: &str = "timeout";
const NEEDS_BATCH: &str = "requires `Accept: application/cloudevents-batch+json`";
/// Digits of the extension `sequence`.
const SEQUENCE_DIGITS: usize = 20;

/// Parses a cursor: an opaque text for clients.
///
/// # Errors
/// For any other text.
pub fn parse_cursor(text: &str) -> Result<Position, &'static str> {
    let is_canonical = text == "0" || !text.starts_with('0');
    let number = text.parse::<u64>().ok().filter(|number| *number < 1 << 63);
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match number.filter(|_| digits && is_canonical) {
        Some(number) => Ok(Position(number)),
        None => Err("not a cursor; send `next` of an earlier page, `oldest` or `now`"),
    }
}

/// Parses `oldest`, `now` or a cursor.
///
/// # Errors
/// As [`parse_cursor`].
pub fn parse_start(text: &str) -> Result<FeedStart, &'static str> {
    match text {
        "oldest" => Ok(FeedStart::Oldest),
        "now" => Ok(FeedStart::Now),
        cursor => parse_cursor(cursor).map(FeedStart::After),
    }
}

/// Where the feed begins.
///
/// # Errors
/// 422 that names the parameter.
pub async fn start(call: &Call, form: FeedForm) -> Result<FeedStart, Problem> {
    let (after, last) = (call.query.text("after"), call.query.text(LAST_EVENT));
    match last {
        None => parse_start(after.unwrap_or("oldest")).map_err(|detail| Problem::parameter("after", detail)),
        Some(_) if form != FeedForm::Batch => Err(Problem::parameter(LAST_EVENT, NEEDS_BATCH)),
        Some(_) if after.is_some() => Err(Problem::parameter(LAST_EVENT, "cannot be combined with `after`")),
        Some(last) => Ok(FeedStart::After(position_of(call, last).await?)),
    }
}

/// The position of an event, by its id or its `sequence`.
async fn position_of(call: &Call, last: &str) -> Result<Position, Problem> {
    if last.len() == SEQUENCE_DIGITS && last.bytes().all(|byte| byte.is_ascii_digit()) {
        let digits = last.trim_start_matches('0');
        let position = parse_cursor(if digits.is_empty() { "0" } else { digits });
        return position.map_err(|detail| Problem::parameter(LAST_EVENT, detail));
    }
    let id: EventId =
        last.parse().map_err(|error: InvalidName| Problem::parameter(LAST_EVENT, error.to_string()))?;
    let (scope, tenant) = call.event_scope()?;
    if scope.0.is_none() && generated_at(&id).is_none() {
        let detail = "events of several tenants may have this id; send the `sequence` of the last event";
        return Err(Problem::parameter(LAST_EVENT, detail));
    }
    let found = Events(&call.api.context).get(&scope, &tenant, &id).await?;
    found.map(|view| view.position).ok_or_else(|| {
        Problem::parameter(LAST_EVENT, "no event has this id; send the `sequence` of the last event")
    })
}

/// How long to wait for an event; zero without the parameter.
///
/// # Errors
/// 422 that names the parameter.
pub fn wait(call: &Call, form: FeedForm) -> Result<Duration, Problem> {
    let Some(timeout) = call.query.text(TIMEOUT) else { return call.query.wait() };
    if form != FeedForm::Batch {
        return Err(Problem::parameter(TIMEOUT, NEEDS_BATCH));
    }
    if call.query.text("wait").is_some() {
        return Err(Problem::parameter(TIMEOUT, "cannot be combined with `wait`"));
    }
    let wait = timeout.parse().ok().map(Duration::from_millis).filter(|wait| *wait <= limits::WAIT_MAX);
    wait.ok_or_else(|| {
        let most = limits::WAIT_MAX.as_millis();
        Problem::parameter(TIMEOUT, format!("must be a whole number of milliseconds, at most {most}"))
    })
}

/// Checks the topic patterns of a feed. Returns them in canonical form.
///
/// # Errors
/// For too many patterns, or patterns that are too large.
pub fn check_types(types: Vec<Pattern>) -> Result<Vec<Pattern>, String> {
    if types.len() > limits::FEED_PATTERNS_MAX {
        return Err(format!("at most {} patterns", limits::FEED_PATTERNS_MAX));
    }
    let types = canonical_list(&types);
    types.iter().try_for_each(check_pattern).and_then(|()| check_list(&types)).map_err(|e| e.to_string())?;
    Ok(types)
}

/// The streams of a feed: those of one of these members.
///
/// # Errors
/// The wrong member, and what is wrong.
pub fn parse_streams(
    stream: Option<&str>,
    prefix: Option<&str>,
) -> Result<FeedStreams, (&'static str, String)> {
    match (stream, prefix) {
        (Some(_), Some(_)) => Err(("streamPrefix", "cannot be combined with `stream`".to_owned())),
        (Some(name), None) => {
            name.parse().map(FeedStreams::One).map_err(|error| ("stream", format!("{error}")))
        }
        (None, Some("")) => Ok(FeedStreams::Prefix("".into())),
        (None, Some(prefix)) => {
            // A prefix of a name is a name.
            let legal: Result<StreamName, _> = prefix.parse();
            legal.map_err(|error| ("streamPrefix", error.to_string()))?;
            Ok(FeedStreams::Prefix(prefix.into()))
        }
        (None, None) => Ok(FeedStreams::All),
    }
}

/// The filter of `GET /v1/feed`.
///
/// # Errors
/// 422 that names the parameter, 403 for another tenant than the key's.
pub fn filter(call: &Call) -> Result<FeedFilter, Problem> {
    let query = &call.query;
    let named: Option<Tenant> = query.get("tenant")?;
    let tenant = call.principal.tenant_filter(named)?;
    let streams = parse_streams(query.text("stream"), query.text("streamPrefix"))
        .map_err(|(name, detail)| Problem::parameter(name, detail))?;
    Ok(FeedFilter { tenant, types: types(query)?, streams })
}

/// The topic patterns of `types`, separated by commas.
///
/// # Errors
/// 422 for a malformed pattern, or too many.
pub fn types(query: &Query) -> Result<Vec<Pattern>, Problem> {
    let Some(text) = query.text("types") else { return Ok(Vec::new()) };
    let types: Result<Vec<Pattern>, _> = text.split(',').map(str::parse).collect();
    let types = types.map_err(|error| Problem::parameter("types", error.to_string()))?;
    check_types(types).map_err(|detail| Problem::parameter("types", detail))
}

/// The versions of `versions`: `latest`, or types with a version each, such as
/// `pet.adopted:1.0,order.paid:latest`.
///
/// # Errors
/// 422 for a malformed value, a type that is named twice, and an unregistered type or version.
pub fn versions(call: &Call) -> Result<VersionChoice, Problem> {
    let Some(text) = call.query.text("versions") else { return Ok(VersionChoice::AsPublished) };
    let choice = parse_versions(text).map_err(|detail| Problem::parameter("versions", detail))?;
    if let VersionChoice::Pinned(pins) = &choice {
        let unknown = pins.iter().find_map(|(name, pin)| pins::unregistered(call, name, pin));
        if let Some(detail) = unknown {
            return Err(Problem::parameter("versions", detail));
        }
    }
    Ok(choice)
}

fn parse_versions(text: &str) -> Result<VersionChoice, String> {
    if text == VersionPin::LATEST {
        return Ok(VersionChoice::Latest);
    }
    let mut found: Vec<(EventType, VersionPin)> = Vec::new();
    for part in text.split(',') {
        let form = "must be `latest`, or types with a version: `pet.adopted:1.0,order.paid:latest`";
        let (name, version) = part.split_once(':').ok_or(form)?;
        let name: EventType = name.parse().map_err(|error| format!("{error}"))?;
        let pin = match version {
            VersionPin::LATEST => VersionPin::Latest,
            version => VersionPin::Version(version.parse().map_err(|error| format!("{error}"))?),
        };
        if found.iter().any(|(other, _)| *other == name) {
            return Err(format!("`{name}` is named twice"));
        }
        if found.len() == limits::PINS_MAX {
            return Err(format!("at most {} types", limits::PINS_MAX));
        }
        found.push((name, pin));
    }
    Ok(VersionChoice::Pinned(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_cursors_are_accepted() {
        for (text, position) in [("0", 0), ("1", 1), ("1240", 1240), ("9223372036854775807", i64::MAX as u64)]
        {
            assert_eq!(parse_cursor(text), Ok(Position(position)), "{text}");
        }
        for text in ["", "00", "01", "-1", "+1", "1.0", "1e3", " 1", "x", "9223372036854775808", "Oldest"] {
            assert!(parse_cursor(text).is_err(), "{text:?}");
            assert!(parse_start(text).is_err(), "{text:?}");
        }
        assert_eq!(parse_start("oldest"), Ok(FeedStart::Oldest));
        assert_eq!(parse_start("now"), Ok(FeedStart::Now));
    }

    #[test]
    fn versions_are_latest_or_a_pin_for_each_type() {
        let pin = |name: &str, version: Option<&str>| {
            let pin = version.map_or(VersionPin::Latest, |text| VersionPin::Version(text.parse().unwrap()));
            (name.parse().unwrap(), pin)
        };
        assert_eq!(parse_versions("latest"), Ok(VersionChoice::Latest));
        let pins = vec![pin("pet.adopted", Some("1.0")), pin("latest", None)];
        assert_eq!(parse_versions("pet.adopted:1.0,latest:latest"), Ok(VersionChoice::Pinned(pins)));
        let many: Vec<_> = (0..=limits::PINS_MAX).map(|number| format!("t{number}:1")).collect();
        for text in ["", ",", "pet", "pet:", ":1.0", "pet:1.0,", "pet:1:2", "a..b:1", "a:1,a:2", "latest,a:1"]
        {
            assert!(parse_versions(text).is_err(), "{text:?}");
        }
        assert!(parse_versions(&many[1..].join(",")).is_ok() && parse_versions(&many.join(",")).is_err());
    }

    #[test]
    fn stream_and_prefix_exclude_each_other() {
        assert_eq!(parse_streams(None, None), Ok(FeedStreams::All));
        assert_eq!(parse_streams(None, Some("")), Ok(FeedStreams::Prefix("".into())));
        assert_eq!(parse_streams(None, Some("a")), Ok(FeedStreams::Prefix("a".into())));
        assert_eq!(parse_streams(Some("a"), None), Ok(FeedStreams::One("a".parse().unwrap())));
        let long = "x".repeat(256);
        for (stream, prefix, name) in [
            (Some("a"), Some("b"), "streamPrefix"),
            (Some(""), None, "stream"),
            (Some("a\n"), None, "stream"),
            (None, Some("a\u{7f}"), "streamPrefix"),
            (None, Some(long.as_str()), "streamPrefix"),
        ] {
            assert_eq!(parse_streams(stream, prefix).unwrap_err().0, name);
        }
    }
}
