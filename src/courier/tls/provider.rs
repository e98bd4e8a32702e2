//! The cryptography of TLS: the algorithms of aws-lc-rs, with key exchange over P-521 beside them.
//!
//! *ring* was refused: it has neither P-521 nor client keys of RSA above 4096 bits. RustCrypto's `p521` beside *ring* was
//! refused too: three pieces of own code (verifying, signing, key exchange) instead of one.

use std::sync::Arc;

use aws_lc_rs::agreement::{ECDH_P521, EphemeralPrivateKey, PublicKey, UnparsedPublicKey, agree_ephemeral};
use aws_lc_rs::rand::SystemRandom;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{ActiveKeyExchange, CryptoProvider, GetRandomFailed, SharedSecret, SupportedKxGroup};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{Error, NamedGroup, PeerMisbehaved};

/// The algorithms that every TLS connection of this process uses.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = default_provider();
    // Last: TLS 1.2 servers with a P-521 certificate need it in the list, others have better ones.
    provider.kx_groups.push(&Secp521r1);
    Arc::new(provider)
}

/// Makes these algorithms those of clients that choose none, such as the command line's.
pub fn install_provider() {
    // It may have been installed before, by the daemon or by another client: then that one serves.
    CryptoProvider::clone(&provider()).install_default().ok();
}

/// Ephemeral ECDH over secp521r1, which rustls does not offer by itself.
#[derive(Debug)]
struct Secp521r1;

impl SupportedKxGroup for Secp521r1 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let private =
            EphemeralPrivateKey::generate(&ECDH_P521, &SystemRandom::new()).map_err(|_| GetRandomFailed)?;
        let public = private.compute_public_key().map_err(|_| GetRandomFailed)?;
        Ok(Box::new(Exchange { private, public }))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

struct Exchange {
    private: EphemeralPrivateKey,
    public: PublicKey,
}

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let invalid = Error::from(PeerMisbehaved::InvalidKeyShare);
        // Points are uncompressed in TLS (RFC 8446, section 4.2.8.2).
        if peer.first() != Some(&4) {
            return Err(invalid);
        }
        let peer = UnparsedPublicKey::new(&ECDH_P521, peer);
        agree_ephemeral(self.private, peer, invalid, |secret| Ok(SharedSecret::from(secret)))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }

    fn pub_key(&self) -> &[u8] {
        self.public.as_ref()
    }
}
