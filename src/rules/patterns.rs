//! The canonical form of topic patterns, and their weight.
//!
//! Of the patterns that match the same event types, one is canonical: in each run of adjacent
//! wildcards all `*` come first, and one `#` follows if the run has any. So `a.#.#` is `a.#`, and
//! `a.#.*.#` is `a.*.#`. All patterns that match every type, like `*.#`, are `#`. Endpoints are
//! saved with canonical patterns, each once.

use std::collections::HashSet;

use crate::domain::Pattern;
use crate::limits;

pub const ANY_WORD: &str = "*";
pub const ANY_WORDS: &str = "#";

#[must_use]
pub fn is_wildcard(part: &str) -> bool {
    part == ANY_WORD || part == ANY_WORDS
}

/// The canonical parts of a pattern.
#[must_use]
pub fn canonical_parts(pattern: &Pattern) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut has_any_words = false;
    for part in pattern.as_str().split('.') {
        if part == ANY_WORDS {
            has_any_words = true;
            continue;
        }
        if part != ANY_WORD && std::mem::take(&mut has_any_words) {
            parts.push(ANY_WORDS);
        }
        parts.push(part);
    }
    if has_any_words {
        parts.push(ANY_WORDS);
    }
    // Every type has a word.
    if parts == [ANY_WORD, ANY_WORDS] { vec![ANY_WORDS] } else { parts }
}

/// The pattern in canonical form.
#[must_use]
pub fn canonical(pattern: &Pattern) -> Pattern {
    canonical_parts(pattern).join(".").parse().expect("a canonical pattern is not longer")
}

/// The patterns in canonical form, each once, in order. Empty if one of them matches all types.
#[must_use]
pub fn canonical_list(patterns: &[Pattern]) -> Vec<Pattern> {
    let mut seen = HashSet::new();
    let mut list: Vec<_> = patterns.iter().map(canonical).collect();
    list.retain(|pattern| seen.insert(pattern.clone()));
    if list.iter().any(|pattern| pattern.as_str() == ANY_WORDS) { Vec::new() } else { list }
}

/// Number of `*` and `#` in a pattern.
#[must_use]
pub fn wildcards(pattern: &Pattern) -> usize {
    pattern.as_str().split('.').filter(|part| is_wildcard(part)).count()
}

/// A bound that a list of patterns exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternsTooLarge {
    #[error(
        "the pattern has {wildcards} wildcards, at most {} are allowed; name more words of the event type",
        limits::PATTERN_WILDCARDS_MAX
    )]
    PatternWildcards { wildcards: usize },
    #[error(
        "the patterns have {wildcards} wildcards in total, at most {} are allowed; use fewer patterns",
        limits::ENDPOINT_WILDCARDS_MAX
    )]
    Wildcards { wildcards: usize },
    #[error(
        "the patterns have {bytes} bytes in total, at most {} are allowed; use fewer or shorter patterns",
        limits::ENDPOINT_PATTERN_BYTES_MAX
    )]
    Bytes { bytes: usize },
}

/// Checks a canonical pattern against its bounds.
///
/// # Errors
/// When it has too many wildcards.
pub fn check_pattern(pattern: &Pattern) -> Result<(), PatternsTooLarge> {
    match wildcards(pattern) {
        0..=limits::PATTERN_WILDCARDS_MAX => Ok(()),
        wildcards => Err(PatternsTooLarge::PatternWildcards { wildcards }),
    }
}

