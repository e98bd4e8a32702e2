//! Dead letters.

pub mod handlers;
pub mod model;
