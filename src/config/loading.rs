//! Loading: file, environment and flags become one checked configuration, or all of its errors.
//!
//! Owns: the order of the sources, the relations between keys, and the place of each error.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use toml::de::{DeTable, DeValue};

use super::files::read_file;
use super::keys::{self, KEYS};
use super::value::Value;
use super::{Config, ConfigError, ConfigErrors, ENVIRONMENT_PREFIX, Origin, Overrides, Server};
use crate::nearest::nearest;

/// Bound of the reported syntax errors: one mistake can cause many.
pub(super) const SYNTAX_ERRORS_MAX: usize = 20;

/// Checks a file of certificate authorities; the error is the reason why it cannot be used.
pub type CheckAuthorities<'a> = &'a dyn Fn(&Path) -> Result<(), String>;
/// Checks the listener's certificate and key; gives a warning about files that can be used but
/// should be replaced.
pub type CheckCertificate<'a> = &'a dyn Fn(&Server) -> Result<Option<ConfigError>, ConfigError>;

/// Checks a file, without environment and flags, and the files that it names. Returns warnings.
///
/// # Errors
/// All errors, with their places.
pub fn check(
    path: &Path,
    authorities: CheckAuthorities<'_>,
    certificate: CheckCertificate<'_>,
) -> Result<Vec<ConfigError>, ConfigErrors> {
    let text = read_file(path)?;
    let mut loading = Loading::read(Some((path, &text)), std::iter::empty(), Overrides::default());
    let warnings = loading.check_files(authorities, certificate);
    loading.end().map(|_| warnings)
}

/// A configuration while it is loaded, with the place of each value that was set, and the errors so
/// far.
#[derive(Default)]
pub(super) struct Loading {
    config: Config,
    origins: BTreeMap<&'static str, Origin>,
    errors: Vec<ConfigError>,
}

impl Loading {
    pub(super) fn read(
        file: Option<(&Path, &str)>,
        env: impl Iterator<Item = (String, String)>,
        flags: Overrides,
    ) -> Self {
        let mut loading = Self::default();
        if let Some((path, text)) = file {
            loading.read_file(path, text);
        }
        loading.read_environment(env);
        let dev_listens_locally = flags.dev && !flags.dev_listen_anywhere;
        loading.apply_flags(flags);
        if dev_listens_locally {
            loading.check_dev_listeners();
        }
        // A value with an error is missing, and a relation to it would be a second error.
        if loading.errors.is_empty() {
            loading.adapt_defaults();
            loading.check_relations();
        }
        loading
    }

    pub(super) fn end(self) -> Result<Config, ConfigErrors> {
        if self.errors.is_empty() { Ok(self.config) } else { Err(ConfigErrors(self.errors)) }
    }

    fn add_error(&mut self, origin: Origin, key: &str, reason: impl Into<String>) {
        self.errors.push(ConfigError { origin, key: Some(key.to_owned()), reason: reason.into() });
    }

    fn read_file(&mut self, path: &Path, text: &str) {
        let at = |offset: usize| Origin::File { path: path.to_owned(), line: Some(line_of(text, offset)) };
        let (table, causes) = DeTable::parse_recoverable(text);
        if !causes.is_empty() {
            // The parser guesses at what it cannot read: values behind a syntax error mean nothing.
            return self.add_syntax_errors(path, text, causes);
        }
        let mut entries = Vec::new();
        for (section, value) in table.get_ref() {
            let (name, start) = (section.get_ref(), section.span().start);
            match value.get_ref() {
                _ if !is_section(name) => self.add_error(at(start), name, unknown("section", name)),
                DeValue::Table(table) => entries.extend(table.iter().map(|(entry, value)| {
                    (entry.span().start, format!("{name}.{}", entry.get_ref()), value.get_ref())
                })),
                _ => {
                    let reason = format!("is a section; write [{name}] on a line of its own");
                    self.add_error(at(start), name, reason);
                }
            }
        }
        for (start, name, value) in entries {
            self.set(&name, &Value::from_toml(value), at(start));
        }
        // In the order of the file, which a table does not have.
        self.errors.sort_by_key(|error| match error.origin {
            Origin::File { line, .. } => line,
            Origin::Environment(_) | Origin::Default => None,
        });
    }

