//! Endpoints: configuration, secrets, statistics, lanes and replays.

pub mod amqp;
pub mod handlers;
pub mod model;
pub mod outgoing;
pub mod preview;
pub mod reports;
pub mod secrets;
pub mod selection;
pub mod settings;
pub mod test_event;
