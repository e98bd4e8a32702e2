//! Cryptographic algorithms of TLS: those of aws-lc-rs, and key exchange over P-521.
//!
//! Rejected: *ring*, which has neither P-521 nor RSA client keys above 4096 bits. Also rejected:
//! *ring* with RustCrypto's `p521`, which needs custom code for verification, signing and key
//! exchange instead of key exchange only.

use std::sync::Arc;

use aws_lc_rs::agreement::{ECDH_P521, EphemeralPrivateKey, PublicKey, UnparsedPublicKey, agree_ephemeral};
use aws_lc_rs::rand::SystemRandom;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{ActiveKeyExchange, CryptoProvider, GetRandomFailed, SharedSecret, SupportedKxGroup};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{Error, NamedGroup, PeerMisbehaved};

/// The algorithms of every TLS connection in this process.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = default_provider();
    // Least preferred: only TLS 1.2 servers with a P-521 certificate need it.
    provider.kx_groups.push(&Secp521r1);
    Arc::new(provider)
}

/// Installs the algorithms as the process default, for clients that choose none, such as the
/// command line's.
pub fn install_provider() {
    // If a default is already installed, it stays.
    CryptoProvider::clone(&provider()).install_default().ok();
}

/// Ephemeral ECDH over secp521r1, which rustls does not provide.
#[derive(Debug)]
struct Secp521r1;

impl SupportedKxGroup for Secp521r1 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let private =
            EphemeralPrivateKey::generate(&ECDH_P521, &SystemRandom::new()).map_err(|_| GetRandomFailed)?;
        let public = private.compute_public_key().map_err(|_| GetRandomFailed)?;
        Ok(Box::new(P521KeyExchange { private, public }))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

struct P521KeyExchange {
    private: EphemeralPrivateKey,
    public: PublicKey,
}

impl ActiveKeyExchange for P521KeyExchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let invalid = Error::from(PeerMisbehaved::InvalidKeyShare);
        // TLS uses uncompressed points (RFC 8446, section 4.2.8.2).
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
