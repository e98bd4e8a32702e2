//! How far long work has come, for whoever shows it.

/// So much of so much. What is counted (positions, bytes, rows) is known to whoever asked for the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkProgress {
    pub done: u64,
    pub total: u64,
}

/// Hears of progress, up to some hundred times a second.
pub type OnProgress<'a> = &'a mut dyn FnMut(WorkProgress);
