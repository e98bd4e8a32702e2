//! The configuration: defaults, then the file, then the environment, then flags; checked once, before anything starts.
//!
//! Owns: every key that an operator may set, its default and its bounds, and errors that name file, line, key and
//! reason. Must never know who uses a value. Invariants: a [`Config`] that exists is within all bounds; the admin key
//! appears in no `Debug` and no error.

mod keys;
#[cfg(test)]
mod tests;
pub mod units;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use toml::de::{DeTable, DeValue};
use url::Url;

pub use keys::{Change, KEYS, Key};
use value::Value;

use crate::domain::{RetryPolicy, SenderName};
use crate::limits;
use crate::rules::weakness;

/// What every environment variable of the configuration begins with.
pub const ENVIRONMENT_PREFIX: &str = "BALTO__";
const HOUR: Duration = Duration::from_secs(3_600);
/// Bound of the configuration file and of the admin key's file, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Of what is no TOML so many places are told: the parser finds one behind each other.
const SYNTAX_ERRORS_TOLD_MAX: usize = 20;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    pub server: Server,
    pub auth: Auth,
    pub secrets: Secrets,
    pub store: Store,
    pub ingest: Ingest,
    pub delivery: Delivery,
    pub retry: Retry,
    pub egress: Egress,
    pub handshake: Handshake,
    pub retention: Retention,
    pub log: Log,
    /// The `--dev` flag: no key is needed, and what it implies has been set. Not a key.
    pub dev: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    pub api_listen: SocketAddr,
    pub ops_listen: SocketAddr,
    /// How the API is reached from outside, without a slash at the end.
    pub public_url: Option<String>,
    /// PEM, its own certificate first. Beside `tls_key_file`; without both the API speaks plain HTTP.
    pub tls_certificate_file: Option<PathBuf>,
    pub tls_key_file: Option<PathBuf>,
    pub max_connections: usize,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub answer_timeout: Duration,
    pub max_body_bytes: usize,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Auth {
    pub admin_key: Option<AdminKey>,
    pub admin_key_file: Option<PathBuf>,
}

