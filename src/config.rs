//! The configuration: a TOML file, the environment over it, flags over both.
//!
//! Unknown keys, wrong types and values out of bounds stop the start with file, line and reason.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use crate::limits;

/// What is wrong, and where.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct ConfigError {
    pub place: String,
    pub reason: String,
}

/// A duration in a configuration: `250ms`, `15s`, `5m`, `72h`, `30d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text).map(Self).ok_or_else(|| {
            serde::de::Error::custom(format!("{text:?} is not a duration such as 250ms, 15s, 5m, 72h or 30d"))
        })
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let millis = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

const fn seconds(count: u64) -> Span {
    Span(Duration::from_secs(count))
}

macro_rules! section {
    ($name:ident { $($(#[$meta:meta])* $key:ident: $type:ty = $default:expr),* $(,)? }) => {
        #[derive(Clone, Debug, PartialEq, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$meta])* pub $key: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }
    };
}

/// A secret in the configuration; its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Hidden(pub String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(..)")
    }
}

section!(Server {
    api_listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8400)),
    ops_listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8401)),
});
section!(Auth {
    admin_key: Option<Hidden> = None,
    admin_key_file: Option<PathBuf> = None,
});
section!(Store { kind: String = "embedded".to_owned(), path: PathBuf = PathBuf::from("balto-data") });
section!(Ingest {
    max_event_bytes: usize = limits::EVENT_BYTES_DEFAULT,
    idempotency_ttl: Span = seconds(24 * 3600),
    admission_bytes: usize = limits::ADMISSION_BYTES_DEFAULT,
    admission_events: usize = limits::ADMISSION_EVENTS_DEFAULT,
});
section!(Delivery {
    timeout: Span = seconds(15),
    connect_timeout: Span = seconds(5),
    max_in_flight: usize = limits::IN_FLIGHT_DEFAULT,
    max_in_flight_per_endpoint: u32 = 16,
    drain_timeout: Span = seconds(20),
    disable_after: Span = seconds(5 * 86_400),
    refused_statuses: Vec<u16> = Vec::new(),
    breaker_failures: u32 = 10,
    breaker_probe_initial: Span = seconds(1),
    breaker_probe_max: Span = seconds(60),
});
section!(Retry {
    initial: Span = seconds(5),
    multiplier: f64 = 3.0,
    max_interval: Span = seconds(6 * 3600),
    max_attempts: u32 = 12,
    max_age: Span = seconds(72 * 3600),
    jitter: f64 = 0.2,
});
section!(Egress {
    allow_http: bool = false,
    allow_networks: Vec<IpNet> = Vec::new(),
    deny_networks: Vec<IpNet> = Vec::new(),
    allow_ports: Vec<u16> = vec![80, 443],
});
section!(Log { format: String = "auto".to_owned(), level: String = "info".to_owned() });

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub server: Server,
    pub auth: Auth,
    pub store: Store,
    pub ingest: Ingest,
    pub delivery: Delivery,
    pub retry: Retry,
    pub egress: Egress,
    pub log: Log,
}

