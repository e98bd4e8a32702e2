//! Tenants: settings, quotas, usage, deletion.

pub mod handlers;
pub mod model;
