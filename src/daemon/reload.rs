//! Reload on SIGHUP. A configuration with an error changes nothing. Changed keys that need a
//! restart keep their values, with a warning; the others take effect together.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::settings::{api_config, courier_settings, load_to_fit, ops_site, settings};
use super::supervisor::{DaemonState, Supervisor};
use super::{Setup, listener_certificate};
use crate::api::Api;
use crate::context::Context;
use crate::courier::Courier;

/// Reloads on another thread, because reading files may block.
pub(super) fn begin(
    setup: &Arc<Setup>,
    courier: &Courier,
    context: &Context,
    api: &Arc<Api>,
    supervisor: &Supervisor,
) -> JoinHandle<()> {
    let (setup, courier, context, api) = (setup.clone(), courier.clone(), context.clone(), api.clone());
    let supervisor = supervisor.clone();
    tokio::task::spawn_blocking(move || {
        supervisor.tell(DaemonState::Reloading);
        let reloaded = reload(&setup, &courier, &context, &api);
        let problem = match reloaded {
            Ok(kept) if kept.is_empty() => {
                tracing::info!("configuration reloaded");
                None
            }
            Ok(kept) => {
                let keys = kept.join(", ");
                tracing::warn!(%keys, "configuration reloaded, except for keys that need a restart");
                Some(format!("these keys need a restart: {keys}"))
            }
            Err(error) => {
                tracing::error!(%error, "reload failed, the earlier configuration stays in use");
                Some(format!("reload failed: {error}"))
            }
        };
        supervisor.tell(DaemonState::Ready(problem));
    })
}

/// Applies a valid new configuration. Returns the changed keys that need a restart.
fn reload(
    setup: &Setup,
    courier: &Courier,
    context: &Context,
    api: &Arc<Api>,
) -> anyhow::Result<Vec<&'static str>> {
    let options = &setup.options;
    let (mut config, _) = load_to_fit(options, setup.descriptors)?;
    let kept = config.keep_until_restart(&setup.config);
    let certificate = listener_certificate(&config.server)?;
    if certificate.is_some() != setup.tls.is_some() {
        anyhow::bail!("turning TLS of the API listener on or off needs a restart");
    }
    let shown = api_config(options, &config)?;
    courier.reconfigure(courier_settings(options, &config)?).map_err(anyhow::Error::msg)?;
    if let (Some(tls), Some(certificate)) = (&setup.tls, &certificate) {
        tls.replace(certificate);
    }
    context.reconfigure(settings(&config));
    api.reconfigure(shown);
    setup.ops_site.store(ops_site(options, &config));
    Ok(kept)
}
