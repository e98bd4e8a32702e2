//! Detects guessable secrets and admin keys.
//!
//! Applies to new secrets only; stored ones remain valid. Detects typed, constant and published
//! secrets. The published ones are examples of webhook documentation.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::limits;

/// Keys of published examples, in base64: Standard Webhooks, Svix.
const PUBLISHED_KEYS: [&str; 3] =
    ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "plJ3nmyCDGBKInavdOK15jsl"];
/// Published example texts: GitHub's documentation, a comic strip, AWS documentation.
const PUBLISHED_TEXTS: [&str; 4] = [
    "It's a Secret to Everybody",
    "correct horse battery staple",
    "correcthorsebatterystaple",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
];

/// Common words of typed secrets, in lower case; a word precedes the words that it contains.
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

/// Whether the bytes are constant, repeated, a sequence, of few distinct values, a published
/// example or common words.
#[must_use]
pub fn is_guessable(secret: &[u8]) -> bool {
    count_distinct(secret) < limits::SECRET_DISTINCT_BYTES_MIN
        || is_published(secret)
        || is_repeated(secret)
        || is_sequence(secret)
        || consists_of_common_words(secret)
}

/// Finds a published key as bytes, in base64, and with a prefix.
fn is_published(secret: &[u8]) -> bool {
    let is_in_text = |sample: &str| secret.windows(sample.len()).any(|part| part == sample.as_bytes());
    let is_decoded = |sample: &str| STANDARD.decode(sample).is_ok_and(|bytes| bytes == secret);
    PUBLISHED_TEXTS.into_iter().any(is_in_text)
        || PUBLISHED_KEYS.into_iter().any(|sample| is_in_text(sample) || is_decoded(sample))
}

fn count_distinct(secret: &[u8]) -> usize {
    let mut sorted = secret.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted.len()
}

/// Whether a piece of at most half the length repeats to the end.
fn is_repeated(secret: &[u8]) -> bool {
    (1..=secret.len() / 2).any(|piece| secret.iter().zip(&secret[piece..]).all(|(one, other)| one == other))
}

/// Whether at least half of the steps between bytes equal the previous step: `0123456789abcdef`.
fn is_sequence(secret: &[u8]) -> bool {
    let steps: Vec<u8> = secret.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    let same = steps.windows(2).filter(|pair| pair[0] == pair[1]).count();
    2 * same >= steps.len()
}

/// Whether text without its common words is too short.
fn consists_of_common_words(secret: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(secret) else { return false };
    let mut rest = text.to_ascii_lowercase();
    for word in COMMON_WORDS {
        // A space, so that the parts on both sides do not form a word.
        rest = rest.replace(word, " ");
    }
    rest.chars().filter(|c| c.is_alphanumeric()).count() < limits::SECRET_UNCOMMON_BYTES_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_and_published_secrets_are_guessable() {
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
            // Fails for about one in 2^100.
            proptest::prop_assume!(count_distinct(&secret) >= 16);
            proptest::prop_assert!(!is_guessable(&secret), "{secret:?}");
        }

        #[test]
        fn random_hexadecimal_passes(secret: [u8; 16]) {
            proptest::prop_assume!(count_distinct(&secret) >= 8);
            let text: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
            proptest::prop_assert!(!is_guessable(text.as_bytes()), "{text}");
        }
    }
}
