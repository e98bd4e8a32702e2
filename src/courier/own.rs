//! The addresses of this machine's interfaces, which are never sent to.
//!
//! Owns: their list, read again when it is older than [`REFRESH_INTERVAL`], because addresses come and go while the daemon
//! runs. A list that cannot be read again stays as it was.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

/// An address that has come to this machine is known after this long.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);

struct Known {
    read_at: Instant,
    addresses: Vec<IpAddr>,
}

pub(super) struct OwnAddresses(ArcSwap<Known>);

impl OwnAddresses {
    /// # Errors
    /// When the system does not say which they are.
    pub(super) fn read() -> io::Result<Self> {
        let known = Known { read_at: Instant::now(), addresses: interfaces()? };
        Ok(Self(ArcSwap::from_pointee(known)))
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let mut known = self.0.load_full();
        if known.read_at.elapsed() > REFRESH_INTERVAL {
            let addresses = interfaces().unwrap_or_else(|error| {
                tracing::warn!(%error, "this machine's addresses cannot be read; those known before stay refused");
                known.addresses.clone()
            });
            known = Known { read_at: Instant::now(), addresses }.into();
            self.0.store(known.clone());
        }
        known.addresses.contains(&address)
    }
}

fn interfaces() -> io::Result<Vec<IpAddr>> {
    Ok(if_addrs::get_if_addrs()?.iter().map(|interface| interface.ip().to_canonical()).collect())
}
