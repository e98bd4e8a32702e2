//! One generation of settings, with the connections made under them.
//!
//! Owns the connection pools. A reload replaces the generation and closes its connections, so that
//! no connection outlives the policy that allowed it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ClientConfig;

use super::CourierSettings;
use super::broker::Brokers;
use super::connect::Connector;
use super::guard::Guard;
use super::pool::Pool;
use super::tls::{self, ClientIdentity};
use crate::domain::EndpointNumber;
use crate::limits;

/// Settings and connection pools, replaced as a whole by a reload.
pub(super) struct Generation {
    pub(super) settings: CourierSettings,
    guard: Arc<Guard>,
    /// Connections without a client certificate.
    pool: Arc<Pool>,
    /// Connector of `pool`, also used to check URLs.
    pub(super) connector: Arc<Connector>,
    /// Connections to brokers.
    pub(super) brokers: Arc<Brokers>,
    certificate_pools: Mutex<CertificatePools>,
}

/// Pools of endpoints with a client certificate, each with the time of its last use.
#[derive(Default)]
struct CertificatePools {
    pools: HashMap<(EndpointNumber, [u8; 32]), (Arc<Pool>, u64)>,
    /// Logical clock: the number of uses so far.
    uses: u64,
}

impl Generation {
    pub(super) fn new(settings: CourierSettings, guard: Arc<Guard>) -> Result<Self, String> {
        let connector = Arc::new(connector(&settings, &guard, None)?);
        let pool = Pool::new(connector.clone());
        let brokers = Arc::default();
        Ok(Self { settings, guard, pool, connector, brokers, certificate_pools: Mutex::default() })
    }

    /// The connector of connections to brokers: without the ALPN of HTTP.
    pub(super) fn broker_connector(&self, identity: Option<&ClientIdentity>) -> Result<Connector, String> {
        let mut tls = match identity {
            None => ClientConfig::clone(&self.connector.tls),
            Some(identity) => tls::client_config(self.settings.roots.clone(), Some(identity))?,
        };
        tls.alpn_protocols.clear();
        Ok(Connector {
            guard: self.guard.clone(),
            resolver: self.settings.resolver.clone(),
            proxy: self.settings.proxy.clone(),
            tls: Arc::new(tls),
            timeout: self.settings.connect_timeout,
        })
    }

    /// The pool of this identity. Creates it if needed, and then evicts the least recently used one
    /// at [`limits::CLIENTS_WITH_CERTIFICATE_MAX`].
    pub(super) fn pool(&self, identity: Option<&ClientIdentity>) -> Result<Arc<Pool>, String> {
        let Some(identity) = identity else { return Ok(self.pool.clone()) };
        let key = identity.pool_key();
        let mut certificates = self.certificate_pools.lock().unwrap_or_else(PoisonError::into_inner);
        certificates.uses += 1;
        let now = certificates.uses;
        if let Some((pool, last_use)) = certificates.pools.get_mut(&key) {
            *last_use = now;
            return Ok(pool.clone());
        }
        let pool = Pool::new(Arc::new(connector(&self.settings, &self.guard, Some(identity))?));
        if certificates.pools.len() >= limits::CLIENTS_WITH_CERTIFICATE_MAX {
            let oldest =
                certificates.pools.iter().min_by_key(|(_, (_, last_use))| *last_use).map(|(key, _)| *key);
            if let Some((pool, _)) = oldest.and_then(|key| certificates.pools.remove(&key)) {
                pool.retire();
            }
        }
        certificates.pools.insert(key, (pool.clone(), now));
        Ok(pool)
    }
}

impl Drop for Generation {
    /// Closes idle connections. Requests in flight finish on theirs, which are then closed.
    fn drop(&mut self) {
        let certificates =
            std::mem::take(self.certificate_pools.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.pool.retire();
        certificates.pools.into_values().for_each(|(pool, _)| pool.retire());
    }
}

fn connector(
    settings: &CourierSettings,
    guard: &Arc<Guard>,
    identity: Option<&ClientIdentity>,
) -> Result<Connector, String> {
    Ok(Connector {
        guard: guard.clone(),
        resolver: settings.resolver.clone(),
        proxy: settings.proxy.clone(),
        tls: Arc::new(tls::client_config(settings.roots.clone(), identity)?),
        timeout: settings.connect_timeout,
    })
}
