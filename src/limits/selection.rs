//! Bounds of labels and filters.

/// Most labels of an event, an endpoint or a queue.
pub const LABELS_MAX: usize = 10;
/// Longest label, in bytes.
pub const LABEL_BYTES_MAX: usize = 128;
/// Longest filter of an endpoint or a queue, in bytes of JSON.
pub const FILTER_BYTES_MAX: usize = 8 * 1024;
/// Maximum nesting of a filter, and of the values in it.
pub const FILTER_DEPTH_MAX: usize = 16;
/// Most comparisons of one filter: operators, and the values of lists.
pub const FILTER_COMPARISONS_MAX: usize = 256;
/// Most comparisons of a tenant's different filters.
pub const TENANT_COMPARISONS_MAX: usize = 10_000;
/// Values of an event that one comparison looks at. Together: 10,000,000 steps of nanoseconds.
pub const FILTER_VALUES_MAX: usize = 1_000;
