//! Deliveries: content, order and rate at receivers, and protection against abusive receivers and
//! clients.
//!
//! `egress` holds the attack table of addresses, names and TLS, `receivers` that of replies,
//! `abuse` that of clients.

#![expect(clippy::unwrap_used, reason = "a test fails on an error")]

#[path = "../support/mod.rs"]
mod support;

mod abuse;
mod egress;
mod end_to_end;
mod lanes;
mod rate;
mod receivers;
mod redrive;
mod statuses;
mod tenants;
mod traces;
