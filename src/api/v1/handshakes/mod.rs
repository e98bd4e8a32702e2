//! Handshakes: repeated requests, and the callbacks of receivers.

pub mod handlers;
pub mod model;
