//! Incremental parser and normalizer of a reply's head.
//!
//! Owns: whether a byte of the reply has arrived, the status and headers of a complete head, and
//! whether the head conforms to RFC 9112. The HTTP library rejects some status lines and line ends
//! that other clients accept. The parser rewrites them to a form that the library accepts: it
//! replaces and removes bytes but never adds any, and never changes the body. It must find the end
//! of a head where the library finds it: at the first empty line after the status line.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::limits;

const VERSION: &[u8] = b"HTTP/1.";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum HeadPart {
    /// Before the status line. Empty lines are skipped.
    #[default]
    StatusLine,
    /// Number of bytes of `HTTP/1.x` that have arrived.
    Version(usize),
    BeforeCode,
    Code(u8),
    Reason,
    LineStart,
    Name,
    Value,
    Complete,
    /// Not the head of an HTTP/1 reply. The library reports the error.
    Foreign,
}

/// The head of the reply to one request.
#[derive(Debug)]
pub(super) struct ReplyHead {
    part: HeadPart,
    code: u16,
    bytes: usize,
    lines: usize,
    after_cr: bool,
    has_begun: bool,
    is_regular: bool,
    /// The normalized head, as far as it has arrived.
    normalized: Vec<u8>,
}

impl Default for ReplyHead {
    fn default() -> Self {
        Self {
            part: HeadPart::StatusLine,
            code: 0,
            bytes: 0,
            lines: 0,
            after_cr: false,
            has_begun: false,
            is_regular: true,
            normalized: Vec::new(),
        }
    }
}

impl ReplyHead {
    /// Whether a byte of the reply has arrived.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether every reader finds the end of the head at the same place. Another reader, such as a
    /// proxy, may find the start of another message inside an irregular head.
    pub(super) fn is_regular(&self) -> bool {
        self.is_regular
    }

    /// The final status, once the head is complete and within its bounds.
    pub(super) fn status(&self) -> Option<u16> {
        let is_known = self.part == HeadPart::Complete
            && self.code != 101
            && self.lines <= limits::REPLY_HEADERS_MAX
            && self.bytes <= limits::REPLY_HEAD_BYTES_MAX;
        is_known.then_some(self.code)
    }

    /// The headers of a complete head, parsed with the library's options. Used for replies that the
    /// library rejects because of their body length.
    pub(super) fn headers(&self) -> HeaderMap {
        let mut lines = vec![httparse::EMPTY_HEADER; self.lines];
        let mut head = httparse::Response::new(&mut lines);
        let mut headers = HeaderMap::new();
        let parsed = httparse::ParserConfig::default()
            .allow_obsolete_multiline_headers_in_responses(true)
            .allow_spaces_after_header_name_in_responses(true)
            .allow_multiple_spaces_in_response_status_delimiters(true)
            .ignore_invalid_headers_in_responses(true)
            .parse_response(&mut head, &self.normalized);
        if self.status().is_none() || parsed.is_err() {
            return headers;
        }
        for line in head.headers.iter() {
            let name = HeaderName::from_bytes(line.name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(line.value)) {
                headers.append(name, value);
            }
        }
        headers
    }

    /// Frees the stored bytes after the library has accepted the head.
    pub(super) fn discard_bytes(&mut self) {
        self.normalized = Vec::new();
    }

