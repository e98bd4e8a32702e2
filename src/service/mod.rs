//! Operations of the API and the delivery loop, one type per resource: decide, commit, then act.
//!
//! A service borrows the [`Context`](crate::context::Context): `Events(&context).publish(draft)`.
//! Must never know wire formats.

pub mod atomic;
pub mod audits;
pub(crate) mod authorization;
pub mod backups;
pub(crate) mod bulk;
pub mod consumers;
pub mod conversions;
pub mod dead_letters;
pub mod deliveries;
pub mod endpoints;
pub mod erasure;
pub mod event_types;
pub mod events;
pub mod feed;
pub mod filters;
pub mod handshakes;
mod history;
pub mod jobs;
pub mod keys;
pub mod leases;
mod messages;
pub mod overview;
pub(crate) mod pages;
pub mod positions;
pub mod projections;
pub mod queues;
pub mod receipts;
pub mod replays;
pub mod requests;
pub mod search;
pub mod secrets;
pub mod sources;
pub mod stream_states;
pub mod streams;
pub mod system_events;
pub mod tenants;
#[cfg(test)]
pub(crate) mod tests;
pub mod types;

pub use audits::Audits;
pub use backups::Backups;
pub use consumers::Consumers;
pub use conversions::Conversions;
pub use dead_letters::DeadLetters;
pub use deliveries::Deliveries;
pub use endpoints::Endpoints;
pub use erasure::Erasure;
pub use event_types::EventTypes;
pub use events::Events;
pub use feed::Feed;
pub use filters::Filters;
pub use handshakes::Handshakes;
pub use jobs::Jobs;
pub use keys::Keys;
pub use overview::Overview;
pub use positions::Positions;
pub use projections::Projections;
pub use queues::Queues;
pub use replays::Replays;
pub use requests::Requests;
pub use search::Searches;
pub use secrets::Secrets;
pub use sources::Sources;
pub use stream_states::StreamStates;
pub use streams::Streams;
pub use tenants::Tenants;