/// The keys that secrets and sensitive headers are encrypted under: the first encrypts, all decrypt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Secrets {
    pub key: Vec<SecretsKey>,
    pub key_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    Embedded,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Store {
    pub kind: StoreKind,
    pub path: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Ingest {
    pub max_event_bytes: usize,
    pub idempotency_ttl: Duration,
    pub admission_bytes: usize,
    pub admission_events: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// Of one attempt, for endpoints that do not set their own.
    pub timeout: Duration,
    pub connect_timeout: Duration,
    /// Requests at once over all endpoints.
    pub max_in_flight: usize,
    /// Requests at once to an endpoint that does not set its own.
    pub endpoint_max_in_flight: u32,
    pub drain_timeout: Duration,
    pub disable_after: Duration,
    /// Status codes after which a delivery is never tried again.
    pub refused_statuses: Vec<u16>,
    pub breaker_failures: u32,
    pub breaker_probe_initial: Duration,
    pub breaker_probe_max: Duration,
}

/// The retry policy of endpoints that do not set their own.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    pub initial: Duration,
    pub multiplier: f64,
    pub max_interval: Duration,
    pub max_attempts: u32,
    pub max_age: Duration,
    pub jitter: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Egress {
    pub allow_http: bool,
    pub allow_networks: Vec<IpNet>,
    pub deny_networks: Vec<IpNet>,
    /// Empty: 80, 443, and from 1024 on all but those of well-known services of other protocols.
    pub allow_ports: Vec<PortRange>,
    /// Requests at once to one host and port, over all endpoints; 0 is no limit.
    pub host_max_in_flight: usize,
    /// Certificate authorities that are trusted beside those of the machine.
    pub ca_file: Option<PathBuf>,
    pub proxy: Option<ProxyUrl>,
    /// Empty: those of the machine.
    pub nameservers: Vec<SocketAddr>,
}

/// How receivers are asked whether they want to be sent to.
#[derive(Clone, Debug, PartialEq)]
pub struct Handshake {
    /// For endpoints that do not say.
    pub origin: Option<SenderName>,
    pub retry_initial: Duration,
    pub retry_max_interval: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Retention {
    pub events: Keep,
    pub stream_events: Keep,
    pub dead_letters: Keep,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    pub format: LogFormat,
    /// A level, or directives of `tracing_subscriber::EnvFilter`.
    pub level: String,
}

/// How long something is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    For(Duration),
    Forever,
}

impl Keep {
    /// `None`: forever.
    #[must_use]
    pub fn duration(self) -> Option<Duration> {
        match self {
            Self::For(duration) => Some(duration),
            Self::Forever => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    Text,
    Json,
}

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    /// `443` or `8000-8999`; never port 0.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = Self { first: first.parse().ok()?, last: last.parse().ok()? };
        (range.first > 0 && range.first <= range.last).then_some(range)
    }

    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// Where a proxy is, and what it is told. Shows itself to nobody but [`ProxyUrl::expose`]'s caller: it may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(Url);

impl ProxyUrl {
    const RULE: &str =
        "must be http://host:port, with user:password@ where it asks for them (the value is not shown)";

    /// `None` when it is anything else.
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

/// The admin API key. Shows itself to nobody but [`AdminKey::expose`]'s caller.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminKey(String);

impl AdminKey {
    /// Fewest characters: fewer can be guessed.
    pub const CHARACTERS_MIN: usize = 16;
    const RULE: &str = "must be 16 to 256 visible ASCII characters without spaces, as `openssl rand -hex 32` prints them (the value is not shown)";
    const GUESSABLE: &str = "can be guessed: it is a published example, repeated, a sequence or made of common words; use the output of `openssl rand -hex 32` (the value is not shown)";

    /// # Errors
    /// The rule that it breaks: it is too short, could not be sent as a bearer token, or can be guessed.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let is_legal = (Self::CHARACTERS_MIN..=256).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        match is_legal {
            false => Err(Self::RULE),
            true if weakness::is_guessable(text.as_bytes()) => Err(Self::GUESSABLE),
            true => Ok(Self(text.to_owned())),
        }
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

/// The key for encryption at rest. Shows itself to nobody but [`SecretsKey::expose`]'s caller.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretsKey([u8; SECRETS_KEY_BYTES]);

impl SecretsKey {
    const RULE: &str =
        "must be the standard base64 of 32 random bytes, or up to 16 of them (the value is not shown)";

    /// The keys in a file, one on each line; an empty line is ignored.
    fn parse_lines(text: &str) -> Result<Vec<Self>, &'static str> {
        Self::all(text.lines().filter(|line| !line.is_empty()).map(Self::parse)).ok_or(Self::RULE)
    }

    /// `None` when one is invalid, or there are none or too many.
    fn all(keys: impl Iterator<Item = Option<Self>>) -> Option<Vec<Self>> {
        let keys = keys.collect::<Option<Vec<_>>>()?;
        (1..=limits::SECRETS_KEYS_MAX).contains(&keys.len()).then_some(keys)
    }

    /// `None` when it is not the base64 of 32 bytes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
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

impl Default for Server {
    fn default() -> Self {
        let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        Self {
            api_listen: local(8400),
            ops_listen: local(8401),
            public_url: None,
            tls_certificate_file: None,
            tls_key_file: None,
            max_connections: limits::CONNECTIONS_DEFAULT,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            answer_timeout: Duration::from_secs(30),
            max_body_bytes: limits::BODY_BYTES_DEFAULT,
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self { kind: StoreKind::Embedded, path: PathBuf::from("/var/lib/balto") }
    }
}

impl Default for Ingest {
    fn default() -> Self {
        Self {
            max_event_bytes: limits::EVENT_BYTES_DEFAULT,
            idempotency_ttl: 24 * HOUR,
            admission_bytes: limits::ADMISSION_BYTES_DEFAULT,
            admission_events: limits::ADMISSION_EVENTS_DEFAULT,
        }
    }
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(5),
            max_in_flight: limits::IN_FLIGHT_DEFAULT,
            endpoint_max_in_flight: 16,
            drain_timeout: Duration::from_secs(30),
            disable_after: 5 * 24 * HOUR,
            refused_statuses: Vec::new(),
            breaker_failures: 5,
            breaker_probe_initial: Duration::from_secs(5),
            breaker_probe_max: Duration::from_secs(300),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(5),
            multiplier: 3.0,
            max_interval: 6 * HOUR,
            max_attempts: 12,
            max_age: 72 * HOUR,
            jitter: 0.2,
        }
    }
}

impl Retry {
    #[must_use]
    pub fn policy(&self) -> RetryPolicy {
        RetryPolicy::Exponential {
            initial: self.initial,
            multiplier: self.multiplier,
            max_interval: self.max_interval,
            max_attempts: self.max_attempts,
            max_age: self.max_age,
            jitter: self.jitter,
        }
    }
}

impl Default for Handshake {
    fn default() -> Self {
        Self { origin: None, retry_initial: Duration::from_secs(60), retry_max_interval: 6 * HOUR }
    }
}

impl Default for Egress {
    fn default() -> Self {
        Self {
            allow_http: false,
            allow_networks: Vec::new(),
            deny_networks: Vec::new(),
            allow_ports: Vec::new(),
            host_max_in_flight: limits::HOST_IN_FLIGHT_DEFAULT,
            ca_file: None,
            proxy: None,
            nameservers: Vec::new(),
        }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self { events: Keep::For(30 * 24 * HOUR), stream_events: Keep::Forever, dead_letters: Keep::Forever }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Auto, level: "info".to_owned() }
    }
}

/// What flags say over file and environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    pub data_dir: Option<PathBuf>,
    /// Allows `http` and loopback targets on the default ports, and puts data into `./balto-data` unless a path was given.
    pub dev: bool,
    /// With `dev`: listeners beyond loopback are allowed.
    pub dev_listen_anywhere: bool,
}

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `line` from 1; `None` when it is about the whole file.
    File { path: PathBuf, line: Option<usize> },
    /// Name of the environment variable.
    Environment(String),
    /// Set by a flag, or not set at all.
    Default,
}

