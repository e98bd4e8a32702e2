//! RabbitMQ as a destination and as a source: the real broker, with pika at its other end.

mod broker;
mod destination;
mod faults;
mod source;
