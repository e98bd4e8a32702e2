//! Bounded texts.

/// The longest start of a text that has at most this many bytes and ends with a whole character.
#[must_use]
pub fn truncated(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}