/// Why a configuration cannot be used, for a person: where, which key, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub origin: Origin,
    /// `section.key`; `None` when the configuration file cannot be read or is not TOML.
    pub key: Option<String>,
    pub reason: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File { path, line: Some(line) } => write!(f, "{}:{line}: ", path.display())?,
            Origin::File { path, line: None } => write!(f, "{}: ", path.display())?,
            Origin::Environment(variable) => write!(f, "{variable}: ")?,
            Origin::Default => {}
        }
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for ConfigError {}

/// Everything that is wrong with a configuration, in the order of file and environment; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Defaults, overridden by the file, by `BALTO__SECTION__KEY` variables, by flags. Other variables are ignored.
    ///
    /// # Errors
    /// All that is wrong, with its places.
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
    /// All that is wrong, with its places.
    pub fn parse(
        file: Option<(&Path, &str)>,
        env: impl Iterator<Item = (String, String)>,
        flags: Overrides,
    ) -> Result<Self, ConfigErrors> {
        Loading::read(file, env, flags).end()
    }

    /// The admin key, from the configuration or its file; one line break at the file's end is not part of it.
    /// `None`: neither is set.
    ///
    /// # Errors
    /// When the file cannot be read or holds no legal key.
    pub fn admin_key(&self) -> Result<Option<AdminKey>, ConfigError> {
        let Some(path) = &self.auth.admin_key_file else { return Ok(self.auth.admin_key.clone()) };
        from_file(path, "auth.admin_key_file", AdminKey::parse).map(Some)
    }

    /// The keys for encryption at rest, likewise: the first encrypts, all decrypt. Empty when none is set.
    ///
    /// # Errors
    /// When the file cannot be read or holds no legal keys.
    pub fn secrets_keys(&self) -> Result<Vec<SecretsKey>, ConfigError> {
        let Some(path) = &self.secrets.key_file else { return Ok(self.secrets.key.clone()) };
        from_file(path, "secrets.key_file", SecretsKey::parse_lines)
    }

    /// What a reload to `new` would change.
    ///
    /// # Errors
    /// The changed keys that need a restart, when there are any; then nothing should be reloaded.
    pub fn reloadable_diff(&self, new: &Self) -> Result<Vec<&'static str>, Vec<&'static str>> {
        let changed = KEYS.iter().filter(|key| !(key.same)(self, new));
        let (reload, restart): (Vec<_>, Vec<_>) = changed.partition(|key| key.change == Change::Reload);
        let names = |keys: Vec<&'static Key>| keys.into_iter().map(|key| key.name).collect();
        if restart.is_empty() { Ok(names(reload)) } else { Err(names(restart)) }
    }
}

