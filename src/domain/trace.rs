//! Trace of an event: `traceparent` of W3C Trace Context, section 3.2.

use std::fmt;
use std::num::NonZeroU64;

/// Maximum bytes of a `traceparent`. Later versions may be longer than version 00.
const BYTES_MAX: usize = 512;
/// Sampled, and random trace id (level 2). A sender sets undefined flags to zero.
const KNOWN_FLAGS: u8 = 0b11;

/// A trace, its current span and its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// Never zero.
    trace: u128,
    span: NonZeroU64,
    flags: u8,
}

impl TraceParent {
    /// Returns `None` for values that the specification says to ignore. Reads the version 00 part
    /// of later versions.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(5, '-');
        let version = u8::try_from(hex(parts.next()?, 2)?).ok()?;
        let trace = hex(parts.next()?, 32).filter(|trace| *trace != 0)?;
        let span = u64::try_from(hex(parts.next()?, 16)?).ok().and_then(NonZeroU64::new)?;
        let flags = u8::try_from(hex(parts.next()?, 2)?).ok()? & KNOWN_FLAGS;
        let has_more = parts.next().is_some();
        let legal = version != 0xff && (version != 0 || !has_more) && text.len() <= BYTES_MAX;
        legal.then_some(Self { trace, span, flags })
    }

    /// The trace, without span and flags.
    #[must_use]
    pub fn trace_id(self) -> TraceId {
        TraceId(self.trace)
    }

    /// The same trace and flags with another span.
    #[must_use]
    pub fn child(self, span: NonZeroU64) -> Self {
        Self { span, ..self }
    }
}

/// The id of a trace, as the log has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Always in version 00.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// Parses exactly `digits` lower-case hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let legal = text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    legal.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "12345678901234567890123456789012";
    const SPAN: &str = "1234567890123456";

    /// Inputs of the specification's test suite (w3c/trace-context, `test/test.py`), and whether it
    /// expects the trace to continue.
    #[test]
    fn parse_follows_the_test_suite_of_the_specification() {
        for (value, continues) in [
            (format!("00-{TRACE}-{SPAN}-01"), true),
            (format!("00-{TRACE}-{SPAN}-00"), true),
            (format!("00-{TRACE}-{SPAN}-01."), false),
            (format!("00-{TRACE}-{SPAN}-01-what-the-future-will-be-like"), false),
            (format!("cc-{TRACE}-{SPAN}-01"), true),
            (format!("cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like"), true),
            (format!("cc-{TRACE}-{SPAN}-01.what-the-future-will-be-like"), false),
            (format!("ff-{TRACE}-{SPAN}-01"), false),
            (format!(".0-{TRACE}-{SPAN}-01"), false),
            (format!("0.-{TRACE}-{SPAN}-01"), false),
            (format!("000-{TRACE}-{SPAN}-01"), false),
            (format!("0000-{TRACE}-{SPAN}-01"), false),
            (format!("0-{TRACE}-{SPAN}-01"), false),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), false),
            (format!("00-.{}-{SPAN}-01", &TRACE[1..]), false),
            (format!("00-{}.-{SPAN}-01", &TRACE[1..]), false),
            (format!("00-{TRACE}3-{SPAN}-01"), false),
            (format!("00-{}-{SPAN}-01", &TRACE[1..]), false),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), false),
            (format!("00-{TRACE}-.{}-01", &SPAN[1..]), false),
            (format!("00-{TRACE}-{}.-01", &SPAN[1..]), false),
            (format!("00-{TRACE}-{SPAN}7-01"), false),
            (format!("00-{TRACE}-{}-01", &SPAN[1..]), false),
            (format!("00-{TRACE}-{SPAN}-.0"), false),
            (format!("00-{TRACE}-{SPAN}-0."), false),
            (format!("00-{TRACE}-{SPAN}-001"), false),
            (format!("00-{TRACE}-{SPAN}-1"), false),
            // Not in that suite: upper case (section 3.2.2.3), signs, and an excessive length.
            (format!("00-{}-{SPAN}-01", "ABCDEF78901234567890123456789012"), false),
            (format!("00-+{}-{SPAN}-01", &TRACE[1..]), false),
            (format!("cc-{TRACE}-{SPAN}-01-{}", "x".repeat(512)), false),
            (String::new(), false),
            ("00".to_owned(), false),
        ] {
            let read = TraceParent::parse(&value);
            assert_eq!(read.is_some(), continues, "{value}");
            let written = read.map(|read| read.to_string());
            assert!(written.is_none_or(|text| text[..52] == format!("00-{TRACE}-{SPAN}")), "{value}");
            let trace_id = read.map(|read| read.trace_id().to_string());
            assert!(trace_id.is_none_or(|text| text == TRACE), "{value}");
        }
    }

    #[test]
    fn child_keeps_trace_and_known_flags() {
        let child = |flags: &str| {
            let parent = TraceParent::parse(&format!("00-{TRACE}-{SPAN}-{flags}")).unwrap();
            parent.child(NonZeroU64::new(0xab).unwrap()).to_string()
        };
        for (flags, kept) in
            [("00", "00"), ("01", "01"), ("02", "02"), ("03", "03"), ("ff", "03"), ("fc", "00")]
        {
            assert_eq!(child(flags), format!("00-{TRACE}-00000000000000ab-{kept}"), "{flags}");
        }
    }
}
