//! Whether a secret or an admin key that somebody chose can be guessed.
//!
//! A check at the door: secrets that are stored go on signing. It finds what people type, paste from examples or leave
//! empty. Of published secrets it knows those that documentation of webhooks shows.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::limits;

/// Keys of published examples, in base64: Standard Webhooks, Svix.
const PUBLISHED_KEYS: [&str; 3] =
    ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "plJ3nmyCDGBKInavdOK15jsl"];
/// Published examples that are text: GitHub's documentation, a comic strip, documentation of AWS.
const PUBLISHED_TEXTS: [&str; 4] = [
    "It's a Secret to Everybody",
    "correct horse battery staple",
    "correcthorsebatterystaple",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
];

/// Words that people make secrets of, in lower case; what contains another comes first.
const COMMON_WORDS: [&str; 67] = [
    "abcdefghijklmnopqrstuvwxyz",
    "administrator",
    "placeholder",
    "qwertyuiop",
    "0123456789",
    "1234567890",
    "characters",
    "asdfghjkl",
    "123456789",
    "signature",
    "deadbeef",
    "12345678",
    "iloveyou",
    "password",
    "passwort",
    "passw0rd",
    "changeme",
    "baseball",
    "football",
    "sunshine",
    "princess",
    "webhooks",
    "operator",
    "zxcvbnm",
    "default",
    "example",
    "letmein",
    "private",
    "signing",
    "testing",
    "webhook",
    "welcome",
    "hunter2",
    "abcdef",
    "change",
    "dragon",
    "foobar",
    "github",
    "master",
    "monkey",
    "qwerty",
    "sample",
    "secret",
    "shared",
    "stripe",
    "123456",
    "please",
    "random",
    "string",
    "insert",
    "balto",
    "token",
    "admin",
    "super",
    "hello",
    "world",
    "test",
    "1234",
    "your",
    "here",
    "root",
    "user",
    "demo",
    "prod",
    "pass",
    "key",
    "api",
];

/// Whether the bytes are constant, a repeated piece, a sequence, of few values, a published example, or text of common
/// words.
#[must_use]
pub fn is_guessable(secret: &[u8]) -> bool {
    distinct(secret) < limits::SECRET_DISTINCT_BYTES_MIN
        || is_published(secret)
        || is_repeated(secret)
        || is_sequence(secret)
        || is_common(secret)
}

/// A published key counts as bytes, in base64, and with a prefix.
fn is_published(secret: &[u8]) -> bool {
    let is_in_text = |sample: &str| secret.windows(sample.len()).any(|part| part == sample.as_bytes());
    let is_decoded = |sample: &str| STANDARD.decode(sample).is_ok_and(|bytes| bytes == secret);
    PUBLISHED_TEXTS.into_iter().any(is_in_text)
        || PUBLISHED_KEYS.into_iter().any(|sample| is_in_text(sample) || is_decoded(sample))
}

fn distinct(secret: &[u8]) -> usize {
    let mut sorted = secret.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted.len()
}

/// A piece of at most half the length, over and over.
fn is_repeated(secret: &[u8]) -> bool {
    (1..=secret.len() / 2).any(|piece| secret.iter().zip(&secret[piece..]).all(|(one, other)| one == other))
}

/// At least half of the steps from byte to byte are as the step before, as in `0123456789abcdef`.
fn is_sequence(secret: &[u8]) -> bool {
    let steps: Vec<u8> = secret.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    let same = steps.windows(2).filter(|pair| pair[0] == pair[1]).count();
    2 * same >= steps.len()
}

/// Text of which little is left without the common words.
fn is_common(secret: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(secret) else { return false };
    let mut rest = text.to_ascii_lowercase();
    for word in COMMON_WORDS {
        // A space keeps what stood on either side from becoming a word.
        rest = rest.replace(word, " ");
    }
    rest.chars().filter(|c| c.is_alphanumeric()).count() < limits::SECRET_UNCOMMON_BYTES_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_is_guessable() {
        for text in [
            "aaaaaaaaaaaaaaaa",
            "abababababababab",
            "abcd1234abcd1234",
            "0123456789abcdef",
            "0123456789012345",
            "abcdefghijklmnop",
            "ABCDEFGHIJKLMNOP",
            "fedcba9876543210",
            "passwordpassword",
            "Password12345678",
            "PasswordPassword1!",
            "my-webhook-secret",
            "github-webhook-secret",
            "changeme-changeme",
            "secretsecretsecret",
            "test-test-test-test",
            "qwertyuiopasdfghjkl",
            "deadbeefdeadbeef",
            "................",
            "change-me-change-me",
            "change-me-to-32-random-characters",
            "my-super-secret-key",
            "your-256-bit-secret",
            "operator-operator-operator",
            "It's a Secret to Everybody",
            "correct horse battery staple",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "                ",
        ] {
            assert!(is_guessable(text.as_bytes()), "{text}");
        }
        for sample in PUBLISHED_KEYS {
            assert!(is_guessable(&STANDARD.decode(sample).unwrap()), "{sample}");
        }
        for length in [24, 32, 64] {
            assert!(is_guessable(&vec![0; length]));
            assert!(is_guessable(&vec![0xff; length]));
            assert!(is_guessable(&(0..length as u8).collect::<Vec<_>>()), "a sequence of {length}");
            assert!(is_guessable(&(0..length).map(|at| [1, 2, 4, 8, 16][at % 5]).collect::<Vec<_>>()));
        }
    }

    #[test]
    fn random_secrets_pass() {
        for text in
            ["It's no Secret to My Cat 42", "9f86d081884c7d65", "Xq7-test-Lm2kPz9Rw", "whsec_abc123DEF456"]
        {
            assert!(!is_guessable(text.as_bytes()), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn random_bytes_pass(secret: [u8; 32]) {
            // One in 2^100 would not.
            proptest::prop_assume!(distinct(&secret) >= 16);
            proptest::prop_assert!(!is_guessable(&secret), "{secret:?}");
        }

        #[test]
        fn random_hexadecimal_passes(secret: [u8; 16]) {
            proptest::prop_assume!(distinct(&secret) >= 8);
            let text: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
            proptest::prop_assert!(!is_guessable(text.as_bytes()), "{text}");
        }
    }
}
