//! What survives a crash.
//!
//! Owns: the bytes on disk, their order and their durability. Must never know HTTP, clocks or randomness: times and
//! salts are arguments.

pub mod codec;
pub mod disk;
pub mod journal;