/// A key in a file of its own; one line break at its end is not part of it.
fn from_file<T>(
    path: &Path,
    key: &str,
    parse: impl Fn(&str) -> Result<T, &'static str>,
) -> Result<T, ConfigError> {
    let error = |reason: String| ConfigError { origin: Origin::Default, key: Some(key.to_owned()), reason };
    let text = read_secret(path).map_err(|cause| error(unreadable(path, &cause)))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    parse(text).map_err(|rule| error(format!("what is in {} {rule}", path.display())))
}

/// What is wrong with a file of certificate authorities.
pub type CheckAuthorities<'a> = &'a dyn Fn(&Path) -> Result<(), String>;
/// What is wrong with the listener's certificate; a warning when it can be used all the same.
pub type CheckCertificate<'a> = &'a dyn Fn(&Server) -> Result<Option<ConfigError>, ConfigError>;

/// Checks a file alone, without environment and flags, and the files that it names. Gives warnings.
///
/// # Errors
/// All that is wrong, with its places.
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

/// A configuration on its way, with the place where each key was set, and what was wrong so far.
#[derive(Default)]
struct Loading {
    config: Config,
    origins: BTreeMap<&'static str, Origin>,
    errors: Vec<ConfigError>,
}

impl Loading {
    fn read(
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
        // What was not understood is not there, and would be missed in what it should go with.
        if loading.errors.is_empty() {
            loading.check_relations();
        }
        loading
    }

    fn end(self) -> Result<Config, ConfigErrors> {
        if self.errors.is_empty() { Ok(self.config) } else { Err(ConfigErrors(self.errors)) }
    }

    fn wrong(&mut self, origin: Origin, key: &str, reason: impl Into<String>) {
        self.errors.push(ConfigError { origin, key: Some(key.to_owned()), reason: reason.into() });
    }

    fn read_file(&mut self, path: &Path, text: &str) {
        let at = |offset: usize| Origin::File { path: path.to_owned(), line: Some(line_of(text, offset)) };
        let (table, mut causes) = DeTable::parse_recoverable(text);
        causes.sort_by_key(|cause| cause.span().map(|span| span.start));
        let untold = causes.len().saturating_sub(SYNTAX_ERRORS_TOLD_MAX);
        for cause in causes.into_iter().take(SYNTAX_ERRORS_TOLD_MAX) {
            let start = cause.span().map_or(0, |span| span.start);
            let words = cause.message().lines().collect::<Vec<_>>().join("; ");
            // A word that begins like `inf` or `nan`: the parser does not think of text.
            let hint = if words.contains("invalid float") { "; text stands in quotes" } else { "" };
            let reason = format!("not TOML at column {}: {words}{hint}", column_of(text, start));
            self.errors.push(ConfigError { origin: at(start), key: None, reason });
        }
        if untold > 0 {
            let reason = format!("and {untold} more places that are not TOML");
            self.errors.push(ConfigError {
                origin: Origin::File { path: path.to_owned(), line: None },
                key: None,
                reason,
            });
        }
        // What its parser has mended is not what was meant.
        if !self.errors.is_empty() {
            return;
        }
        let mut entries = Vec::new();
        for (section, value) in table.get_ref() {
            let (name, start) = (section.get_ref(), section.span().start);
            match value.get_ref() {
                _ if !is_section(name) => self.wrong(at(start), name, unknown("section", name)),
                DeValue::Table(table) => entries.extend(table.iter().map(|(entry, value)| {
                    (entry.span().start, format!("{name}.{}", entry.get_ref()), value.get_ref())
                })),
                _ => {
                    let reason = format!("is a section; write [{name}] on a line of its own");
                    self.wrong(at(start), name, reason);
                }
            }
        }
        for (start, name, value) in entries {
            self.set(&name, &Value::from_toml(value), at(start));
        }
        // By their places, whatever order the table has.
        self.errors.sort_by_key(|error| match error.origin {
            Origin::File { line, .. } => line,
            Origin::Environment(_) | Origin::Default => None,
        });
    }

