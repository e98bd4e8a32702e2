//! Signing cost: microseconds for each scheme and body size, beside one bare SHA-256 over the same
//! bytes.

#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use balto::domain::{SecretKind, SignaturePreset, Timestamp};
use balto::rules::signature::{SigningKey, signature_header};
use sha2::{Digest as _, Sha256};

const RUN: Duration = Duration::from_millis(500);

fn main() {
    println!("| body, bytes | SHA-256 alone, µs | v1 | v1 with two secrets | v1a | stripe | github |");
    println!("|---|---|---|---|---|---|---|");
    for bytes in [100, 1_000, 10_000, 100_000] {
        let body = vec![b'x'; bytes];
        let key = |kind| SigningKey { kind, bytes: vec![7; 32] };
        let (hmac, ed25519) = (key(SecretKind::Hmac), key(SecretKind::Ed25519));
        let sign = |preset, keys: &[SigningKey]| {
            let keys = keys.to_vec();
            micros(|| {
                let now = Timestamp::from_millis(1_773_398_100_000);
                black_box(signature_header(preset, &keys, now, "evt_01ARZ3NDEKTSV4RRFFQ69G5FAV", &body));
            })
        };
        let alone = micros(|| {
            black_box(Sha256::digest(&body));
        });
        let standard = SignaturePreset::Standard;
        println!(
            "| {bytes} | {alone:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
            sign(standard, std::slice::from_ref(&hmac)),
            sign(standard, &[hmac.clone(), hmac.clone()]),
            sign(standard, &[ed25519]),
            sign(SignaturePreset::Stripe, std::slice::from_ref(&hmac)),
            sign(SignaturePreset::Github, &[hmac]),
        );
    }
}

/// Mean time of one call.
fn micros(mut call: impl FnMut()) -> f64 {
    let (started, mut calls) = (Instant::now(), 0_u32);
    while started.elapsed() < RUN {
        call();
        calls += 1;
    }
    started.elapsed().as_secs_f64() * 1e6 / f64::from(calls)
}
