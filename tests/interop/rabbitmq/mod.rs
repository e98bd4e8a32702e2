//! RabbitMQ as a destination and as a source: the real broker, with pika and amqplib at its other
//! end.

mod broker;
mod clients;
mod destination;
mod faults;
mod source;
mod topics;
