//! Text of times (RFC 3339, UTC, milliseconds) and durations (`250ms`, `15s`, `5m`, `72h`, `30d`).

use std::borrow::Cow;
use std::marker::PhantomData;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::domain::{ClosedList, Timestamp};

/// Longest valid duration: 3,650 days.
pub const DURATION_MAX: Duration = Duration::from_secs(3_650 * 24 * 3600);

/// # Errors
/// A description of the expected format, or that the duration exceeds [`DURATION_MAX`].
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let malformed = || "a duration must be a whole number and a unit: 250ms, 15s, 5m, 72h or 30d".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis_per_unit: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(malformed()),
    };
    if number.is_empty() {
        return Err(malformed());
    }
    let too_long = || "a duration must be at most 3650d".to_owned();
    let number: u64 = number.parse().map_err(|_| too_long())?;
    let millis = number.checked_mul(millis_per_unit).ok_or_else(too_long)?;
    let duration = Duration::from_millis(millis);
    if duration > DURATION_MAX { Err(too_long()) } else { Ok(duration) }
}

/// Uses the largest unit of `h`, `m`, `s` and `ms` that is exact. Rounds up to a millisecond.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.as_micros().div_ceil(1_000);
    match millis {
        0 => "0s".to_owned(),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1_000) => format!("{}s", millis / 1_000),
        _ => format!("{millis}ms"),
    }
}

/// Seconds with three decimals, as a JSON number.
#[must_use]
pub fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1_000.0
}

/// Parses an RFC 3339 time from 1970 on. Truncates to milliseconds.
///
/// # Errors
/// A description of the expected format.
pub fn parse_time(text: &str) -> Result<Timestamp, String> {
    let malformed = || "must be RFC 3339 from 1970 on, for example 2026-03-13T10:35:00.000Z".to_owned();
    let moment = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| malformed())?;
    let millis = moment.unix_timestamp_nanos().div_euclid(1_000_000);
    let millis = u64::try_from(millis).map_err(|_| malformed())?;
    if millis > Timestamp::MAX.millis() { Err(malformed()) } else { Ok(Timestamp::from_millis(millis)) }
}

/// Parses a bound of a time window. Times before 1970 become 1970.
///
/// # Errors
/// As [`parse_time`].
pub fn parse_bound(text: &str) -> Result<Timestamp, String> {
    match OffsetDateTime::parse(text, &Rfc3339) {
        Ok(moment) if moment < OffsetDateTime::UNIX_EPOCH => Ok(Timestamp::ZERO),
        Ok(_) | Err(_) => parse_time(text),
    }
}

/// A time in a response.
#[derive(Clone, Copy, Debug)]
pub struct Time(pub Timestamp);

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.rfc3339().as_str())
    }
}

impl JsonSchema for Time {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "date-time"})
    }
}

/// A duration in a response.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub Duration);

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_duration(self.0))
    }
}

impl JsonSchema for Span {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$", "examples": ["15s"]})
    }
}

/// The schema of a member that holds a word of a closed list.
pub struct Word<T>(PhantomData<T>);

impl<T: ClosedList> JsonSchema for Word<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Word".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "enum": T::WORDS})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_trip() {
        for (text, millis) in [("250ms", 250), ("15s", 15_000), ("5m", 300_000), ("72h", 259_200_000)] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration, Duration::from_millis(millis), "{text}");
            assert_eq!(format_duration(duration), text);
        }
        assert_eq!(parse_duration("30d").unwrap(), Duration::from_secs(30 * 86_400));
        assert_eq!(parse_duration("0s").unwrap(), Duration::ZERO);
    }

    #[test]
    fn bad_durations_are_rejected() {
        for text in
            ["", "5", "s", "-5s", "1.5s", "5 s", "5S", "1h30m", "99999999999999999999s", "3651d", "٣s"]
        {
            assert!(parse_duration(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn times_round_trip() {
        for text in [
            "1970-01-01T00:00:00.000Z",
            "2024-02-29T23:59:59.999Z",
            "2026-03-13T10:35:00.000Z",
            "2100-03-01T00:00:00.001Z",
        ] {
            assert_eq!(parse_time(text).unwrap().rfc3339().as_str(), text);
        }
        assert_eq!(Timestamp::MAX.rfc3339().as_str(), "9999-12-31T23:59:59.999Z");
        assert_eq!(
            parse_time("2026-03-13T11:35:00.1239+01:00").unwrap().rfc3339().as_str(),
            "2026-03-13T10:35:00.123Z"
        );
    }

    #[test]
    fn bad_times_are_rejected() {
        for text in
            ["", "2026-03-13", "2026-02-30T00:00:00Z", "1969-12-31T23:59:59Z", "2026-03-13T10:35:00", "now"]
        {
            assert!(parse_time(text).is_err(), "{text:?} was accepted");
        }
        assert_eq!(
            parse_bound("0001-01-01T00:00:00Z"),
            Ok(Timestamp::ZERO),
            "the zero time of some languages"
        );
        assert!(parse_bound("yesterday").is_err());
    }
}
