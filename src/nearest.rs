//! The known name that is nearest to an unknown one, for "did you mean".

/// Bound of a name that is compared, in bytes: the distance costs the product of both lengths.
const COMPARED_BYTES_MAX: usize = 64;
/// Limit of edits between two names.
const EDITS_MAX: usize = 3;

/// The nearest of `known`, if it differs from `name` by at most a third of the name and at most
/// three edits. Upper and lower case are equal, as are `-` and `_`.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > COMPARED_BYTES_MAX {
        return None;
    }
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let name = plain(name);
    let edits_max = (name.chars().count() / 3).min(EDITS_MAX);
    let distances = known.into_iter().map(|known| (strsim::osa_distance(&name, &plain(known)), known));
    let (edits, known) = distances.min_by_key(|(edits, _)| *edits)?;
    (edits <= edits_max).then_some(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_name_is_a_few_edits_away() {
        let known = ["type", "data", "eventTypes", "maxInFlight"];
        for (name, expected) in [
            ("typ", Some("type")),
            ("tpye", Some("type")),
            ("eventtypes", Some("eventTypes")),
            ("event_types", Some("eventTypes")),
            ("max_in_flight", Some("maxInFlight")),
            ("url", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known), expected, "{name}");
        }
        assert_eq!(nearest(&"type".repeat(1_000), known), None);
        assert_eq!(nearest("type", []), None);
    }
}
