//! Faults: processes killed or told to stop, disks that fail or fill up, clocks that jump, files that are damaged, old or
//! foreign. What was acknowledged holds, and what is lost is named.

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