    /// Whether the head is complete or cannot be an HTTP/1 head.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.part, HeadPart::Complete | HeadPart::Foreign)
    }

    /// Parses the bytes that have arrived and normalizes them in place. Returns how many remain.
    pub(super) fn read(&mut self, bytes: &mut [u8]) -> usize {
        self.has_begun |= !bytes.is_empty();
        if !self.is_over() {
            let room = limits::REPLY_HEAD_BYTES_MAX.saturating_sub(self.normalized.len());
            self.normalized.reserve(bytes.len().min(room));
        }
        let mut kept = 0;
        for at in 0..bytes.len() {
            if self.is_over() {
                bytes.copy_within(at.., kept);
                return kept + bytes.len() - at;
            }
            if let Some(byte) = self.advance(bytes[at]) {
                bytes[kept] = byte;
                kept += 1;
                if self.normalized.len() < limits::REPLY_HEAD_BYTES_MAX {
                    self.normalized.push(byte);
                }
            }
        }
        kept
    }

    /// Parses one byte and returns its normalized form, or `None` if it is removed.
    fn advance(&mut self, byte: u8) -> Option<u8> {
        self.bytes += 1;
        if std::mem::replace(&mut self.after_cr, byte == b'\r') && byte != b'\n' {
            self.is_regular = false;
        }
        match byte {
            // For the library a single LF ends a line, and a CR elsewhere is an error.
            b'\r' => return None,
            b'\n' => {
                self.end_line();
                return Some(byte);
            }
            0 => {
                self.part = HeadPart::Foreign;
                return Some(byte);
            }
            _ => {}
        }
        let (part, read) = self.next(byte);
        self.part = part;
        self.is_regular &= read == Some(byte);
        read
    }

    /// The part after this byte, and the byte's normalized form. An unchanged byte may still be
    /// irregular.
    fn next(&mut self, byte: u8) -> (HeadPart, Option<u8>) {
        use HeadPart::{
            BeforeCode, Code, Complete, Foreign, LineStart, Name, Reason, StatusLine, Value, Version,
        };
        let is_text = byte == b'\t' || !byte.is_ascii_control();
        match self.part {
            StatusLine if byte.eq_ignore_ascii_case(&VERSION[0]) => (Version(1), Some(VERSION[0])),
            Version(at) => match VERSION.get(at) {
                Some(expected) if byte.eq_ignore_ascii_case(expected) => (Version(at + 1), Some(*expected)),
                None if at == VERSION.len() && matches!(byte, b'0' | b'1') => (Version(at + 1), Some(byte)),
                None if at > VERSION.len() && byte == b' ' => (BeforeCode, Some(byte)),
                _ => (Foreign, Some(byte)),
            },
            BeforeCode if byte == b' ' => (BeforeCode, None),
            BeforeCode if matches!(byte, b'1'..=b'9') => {
                self.code = u16::from(byte - b'0');
                (Code(1), Some(byte))
            }
            Code(digits @ 1..=2) if byte.is_ascii_digit() => {
                self.code = 10 * self.code + u16::from(byte - b'0');
                (Code(digits + 1), Some(byte))
            }
            Code(3) if !byte.is_ascii_digit() => (Reason, Some(b' ')),
            Reason => (Reason, Some(if is_text { byte } else { b' ' })),
            LineStart | Name if is_token(byte) => (Name, Some(byte)),
            Name if byte == b':' => (Value, Some(byte)),
            // A folded line or an invalid name.
            LineStart | Name => {
                self.is_regular = false;
                (Value, Some(byte))
            }
            Value => {
                self.is_regular &= is_text;
                (Value, Some(byte))
            }
            StatusLine | BeforeCode | Code(_) | Complete | Foreign => (Foreign, Some(byte)),
        }
    }

    fn end_line(&mut self) {
        use HeadPart::{Code, Complete, Foreign, LineStart, Name, Reason, StatusLine, Value};
        self.part = match self.part {
            StatusLine => StatusLine,
            Code(3) | Reason => LineStart,
            LineStart if matches!(self.code, 100 | 102..=199) => {
                // After an informational reply another head follows.
                *self = Self { has_begun: true, is_regular: self.is_regular, ..Self::default() };
                StatusLine
            }
            LineStart => Complete,
            Name | Value => {
                self.lines += 1;
                self.is_regular &= self.part == Value;
                LineStart
            }
            _ => Foreign,
        };
    }
}

