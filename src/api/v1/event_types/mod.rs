//! Event types: registered schemas, migrations and compatibility.

pub mod handlers;
pub mod model;
pub mod pins;
