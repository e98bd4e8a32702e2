//! Version pins of subscriptions.

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
        let location = pointer("/versions", name.as_str());
        let Some(registered) = EventTypes(&call.api.context).registered(name) else {
            errors.push(location, "the event type is not registered");
            continue;
        };
        if let VersionPin::Version(version) = pin
            && registered.definition().version(version).is_none()
        {
            errors.push(location, format!("version {version} of the event type is not registered"));
        }
    }
}
