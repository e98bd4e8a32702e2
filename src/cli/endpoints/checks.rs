//! Options of an endpoint that exclude each other, or that would have no effect.

use serde_json::{Map, Value};

use super::rate::Rate;
use super::{EndpointOptions, set};
use crate::cli::{args, usage};

impl EndpointOptions {
    /// The members of the options and those of `--members`, with others that the command gives.
    ///
    /// # Errors
    /// Wrong usage, when a value would have no effect.
    pub(super) fn checked(&self, others: [(&str, Option<&str>); 3]) -> anyhow::Result<Map<String, Value>> {
        if self.rate == Some(Rate::Unlimited) && self.burst.is_some() {
            return Err(usage("--rate none removes the rate: omit --burst"));
        }
        let has_handshake_options = self.handshake_rate.is_some() || self.handshake_callback.is_some();
        if self.handshake.as_deref() == Some("none") && has_handshake_options {
            return Err(usage(
                "--handshake none removes the handshake: omit --handshake-rate and --handshake-callback",
            ));
        }
        args::check_pins(&self.pins)?;
        for (option, headers) in
            [("--header", &self.headers), ("--sensitive-header", &self.sensitive_headers)]
        {
            args::given_once(option, headers.iter().map(|(name, _)| name.to_ascii_lowercase()))?;
        }
        let mut members = self.members();
        for (name, value) in others {
            set(&mut members, name, value);
        }
        for (name, value) in self.identity.further() {
            if members.contains_key(&name) {
                return Err(usage(format!("--members and an option give {name}: give it once")));
            }
            members.insert(name, value);
        }
        Ok(members)
    }
}
