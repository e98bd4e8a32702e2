//! The rate and the headers of an endpoint, as arguments.

use serde_json::{Map, Value};

use super::non_empty;
use crate::cli::args;

/// A rate, or `none` to remove it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rate {
    Unlimited,
    Limited { limit: u32, per: String },
}

impl Rate {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::Unlimited);
        }
        let expected = || format!("`{text}` is not a rate: write a rate such as 100/1s, or none");
        let (limit, per) = text.split_once('/').ok_or_else(expected)?;
        let limit = limit.parse().map_err(|_| expected())?;
        // Many people write `100/s`.
        let per =
            if per.starts_with(|c: char| c.is_ascii_digit()) { per.to_owned() } else { format!("1{per}") };
        args::duration(&per).map_err(|_| expected())?;
        Ok(Self::Limited { limit, per })
    }
}

pub(super) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err(format!("`{text}` is not a header: write a header such as `X-Env: prod`")),
    }
}

/// An empty value removes a header.
pub(super) fn header_members(headers: &[(String, String)]) -> Option<Value> {
    let members = headers.iter().map(|(name, value)| {
        (name.clone(), if value.is_empty() { Value::Null } else { Value::from(value.as_str()) })
    });
    non_empty(members.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_a_number_per_duration() {
        assert_eq!(Rate::parse("10/s"), Ok(Rate::Limited { limit: 10, per: "1s".into() }));
        assert_eq!(Rate::parse("10/5m"), Ok(Rate::Limited { limit: 10, per: "5m".into() }));
        for wrong in ["10", "/1s", "10/", "x/1s", "10/1y"] {
            assert!(Rate::parse(wrong).is_err(), "`{wrong}` passed for a rate");
        }
    }
}
