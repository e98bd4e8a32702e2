//! Overview of all tenants, or of one: statistics and lanes.

pub mod handlers;
pub mod model;
