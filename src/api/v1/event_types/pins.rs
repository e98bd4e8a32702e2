//! Version pins of subscriptions and readers.

use std::collections::BTreeMap;

use crate::api::Call;
use crate::api::http::problem::{Errors, pointer};
use crate::domain::{EventType, VersionPin};
use crate::service::EventTypes;

/// Checks that pinned versions are registered. A pin that the subscription has already is accepted.
pub fn check(
    call: &Call,
    pins: &[(EventType, VersionPin)],
    present: &[(EventType, VersionPin)],
    errors: &mut Errors,
) {
    for (name, pin) in pins.iter().filter(|pin| !present.contains(pin)) {
        if let Some(detail) = unregistered(call, name, pin) {
            errors.push(pointer("/versions", name.as_str()), detail);
        }
    }
}

/// Why a pin cannot be used, if it names an unregistered type or version.
#[must_use]
pub fn unregistered(call: &Call, name: &EventType, pin: &VersionPin) -> Option<String> {
    let Some(registered) = EventTypes(&call.api.context).registered(name) else {
        return Some(format!("the event type `{name}` is not registered"));
    };
    match pin {
        VersionPin::Version(version) if registered.definition().version(version).is_none() => {
            Some(format!("version {version} of the event type `{name}` is not registered"))
        }
        _ => None,
    }
}

/// Pins in a response: the version, or `latest`, by event type.
#[must_use]
pub fn body(pins: &[(EventType, VersionPin)]) -> BTreeMap<String, String> {
    pins.iter().map(|(name, pin)| (name.to_string(), pin.as_str().to_owned())).collect()
}
