//! The configuration: defaults, then the file, then the environment, then flags; checked once,
//! before anything starts.
//!
//! Owns: every key that an operator can set, its default and its bounds, and errors that name file,
//! line, key and reason. Must never know who uses a value. Invariants: a [`Config`] is within all
//! bounds; secrets appear in no `Debug` and no error.

mod errors;
mod files;
mod keys;
mod loading;
mod secrets;
mod sections;
#[cfg(test)]
mod tests;
pub mod units;
mod value;

use std::path::{Path, PathBuf};

pub use errors::{ConfigError, ConfigErrors, Origin};
pub use files::{read_bounded, read_secret};
pub use keys::{Change, ConfigKey, KEYS};
pub use loading::{CheckAuthorities, CheckCertificate, check};
pub use secrets::{AdminKey, ProxyUrl, SECRETS_KEY_BYTES, SecretsKey};
pub use sections::{
    AuditSection, Auth, DeliverySection, Egress, HandshakeSection, Ingest, KeepFor, Log, LogFormat,
    PortRange, QuotasSection, RetentionSection, Retry, SecretsSection, Server, StoreKind, StoreSection,
    Types,
};

use files::{from_file, read_file};
use loading::Loading;

/// Prefix of the configuration's environment variables.
pub const ENVIRONMENT_PREFIX: &str = "BALTO__";

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    pub server: Server,
    pub auth: Auth,
    pub secrets: SecretsSection,
    pub store: StoreSection,
    pub ingest: Ingest,
    pub types: Types,
    pub delivery: DeliverySection,
    pub retry: Retry,
    pub egress: Egress,
    pub handshake: HandshakeSection,
    pub retention: RetentionSection,
    pub audit: AuditSection,
    pub quotas: QuotasSection,
    pub log: Log,
    /// The `--dev` flag: no key is needed, and the settings that it implies are made. Not a key.
    pub dev: bool,
}

/// Values of flags, which override file and environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    pub data_dir: Option<PathBuf>,
    /// Allows `http` and loopback targets on the default ports, and puts data into `./balto-data`
    /// unless a path is set.
    pub dev: bool,
    /// With `dev`: listeners beyond loopback are allowed.
    pub dev_listen_anywhere: bool,
}

impl Config {
    /// Defaults, overridden by the file, then by `BALTO__SECTION__KEY` variables, then by flags.
    /// Other variables are ignored.
    ///
    /// # Errors
    /// All errors, with their places.
    pub fn load(
        path: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: Overrides,
    ) -> Result<Self, ConfigErrors> {
        match path {
            Some(path) => Self::parse(Some((path, &read_file(path)?)), env, flags),
            None => Self::parse(None, env, flags),
        }
    }

    /// As [`Config::load`], from the file's text.
    ///
    /// # Errors
    /// All errors, with their places.
    pub fn parse(
        file: Option<(&Path, &str)>,
        env: impl Iterator<Item = (String, String)>,
        flags: Overrides,
    ) -> Result<Self, ConfigErrors> {
        Loading::read(file, env, flags).end()
    }

    /// The admin key, from the configuration or its file; `None` when neither is set.
    ///
    /// The base URL under which others reach the API. With `--dev` the listener's by default.
    #[must_use]
    pub fn public_url(&self) -> Option<String> {
        let Self { server, dev, .. } = self;
        let scheme = if server.tls_certificate_file.is_some() { "https" } else { "http" };
        let local = || dev.then(|| format!("{scheme}://{}", server.api_listen));
        server.public_url.clone().or_else(local)
    }

    /// # Errors
    /// When the file cannot be read or holds no valid key.
    pub fn admin_key(&self) -> Result<Option<AdminKey>, ConfigError> {
        let Some(path) = &self.auth.admin_key_file else { return Ok(self.auth.admin_key.clone()) };
        from_file(path, "auth.admin_key_file", AdminKey::parse).map(Some)
    }

    /// The keys for encryption at rest, from the configuration or their file: the first encrypts,
    /// all decrypt. Empty when neither is set.
    ///
    /// # Errors
    /// When the file cannot be read or holds no valid keys.
    pub fn secrets_keys(&self) -> Result<Vec<SecretsKey>, ConfigError> {
        let Some(path) = &self.secrets.key_file else { return Ok(self.secrets.key.clone()) };
        from_file(path, "secrets.key_file", SecretsKey::parse_lines)
    }

    /// Warnings about keys that can be guessed: the admin key, and the key that encrypts at rest.
    ///
    /// # Errors
    /// As [`Self::admin_key`] and [`Self::secrets_keys`].
    pub fn weak_keys(&self) -> Result<Vec<ConfigError>, ConfigError> {
        let admin_key = self.admin_key()?.and_then(|key| key.warning());
        let secrets_key = self.secrets_keys()?.first().and_then(SecretsKey::warning);
        let name = |file: &Option<PathBuf>, name: &str| {
            if file.is_some() { format!("{name}_file") } else { name.to_owned() }
        };
        let warnings = [
            (admin_key, name(&self.auth.admin_key_file, "auth.admin_key")),
            (secrets_key, name(&self.secrets.key_file, "secrets.key")),
        ];
        let shown = |(reason, key): (Option<&str>, String)| {
            let reason = reason?.to_owned();
            Some(ConfigError { origin: Origin::Default, key: Some(key), reason })
        };
        Ok(warnings.into_iter().filter_map(shown).collect())
    }

    /// Gives the keys that need a restart the values of the running configuration. Returns those
    /// that differed.
    pub fn keep_until_restart(&mut self, running: &Self) -> Vec<&'static str> {
        let needs_restart = KEYS.iter().filter(|key| key.change == Change::Restart);
        let changed: Vec<_> = needs_restart.filter(|key| !(key.same)(running, self)).collect();
        changed.iter().for_each(|key| (key.copy)(self, running));
        changed.into_iter().map(|key| key.name).collect()
    }
}
