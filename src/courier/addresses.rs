//! IP address ranges: the public Internet, ranges that no policy can allow, and IPv4 addresses
//! embedded in IPv6 addresses.
//!
//! Owns the tables. Must not know the policy in force; the guard applies these facts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::domain::Network;

type RangeV4 = (Ipv4Addr, u32);
type RangeV6 = (Ipv6Addr, u32);

/// Ranges that are not the public Internet (IANA special-purpose registry).
const NON_PUBLIC_V4: [RangeV4; 18] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 31, 196, 0), 24),
    (Ipv4Addr::new(192, 52, 193, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(192, 175, 48, 0), 24),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];
/// The same for IPv6, within 2000::/3. No address outside 2000::/3 is public.
const NON_PUBLIC_V6: [RangeV6; 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];
/// Ranges that no allow list can open: link-local addresses, where clouds serve credentials, and
/// metadata services at other addresses. 168.63.129.16 (Azure) is a public address.
const ALWAYS_DENIED_V4: [RangeV4; 4] = [
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(100, 100, 100, 200), 32),
    (Ipv4Addr::new(192, 0, 0, 192), 32),
];
/// AWS reserves fd00:ec2::/32 for its instance services: metadata, pod identity, DNS, time, keys.
const ALWAYS_DENIED_V6: [RangeV6; 6] = [
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254), 128),
    (Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42), 128),
    (Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe), 128),
    (Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1), 128),
];
/// NAT64: the well-known prefix 64:ff9b::/96 (RFC 6052) and the local one 64:ff9b:1::/48 (RFC
/// 8215).
const NAT64: RangeV6 = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 32);
const SIX_TO_FOUR: RangeV6 = (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16);
const TEREDO: RangeV6 = (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32);
/// Interface identifier of ISATAP (RFC 5214). The mask excludes the universal and group bits.
const ISATAP: u32 = 0x0000_5efe;
const ISATAP_MASK: u32 = 0xfcff_ffff;

fn in_v4(address: Ipv4Addr, (network, bits): RangeV4) -> bool {
    (address.to_bits() ^ network.to_bits()) >> (32 - bits) == 0
}

fn in_v6(address: Ipv6Addr, (network, bits): RangeV6) -> bool {
    (address.to_bits() ^ network.to_bits()) >> (128 - bits) == 0
}

pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !NON_PUBLIC_V4.iter().any(|range| in_v4(v4, *range)),
        IpAddr::V6(v6) => {
            let global = in_v6(v6, (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3));
            global && !NON_PUBLIC_V6.iter().any(|range| in_v6(v6, *range))
        }
    }
}

/// Whether no allow list can open this address. The caller checks embedded addresses.
pub(super) fn is_always_denied(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => ALWAYS_DENIED_V4.iter().any(|range| in_v4(v4, *range)),
        IpAddr::V6(v6) => ALWAYS_DENIED_V6.iter().any(|range| in_v6(v6, *range)),
    }
}

/// The network of an address, independent of policy.
pub(super) fn network(address: IpAddr) -> Network {
    if is_public(address.to_canonical()) { Network::Public } else { Network::Internal }
}

/// The IPv4 addresses that a translator or tunnel may map an IPv6 address to, in every known
/// interpretation. IPv4-mapped addresses are not handled: callers convert them to IPv4 first.
#[expect(clippy::cast_possible_truncation, reason = "each cast selects 32 bits of the address")]
pub(super) fn embedded(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let bits = address.to_bits();
    let at = |first_bit: u32| Ipv4Addr::from_bits((bits >> (96 - first_bit)) as u32);
    let low = at(96);
    if in_v6(address, NAT64) {
        return in_nat64(bits);
    }
    if in_v6(address, SIX_TO_FOUR) {
        return vec![at(16)];
    }
    if in_v6(address, TEREDO) {
        // The server's address, and the client's, whose bits are inverted.
        return vec![at(32), Ipv4Addr::from_bits(!low.to_bits())];
    }
    match bits >> 32 {
        // Compatible (RFC 4291) and translated (RFC 2765).
        0 if bits > 1 => vec![low],
        0xffff_0000 => vec![low],
        upper if upper as u32 & ISATAP_MASK == ISATAP => vec![low],
        _ => Vec::new(),
    }
}

