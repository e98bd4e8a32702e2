//! Recognizes headers of an endpoint that carry credentials, by name.
//!
//! Their values are kept as sensitive headers, in whichever member they were given, so that a
//! reader of endpoints cannot use them. When in doubt a header is sensitive: its owner then cannot
//! read the value back, but no secret leaks.

use crate::domain::normalize_header_name;

/// Texts of credential names, at any place. Separators are ignored: `X-Api-Key`, `X-ApiKey` and
/// `X.Api.Key` are equal.
const SECRET_TEXTS: [&str; 20] = [
    "accesskey",
    "apikey",
    "assertion",
    "authentication",
    "authorization",
    "bearer",
    "cookie",
    "credential",
    "csrf",
    "jwt",
    "passphrase",
    "passwd",
    "password",
    "privatekey",
    "secret",
    "session",
    "signaturekey",
    "signingkey",
    "token",
    "xsrf",
];

/// Last words of credential names, as in `X-Auth` and `X-Functions-Key`.
const SECRET_LAST_WORDS: [&str; 4] = ["auth", "key", "pass", "pwd"];

/// Whether a header of this name carries a credential.
#[must_use]
pub fn is_secret(name: &str) -> bool {
    let name = normalize_header_name(name);
    let joined = name.replace('-', "");
    let last_word = name.rsplit('-').next().unwrap_or_default();
    SECRET_LAST_WORDS.contains(&last_word) || SECRET_TEXTS.iter().any(|text| joined.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_recognized_by_name_in_any_case() {
        for name in [
            "Authorization",
            "authorization",
            "X-Authorization",
            "Authentication",
            "X-Authentication-Info",
            "Cookie",
            "Cookie2",
            "X-Api-Key",
            "X.Api.Key",
            "Api-Key",
            "ApiKey",
            "X-APIKEY",
            "X-Api-Key-Id",
            "X-Access-Key-Id",
            "X-AccessKey",
            "X-Auth-Token",
            "X-Access-Token",
            "X-AccessToken",
            "X-Amz-Security-Token",
            "X-Gitlab-Token",
            "X-Vault-Token",
            "X-Token-Id",
            "X-CSRFToken",
            "X-CSRF",
            "X-XSRF-TOKEN",
            "X-Jwt-Assertion",
            "X-Goog-IAP-JWT-Assertion",
            "X-Session-Id",
            "X-Credentials",
            "X-Credential-Id",
            "X-Signature-Key",
            "X-Signing-Key-Id",
            "X-PrivateKey",
            "Ocp-Apim-Subscription-Key",
            "X-Functions-Key",
            "X-Hook-Secret",
            "X-Secret-Value",
            "X-Password",
            "X-User-Passwd",
            "X-Auth",
            "X-Pwd",
            "PRIVATE-TOKEN",
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in [
            "X-Env",
            "X-Keyboard",
            "X-Key-Count",
            "Accept",
            "X-Tenant",
            "X-CamelCaseKey",
            "Authority",
            "X-Author",
            "X-Pass-Through",
            "X-Signature",
            "X-Request-Id",
        ] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
