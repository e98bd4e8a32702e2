//! Which of an endpoint's own headers carry credentials, by their names.
//!
//! Their values are kept as sensitive headers, in whichever member they were given: a reader of endpoints must not
//! become able to send in their owner's name.

/// Names that carry credentials whatever their ending.
const SECRETS: [&str; 14] = [
    "authorization",
    "cookie",
    "cookie2",
    "api-key",
    "apikey",
    "auth",
    "credentials",
    "jwt",
    "key",
    "passwd",
    "password",
    "secret",
    "session",
    "token",
];

/// Endings of such names: `X-Api-Key`, `X-Amz-Security-Token`, `X-Hook-Secret`.
const SECRET_ENDINGS: [&str; 14] = [
    "-authorization",
    "-cookie",
    "-key",
    "-apikey",
    "-auth",
    "-credential",
    "-credentials",
    "-jwt",
    "-passphrase",
    "-passwd",
    "-password",
    "-secret",
    "-session",
    "-token",
];

/// Whether a header of this name carries a credential.
#[must_use]
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRETS.contains(&name.as_str()) || SECRET_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_known_by_name_in_any_case() {
        for name in [
            "Authorization",
            "authorization",
            "X-Authorization",
            "Cookie",
            "X-Api-Key",
            "Api-Key",
            "ApiKey",
            "X-APIKEY",
            "X-Auth-Token",
            "X-Access-Token",
            "X-Amz-Security-Token",
            "X-Gitlab-Token",
            "X-Vault-Token",
            "Ocp-Apim-Subscription-Key",
            "X-Functions-Key",
            "X-Hook-Secret",
            "X-Password",
            "X-Auth",
            "PRIVATE-TOKEN",
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in
            ["X-Env", "X-Keyboard", "X-Tokens-Used", "Accept", "X-Tenant", "X-CamelCaseKey", "Authority"]
        {
            assert!(!is_secret(name), "{name}");
        }
    }
}