/// Whether a byte is allowed in a header name (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The normalized bytes. Checks that arrival at once and byte by byte give the same result.
    fn read(bytes: &[u8]) -> (Vec<u8>, ReplyHead) {
        let (mut whole, mut head) = (bytes.to_vec(), ReplyHead::default());
        let kept = head.read(&mut whole);
        whole.truncate(kept);
        let (mut pieces, mut other) = (Vec::new(), ReplyHead::default());
        for byte in bytes {
            let mut piece = [*byte];
            let kept = other.read(&mut piece);
            pieces.extend_from_slice(&piece[..kept]);
        }
        assert_eq!(pieces, whole, "{:?}", String::from_utf8_lossy(bytes));
        assert_eq!(format!("{other:?}"), format!("{head:?}"), "{:?}", String::from_utf8_lossy(bytes));
        (whole, head)
    }

    #[test]
    fn regular_heads_lose_only_their_carriage_returns() {
        for (given, expected, status) in [
            ("HTTP/1.1 200 OK\r\na: b\r\n\r\nbo\rdy\r\n", "HTTP/1.1 200 OK\na: b\n\nbo\rdy\r\n", 200),
            ("HTTP/1.0 404\r\n\r\n", "HTTP/1.0 404\n\n", 404),
            ("\r\n\r\nHTTP/1.1 204 \r\n\r\n", "\n\nHTTP/1.1 204 \n\n", 204),
            (
                "HTTP/1.1 100 x\r\na: b\r\n\r\nHTTP/1.1 201 x\r\n\r\n",
                "HTTP/1.1 100 x\na: b\n\nHTTP/1.1 201 x\n\n",
                201,
            ),
            ("HTTP/1.1 200 \u{e9}\n:\n\n", "HTTP/1.1 200 \u{e9}\n:\n\n", 200),
        ] {
            let (read, head) = read(given.as_bytes());
            assert_eq!((String::from_utf8_lossy(&read).as_ref(), head.status()), (expected, Some(status)));
            assert_eq!(head.is_regular(), !given.contains("\n:"), "{given:?}");
        }
    }

    #[test]
    fn irregular_heads_are_normalized() {
        for (given, expected) in [
            ("http/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\n\n"),
            ("HTTP/1.1   200   OK\r\n\r\n", "HTTP/1.1 200   OK\n\n"),
            ("HTTP/1.1 200OK\r\n\r\n", "HTTP/1.1 200 K\n\n"),
            ("HTTP/1.1 200\tOK\r\n\r\n", "HTTP/1.1 200 OK\n\n"),
            ("HTTP/1.1 200 O\u{1}\rK\r\n\r\n", "HTTP/1.1 200 O K\n\n"),
            ("HTTP/1.1 200 OK\r\r\na: b\r\r\n\r\r\n", "HTTP/1.1 200 OK\na: b\n\n"),
            ("HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n", "HTTP/1.1 200 OK\na: b\n c\n\n"),
            ("HTTP/1.1 200 OK\r\na : b\r\n\r\n", "HTTP/1.1 200 OK\na : b\n\n"),
            ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "HTTP/1.1 200 OK\nno colon\n\n"),
            ("HTTP/1.1 200 OK\r\nno\r\n\r\n", "HTTP/1.1 200 OK\nno\n\n"),
            ("HTTP/1.1 200 OK\r\na: \u{1}\r\n\r\n", "HTTP/1.1 200 OK\na: \u{1}\n\n"),
        ] {
            let (read, head) = read(given.as_bytes());
            assert_eq!((String::from_utf8_lossy(&read).as_ref(), head.status()), (expected, Some(200)));
            assert!(!head.is_regular(), "{given:?}");
        }
    }

    #[test]
    fn headers_of_rejected_heads_are_parsed() {
        for (given, expected) in [
            ("a: b\r\nRetry-After: 30\r\n", Some("30")),
            ("retry-after : 30\r\n", Some("30")),
            ("retry-after:\r\n 30\r\n", Some("30")),
            ("no colon\r\nretry-after:30 \r\n", Some("30")),
            ("retry-after: 30\r\nretry-after: 60\r\n", Some("30")),
            ("x-retry-after: 30\r\n", None),
        ] {
            let lengths = "content-length: 5\r\ncontent-length: 6\r\n";
            let informational = "HTTP/1.1 103 x\r\nretry-after: 1\r\n\r\n";
            let head =
                format!("{informational}HTTP/1.1  429  x\r\n{lengths}{given}\r\nretry-after: 9\r\n\r\n");
            let (_, mut head) = read(head.as_bytes());
            let found = head.headers();
            let found = found.get("retry-after").map(|value| value.to_str().unwrap().trim());
            assert_eq!(found, expected, "{given:?}");
            head.discard_bytes();
            assert!(head.headers().is_empty());
        }
        assert!(read(b"HTTP/1.1 429 x\r\nretry-after: 30\r\n").1.headers().is_empty(), "an incomplete head");
    }

    #[test]
    fn other_protocols_and_incomplete_heads_have_no_status() {
        for given in [
            "",
            "H",
            "\r\n",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\na: b\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.2 200 OK\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1\t200 OK\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: \0\r\n\r\n",
            "HTTP/1.1\r\n\r\n",
            "HTTP/1.1 100 x\r\n\r\nhello",
            "HTTP/1.1 101 x\r\n\r\n",
            " HTTP/1.1 200 OK\r\n\r\n",
        ] {
            assert_eq!(read(given.as_bytes()).1.status(), None, "{given:?}");
        }
        assert!(!read(b"").1.has_begun() && read(b"\r").1.has_begun());
    }

    #[test]
    fn oversized_heads_have_no_status() {
        let lines = |count| format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(count));
        assert_eq!(read(lines(limits::REPLY_HEADERS_MAX).as_bytes()).1.status(), Some(200));
        assert_eq!(read(lines(limits::REPLY_HEADERS_MAX + 1).as_bytes()).1.status(), None);
        let long = |bytes: usize| format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "b".repeat(bytes));
        let rest = long(0).len();
        assert_eq!(read(long(limits::REPLY_HEAD_BYTES_MAX - rest).as_bytes()).1.status(), Some(200));
        assert_eq!(read(long(limits::REPLY_HEAD_BYTES_MAX - rest + 1).as_bytes()).1.status(), None);
    }
}
