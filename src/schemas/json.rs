//! JSON values of event data: strict reading, and numbers that keep their value.

use serde_json::{Number, Value};

use crate::unique_json::Unique;

/// Reads a value. Rejects duplicate members, of which a receiver may use another one than the
/// schema saw.
///
/// # Errors
/// A description of the first problem.
pub fn read(text: &[u8]) -> Result<Value, String> {
    match serde_json::from_slice(text) {
        Ok(Unique(value)) => Ok(value),
        Err(error) => Err(error.to_string()),
    }
}

/// The text without insignificant space.
///
/// # Errors
/// As [`read`].
pub fn compact(text: &str) -> Result<Box<str>, String> {
    read(text.as_bytes()).map(|value| value.to_string().into())
}

/// As [`compact`], for a value that becomes data of events.
///
/// # Errors
/// As [`read`], and for a number that would lose digits.
pub fn compact_exact(text: &str) -> Result<Box<str>, String> {
    match first_inexact_number(text) {
        Some(number) => Err(format!("the number {} would lose digits", super::schema::shorten(number))),
        None => compact(text),
    }
}

/// The first number of a JSON text whose value changes when it is read and written again: an
/// integer beyond 64 bits, or more digits than a double holds.
#[must_use]
pub fn first_inexact_number(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = end_of_string(bytes, at),
            b'-' | b'0'..=b'9' => {
                let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                let end = bytes[at..].iter().position(|byte| !is_part(byte)).map_or(bytes.len(), |n| at + n);
                if !is_exact(&text[at..end]) {
                    return Some(&text[at..end]);
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    None
}

/// The index after the string that begins at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

fn is_exact(number: &str) -> bool {
    // Up to 15 digits always survive.
    if number.len() <= 15 && !number.contains(['e', 'E']) {
        return true;
    }
    let Ok(read) = serde_json::from_str::<Number>(number) else { return false };
    decimal(number) == decimal(&read.to_string())
}

/// Sign, significant digits, and the power of ten of the last one.
fn decimal(number: &str) -> (bool, String, i64) {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (is_negative, mantissa) = mantissa.strip_prefix('-').map_or((false, mantissa), |rest| (true, rest));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    // An exponent beyond `i64` never equals one that was written from a double.
    let exponent: i64 = exponent.parse().unwrap_or(i64::MAX);
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_end_matches('0');
    let zeros = i64::try_from(digits.len() - significant.len()).unwrap_or(i64::MAX);
    let fraction = i64::try_from(fraction.len()).unwrap_or(i64::MAX);
    let significant = significant.trim_start_matches('0').to_owned();
    if significant.is_empty() {
        return (is_negative, significant, 0);
    }
    (is_negative, significant, exponent.saturating_sub(fraction).saturating_add(zeros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_members_are_rejected_at_any_depth() {
        assert!(read(br#"{"a":1,"b":{"c":[{"d":1}]}}"#).is_ok());
        for text in [r#"{"a":1,"a":1}"#, r#"[{"b":{"c":1,"\u0063":2}}]"#] {
            assert!(read(text.as_bytes()).unwrap_err().contains("duplicate"), "{text}");
        }
    }

    #[test]
    fn numbers_that_change_their_value_are_found() {
        for exact in [
            "0",
            "-0",
            "1",
            "-1.50",
            "1e2",
            "1.10",
            "0.1",
            "123456789012345678",
            "18446744073709551615",
            "-9223372036854775808",
            "5e-324",
            "0.30000000000000004",
            "1.7976931348623157e308",
            "100000000000000000000000",
            "0.00000000000000000000",
        ] {
            assert_eq!(first_inexact_number(&format!(r#"{{"a":["{exact}",{exact}]}}"#)), None, "{exact}");
        }
        for inexact in [
            "18446744073709551616",
            "-9223372036854775809",
            "0.1234567890123456789",
            "1e400",
            "9007199254740993.0",
            "1e99999999999999999999",
            "123456789012345678901234567890",
        ] {
            assert_eq!(
                first_inexact_number(&format!(r#"[1,"9e999",{inexact}]"#)),
                Some(inexact),
                "{inexact}"
            );
        }
    }

    #[test]
    fn digits_within_strings_are_no_numbers() {
        assert_eq!(first_inexact_number(r#"{"1e999":"\"1e999","\\":"1e999"}"#), None);
    }
}
