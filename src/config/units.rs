//! The notations of durations and sizes: `250ms`, `15s`, `5m`, `72h`, `30d`; `512`, `256KiB`,
//! `64MiB`.
//!
//! Owns: parsing and formatting. Must never know the key of a value. Invariant: a formatted value
//! parses to the same value.

use std::time::Duration;

/// Units of a duration with their milliseconds, longest first.
const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
/// Units of a size with their bytes, largest first. Decimal prefixes (`KB`) are refused: people
/// would mistake them for these.
const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Parses a whole number and its unit. A number without a unit is refused, because its meaning
/// would be a guess.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let (_, millis) = DURATION_UNITS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*millis).map(Duration::from_millis)
}

/// Formats a duration with the largest unit that divides it, in whole milliseconds.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    format_with(millis, &DURATION_UNITS)
}

/// Parses a whole number with a binary unit; a number without a unit counts bytes.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    if unit.is_empty() {
        return Some(number);
    }
    let (_, bytes) = SIZE_UNITS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*bytes)
}

/// Formats a size with the largest unit that divides it.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    if bytes == 0 { "0B".to_owned() } else { format_with(bytes, &SIZE_UNITS) }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit))
}

fn format_with(value: u64, units: &[(&str, u64)]) -> String {
    for (name, factor) in units {
        if value.is_multiple_of(*factor) {
            return format!("{}{name}", value / factor);
        }
    }
    value.to_string() // not reached: the last unit of both tables is 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_parse_with_a_unit_only() {
        for (text, millis) in
            [("250ms", 250), ("15s", 15_000), ("5m", 300_000), ("72h", 259_200_000), ("30d", 2_592_000_000)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "15", "s", "-1s", "1.5s", "15 s", "15S", "1w", "99999999999999999999s", "9999999999999999d"]
        {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_parse_with_binary_units_only() {
        for (text, bytes) in [("512", 512), ("512B", 512), ("256KiB", 262_144), ("64MiB", 67_108_864)] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "KiB", "256KB", "256kib", "-1", "1.5MiB", "1 MiB", "99999999999999GiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn formatted_values_parse_to_the_same_value() {
        for value in [0, 1, 999, 1_000, 1_024, 60_000, 61_000, 90_000, 86_400_000, 1 << 20, (1 << 30) + 1] {
            let duration = Duration::from_millis(value);
            assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
            assert_eq!(parse_size(&format_size(value)), Some(value));
        }
        assert_eq!(format_duration(Duration::from_secs(5 * 86_400)), "5d");
        assert_eq!(format_size(262_144), "256KiB");
    }
}
