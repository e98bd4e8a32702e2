//! Dead letters: reading, redriving, purging.

pub mod handlers;
pub mod model;
