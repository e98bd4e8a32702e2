//! Resealing: rewrites endpoints and sources whose secrets are plain, under an older key or in an
//! older layout. The write seals them under the first key.
//!
//! Runs once after each start. After a crash, the next start reseals the rest.

use std::time::Duration;

use crate::context::Context;
use crate::delivery::background::run_task;
use crate::domain::{Endpoint, EndpointNumber, Source};
use crate::metrics::BackgroundTask;
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::service::endpoints::Endpoints;
use crate::service::secrets::Secrets;
use crate::service::sources::Sources;

/// Pause after the outbox rejects a commit.
const PAUSE: Duration = Duration::from_secs(1);

/// Shows the number of outdated endpoints and sources. Call it before the daemon is ready: an
/// operator removes the old key when the number is 0.
pub fn count(context: &Context) {
    let outdated = Secrets(context).outdated_endpoints().len() + Sources(context).outdated().len();
    let has_key = Secrets(context).sealing_key().is_some();
    context.metrics().secrets_to_reseal(if has_key { outdated as u64 } else { 0 });
}

/// Reseals all outdated endpoints and sources. Ends early if the outbox fails. Does nothing without
/// a key.
pub async fn run(context: Context) {
    run_task(&context, BackgroundTask::Resealing, reseal_all).await;
}

async fn reseal_all(context: Context) {
    let Some(key) = Secrets(&context).sealing_key() else { return };
    let (sources, endpoints) = (Sources(&context).outdated(), Secrets(&context).outdated_endpoints());
    let total = sources.len() + endpoints.len();
    let mut remaining = total as u64;
    context.metrics().secrets_to_reseal(remaining);
    if total == 0 {
        return;
    }
    tracing::info!(%key, remaining, "sealing secrets under the first key");
    for source in sources {
        if let Err(error) = reseal_source(&context, &source).await {
            tracing::warn!(%error, source = %source.name, "sealing the password of a source failed, continuing at the next start");
            continue;
        }
        remaining -= 1;
        context.metrics().secrets_to_reseal(remaining);
    }
    for number in endpoints {
        if let Err(error) = reseal(&context, number).await {
            tracing::warn!(%error, remaining, "sealing endpoint secrets failed, continuing at the next start");
            return;
        }
        remaining -= 1;
        context.metrics().secrets_to_reseal(remaining);
    }
    tracing::info!(%key, resealed = total, remaining, "secrets are sealed under the first key");
}

/// Rewrites a source unchanged, with its `updated_at`.
async fn reseal_source(context: &Context, source: &Source) -> Result<(), ChangeError> {
    let plain = Sources(context).plain_password(source);
    let password =
        plain.map_err(|error| ChangeError::Store(Unavailable::Failed(error.to_string().into())))?;
    match Sources(context).put(Source { password, ..source.clone() }, None).await {
        // A concurrent change has sealed or deleted it.
        Ok(_) | Err(ChangeError::Conflict) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Rewrites an endpoint unchanged, with its `updated_at`.
async fn reseal(context: &Context, number: EndpointNumber) -> Result<(), ChangeError> {
    loop {
        let Some(current) = context.outbox_of(number).endpoint(number) else { return Ok(()) };
        match Endpoints(context).put(Endpoint::clone(&current), None).await {
            Ok(_) => return Ok(()),
            // A concurrent change has sealed or deleted it.
            Err(ChangeError::Conflict) => return Ok(()),
            Err(ChangeError::Store(Unavailable::Overloaded { .. } | Unavailable::DiskFull)) => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}
