//! Names to addresses, each of them judged: a connection is only ever made to an address that came through here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::guard::EgressPolicy;

/// A name could not be resolved.
#[derive(Debug, thiserror::Error)]
#[error("the host name cannot be resolved")]
pub(super) struct DnsError(#[source] Option<io::Error>);

/// Seam for tests and simulations.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// All addresses of a host.
    ///
    /// # Errors
    /// When the resolver fails; no answer is no address.
    async fn lookup(&self, host: String) -> io::Result<Vec<IpAddr>>;
}

/// The system's resolver.
#[derive(Clone, Copy, Debug)]
pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn lookup(&self, host: String) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect())
    }
}

/// Resolves once, judges every address, and fails closed: one forbidden address forbids the host.
pub(super) struct GuardedDns {
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) policy: Arc<ArcSwap<EgressPolicy>>,
}

impl Resolve for GuardedDns {
    fn resolve(&self, name: Name) -> Resolving {
        let (resolver, policy) = (self.resolver.clone(), self.policy.load_full());
        Box::pin(async move {
            let addresses = match resolver.lookup(name.as_str().to_owned()).await {
                Ok(addresses) if addresses.is_empty() => return Err(DnsError(None).into()),
                Ok(addresses) => addresses,
                Err(error) => return Err(DnsError(Some(error)).into()),
            };
            for address in &addresses {
                policy.judge(*address)?;
            }
            let sockets: Addrs = Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(sockets)
        })
    }
}
