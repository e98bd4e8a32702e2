//! A value of the configuration before its key has checked it, and the checks that keys share.
//!
//! Owns: reading text, numbers, switches, lists, durations and sizes, with errors that name the
//! expected form and the value. Must never know the key. A value from the environment is always
//! text, so every check accepts text from there; a value from the file must have the right type.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use toml::de::DeValue;
use url::Url;

use super::units::{format_duration, format_size, parse_duration, parse_size};
use super::{AdminKey, KeepFor, LogFormat, PortRange, ProxyUrl, SecretsKey, StoreKind};
use crate::domain::{Quota, SenderName};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// From the environment: text, which may hold any type; lists are separated by commas.
    Environment(String),
    Text(String),
    Integer(String),
    Float(f64),
    Switch(bool),
    List(Vec<Value>),
    Other(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(text) | Self::Text(text) => write!(f, "{text:?}"),
            Self::Integer(text) => f.write_str(text),
            Self::Float(number) => write!(f, "{number:?}"),
            Self::Switch(on) => write!(f, "{on}"),
            Self::List(_) => f.write_str("a list"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl Value {
    pub(super) fn from_toml(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).map_or_else(
                |_| Self::Integer(number.to_string()),
                |number| Self::Integer(number.to_string()),
            ),
            DeValue::Float(number) => number.as_str().parse().map_or(Self::Other("a float"), Self::Float),
            DeValue::Boolean(on) => Self::Switch(*on),
            DeValue::Array(items) => {
                Self::List(items.iter().map(|item| Self::from_toml(item.get_ref())).collect())
            }
            DeValue::Datetime(_) => Self::Other("a date"),
            DeValue::Table(_) => Self::Other("a table"),
        }
    }

    pub(super) fn text(&self) -> Result<&str, String> {
        match self {
            Self::Environment(text) | Self::Text(text) => Ok(text),
            other => Err(format!("must be a string, got {other}")),
        }
    }

    pub(super) fn integer(&self, min: u64, max: u64) -> Result<u64, String> {
        let text = match self {
            Self::Environment(text) | Self::Integer(text) => text,
            other => return Err(format!("must be a whole number between {min} and {max}, got {other}")),
        };
        match text.parse::<u64>() {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            _ => Err(format!("must be a whole number between {min} and {max}, got {text}")),
        }
    }

    pub(super) fn count(&self, min: usize, max: usize) -> Result<usize, String> {
        let number = self.integer(min as u64, max as u64)?;
        usize::try_from(number).map_err(|_| format!("must be at most {}", usize::MAX))
    }

    pub(super) fn small(&self, min: u32, max: u32) -> Result<u32, String> {
        let number = self.integer(u64::from(min), u64::from(max))?;
        u32::try_from(number).map_err(|_| format!("must be at most {}", u32::MAX))
    }

    pub(super) fn number(&self, min: f64, max: f64) -> Result<f64, String> {
        let number = match self {
            Self::Environment(text) | Self::Integer(text) => text.parse().ok(),
            Self::Float(number) => Some(*number),
            _ => None,
        };
        let expected = || format!("must be a number between {min:?} and {max:?}, got {self}");
        number.filter(|number| (min..=max).contains(number)).ok_or_else(expected)
    }

    pub(super) fn switch(&self) -> Result<bool, String> {
        match self {
            Self::Switch(on) => Ok(*on),
            Self::Environment(text) if text == "true" => Ok(true),
            Self::Environment(text) if text == "false" => Ok(false),
            other => Err(format!("must be true or false, got {other}")),
        }
    }

    pub(super) fn duration(&self, min: Duration, max: Duration) -> Result<Duration, String> {
        let text = self.text().map_err(|_| format!("must be a duration such as \"15s\", got {self}"))?;
        let duration = parse_duration(text)
            .ok_or_else(|| format!("must be a whole number with ms, s, m, h or d, got {self}"))?;
        if (min..=max).contains(&duration) {
            return Ok(duration);
        }
        Err(format!("must be between {} and {}, got {self}", format_duration(min), format_duration(max)))
    }

    pub(super) fn size(&self, min: usize, max: usize) -> Result<usize, String> {
        let text = match self {
            Self::Environment(text) | Self::Text(text) | Self::Integer(text) => text,
            other => return Err(format!("must be a size such as \"256KiB\", got {other}")),
        };
        let bytes = parse_size(text)
            .ok_or_else(|| format!("must be a number of bytes, or one with KiB, MiB or GiB, got {self}"))?;
        usize::try_from(bytes).ok().filter(|bytes| (min..=max).contains(bytes)).ok_or_else(|| {
            format!("must be between {} and {}, got {self}", format_size(min as u64), format_size(max as u64))
        })
    }

    fn is_off(&self) -> bool {
        self.text().is_ok_and(|text| text == "off")
    }

    /// A limit of a quota; `None` is "off".
    pub(super) fn quota(&self, quota: Quota) -> Result<Option<u64>, String> {
        if self.is_off() {
            return Ok(None);
        }
        let (min, max) = quota.bounds();
        self.integer(min, max).map(Some).map_err(|reason| format!("{reason}; or \"off\""))
    }

    /// As [`Self::quota`], in bytes.
    pub(super) fn quota_bytes(&self, quota: Quota) -> Result<Option<u64>, String> {
        if self.is_off() {
            return Ok(None);
        }
        let (min, max) = quota.bounds();
        let bound = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        let size = self.size(bound(min), bound(max)).map_err(|reason| format!("{reason}; or \"off\""))?;
        Ok(Some(size as u64))
    }

    pub(super) fn keep(&self, min: Duration, max: Duration) -> Result<KeepFor, String> {
        if self.text().is_ok_and(|text| text == "forever") {
            return Ok(KeepFor::Forever);
        }
        self.duration(min, max).map(KeepFor::Time).map_err(|reason| format!("{reason}; or \"forever\""))
    }

    pub(super) fn address(&self) -> Result<SocketAddr, String> {
        let expected = || format!("must be an IP address and port such as \"127.0.0.1:8400\", got {self}");
        self.text().map_err(|_| expected())?.parse().map_err(|_| expected())
    }

    /// A URL of scheme, host, optional port and optional path; returned without a slash at the end.
    pub(super) fn base_url(&self) -> Result<String, String> {
        let expected = || format!("must be a URL such as \"https://webhooks.example.com\", got {self}");
        let text = self.text().map_err(|_| expected())?;
        let url = Url::parse(text).map_err(|_| expected())?;
        let bare = url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        let legal = matches!(url.scheme(), "http" | "https") && url.has_host() && bare;
        legal.then(|| url.as_str().trim_end_matches('/').to_owned()).ok_or_else(expected)
    }

    pub(super) fn origin(&self) -> Result<SenderName, String> {
        let expected = || format!("must be a DNS name such as \"webhooks.example.com\", got {self}");
        self.text().map_err(|_| expected())?.to_ascii_lowercase().parse().map_err(|_| expected())
    }

    pub(super) fn path(&self) -> Result<PathBuf, String> {
        match self.text()? {
            "" => Err("must not be empty".to_owned()),
            text => Ok(PathBuf::from(text)),
        }
    }

    pub(super) fn store_kind(&self) -> Result<StoreKind, String> {
        match self.text()? {
            "embedded" => Ok(StoreKind::Embedded),
            _ => Err(format!("must be \"embedded\", got {self}")),
        }
    }

    pub(super) fn log_format(&self) -> Result<LogFormat, String> {
        match self.text()? {
            "auto" => Ok(LogFormat::Auto),
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(format!("must be \"auto\", \"text\" or \"json\", got {self}")),
        }
    }

    pub(super) fn log_level(&self) -> Result<String, String> {
        let text = self.text()?;
        // The parser of directives panics on text that is not ASCII.
        let is_readable = !text.is_empty() && text.is_ascii();
        if !is_readable || tracing_subscriber::EnvFilter::try_new(text).is_err() {
            return Err(format!(
                "must be error, warn, info, debug, trace, or such directives as \"info,hyper=debug\", got {self}"
            ));
        }
        Ok(text.to_owned())
    }

    /// The error never quotes the value, which is a secret.
    pub(super) fn admin_key(&self) -> Result<AdminKey, String> {
        // A value of another type breaks the same rule as an empty text.
        AdminKey::parse(self.text().unwrap_or_default()).map_err(str::to_owned)
    }

    /// One key, or a list of keys.
    pub(super) fn secrets_keys(&self) -> Result<Vec<SecretsKey>, String> {
        let key = |item: &Self| item.text().ok().and_then(SecretsKey::parse);
        let keys = match self {
            Self::List(items) => SecretsKey::all(items.iter().map(key)),
            Self::Environment(text) => {
                SecretsKey::all(text.split(',').map(|item| SecretsKey::parse(item.trim())))
            }
            one => SecretsKey::all(std::iter::once(key(one))),
        };
        keys.ok_or_else(|| SecretsKey::RULE.to_owned())
    }

    pub(super) fn networks(&self) -> Result<Vec<IpNet>, String> {
        self.list(|item| {
            let text = item.text()?;
            let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
            text.parse::<IpNet>()
                .ok()
                .or_else(address)
                .ok_or_else(|| format!("must be a list of networks such as \"10.0.0.0/8\", got {item} in it"))
        })
    }

    /// The error never quotes the value, which may hold a password.
    pub(super) fn proxy(&self) -> Result<ProxyUrl, String> {
        self.text().ok().and_then(ProxyUrl::parse).ok_or_else(|| ProxyUrl::RULE.to_owned())
    }

    pub(super) fn nameservers(&self) -> Result<Vec<SocketAddr>, String> {
        self.list(|item| {
            let text = item.text()?;
            let alone = || text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, 53));
            text.parse::<SocketAddr>().ok().or_else(alone).ok_or_else(|| {
                format!("must be a list of addresses such as \"10.0.0.53\" or \"10.0.0.53:5353\", got {item} in it")
            })
        })
    }

    pub(super) fn ports(&self) -> Result<Vec<PortRange>, String> {
        self.list(|item| {
            let text = match item {
                Self::Environment(text) | Self::Text(text) | Self::Integer(text) => text.as_str(),
                _ => "",
            };
            PortRange::parse(text).ok_or_else(|| {
                format!("must be a list of ports such as 443 or \"8000-8999\", got {item} in it")
            })
        })
    }

    pub(super) fn statuses(&self) -> Result<Vec<u16>, String> {
        self.list(|item| {
            let status = item.integer(300, 599)?;
            u16::try_from(status).map_err(|_| format!("must be a status code, got {status}"))
        })
    }

    fn list<T>(&self, read: impl Fn(&Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        match self {
            Self::List(items) => items.iter().map(read).collect(),
            Self::Environment(text) => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| read(&Self::Environment(item.to_owned())))
                .collect(),
            other => Err(format!("must be a list, got {other}")),
        }
    }
}
