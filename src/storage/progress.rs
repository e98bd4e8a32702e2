//! Progress of a long operation.

/// Completed and total units of a long operation. The operation defines the unit: positions, bytes
/// or rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkProgress {
    pub done: u64,
    pub total: u64,
}

/// Progress callback, called up to a few hundred times a second.
pub type OnProgress<'a> = &'a mut dyn FnMut(WorkProgress);
