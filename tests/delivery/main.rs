//! Deliveries: order, rate, redrive and traces on real requests; clients and receivers that
//! misbehave.
//!
//! `egress` holds the attack table of addresses, names and TLS; `receivers` that of replies;
//! `abuse` that of clients.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

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
mod traces;
