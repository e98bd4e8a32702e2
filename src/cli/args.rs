//! Argument values that several commands share: ids, durations, moments, lists of filters.
//!
//! Owns: what counts as a well-formed value before a request is made. The clock is an argument here as everywhere: a
//! relative moment becomes an absolute one only when it is told what time it is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use crate::domain::time::Timestamp;

/// The wall clock, read at the edge of a command.
pub(crate) fn now() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::default().plus(elapsed)
}

/// RFC 3339, UTC, milliseconds: how the API writes times.
pub(crate) fn rfc3339(timestamp: Timestamp) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    date_time(timestamp).format(&format).unwrap_or_default()
}

/// The time of day, UTC, for lines that scroll by.
pub(crate) fn time_of_day(timestamp: Timestamp) -> String {
    let format = format_description!("[hour]:[minute]:[second].[subsecond digits:3]");
    date_time(timestamp).format(&format).unwrap_or_default()
}

fn date_time(timestamp: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(timestamp.millis()) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// A duration as the API writes it: a whole number and `ms`, `s`, `m`, `h` or `d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("`{text}` is not a duration such as 250ms, 15s, 5m, 72h or 30d");
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?;
    let (digits, unit) = text.split_at(unit_at);
    let number: u64 = digits.parse().map_err(|_| expected())?;
    let millis_per_unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(expected()),
    };
    number.checked_mul(millis_per_unit).map(Duration::from_millis).ok_or_else(expected)
}

/// A duration that travels to the API as it was typed.
pub(crate) fn duration_text(text: &str) -> Result<String, String> {
    duration(text).map(|_| text.to_owned())
}

/// An id becomes a part of a path: anything but its own alphabet (`..` above all) could name another resource.
pub(crate) fn id(text: &str) -> Result<String, String> {
    let well_formed =
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if well_formed {
        Ok(text.to_owned())
    } else {
        Err("an id consists of letters, digits, `_` and `-`".into())
    }
}

/// A point in time: absolute, or relative to now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Absolute(String),
    Relative(Duration),
}

impl Moment {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(duration) = duration(text) {
            return Ok(Self::Relative(duration));
        }
        OffsetDateTime::parse(text, &Rfc3339)
            .map(|_| Self::Absolute(text.to_owned()))
            .map_err(|_| format!("`{text}` is neither an RFC 3339 time nor a duration such as 15m"))
    }

    /// A relative moment counts back from `now`.
    pub(crate) fn before(&self, now: Timestamp) -> String {
        match self {
            Self::Absolute(text) => text.clone(),
            Self::Relative(duration) => {
                let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
                rfc3339(Timestamp::from_millis(now.millis().saturating_sub(millis)))
            }
        }
    }

    /// A relative moment counts forward from `now`.
    pub(crate) fn after(&self, now: Timestamp) -> String {
        match self {
            Self::Absolute(text) => text.clone(),
            Self::Relative(duration) => rfc3339(now.plus(*duration)),
        }
    }
}

/// Names and values of a list's query, or of a filter in a body.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(pub(crate) Vec<(&'static str, String)>);

impl Query {
    pub(crate) fn with(mut self, name: &'static str, value: Option<impl Into<String>>) -> Self {
        self.0.extend(value.map(|value| (name, value.into())));
        self
    }

    pub(crate) fn into_object(self) -> Map<String, Value> {
        self.0.into_iter().map(|(name, value)| (name.to_owned(), Value::String(value))).collect()
    }
}

/// The time window that lists and filters share.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Window {
    /// Only from this time on: RFC 3339, or how long ago (2h).
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    since: Option<Moment>,
    /// Only before this time: RFC 3339, or how long ago (15m).
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    until: Option<Moment>,
}

impl Window {
    pub(crate) fn add_to(&self, query: Query, now: Timestamp) -> Query {
        query
            .with("since", self.since.as_ref().map(|moment| moment.before(now)))
            .with("until", self.until.as_ref().map(|moment| moment.before(now)))
    }
}

/// How much of a list to show.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Paging {
    /// Most rows of one page.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=250))]
    pub(crate) limit: Option<u16>,
    /// Follow the list to its end, page by page.
    #[arg(long)]
    pub(crate) all: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("15s"), Ok(Duration::from_secs(15)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("72h"), Ok(Duration::from_secs(72 * 3600)));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 86_400)));
        for wrong in
            ["", "5", "s", "-5s", "1.5s", "5 s", "5w", "99999999999999999999s", "18446744073709551615d"]
        {
            assert!(duration(wrong).is_err(), "`{wrong}` passed for a duration");
        }
    }

    #[test]
    fn ids_cannot_leave_their_path() {
        assert_eq!(id("evt_01J-x"), Ok("evt_01J-x".to_owned()));
        for wrong in ["", "..", "a/b", "a?b", "a b", "ä"] {
            assert!(id(wrong).is_err(), "`{wrong}` passed for an id");
        }
    }

    #[test]
    fn moments_count_back_or_forward_from_now() {
        let now = Timestamp::from_millis(1_773_398_100_000);
        assert_eq!(rfc3339(now), "2026-03-13T10:35:00.000Z");
        assert_eq!(time_of_day(now), "10:35:00.000");
        let relative = Moment::parse("5m").unwrap();
        assert_eq!(relative.before(now), "2026-03-13T10:30:00.000Z");
        assert_eq!(relative.after(now), "2026-03-13T10:40:00.000Z");
        let absolute = Moment::parse("2026-01-01T00:00:00Z").unwrap();
        assert_eq!(absolute.before(now), "2026-01-01T00:00:00Z");
        assert!(Moment::parse("yesterday").is_err());
    }
}
