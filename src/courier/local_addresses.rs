//! The addresses of this machine's network interfaces, which never receive requests.
//!
//! Owns their list. Addresses change while the daemon runs, so the list is read again when it is
//! older than [`REFRESH_INTERVAL`]. If reading fails, the previous list stays in force.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

/// A new address of this machine is detected after this time.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);

struct AddressList {
    read_at: Instant,
    addresses: Vec<IpAddr>,
}

pub(super) struct LocalAddresses(ArcSwap<AddressList>);

impl LocalAddresses {
    /// # Errors
    /// When the system call fails.
    pub(super) fn read() -> io::Result<Self> {
        let list = AddressList { read_at: Instant::now(), addresses: interface_addresses()? };
        Ok(Self(ArcSwap::from_pointee(list)))
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let mut list = self.0.load_full();
        if list.read_at.elapsed() > REFRESH_INTERVAL {
            let addresses = interface_addresses().unwrap_or_else(|error| {
                tracing::warn!(%error, "reading local addresses failed, keeping the previous list");
                list.addresses.clone()
            });
            list = AddressList { read_at: Instant::now(), addresses }.into();
            self.0.store(list.clone());
        }
        list.addresses.contains(&address)
    }
}

fn interface_addresses() -> io::Result<Vec<IpAddr>> {
    Ok(if_addrs::get_if_addrs()?.iter().map(|interface| interface.ip().to_canonical()).collect())
}
