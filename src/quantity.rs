//! Counts as people read them: `1 event`, `2 events`.

use std::fmt::Display;

/// A count with the words for one, or for any other number.
pub(crate) fn quantity<N: Display + PartialEq + From<u8>>(count: N, one: &str, many: &str) -> String {
    let words = if count == N::from(1) { one } else { many };
    format!("{count} {words}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_others_are_plural() {
        let shown = [0_u64, 1, 2, 11].map(|count| quantity(count, "event is", "events are"));
        assert_eq!(shown, ["0 events are", "1 event is", "2 events are", "11 events are"]);
        assert_eq!(quantity(1_usize, "entry", "entries"), "1 entry");
    }
}
