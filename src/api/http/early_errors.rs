//! Adds a problem+json body to the 400, 414 and 431 responses that hyper generates.
//!
//! Keeps hyper's status line and headers. A response of another form passes unchanged.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use crate::api::http::problem::Problem;

/// The replacement of an error response of hyper.
pub(super) struct EarlyError {
    bytes: Vec<u8>,
    written: usize,
    /// Length of the replaced response, in bytes.
    original_length: usize,
}

impl EarlyError {
    /// `None` unless the bytes are one complete error response of hyper without a body.
    pub(super) fn replacing(parts: &[io::IoSlice<'_>]) -> Option<Self> {
        let original: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let text = std::str::from_utf8(&original).ok().filter(|text| text.ends_with("\r\n\r\n"))?;
        let problem = match text.strip_prefix("HTTP/1.1 ")?.get(..3)? {
            "400" => Problem::Malformed("malformed request line or header".to_owned()),
            "414" => Problem::UriTooLong,
            "431" => Problem::HeadersTooLarge,
            _ => return None,
        };
        let (before, after) = text.split_once("content-length: 0\r\n")?;
        let mut head = before.to_owned();
        let reply = problem.into_reply();
        for (name, value) in [
            ("content-type", "application/problem+json"),
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
            ("content-length", &reply.body().len().to_string()),
        ] {
            head.extend([name, ": ", value, "\r\n"]);
        }
        head.push_str(after);
        let bytes = [head.as_bytes(), reply.body()].concat();
        Some(Self { bytes, written: 0, original_length: original.len() })
    }

    /// Ready when all bytes are written. Returns the number that hyper expects.
    pub(super) fn poll_write(
        &mut self,
        mut stream: Pin<&mut impl AsyncWrite>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        while self.written < self.bytes.len() {
            match ready!(stream.as_mut().poll_write(context, &self.bytes[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        Poll::Ready(Ok(self.original_length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replacement(head: &str) -> Option<String> {
        let (one, other) = head.as_bytes().split_at(head.len() / 2);
        let early_error = EarlyError::replacing(&[io::IoSlice::new(one), io::IoSlice::new(other)])?;
        assert_eq!(early_error.original_length, head.len());
        Some(String::from_utf8(early_error.bytes).unwrap())
    }

    #[test]
    fn hyper_error_gets_a_body_and_keeps_its_headers() {
        let head = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let replaced = replacement(head).unwrap();
        let (head, body) = replaced.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"),
            "{head}"
        );
        assert!(head.ends_with(&format!("content-length: {}\r\ndate: x", body.len())), "{head}");
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&problem["status"], &problem["code"]), (&431.into(), &"headers_too_large".into()));
    }

    #[test]
    fn other_responses_pass_unchanged() {
        for other in [
            "",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 1\r\n\r\nx",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 10\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n",
            "HTTP/1.1 400 Bad Request\r\n\r\n",
            "HTTP/1.1 4",
        ] {
            assert_eq!(replacement(other), None, "{other:?}");
        }
    }
}
