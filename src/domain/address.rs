//! The block of addresses that one owner controls.

use std::net::{IpAddr, Ipv6Addr};

/// The unit in which limits count addresses: an IPv4 address, or the /64 network of an IPv6
/// address. An IPv4-mapped IPv6 address is the IPv4 address.
#[must_use]
pub fn address_block(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_of_ipv6_is_its_network() {
        for (address, block) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:0:1:ffff::1", "2001:db8:0:1::"),
            ("::1", "::"),
        ] {
            assert_eq!(address_block(address.parse().unwrap()).to_string(), block, "{address}");
        }
    }
}
