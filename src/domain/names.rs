//! Names chosen by clients, validated once by parsing.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::limits;

/// A name that violates `rule`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidName {
    pub what: &'static str,
    pub rule: &'static str,
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} must be {}", self.what, self.rule)
    }
}

impl std::error::Error for InvalidName {}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $legal:path) => {
        $(#[$doc])*
        ///
        /// A clone shares the text.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if $legal(text) { Ok(Self(text.into())) } else { Err(InvalidName { what: $what, rule: $rule }) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

fn is_event_type(text: &str) -> bool {
    text.len() <= limits::EVENT_TYPE_BYTES_MAX && text.split('.').all(is_word)
}

fn is_pattern(text: &str) -> bool {
    text.len() <= limits::EVENT_TYPE_BYTES_MAX
        && text.split('.').all(|word| word == "*" || word == "#" || is_word(word))
}

fn is_tenant(text: &str) -> bool {
    text.len() <= limits::NAME_BYTES_MAX && !text.is_empty() && text.split('.').all(is_word)
}

fn is_consumer(text: &str) -> bool {
    // `.` and `..` cannot be segments of a path.
    (1..=limits::CONSUMER_NAME_BYTES_MAX).contains(&text.len())
        && ![".", ".."].contains(&text)
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

fn is_printable(text: &str) -> bool {
    !text.is_empty() && text.len() <= limits::NAME_BYTES_MAX && !text.chars().any(char::is_control)
}

fn is_sender_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    text.len() <= limits::DNS_NAME_BYTES_MAX && text.split('.').all(label)
}

fn is_queue_name(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=64).contains(&text.len()) && text.bytes().all(legal)
}

fn is_endpoint_uid(text: &str) -> bool {
    // As a consumer's name, it is a segment of a path, and never read as an id.
    is_consumer(text) && !text.starts_with("ep_")
}

fn is_label(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':');
    (1..=limits::LABEL_BYTES_MAX).contains(&text.len()) && text.bytes().all(legal)
}

fn is_worker_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 128 && !text.chars().any(char::is_control)
}

fn is_version(text: &str) -> bool {
    text.len() <= limits::VERSION_BYTES_MAX && text.split('.').all(is_word)
}

name!(
    /// Type of an event: dot-separated words, for example `order.paid`.
    EventType, "event type", "dot-separated words of [A-Za-z0-9_-], at most 255 bytes", is_event_type
);
name!(
    /// A topic pattern with RabbitMQ's semantics: `*` is exactly one word, `#` is zero or more.
    Pattern, "topic pattern", "dot-separated words of [A-Za-z0-9_-], `*` or `#`, at most 255 bytes", is_pattern
);
name!(
    /// Owner of events and endpoints. Tenants are isolated from each other.
    Tenant, "tenant", "dot-separated words of [A-Za-z0-9_-], at most 255 bytes", is_tenant
);
name!(
    /// The subject of a stream of events, for example `order-42`.
    StreamName, "stream", "1 to 255 bytes without control characters", is_printable
);
name!(
    /// An endpoint with `ordering: key` receives events with the same key one at a time, in order.
    OrderingKey, "ordering key", "1 to 255 bytes without control characters", is_printable
);
name!(
    /// A named position in the log of events, for example `pet-search`.
    ConsumerName, "consumer", "1 to 64 characters of [A-Za-z0-9_.-]", is_consumer
);
name!(
    /// The version of an event's schema, for example `1.0`.
    EventVersion, "version", "dot-separated words of [A-Za-z0-9_-], at most 32 bytes", is_version
);

