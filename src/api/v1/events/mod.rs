//! Events: publishing, reading, replaying.

pub mod batch;
pub mod handlers;
pub mod model;
