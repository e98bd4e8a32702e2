//! The conditions of an endpoint on events, beside their types.

use super::Label;

/// The conditions of an endpoint or a queue on the content and the labels of events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventSelection {
    /// The text of a JSON object; see [`crate::filters`]. `None`: any content.
    pub filter: Option<Box<str>>,
    /// Sorted, without duplicates. An event must have one of them. Empty: any event.
    pub labels: Vec<Label>,
}

impl EventSelection {
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.filter.is_none() && self.labels.is_empty()
    }

    /// Whether an event with these labels is wanted.
    #[must_use]
    pub fn admits_labels(&self, labels: &[Label]) -> bool {
        self.labels.is_empty() || self.labels.iter().any(|label| labels.contains(label))
    }
}