    fn add_syntax_errors(&mut self, path: &Path, text: &str, mut causes: Vec<toml::de::Error>) {
        let at = |line| Origin::File { path: path.to_owned(), line };
        causes.sort_by_key(|cause| cause.span().map(|span| span.start));
        let unreported = causes.len().saturating_sub(SYNTAX_ERRORS_MAX);
        for cause in causes.into_iter().take(SYNTAX_ERRORS_MAX) {
            let start = cause.span().map_or(0, |span| span.start);
            let message = cause.message().lines().collect::<Vec<_>>().join("; ");
            // The parser takes a word that begins like `inf` or `nan` for a number.
            let hint = if message.contains("invalid float") { "; put text in quotes" } else { "" };
            let reason = format!("not TOML at column {}: {message}{hint}", column_of(text, start));
            self.errors.push(ConfigError { origin: at(Some(line_of(text, start))), key: None, reason });
        }
        if unreported > 0 {
            let reason = format!("and {unreported} more places that are not TOML");
            self.errors.push(ConfigError { origin: at(None), key: None, reason });
        }
    }

    fn read_environment(&mut self, env: impl Iterator<Item = (String, String)>) {
        // Sorted, so that the order of errors is stable.
        let ours = env.filter(|(variable, _)| variable.starts_with(ENVIRONMENT_PREFIX));
        for (variable, text) in ours.collect::<BTreeMap<_, _>>() {
            let name = variable[ENVIRONMENT_PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
            self.set(&name, &Value::Environment(text), Origin::Environment(variable));
        }
    }

    fn set(&mut self, name: &str, value: &Value, origin: Origin) {
        let Some(key) = keys::find(name) else { return self.add_error(origin, name, unknown("key", name)) };
        match (key.set)(&mut self.config, value) {
            Ok(()) => drop(self.origins.insert(key.name, origin)),
            Err(reason) => self.add_error(origin, name, reason),
        }
    }

    /// Checks the files that keys name, which the daemon reads only when it starts. Returns
    /// warnings.
    fn check_files(
        &mut self,
        authorities: CheckAuthorities<'_>,
        certificate: CheckCertificate<'_>,
    ) -> Vec<ConfigError> {
        let config = &self.config;
        let authority = config.egress.ca_file.as_deref().and_then(|path| authorities(path).err());
        let authority = authority.map(|reason| ConfigError {
            origin: Origin::Default,
            key: Some("egress.ca_file".to_owned()),
            reason,
        });
        let (mut warnings, mut errors) = (Vec::new(), Vec::new());
        match certificate(&config.server) {
            Ok(warning) => warnings.extend(warning),
            Err(error) => errors.push(error),
        }
        match config.weak_keys() {
            Ok(weak) => warnings.extend(weak),
            Err(_) => {
                errors.extend([config.admin_key().err(), config.secrets_keys().err()].into_iter().flatten())
            }
        }
        errors.extend(authority);
        let placed = |error: ConfigError| {
            let origin = self.origins.get(error.key.as_deref()?)?.clone();
            Some(ConfigError { origin, ..error })
        };
        let warnings = warnings.into_iter().filter_map(placed).collect();
        let errors: Vec<_> = errors.into_iter().filter_map(placed).collect();
        self.errors.extend(errors);
        warnings
    }

    fn apply_flags(&mut self, flags: Overrides) {
        let config = &mut self.config;
        if flags.dev {
            config.dev = true;
            config.egress.allow_http = true;
            config.egress.allow_ports.clear();
            config.handshake.origin.get_or_insert_with(|| "localhost".parse().expect("a DNS name"));
            let loopback = [
                IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
                IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
            ];
            for network in loopback {
                if !config.egress.allow_networks.contains(&network) {
                    config.egress.allow_networks.push(network);
                }
            }
            if !self.origins.contains_key("store.path") {
                config.store.path = PathBuf::from("./balto-data");
            }
        }
        if let Some(path) = flags.data_dir {
            config.store.path = path;
        }
    }

    /// With `--dev` every client that reaches the API is the operator, and metrics show what the
    /// daemon does.
    fn check_dev_listeners(&mut self) {
        let Server { api_listen, ops_listen, .. } = self.config.server;
        for (key, address) in [("server.api_listen", api_listen), ("server.ops_listen", ops_listen)] {
            if !address.ip().is_loopback() {
                let origin = self.origins.get(key).cloned().unwrap_or(Origin::Default);
                let reason = format!(
                    "{address} is not a loopback address, and --dev asks for no key; use 127.0.0.1, or add --dev-listen-anywhere if every machine that reaches the address may have all rights"
                );
                self.add_error(origin, key, reason);
            }
        }
    }

    /// A default adapts to the other value of its pair.
    fn adapt_defaults(&mut self) {
        let given = |key| self.origins.contains_key(key);
        let Config { delivery, retry, handshake, .. } = &mut self.config;
        let pairs = [
            (&mut retry.initial, "retry.initial", &mut retry.max_interval, "retry.max_interval"),
            (
                &mut delivery.breaker_probe_initial,
                "delivery.breaker_probe_initial",
                &mut delivery.breaker_probe_max,
                "delivery.breaker_probe_max",
            ),
            (
                &mut handshake.retry_initial,
                "handshake.retry_initial",
                &mut handshake.retry_max_interval,
                "handshake.retry_max_interval",
            ),
        ];
        for (lower, lower_key, upper, upper_key) in pairs {
            if !given(lower_key) {
                *lower = (*lower).min(*upper);
            } else if !given(upper_key) {
                *upper = (*upper).max(*lower);
            }
        }
    }

    /// Two values that contradict each other are an error at the place of the first.
    fn check_relations(&mut self) {
        let given = |key| self.origins.contains_key(key);
        let Config { server, auth, secrets, delivery, retry, handshake, dev, .. } = &self.config;
        // A default connect timeout may exceed the attempt's timeout: the attempt ends first.
        let connect_too_long = given("delivery.connect_timeout")
            && given("delivery.timeout")
            && delivery.connect_timeout > delivery.timeout;
        let same_listener = server.api_listen == server.ops_listen && server.api_listen.port() != 0;
        let two_secrets_keys = !secrets.key.is_empty() && secrets.key_file.is_some();
        let two_keys = auth.admin_key.is_some() && auth.admin_key_file.is_some();
        // A third party that reads a callback's URL in transit could consent in the receiver's
        // place.
        let plain_public_url =
            !*dev && server.public_url.as_ref().is_some_and(|url| url.starts_with("http:"));
        let certificate_alone = server.tls_certificate_file.is_some() && server.tls_key_file.is_none();
        let key_alone = server.tls_key_file.is_some() && server.tls_certificate_file.is_none();
        let retries_wrong = retry.initial > retry.max_interval;
        let requests_wrong = handshake.retry_initial > handshake.retry_max_interval;
        let probes_wrong = delivery.breaker_probe_initial > delivery.breaker_probe_max;
        let (not_longer, together, not_beside) =
            ("must not be longer than", "must be set together with", "must not be set beside");
        let relations = [
            (same_listener, "server.ops_listen", "server.api_listen", "must differ from"),
            (certificate_alone, "server.tls_certificate_file", "server.tls_key_file", together),
            (key_alone, "server.tls_key_file", "server.tls_certificate_file", together),
            (two_keys, "auth.admin_key_file", "auth.admin_key", not_beside),
            (two_secrets_keys, "secrets.key_file", "secrets.key", not_beside),
            (connect_too_long, "delivery.connect_timeout", "delivery.timeout", not_longer),
            (probes_wrong, "delivery.breaker_probe_initial", "delivery.breaker_probe_max", not_longer),
            (retries_wrong, "retry.initial", "retry.max_interval", not_longer),
            (requests_wrong, "handshake.retry_initial", "handshake.retry_max_interval", not_longer),
            (plain_public_url, "server.public_url", "--dev", "must be https without"),
        ];
        for (_, key, other, rule) in relations.into_iter().filter(|(broken, ..)| *broken) {
            let origin = self.origins.get(key).or_else(|| self.origins.get(other));
            self.add_error(origin.cloned().unwrap_or(Origin::Default), key, format!("{rule} {other}"));
        }
    }
}

fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.split_once('.').is_some_and(|(section, _)| section == name))
}

/// The error for an unknown section or key. It suggests the key with this name of another section,
/// or the nearest name.
fn unknown(what: &str, name: &str) -> String {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let elsewhere = KEYS.iter().map(|key| key.name).find(|known| last(known) == last(name));
    let other = match what {
        "section" => nearest(name, KEYS.iter().filter_map(|key| Some(key.name.split_once('.')?.0))),
        _ => elsewhere.or_else(|| nearest(name, KEYS.iter().map(|key| key.name))),
    };
    match other {
        Some(other) => format!("is not a known {what}; did you mean {other}?"),
        None => format!("is not a known {what}"),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// Counts characters, from 1.
fn column_of(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = before.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    String::from_utf8_lossy(line).chars().count() + 1
}