impl Config {
    /// Reads the file (when there is one), then the `BALTO__SECTION__KEY` variables of `env`.
    ///
    /// # Errors
    /// With the place of the first thing that is wrong.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let place = file.map_or_else(|| "configuration".to_owned(), |path| path.display().to_string());
        let text = match file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| ConfigError { place: place.clone(), reason: error.to_string() })?,
            None => String::new(),
        };
        // Read on its own first: its errors name a line.
        toml::from_str::<Self>(&text).map_err(|error| located(&place, &text, &error))?;
        let mut table: toml::Table = toml::from_str(&text).map_err(|error| located(&place, &text, &error))?;
        for (name, value) in env {
            let Some(path) = name.strip_prefix("BALTO__") else { continue };
            let (section, key) = path.split_once("__").ok_or_else(|| ConfigError {
                place: format!("environment {name}"),
                reason: "expected BALTO__SECTION__KEY".to_owned(),
            })?;
            let mut candidate = table.clone();
            let section = candidate
                .entry(section.to_ascii_lowercase())
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let toml::Value::Table(section) = section {
                section.insert(key.to_ascii_lowercase(), env_value(&value));
            }
            if let Err(error) = Self::deserialize(candidate.clone()) {
                let reason = error.message().to_owned();
                return Err(ConfigError { place: format!("environment {name}"), reason });
            }
            table = candidate;
        }
        let config = Self::deserialize(table)
            .map_err(|error| ConfigError { place: place.clone(), reason: error.message().to_owned() })?;
        config.check().map_err(|(key, reason)| ConfigError {
            place: line_of(&text, key).map_or_else(|| place.clone(), |line| format!("{place}:{line}")),
            reason: format!("{key}: {reason}"),
        })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let within =
            |key, ok: bool, rule: &str| if ok { Ok(()) } else { Err((key, format!("must be {rule}"))) };
        let timeout = self.delivery.timeout.0;
        within("store.kind", self.store.kind == "embedded", "\"embedded\"")?;
        within(
            "ingest.max_event_bytes",
            (1_024..=limits::EVENT_BYTES_MAX).contains(&self.ingest.max_event_bytes),
            "1024 to 1048576",
        )?;
        within(
            "ingest.admission_bytes",
            self.ingest.admission_bytes >= limits::BATCH_BYTES_MAX,
            "at least 16777216",
        )?;
        within(
            "ingest.admission_events",
            self.ingest.admission_events >= limits::BATCH_EVENTS_MAX,
            "at least 1000",
        )?;
        within(
            "delivery.timeout",
            (Duration::from_millis(100)..=Duration::from_secs(60)).contains(&timeout),
            "100ms to 60s",
        )?;
        within("delivery.connect_timeout", !self.delivery.connect_timeout.0.is_zero(), "more than 0s")?;
        within(
            "delivery.max_in_flight",
            (1..=100_000).contains(&self.delivery.max_in_flight),
            "1 to 100000",
        )?;
        within(
            "delivery.max_in_flight_per_endpoint",
            (1..=limits::IN_FLIGHT_PER_ENDPOINT_MAX).contains(&self.delivery.max_in_flight_per_endpoint),
            "1 to 1000",
        )?;
        within("delivery.breaker_failures", self.delivery.breaker_failures >= 1, "at least 1")?;
        within(
            "delivery.breaker_probe_initial",
            !self.delivery.breaker_probe_initial.0.is_zero(),
            "more than 0s",
        )?;
        within("retry.multiplier", (1.0..=100.0).contains(&self.retry.multiplier), "1.0 to 100.0")?;
        within("retry.jitter", (0.0..=1.0).contains(&self.retry.jitter), "0.0 to 1.0")?;
        within(
            "retry.max_attempts",
            (1..=limits::ATTEMPTS_MAX).contains(&self.retry.max_attempts),
            "1 to 100",
        )?;
        within(
            "log.format",
            ["auto", "text", "json"].contains(&self.log.format.as_str()),
            "\"auto\", \"text\" or \"json\"",
        )?;
        within(
            "log.level",
            self.log.level.parse::<tracing::Level>().is_ok(),
            "error, warn, info, debug or trace",
        )
    }
}

/// Numbers, booleans and lists as TOML has them; everything else is a string.
fn env_value(text: &str) -> toml::Value {
    let parsed =
        format!("value = {text}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("value"));
    match parsed {
        Some(
            value @ (toml::Value::Integer(_)
            | toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Array(_)),
        ) => value,
        _ => toml::Value::String(text.to_owned()),
    }
}

fn located(place: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let place = line.map_or_else(|| place.to_owned(), |line| format!("{place}:{line}"));
    ConfigError { place, reason: error.message().to_owned() }
}

/// The line on which a key stands, for what is only wrong in its value.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let (section, key) = key.split_once('.')?;
    let mut inside = false;
    text.lines()
        .position(|line| {
            let line = line.trim();
            if line.starts_with('[') {
                inside = line == format!("[{section}]");
            }
            inside && line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
        })
        .map(|index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("balto.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(Some(&file), env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn the_shipped_file_shows_every_key_with_its_default() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/balto.toml");
        assert_eq!(Config::load(Some(&path), std::iter::empty()).unwrap(), Config::default());
    }

    #[test]
    fn the_environment_goes_over_the_file() {
        let config = load(
            "[delivery]\ntimeout = \"3s\"\nmax_in_flight = 5\n",
            &[("BALTO__DELIVERY__TIMEOUT", "4s"), ("BALTO__EGRESS__ALLOW_HTTP", "true")],
        )
        .unwrap();
        assert_eq!(config.delivery.timeout, seconds(4));
        assert_eq!((config.delivery.max_in_flight, config.egress.allow_http), (5, true));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let rows = [
            ("[delivery]\n\ntimeout = \"0s\"\n", ":3: delivery.timeout: must be"),
            ("[delivery]\ntimeot = \"1s\"\n", ":2: unknown field `timeot`"),
            ("[server]\napi_listen = 5\n", ":2: "),
            ("[nonsense]\n", ":1: unknown field `nonsense`"),
            ("[delivery]\ntimeout = \"soon\"\n", ":2: \"soon\" is not a duration"),
            ("x = [", ":1: "),
        ];
        for (text, expected) in rows {
            let error = load(text, &[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        let error = load("", &[("BALTO__DELIVERY__TIMEOT", "1s")]).unwrap_err().to_string();
        assert!(error.contains("BALTO__DELIVERY__TIMEOT") && error.contains("unknown field"), "{error}");
    }
}
