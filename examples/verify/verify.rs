//! Verifies a webhook. Arguments: secret, id, timestamp, signature header. Body on standard input.

use std::io::Read as _;

use axum::http::{HeaderMap, HeaderValue};
use standardwebhooks::Webhook;

fn verify(secret: &str, headers: &HeaderMap, body: &[u8]) -> bool {
    Webhook::new(secret).is_ok_and(|webhook| webhook.verify(body, headers).is_ok())
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut headers = HeaderMap::new();
    for (name, value) in ["webhook-id", "webhook-timestamp", "webhook-signature"].iter().zip(&arguments[1..])
    {
        headers.insert(*name, HeaderValue::from_str(value).expect("the header is text"));
    }
    let mut body = Vec::new();
    std::io::stdin().read_to_end(&mut body).expect("the body can be read");
    std::process::exit(i32::from(!verify(&arguments[0], &headers, &body)));
}
