//! The answers that hyper gives by itself, because what came is no request that anybody could be asked to answer.
//!
//! Owns what they say: hyper sends a head alone (400, 414, 431), and every other refusal here is problem details. Its status
//! and date are kept. What does not look as it does in this version of hyper goes out as it is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::problem::Problem;

/// Goes out in place of an answer of hyper's own.
pub(super) struct Refusal {
    bytes: Vec<u8>,
    written: usize,
    /// Bytes of the answer that it stands for.
    length: usize,
}

impl Refusal {
    /// `None` when this is no whole answer without a body that says what hyper may say.
    pub(super) fn instead_of(parts: &[io::IoSlice<'_>]) -> Option<Self> {
        let head: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let text = std::str::from_utf8(&head).ok().filter(|text| text.ends_with("\r\n\r\n"))?;
        let problem = match text.strip_prefix("HTTP/1.1 ")?.get(..3)? {
            "400" => Problem::Malformed("the request's line or one of its headers cannot be read".to_owned()),
            "414" => Problem::UriTooLong,
            "431" => Problem::HeadersTooLarge,
            _ => return None,
        };
        let (before, after) = text.split_once("content-length: 0\r\n")?;
        let mut refusal = before.to_owned();
        let reply = problem.into_reply();
        for (name, value) in [
            ("content-type", "application/problem+json"),
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
            ("content-length", &reply.body.len().to_string()),
        ] {
            refusal.extend([name, ": ", value, "\r\n"]);
        }
        refusal.push_str(after);
        let bytes = [refusal.as_bytes(), &reply.body].concat();
        Some(Self { bytes, written: 0, length: head.len() })
    }

    /// Is ready when all of it is written; then gives what hyper is to hear.
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
        Poll::Ready(Ok(self.length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instead_of(head: &str) -> Option<String> {
        let (one, other) = head.as_bytes().split_at(head.len() / 2);
        let refusal = Refusal::instead_of(&[io::IoSlice::new(one), io::IoSlice::new(other)])?;
        assert_eq!(refusal.length, head.len());
        Some(String::from_utf8(refusal.bytes).unwrap())
    }

    #[test]
    fn an_answer_of_hypers_own_gets_a_body_and_keeps_its_date() {
        let head = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let refusal = instead_of(head).unwrap();
        let (head, body) = refusal.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"),
            "{head}"
        );
        assert!(head.ends_with(&format!("content-length: {}\r\ndate: x", body.len())), "{head}");
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&problem["status"], &problem["code"]), (&431.into(), &"headers_too_large".into()));
    }

    #[test]
    fn nothing_else_is_touched() {
        for other in [
            "",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 1\r\n\r\nx",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 10\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n",
            "HTTP/1.1 400 Bad Request\r\n\r\n",
            "HTTP/1.1 4",
        ] {
            assert_eq!(instead_of(other), None, "{other:?}");
        }
    }
}
