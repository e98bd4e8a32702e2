//! Sources: brokers whose messages become events.

pub mod handlers;
pub mod model;
mod settings;
