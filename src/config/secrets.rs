//! Values of the configuration that are secret: the admin key, keys for encryption at rest, the URL
//! of a proxy.
//!
//! Owns: their forms. Must never show a value: `Debug` hides it, and the rules that errors quote do
//! not repeat it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use url::Url;

use crate::limits;
use crate::rules::weakness;

/// The URL of an egress proxy. It may hold a password, so only [`ProxyUrl::expose`] shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(Url);

impl ProxyUrl {
    pub(super) const RULE: &str =
        "must be http://host:port, or http://user:password@host:port (the value is not shown)";

    /// `None` for every other form of URL.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text).ok()?;
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        (url.scheme() == "http" && url.has_host() && bare).then_some(Self(url))
    }

    #[must_use]
    pub fn expose(&self) -> &Url {
        &self.0
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyUrl(..)")
    }
}

/// The admin API key. Only [`AdminKey::expose`] shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminKey(String);

impl AdminKey {
    /// A shorter key can be guessed.
    pub const CHARACTERS_MIN: usize = 16;
    pub(super) const RULE: &str = "must be 16 to 256 visible ASCII characters without spaces, as `openssl rand -hex 32` prints them (the value is not shown)";
    const GUESSABLE: &str = "can be guessed: it is a published example, repeated, a sequence or made of common words; use the output of `openssl rand -hex 32` (the value is not shown)";

    /// # Errors
    /// The rule that the text breaks: its length or its characters.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let is_legal = (Self::CHARACTERS_MIN..=256).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_legal { Ok(Self(text.to_owned())) } else { Err(Self::RULE) }
    }

    /// Why the key should be replaced, when it can be guessed.
    ///
    /// A guessable key is accepted with this warning: a daemon that ran with it must still start
    /// after an upgrade.
    #[must_use]
    pub fn warning(&self) -> Option<&'static str> {
        weakness::is_guessable(self.0.as_bytes()).then_some(Self::GUESSABLE)
    }

    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminKey(..)")
    }
}

/// Bytes of [`SecretsKey`].
pub const SECRETS_KEY_BYTES: usize = 32;

/// A key for encryption at rest. Only [`SecretsKey::expose`] shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretsKey([u8; SECRETS_KEY_BYTES]);

impl SecretsKey {
    pub(super) const RULE: &str =
        "must be 1 to 16 keys, each as `openssl rand -base64 32` prints it (the value is not shown)";
    const GUESSABLE: &str = "can be guessed, so it does not protect the stored secrets; rotate it to the output of `openssl rand -base64 32` (the value is not shown)";

    /// The keys in a file, one on each line; an empty line is ignored.
    pub(super) fn parse_lines(text: &str) -> Result<Vec<Self>, &'static str> {
        Self::all(text.lines().filter(|line| !line.is_empty()).map(Self::parse)).ok_or(Self::RULE)
    }

    /// `None` when a key is invalid, or without a key, or with too many.
    pub(super) fn all(keys: impl Iterator<Item = Option<Self>>) -> Option<Vec<Self>> {
        let keys = keys.collect::<Option<Vec<_>>>()?;
        (1..=limits::SECRETS_KEYS_MAX).contains(&keys.len()).then_some(keys)
    }

    /// `None` unless the text is the base64 of 32 bytes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// Why the key should be replaced, when it can be guessed.
    ///
    /// A guessable key is accepted with this warning: a data directory that was written under it
    /// must still open.
    #[must_use]
    pub fn warning(&self) -> Option<&'static str> {
        weakness::is_guessable(&self.0).then_some(Self::GUESSABLE)
    }

    #[must_use]
    pub fn expose(&self) -> &[u8; SECRETS_KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for SecretsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretsKey(..)")
    }
}
