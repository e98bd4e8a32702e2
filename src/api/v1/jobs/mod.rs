//! Jobs: bulk work in the background.

pub mod handlers;
pub mod model;