/// Checks canonical patterns against the bounds of one endpoint.
///
/// # Errors
/// The first bound that they exceed together.
pub fn check_list(patterns: &[Pattern]) -> Result<(), PatternsTooLarge> {
    let total = patterns.iter().map(wildcards).sum();
    if total > limits::ENDPOINT_WILDCARDS_MAX {
        return Err(PatternsTooLarge::Wildcards { wildcards: total });
    }
    let bytes = patterns.iter().map(|pattern| pattern.as_str().len()).sum();
    if bytes > limits::ENDPOINT_PATTERN_BYTES_MAX {
        return Err(PatternsTooLarge::Bytes { bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::EventType;
    use crate::rules::matching::pattern_matches;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn wildcard_runs_have_one_canonical_form() {
        let table = [
            ("#.#", "#"),
            ("#.*.#", "#"),
            ("*.#", "#"),
            ("#.*.*", "*.*.#"),
            ("*.#.*", "*.*.#"),
            ("a.#.*.#", "a.*.#"),
            ("a.#.#.b.#.*", "a.#.b.*.#"),
            ("#.a.#", "#.a.#"),
            ("a.b", "a.b"),
        ];
        for (given, expected) in table {
            assert_eq!(canonical(&pattern(given)).as_str(), expected, "{given}");
        }
    }

    #[test]
    fn list_with_a_pattern_for_all_types_is_empty() {
        let list =
            |texts: &[&str]| canonical_list(&texts.iter().map(|text| pattern(text)).collect::<Vec<_>>());
        assert_eq!(list(&["a.#.#", "b", "a.#"]), [pattern("a.#"), pattern("b")]);
        assert_eq!(list(&["a", "#.#"]), []);
    }

    #[test]
    fn bounds_name_the_value_and_the_limit() {
        let many = |count: usize| pattern(&(vec!["x.*"; count].join(".") + ".x"));
        let (most, more) = (many(limits::PATTERN_WILDCARDS_MAX), many(limits::PATTERN_WILDCARDS_MAX + 1));
        assert_eq!(check_pattern(&most), Ok(()));
        let error = check_pattern(&more).unwrap_err();
        assert_eq!(error, PatternsTooLarge::PatternWildcards { wildcards: 9 });
        assert!(error.to_string().contains("has 9 wildcards, at most 8"), "{error}");
        let fit = limits::ENDPOINT_WILDCARDS_MAX / limits::PATTERN_WILDCARDS_MAX;
        assert_eq!(check_list(&vec![most.clone(); fit]), Ok(()));
        assert!(matches!(check_list(&vec![most; fit + 1]), Err(PatternsTooLarge::Wildcards { .. })));
        let long = pattern(&"x".repeat(limits::EVENT_TYPE_BYTES_MAX));
        let fit = limits::ENDPOINT_PATTERN_BYTES_MAX / limits::EVENT_TYPE_BYTES_MAX;
        assert_eq!(check_list(&vec![long.clone(); fit]), Ok(()));
        assert!(matches!(check_list(&vec![long; fit + 1]), Err(PatternsTooLarge::Bytes { .. })));
    }

    fn words(choices: &'static [&'static str], most: usize) -> impl Strategy<Value = String> {
        proptest::collection::vec(prop::sample::select(choices), 1..=most).prop_map(|words| words.join("."))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn canonical_pattern_matches_the_same_types(
            given in words(&["a", "b", "*", "#", "#"], 8),
            event_type in words(&["a", "b", "c"], 9),
        ) {
            let given = pattern(&given);
            let event_type: EventType = event_type.parse().unwrap();
            let found = canonical(&given);
            prop_assert_eq!(pattern_matches(&found, &event_type), pattern_matches(&given, &event_type));
            prop_assert_eq!(canonical(&found), found);
        }

        /// The form is canonical: two patterns that differ in it differ in a type that they match.
        #[test]
        fn different_canonical_patterns_match_different_types(
            one in words(&["a", "*", "#"], 3),
            other in words(&["a", "*", "#"], 3),
        ) {
            let (one, other) = (canonical(&pattern(&one)), canonical(&pattern(&other)));
            let mut types = vec![String::new()];
            let mut differ = false;
            for _ in 0..5 {
                types = types.iter().flat_map(|text| ["a", "b"].map(|word| format!("{text}.{word}"))).collect();
                differ |= types.iter().any(|text| {
                    let event_type: EventType = text[1..].parse().unwrap();
                    pattern_matches(&one, &event_type) != pattern_matches(&other, &event_type)
                });
            }
            prop_assert_eq!(differ, one != other, "{} {}", one, other);
        }
    }
}
