//! The whole engine in a simulated world, on one thread, by a seed.

pub(super) mod receivers;