    fn read_environment(&mut self, env: impl Iterator<Item = (String, String)>) {
        // Sorted, so that errors are always in the same order.
        let ours = env.filter(|(variable, _)| variable.starts_with(ENVIRONMENT_PREFIX));
        for (variable, text) in ours.collect::<BTreeMap<_, _>>() {
            let name = variable[ENVIRONMENT_PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
            self.set(&name, &Value::Environment(text), Origin::Environment(variable));
        }
    }

    fn set(&mut self, name: &str, value: &Value, origin: Origin) {
        let Some(key) = keys::find(name) else { return self.wrong(origin, name, unknown("key", name)) };
        match (key.set)(&mut self.config, value) {
            Ok(()) => drop(self.origins.insert(key.name, origin)),
            Err(reason) => self.wrong(origin, name, reason),
        }
    }

    /// Whether the files that keys name can be used. The daemon finds out when it starts; this is before.
    /// Gives warnings.
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
        let (shown, warning) = match certificate(&config.server) {
            Ok(warning) => (None, warning),
            Err(error) => (Some(error), None),
        };
        let placed = |error: ConfigError| {
            let origin = self.origins.get(error.key.as_deref()?)?.clone();
            Some(ConfigError { origin, ..error })
        };
        let warnings = warning.into_iter().filter_map(placed).collect();
        let errors = [shown, config.admin_key().err(), config.secrets_keys().err(), authority];
        let errors: Vec<_> = errors.into_iter().flatten().filter_map(placed).collect();
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
            let scheme = if config.server.tls_certificate_file.is_some() { "https" } else { "http" };
            config
                .server
                .public_url
                .get_or_insert_with(|| format!("{scheme}://{}", config.server.api_listen));
            let loopback = [
                IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
                IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128)),
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

    /// Without a key, each client that reaches the API is the operator; metrics show what it does.
    fn check_dev_listeners(&mut self) {
        let Server { api_listen, ops_listen, .. } = self.config.server;
        for (key, address) in [("server.api_listen", api_listen), ("server.ops_listen", ops_listen)] {
            if !address.ip().is_loopback() {
                let origin = self.origins.get(key).cloned().unwrap_or(Origin::Default);
                let reason = format!(
                    "{address} is not a loopback address, and --dev asks for no key; use 127.0.0.1, or add --dev-listen-anywhere if each machine that reaches it may have all rights"
                );
                self.wrong(origin, key, reason);
            }
        }
    }

