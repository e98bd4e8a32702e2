//! A registered event type: schemas by version, migrations between them, and version pins.
//!
//! Schemas, examples and patches are JSON texts here. [`schemas`](crate::schemas) reads them.

use std::cmp::Ordering;

use super::closed_list::closed_list;
use super::{EventType, EventVersion, Position, Timestamp};

closed_list! {
    /// The direction in which a new version must be compatible with the version before it.
    #[derive(Default)]
    pub enum Compatibility {
        /// Data of the new version is valid for the earlier one: subscribers may lag.
        #[default]
        Forward = 1 => "forward",
        /// Data of the earlier version is valid for the new one.
        Backward = 2 => "backward",
        /// Both.
        Full = 3 => "full",
        None = 4 => "none",
    }
}

/// One version of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeVersion {
    pub version: EventVersion,
    /// A JSON Schema.
    pub schema: Box<str>,
    pub deprecated: bool,
    /// When the version will no longer be published.
    pub sunset: Option<Timestamp>,
    /// JSON values that are valid for the schema.
    pub examples: Vec<Box<str>>,
}

/// A conversion of data from one version to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeMigration {
    pub from: EventVersion,
    pub to: EventVersion,
    /// A JSON Patch over `data`.
    pub patch: Box<str>,
}

/// A registered event type. It belongs to all tenants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeDefinition {
    pub name: EventType,
    pub description: Box<str>,
    pub compatibility: Compatibility,
    /// Whether a new version must be compatible with all earlier ones, not only with the last.
    pub transitive: bool,
    /// In the order of [`EventVersion::natural_order`]; at least one.
    pub versions: Vec<TypeVersion>,
    pub migrations: Vec<TypeMigration>,
    /// A JSON Patch by which an event changes the state of its stream.
    pub state: Option<Box<str>>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Position of its latest record. An update names the revision that it read.
    pub revision: Position,
}

impl TypeDefinition {
    #[must_use]
    pub fn version(&self, version: &EventVersion) -> Option<&TypeVersion> {
        self.versions.iter().find(|known| known.version == *version)
    }

    /// The newest version.
    #[must_use]
    pub fn latest(&self) -> Option<&TypeVersion> {
        self.versions.last()
    }

    /// Approximate bytes of its record.
    #[must_use]
    pub fn weight(&self) -> usize {
        let version = |version: &TypeVersion| {
            let examples: usize = version.examples.iter().map(|example| example.len()).sum();
            64 + version.schema.len() + examples
        };
        let versions: usize = self.versions.iter().map(version).sum();
        let migrations: usize = self.migrations.iter().map(|migration| 80 + migration.patch.len()).sum();
        let state = self.state.as_deref().map_or(0, str::len);
        512 + self.description.len() + versions + migrations + state
    }
}

/// The version of a type that a subscription wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionPin {
    /// The newest registered version at the time of sending.
    Latest,
    Version(EventVersion),
}

impl VersionPin {
    pub const LATEST: &'static str = "latest";

    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Latest => Self::LATEST,
            Self::Version(version) => version.as_str(),
        }
    }
}

/// The versions in which a reader of the log wants events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VersionChoice {
    #[default]
    AsPublished,
    /// The newest registered version of each type.
    Latest,
    /// These; other types as published.
    Pinned(Vec<(EventType, VersionPin)>),
}

impl VersionChoice {
    /// The pin of a type.
    #[must_use]
    pub fn pin(&self, event_type: &EventType) -> Option<&VersionPin> {
        match self {
            Self::AsPublished => None,
            Self::Latest => Some(&VersionPin::Latest),
            Self::Pinned(pins) => pins.iter().find(|(name, _)| name == event_type).map(|(_, pin)| pin),
        }
    }
}

impl EventVersion {
    /// Order of versions: runs of digits compare as numbers, so `1.9` precedes `1.10`.
    #[must_use]
    pub fn natural_order(&self, other: &Self) -> Ordering {
        natural_order(self.as_str(), other.as_str()).then_with(|| self.as_str().cmp(other.as_str()))
    }
}

fn natural_order(mut one: &str, mut other: &str) -> Ordering {
    loop {
        let (digits, other_digits) = (leading_digits(one), leading_digits(other));
        let order = if digits.is_empty() || other_digits.is_empty() {
            let (first, second) = (one.chars().next(), other.chars().next());
            if first.is_none() && second.is_none() {
                return Ordering::Equal;
            }
            one = one.get(first.map_or(0, char::len_utf8)..).unwrap_or_default();
            other = other.get(second.map_or(0, char::len_utf8)..).unwrap_or_default();
            first.cmp(&second)
        } else {
            (one, other) = (&one[digits.len()..], &other[other_digits.len()..]);
            let (number, other_number) =
                (digits.trim_start_matches('0'), other_digits.trim_start_matches('0'));
            number.len().cmp(&other_number.len()).then_with(|| number.cmp(other_number))
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn leading_digits(text: &str) -> &str {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_by_their_numbers() {
        let mut versions: Vec<EventVersion> =
            ["2.0", "10.0", "1.10", "v2", "1.9", "1", "1.0", "1.0-beta", "01"]
                .iter()
                .map(|text| text.parse().unwrap())
                .collect();
        versions.sort_by(EventVersion::natural_order);
        let sorted: Vec<_> = versions.iter().map(EventVersion::as_str).collect();
        assert_eq!(sorted, ["01", "1", "1.0", "1.0-beta", "1.9", "1.10", "2.0", "10.0", "v2"]);
    }

    #[test]
    fn stored_codes_of_compatibility_never_change() {
        assert_eq!(Compatibility::ALL.map(Compatibility::code), [1, 2, 3, 4]);
    }
}
