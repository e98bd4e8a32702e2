//! Sources: messages of brokers become events.
//!
//! Owns the connections that bring events, one task for each source. A kind of broker is a
//! [`SourceClient`]: it takes messages, offers them to the [`Intake`] in order, and settles them at
//! its broker after the answer. The intake answers when each message is durable as an event, or
//! will never be one; while the store refuses events, it waits, and the client holds its messages.
//!
//! | kind | repeats after a crash | recognised by |
//! |---|---|---|
//! | broker with acknowledgements (AMQP) | messages that are durable and not acknowledged | the id of the message |
//!
//! Must never know HTTP.

mod amqp;
mod intake;
mod message;
mod runner;

use async_trait::async_trait;

use crate::service::event_types::Unregistered;
#[cfg(test)]
pub(crate) use intake::parked_key;
pub use intake::{Incoming, Intake, IntakeError, InvalidMessage, Settled, Unsettled};
#[cfg(test)]
pub(crate) use message::{Message, tests::source as sample_source};
pub use runner::run;

/// Settings of all sources.
#[derive(Clone, Copy, Debug)]
pub struct SourceOptions {
    /// Longest data of an event.
    pub max_event_bytes: usize,
    /// Fate of events of unregistered types.
    pub unregistered: Unregistered,
}

/// Why a connection of a source ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceFailure {
    /// The broker or the network, in its words.
    #[error("{0}")]
    Broker(String),
    #[error("the store refused events for too long; the messages are back at the broker")]
    Held,
    #[error("the daemon is shutting down")]
    Stopping,
    /// A defect of this daemon.
    #[error("the source panicked; the log has the details")]
    Panicked,
}

/// Asks a client to end: it takes no more messages, settles those that it offered, and returns.
pub type StopSignal = tokio::sync::watch::Receiver<bool>;

/// The connection of a source to its broker.
#[async_trait]
pub trait SourceClient: Send {
    /// Connects, and takes messages until it is stopped or fails. It is run again after a failure.
    ///
    /// # Errors
    /// When the connection failed or ended.
    async fn run(&mut self, intake: &Intake, stop: StopSignal) -> Result<(), SourceFailure>;
}