    /// What two keys mean together. A default gives way to the value beside it; two values that were both set and do
    /// not go together are an error at the first one's place.
    fn check_relations(&mut self) {
        let given = |key| self.origins.contains_key(key);
        let Config { server, auth, secrets, delivery, retry, handshake, dev, .. } = &mut self.config;
        if !given("retry.initial") {
            retry.initial = retry.initial.min(retry.max_interval);
        } else if !given("retry.max_interval") {
            retry.max_interval = retry.max_interval.max(retry.initial);
        }
        if !given("delivery.breaker_probe_initial") {
            delivery.breaker_probe_initial = delivery.breaker_probe_initial.min(delivery.breaker_probe_max);
        } else if !given("delivery.breaker_probe_max") {
            delivery.breaker_probe_max = delivery.breaker_probe_max.max(delivery.breaker_probe_initial);
        }
        if !given("handshake.retry_initial") {
            handshake.retry_initial = handshake.retry_initial.min(handshake.retry_max_interval);
        } else if !given("handshake.retry_max_interval") {
            handshake.retry_max_interval = handshake.retry_max_interval.max(handshake.retry_initial);
        }
        // A connect timeout that was not set may exceed the attempt's: the attempt then ends first.
        let connect_too_long = given("delivery.connect_timeout")
            && given("delivery.timeout")
            && delivery.connect_timeout > delivery.timeout;
        let same_listener = server.api_listen == server.ops_listen && server.api_listen.port() != 0;
        let two_secrets_keys = !secrets.key.is_empty() && secrets.key_file.is_some();
        let two_keys = auth.admin_key.is_some() && auth.admin_key_file.is_some();
        // Whoever reads a callback's URL on its way can agree in the receiver's place.
        let public_url_plain =
            !*dev && server.public_url.as_ref().is_some_and(|url| url.starts_with("http:"));
        let half_certificate = server.tls_certificate_file.is_some() && server.tls_key_file.is_none();
        let half_key = server.tls_key_file.is_some() && server.tls_certificate_file.is_none();
        let asks_wrong = handshake.retry_initial > handshake.retry_max_interval;
        let probes_wrong = delivery.breaker_probe_initial > delivery.breaker_probe_max;
        let not_longer = "must not be longer than";
        let relations = [
            (same_listener, "server.ops_listen", "server.api_listen", "must differ from"),
            (
                half_certificate,
                "server.tls_certificate_file",
                "server.tls_key_file",
                "must be set together with",
            ),
            (half_key, "server.tls_key_file", "server.tls_certificate_file", "must be set together with"),
            (two_keys, "auth.admin_key_file", "auth.admin_key", "must not be set beside"),
            (two_secrets_keys, "secrets.key_file", "secrets.key", "must not be set beside"),
            (connect_too_long, "delivery.connect_timeout", "delivery.timeout", not_longer),
            (probes_wrong, "delivery.breaker_probe_initial", "delivery.breaker_probe_max", not_longer),
            (retry.initial > retry.max_interval, "retry.initial", "retry.max_interval", not_longer),
            (asks_wrong, "handshake.retry_initial", "handshake.retry_max_interval", not_longer),
            (public_url_plain, "server.public_url", "--dev", "must be https without"),
        ];
        for (_, key, other, rule) in relations.into_iter().filter(|(broken, ..)| *broken) {
            let origin = self.origins.get(key).or_else(|| self.origins.get(other));
            self.wrong(origin.cloned().unwrap_or(Origin::Default), key, format!("{rule} {other}"));
        }
    }
}

fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.split_once('.').is_some_and(|(section, _)| section == name))
}

/// Names what would have been right, when something is close.
fn unknown(what: &str, name: &str) -> String {
    let last = name.rsplit('.').next().unwrap_or(name);
    let other = KEYS.iter().find(|key| key.name.rsplit('.').next() == Some(last));
    match other.filter(|_| what == "key") {
        Some(key) => format!("is not a known key; did you mean {}?", key.name),
        None => format!("is not a known {what}"),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// In characters, from 1.
fn column_of(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = before.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    String::from_utf8_lossy(line).chars().count() + 1
}

fn read_file(path: &Path) -> Result<String, ConfigErrors> {
    read_bounded(path).map_err(|cause| {
        let origin = Origin::File { path: path.to_owned(), line: None };
        ConfigErrors(vec![ConfigError { origin, key: None, reason: format!("cannot be read: {cause}") }])
    })
}

fn unreadable(path: &Path, cause: &io::Error) -> String {
    format!("{} cannot be read: {cause}", path.display())
}

/// As [`read_bounded`], of a file that no other user may change.
///
/// The file's path is the operator's choice, so links, read permissions and other owners are accepted: a Kubernetes secret
/// and a systemd credential have them.
///
/// # Errors
/// As [`read_bounded`], and when each user may write to it.
pub fn read_secret(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    if found.is_file() && found.mode() & 0o002 != 0 {
        return Err(io::Error::other("every user can write to it; take that permission away with chmod o-w"));
    }
    read_to_bound(file)
}

/// The text of a file that the configuration names.
///
/// # Errors
/// When it cannot be read, is not UTF-8 or is larger than such a file can be.
pub fn read_bounded(path: &Path) -> io::Result<String> {
    read_to_bound(File::open(path)?)
}

fn read_to_bound(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}
