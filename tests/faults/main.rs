//! Faults: kills, shutdown, disks that fail or fill up, power cuts, clocks that jump, files that are
//! damaged, old or foreign, logs that nobody reads. Acknowledged events survive.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod backup;
mod clocks;
mod crashes;
mod disk;
mod files;
mod fuzz;
mod golden;
mod logging;
mod power;
mod restarts;
mod shutdown;
mod syscalls;
