//! The outside world as traits: requests to receivers, randomness, file reads.
//!
//! The daemon uses the system. The simulation implements each trait itself.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::courier::guard::RefusedUrl;
use crate::courier::{Courier, NotSent, OutboundMessage, OutboundRequest, ReceiverReply};
use crate::{context::clock, panics};

/// Pause between [`NotSent`] and the next try of a request.
pub(crate) const EXHAUSTED_PAUSE: Duration = Duration::from_secs(1);

/// Sends requests to receivers.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Sends one request and returns the receiver's reply, or the reason why it is missing.
    ///
    /// # Errors
    /// When the request was not sent for a local reason.
    async fn send(&self, outbound_request: OutboundRequest) -> Result<ReceiverReply, NotSent>;

    /// Publishes one message to a broker, and returns its confirm, or the reason why it is missing.
    ///
    /// # Errors
    /// When the message was not sent for a local reason.
    async fn publish(&self, outbound_message: OutboundMessage) -> Result<ReceiverReply, NotSent>;

    /// Checks a URL by the rules of [`Self::send`], and returns its canonical form.
    ///
    /// # Errors
    /// When the policy forbids the URL or an address of its host.
    async fn check_url(&self, url: &str) -> Result<Box<str>, RefusedUrl>;

    /// As [`Self::check_url`], by the rules of [`Self::publish`].
    ///
    /// # Errors
    /// When the policy forbids the URL or an address of its host.
    async fn check_broker_url(&self, url: &str) -> Result<Box<str>, RefusedUrl>;
}

/// Source of random bytes.
pub trait Entropy: Send + Sync {
    fn fill(&self, bytes: &mut [u8]);
}

/// Runs blocking file reads.
#[async_trait]
pub trait FileReads: Send + Sync {
    /// Returns when the read has ended or panicked.
    async fn run(&self, read: Box<dyn FnOnce() + Send>);
}

/// The implementations that a context uses.
pub struct Environment {
    pub transport: Arc<dyn Transport>,
    pub entropy: Arc<dyn Entropy>,
    pub reads: Arc<dyn FileReads>,
}

impl Environment {
    /// The courier's sockets, the system's randomness, the runtime's blocking threads.
    #[must_use]
    pub fn system(courier: Courier) -> Self {
        Self { transport: Arc::new(courier), entropy: Arc::new(SystemEntropy), reads: Arc::new(BlockingPool) }
    }
}

#[async_trait]
impl Transport for Courier {
    async fn send(&self, outbound_request: OutboundRequest) -> Result<ReceiverReply, NotSent> {
        Courier::send(self, outbound_request).await
    }

    async fn publish(&self, outbound_message: OutboundMessage) -> Result<ReceiverReply, NotSent> {
        Courier::publish(self, outbound_message).await
    }

    async fn check_url(&self, url: &str) -> Result<Box<str>, RefusedUrl> {
        Courier::check_url(self, url).await
    }

    async fn check_broker_url(&self, url: &str) -> Result<Box<str>, RefusedUrl> {
        Courier::check_broker_url(self, url).await
    }
}

struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        clock::fill_random(bytes);
    }
}

/// The runtime's pool of blocking threads.
pub(crate) struct BlockingPool;

#[async_trait]
impl FileReads for BlockingPool {
    async fn run(&self, read: Box<dyn FnOnce() + Send>) {
        // The caller detects a panic by the missing result.
        drop(tokio::task::spawn_blocking(|| panics::contain(read)).await);
    }
}
