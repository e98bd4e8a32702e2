//! Argument values that several commands share: ids, durations, moments, filters.
//!
//! Owns: the check of a value before a request is made. The time is an argument here, too: a
//! relative moment becomes absolute only with the current time.

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::units::parse_duration;
use crate::domain::time::Timestamp;

/// The current time, by the wall clock.
pub(crate) fn now() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::default().plus(elapsed)
}

/// The time of day in UTC, for short lines.
pub(crate) fn time_of_day(timestamp: Timestamp) -> String {
    timestamp.rfc3339().as_str()[11..23].to_owned()
}

/// A duration as the API writes it: a whole number and `ms`, `s`, `m`, `h` or `d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .ok_or_else(|| format!("`{text}` is not a duration such as 250ms, 15s, 5m, 72h or 30d"))
}

/// A duration that the request repeats as it was typed.
pub(crate) fn duration_text(text: &str) -> Result<String, String> {
    duration(text).map(|_| text.to_owned())
}

/// A number that JSON has: neither infinite nor `nan`.
pub(crate) fn number(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|number: &f64| number.is_finite())
        .ok_or_else(|| format!("`{text}` is not a finite number such as 2 or 1.5"))
}

/// An id or a uid, which becomes a segment of a path: other characters, and dots alone, could name
/// another resource.
pub(crate) fn id(text: &str) -> Result<String, String> {
    let well_formed = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        && text.bytes().any(|b| b != b'.');
    if well_formed {
        Ok(text.to_owned())
    } else {
        Err("an id consists of letters, digits, `_`, `-` and `.`".into())
    }
}

/// A point in time: absolute, or relative to the current time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TimeArg {
    Absolute(String),
    Relative(Duration),
}

impl TimeArg {
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
                Timestamp::from_millis(now.millis().saturating_sub(millis)).rfc3339().to_string()
            }
        }
    }

    /// A relative moment counts forward from `now`.
    pub(crate) fn after(&self, now: Timestamp) -> String {
        match self {
            Self::Absolute(text) => text.clone(),
            Self::Relative(duration) => now.plus(*duration).rfc3339().to_string(),
        }
    }
}

/// Names and values of the query of a list, or of a filter in a body.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct QueryArgs(pub(crate) Vec<(&'static str, String)>);

impl QueryArgs {
    pub(crate) fn with(mut self, name: &'static str, value: Option<impl Into<String>>) -> Self {
        self.0.extend(value.map(|value| (name, value.into())));
        self
    }

    pub(crate) fn into_object(self) -> Map<String, Value> {
        self.0.into_iter().map(|(name, value)| (name.to_owned(), Value::String(value))).collect()
    }
}

/// The time window of lists and filters.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Window {
    /// Only from this time on: RFC 3339, or a duration before now (2h).
    #[arg(long, value_name = "TIME", value_parser = TimeArg::parse)]
    since: Option<TimeArg>,
    /// Only before this time: RFC 3339, or a duration before now (15m).
    #[arg(long, value_name = "TIME", value_parser = TimeArg::parse)]
    until: Option<TimeArg>,
}

impl Window {
    pub(crate) fn add_to(&self, query: QueryArgs, now: Timestamp) -> QueryArgs {
        query
            .with("since", self.since.as_ref().map(|moment| moment.before(now)))
            .with("until", self.until.as_ref().map(|moment| moment.before(now)))
    }
}

/// The part of a list that is shown.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Paging {
    /// Rows of one page.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=250))]
    pub(crate) limit: Option<u16>,
    /// Show all pages.
    #[arg(long)]
    pub(crate) all: bool,
}

/// Refuses a name that a repeatable option gives twice: only the last value would count.
///
/// # Errors
/// Wrong usage, with the name.
pub(super) fn given_once<'a>(
    option: &str,
    names: impl IntoIterator<Item = impl Into<Cow<'a, str>>>,
) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        let name = name.into();
        if !seen.insert(name.clone()) {
            return Err(super::usage(format!("{option} gives {name} twice: give it once")));
        }
    }
    Ok(())
}

/// Refuses two pins of the same type.
///
/// # Errors
/// Wrong usage, with the type.
pub(super) fn check_pins(pins: &[String]) -> anyhow::Result<()> {
    given_once("--pin", pins.iter().map(|pin| pin.split_once(':').map_or(pin.as_str(), |(name, _)| name)))
}

/// Pins of event types, as the member `versions` of a subscription: `pet.adopted:1.0`.
pub(super) fn pins(pins: &[String]) -> Value {
    let pin = |text: &String| {
        let (name, version) = text.split_once(':').unwrap_or((text, ""));
        (name.to_owned(), if version.is_empty() { Value::Null } else { Value::from(version) })
    };
    Value::Object(pins.iter().map(pin).collect())
}

/// As [`pin`]; an empty version removes the pin.
pub(super) fn pin_change(text: &str) -> Result<String, String> {
    match text.strip_suffix(':') {
        Some(name) if !name.is_empty() && !name.contains(':') => Ok(text.to_owned()),
        _ => pin(text),
    }
}

/// A pin of an event type.
pub(super) fn pin(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some((name, version)) if !name.is_empty() && !version.is_empty() && !version.contains(':') => {
            Ok(text.to_owned())
        }
        _ => Err("a pin is TYPE:VERSION, such as pet.adopted:1.0 or pet.adopted:latest".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_json() {
        assert_eq!((number("2"), number("1.5e1")), (Ok(2.0), Ok(15.0)));
        for wrong in ["nan", "inf", "-inf", "infinity", "1e999", "", "x"] {
            assert_eq!(number(wrong), Err(format!("`{wrong}` is not a finite number such as 2 or 1.5")));
        }
    }

    #[test]
    fn ids_contain_no_path_characters() {
        assert_eq!(id("evt_01J-x"), Ok("evt_01J-x".to_owned()));
        assert_eq!(id("crm.main"), Ok("crm.main".to_owned()));
        for wrong in ["", ".", "..", "a/b", "a?b", "a b", "ä"] {
            assert!(id(wrong).is_err(), "`{wrong}` passed for an id");
        }
    }

    #[test]
    fn name_given_twice_is_wrong_usage() {
        let pins = |pins: &[&str]| check_pins(&pins.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(pins(&["a.b:1.0", "a.c:1.0"]).is_ok());
        let error = pins(&["a.b:1.0", "a.b:latest"]).unwrap_err();
        assert!(error.is::<crate::cli::UsageError>());
        assert_eq!(error.to_string(), "--pin gives a.b twice: give it once");
    }

    #[test]
    fn moments_count_back_or_forward_from_now() {
        let now = Timestamp::from_millis(1_773_398_100_000);
        assert_eq!(now.rfc3339().as_str(), "2026-03-13T10:35:00.000Z");
        assert_eq!(time_of_day(now), "10:35:00.000");
        let relative = TimeArg::parse("5m").unwrap();
        assert_eq!(relative.before(now), "2026-03-13T10:30:00.000Z");
        assert_eq!(relative.after(now), "2026-03-13T10:40:00.000Z");
        let absolute = TimeArg::parse("2026-01-01T00:00:00Z").unwrap();
        assert_eq!(absolute.before(now), "2026-01-01T00:00:00Z");
        assert!(TimeArg::parse("yesterday").is_err());
    }
}