name!(
    /// Name of a queue, unique per tenant.
    QueueName, "queue name", "1 to 64 characters of [A-Za-z0-9_.-]", is_queue_name
);
name!(
    /// Name of a source.
    SourceName, "source name", "1 to 64 characters of [A-Za-z0-9_.-]", is_queue_name
);
name!(
    /// The owner's name of an endpoint, unique per tenant. Paths accept it in place of the id.
    EndpointUid, "uid", "1 to 64 characters of [A-Za-z0-9_.-] that do not begin with `ep_`", is_endpoint_uid
);
name!(
    /// A word by which endpoints select events, beside the type.
    Label, "label", "1 to 128 characters of [A-Za-z0-9_.:-]", is_label
);
name!(
    /// Name that a worker gives itself, for the history of its messages.
    WorkerName, "worker name", "1 to 128 bytes without control characters", is_worker_name
);
name!(
    /// The sender's DNS name in the web hook handshake. In lower case, because DNS ignores case.
    SenderName, "origin", "a DNS name in lower case, at most 253 bytes", is_sender_name
);

impl Pattern {
    /// Whether the pattern matches an event type: `*` is exactly one word, `#` zero or more.
    #[must_use]
    pub fn matches(&self, event_type: &str) -> bool {
        let words: Vec<&str> = event_type.split('.').collect();
        // For each number of leading words: whether the parts of the pattern so far match them.
        let mut reachable = vec![false; words.len() + 1];
        reachable[0] = true;
        for part in self.0.split('.') {
            let mut next = vec![false; words.len() + 1];
            let mut any_before = false;
            for at in 0..=words.len() {
                any_before |= reachable[at];
                next[at] = match part {
                    "#" => any_before,
                    "*" => at > 0 && reachable[at - 1],
                    word => at > 0 && reachable[at - 1] && words[at - 1] == word,
                };
            }
            reachable = next;
        }
        reachable[words.len()]
    }
}

impl EventType {
    /// The type of test events.
    pub const TEST: &'static str = "balto.test";
    /// Prefix of the types of operator events.
    const OPERATOR_PREFIX: &'static str = "balto.";

    /// Whether the type is reserved for operator events, which subscribers recognize by type. Test
    /// events are not reserved: they may come from another engine.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with(Self::OPERATOR_PREFIX) && &*self.0 != Self::TEST
    }
}

/// The version of events that are posted without one.
impl Default for EventVersion {
    fn default() -> Self {
        Self("1.0".into())
    }
}

impl Tenant {
    /// The tenant of requests without one.
    pub const DEFAULT: &'static str = "default";
    /// The reserved tenant of operator events.
    pub const OPERATOR: &'static str = "balto";
    /// The owner of endpoints and queues for the events of all tenants. No tenant can have this
    /// name.
    pub const EVERY: &'static str = "*";

    /// The text, shared with this value.
    #[must_use]
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// See [`Self::EVERY`].
    #[must_use]
    pub fn every() -> Self {
        Self(Self::EVERY.into())
    }

    #[must_use]
    pub fn is_every(&self) -> bool {
        &*self.0 == Self::EVERY
    }

    /// Whether subscriptions of this owner take the events of `tenant`: their own, or those of all
    /// tenants but the reserved one.
    #[must_use]
    pub fn takes_from(&self, tenant: &Self) -> bool {
        self == tenant || self.is_every() && tenant.as_str() != Self::OPERATOR
    }

    /// The tenant itself, or for all tenants the one of requests without a tenant.
    #[must_use]
    pub fn or_default(&self) -> Self {
        if self.is_every() { Self(Self::DEFAULT.into()) } else { self.clone() }
    }

    /// The tenant of events that Balto itself makes for a subscription of this owner.
    #[must_use]
    pub fn of_own_events(&self) -> Self {
        if self.is_every() { Self(Self::OPERATOR.into()) } else { self.clone() }
    }
}

/// The owner of an endpoint or a queue: a tenant, or all tenants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointOwner(pub Tenant);

impl FromStr for EndpointOwner {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text == Tenant::EVERY {
            return Ok(Self(Tenant::every()));
        }
        text.parse().map(Self).map_err(|error: InvalidName| InvalidName {
            rule: "dot-separated words of [A-Za-z0-9_-], at most 255 bytes, or `*` for all tenants",
            ..error
        })
    }
}

/// Returns a header name for comparison: in lower case, with `-` for all but letters and digits.
/// Servers that pass headers as variables read `.` and `_` (some all such characters) as `-`.
#[must_use]
pub fn normalize_header_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
}
