//! Reload on SIGHUP: the new configuration takes effect as a whole, or not at all.

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
        match &reloaded {
            Ok(()) => tracing::info!("configuration reloaded"),
            Err(error) => tracing::error!(%error, "reload failed, the earlier configuration stays in use"),
        }
        supervisor.tell(DaemonState::Ready(reloaded.err().map(|error| error.to_string())));
    })
}

/// Applies the new configuration when it is valid and differs only in keys that a reload can
/// change.
fn reload(setup: &Setup, courier: &Courier, context: &Context, api: &Arc<Api>) -> anyhow::Result<()> {
    let options = &setup.options;
    let (config, _) = load_to_fit(options, setup.descriptors)?;
    if let Err(keys) = setup.config.reloadable_diff(&config) {
        anyhow::bail!("these keys need a restart: {}", keys.join(", "));
    }
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
    Ok(())
}
