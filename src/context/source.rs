//! The commit thread's environment: time, randomness and encryption.

use std::sync::Arc;

use crate::context::clock::SystemSource;
use crate::context::clock::random_bytes;
use crate::domain::{Endpoint, Timestamp};
use crate::outbox::decide::CommitEnvironment;
use crate::vault::Vault;

/// Time, randomness and encryption for the writer.
pub struct SealingSource(pub Arc<Vault>);

impl CommitEnvironment for SealingSource {
    fn now(&mut self) -> Timestamp {
        SystemSource.now()
    }

    fn random(&mut self) -> u128 {
        SystemSource.random()
    }

    fn seal(&mut self, endpoint: &mut Endpoint) {
        self.0.seal_endpoint(endpoint, &mut random_bytes);
    }
}
