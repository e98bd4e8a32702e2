//! Sealing again: endpoints with values under an older key, in the earlier layout, or stored before there was a key, are
//! written again, which seals them under the first key.
//!
//! Runs once after each start. A crash in between loses nothing: the next start finds the rest.

use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::types::{ChangeError, Unavailable};
use crate::domain::{Endpoint, EndpointNumber};

/// Pause after a store that could not write.
const PAUSE: Duration = Duration::from_secs(1);

/// Ends when no endpoint needs an older key, or the store can write no more. Does nothing without a key.
pub async fn run(engine: Engine) {
    let Some(key) = engine.sealing_key() else { return };
    let outdated = engine.outdated();
    let (mut remaining, total) = (outdated.len() as u64, outdated.len());
    engine.metrics().endpoints_to_reseal(remaining);
    if total > 0 {
        tracing::info!(%key, remaining, "sealing endpoint secrets under the first key");
    }
    for number in outdated {
        if let Err(error) = reseal(&engine, number).await {
            tracing::warn!(%error, remaining, "endpoint secrets are not all sealed under the first key");
            return;
        }
        remaining -= 1;
        engine.metrics().endpoints_to_reseal(remaining);
    }
    tracing::info!(%key, resealed = total, remaining, "endpoint secrets are sealed under the first key");
}

/// Writes the endpoint again as it is. Its time of change stays: it says nothing new.
async fn reseal(engine: &Engine, number: EndpointNumber) -> Result<(), ChangeError> {
    loop {
        let Some(current) = engine.current(number) else { return Ok(()) };
        match engine.put_endpoint(Endpoint::clone(&current), None).await {
            Ok(_) => return Ok(()),
            // Another change has sealed it, or deleted it.
            Err(ChangeError::Conflict) => return Ok(()),
            Err(ChangeError::Store(Unavailable::Overloaded { .. } | Unavailable::DiskFull)) => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

impl Engine {
    fn current(&self, number: EndpointNumber) -> Option<Arc<Endpoint>> {
        self.outbox().endpoint(number)
    }
}