/// RFC 6052, section 2.2: the IPv4 address follows a prefix of one of these lengths and skips bits
/// 64 to
/// 71. Translators ignore the bits behind it. The prefix length is unknown, so every interpretation
/// counts, except those in 0.0.0.0/8, which are prefix or padding of another interpretation.
#[expect(clippy::cast_possible_truncation, reason = "each cast selects 32 bits of the address")]
fn in_nat64(bits: u128) -> Vec<Ipv4Addr> {
    let without_skipped = (bits >> 64 << 56) | (bits & ((1 << 56) - 1));
    let after_prefix = |length: u32| Ipv4Addr::from_bits((without_skipped >> (88 - length)) as u32);
    let low = Ipv4Addr::from_bits(bits as u32);
    let candidates = [32, 40, 48, 56, 64].map(after_prefix).into_iter().chain([low]);
    let found: Vec<_> = candidates.filter(|candidate| candidate.octets()[0] != 0).collect();
    if found.is_empty() { vec![low] } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedded_in(text: &str) -> Vec<String> {
        embedded(text.parse().unwrap()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn private_addresses_belong_to_the_internal_network() {
        for (address, network) in [
            ("8.8.8.8", Network::Public),
            ("2606:4700:4700::1111", Network::Public),
            ("::ffff:8.8.8.8", Network::Public),
            ("10.0.0.1", Network::Internal),
            ("::ffff:10.0.0.1", Network::Internal),
            ("127.0.0.1", Network::Internal),
            ("fd00::1", Network::Internal),
        ] {
            assert_eq!(super::network(address.parse().unwrap()), network, "{address}");
        }
    }

    #[test]
    fn nat64_is_read_at_every_prefix_length() {
        // 192.0.2.33 after each prefix length, as in the table of RFC 6052, section 2.4.
        for text in [
            "64:ff9b:c000:221::",
            "64:ff9b:1c0:2:21::",
            "64:ff9b:1:c000:2:2100::",
            "64:ff9b:1:c0:0:221::",
            "64:ff9b:1:0:c0:2:2100:0",
            "64:ff9b:1::192.0.2.33",
            "64:ff9b::192.0.2.33",
        ] {
            assert!(embedded_in(text).contains(&"192.0.2.33".to_owned()), "{text}: {:?}", embedded_in(text));
        }
        // Bits behind the address are ignored.
        assert!(embedded_in("64:ff9b:1:c000:2:21ff:ffff:ffff").contains(&"192.0.2.33".to_owned()));
        assert_eq!(embedded_in("64:ff9b::808:808"), ["8.8.8.8"], "padding is not an address");
        assert_eq!(embedded_in("64:ff9b::7f"), ["0.0.0.127"]);
    }

    #[test]
    fn tunnels_and_translators_embed_ipv4_addresses() {
        for (text, expected) in [
            ("::127.0.0.1", vec!["127.0.0.1"]),
            ("::ffff:0:127.0.0.1", vec!["127.0.0.1"]),
            ("2002:7f00:1::1", vec!["127.0.0.1"]),
            ("2001:0:4136:e378:8000:63bf:80ff:fffe", vec!["65.54.227.120", "127.0.0.1"]),
            ("2001:db8::5efe:7f00:1", vec!["127.0.0.1"]),
            ("2001:db8::200:5efe:7f00:1", vec!["127.0.0.1"]),
            ("2001:db8::300:5efe:7f00:1", vec!["127.0.0.1"]),
            ("2001:db8::1:5efe:7f00:1", vec![]),
            ("2606:4700:4700::1111", vec![]),
            ("::1", vec![]),
        ] {
            assert_eq!(embedded_in(text), expected, "{text}");
        }
    }

    #[test]
    fn link_local_and_metadata_addresses_are_always_denied() {
        for text in [
            "169.254.0.1",
            "169.254.0.23",
            "169.254.42.42",
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "169.254.255.255",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "fe80::1",
            "febf:ffff::1",
            "fd00:ec2::23",
            "fd00:ec2::253",
            "fd00:ec2::254",
            "fd00:42::42",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
            "fd00:a9fe:a9fe::1",
        ] {
            assert!(is_always_denied(text.parse().unwrap()), "{text}");
        }
        for text in [
            "169.253.255.255",
            "169.255.0.0",
            "168.63.129.17",
            "fec0::1",
            "fe7f::1",
            "fd00:ec3::254",
            "fd00:42::41",
        ] {
            assert!(!is_always_denied(text.parse().unwrap()), "{text}");
        }
    }
}
