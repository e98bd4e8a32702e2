//! Faults: processes that are killed or stopped, disks that fail or fill up, clocks that jump,
//! files that are damaged, old or foreign. Acknowledged data survives, and losses are reported.

#![expect(clippy::unwrap_used, reason = "a test fails on an error")]

#[path = "../support/mod.rs"]
mod support;

mod backup;
mod clocks;
mod consumers;
mod crashes;
mod disk;
mod disk_reserve;
mod erasure;
mod files;
mod fuzz;
mod golden;
mod logging;
mod power;
mod rebuild;
mod restarts;
mod shutdown;
mod streams;
mod syscalls;
mod traces;
mod workers;
