//! Sealing again: endpoints with values under an older key, in the earlier layout, or stored before there was a key, are
//! written again, which seals them under the first key.
//!
//! Runs once after each start. A crash in between loses nothing: the next start finds the rest.

use std::time::Duration;

use crate::context::Context;
use crate::delivery::background::see_to;
use crate::domain::{Endpoint, EndpointNumber};
use crate::metrics::BackgroundJob;
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::service::endpoints::Endpoints;
use crate::service::secrets::Secrets;

/// Pause after a store that could not write.
const PAUSE: Duration = Duration::from_secs(1);

/// Ends when no endpoint needs an older key, or the store can write no more. Does nothing without a key.
pub async fn run(context: Context) {
    see_to(&context, BackgroundJob::Resealing, reseal_all).await;
}

async fn reseal_all(context: Context) {
    let Some(key) = Secrets(&context).sealing_key() else { return };
    let outdated = Secrets(&context).outdated();
    let (mut remaining, total) = (outdated.len() as u64, outdated.len());
    context.metrics().endpoints_to_reseal(remaining);
    if total == 0 {
        return;
    }
    tracing::info!(%key, remaining, "sealing endpoint secrets under the first key");
    for number in outdated {
        if let Err(error) = reseal(&context, number).await {
            tracing::warn!(%error, remaining, "endpoint secrets are not all sealed under the first key");
            return;
        }
        remaining -= 1;
        context.metrics().endpoints_to_reseal(remaining);
    }
    tracing::info!(%key, resealed = total, remaining, "endpoint secrets are sealed under the first key");
}

/// Writes the endpoint again as it is. Its time of change stays: it says nothing new.
async fn reseal(context: &Context, number: EndpointNumber) -> Result<(), ChangeError> {
    loop {
        let Some(current) = context.outbox().endpoint(number) else { return Ok(()) };
        match Endpoints(context).put(Endpoint::clone(&current), None).await {
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
