//! Iteration over rows in sled, among them those of bundles.

use std::cell::OnceCell;
use std::ops::Range;

use super::{Row, bundles, record_failure};

/// Rows of a range of keys, from both ends.
pub(crate) struct SledRange<'a> {
    values: sled::Iter,
    from: Vec<u8>,
    to: Vec<u8>,
    /// The rest of the bundles that were read from the front and from the back.
    front: std::vec::IntoIter<Row>,
    back: std::vec::IntoIter<Row>,
    failure: &'a OnceCell<String>,
}

/// A value of sled as rows.
enum Rows {
    One(Row),
    Several(std::vec::IntoIter<Row>),
}

impl<'a> SledRange<'a> {
    pub(super) fn new(values: sled::Iter, range: Range<&[u8]>, failure: &'a OnceCell<String>) -> Self {
        let (from, to) = (range.start.to_vec(), range.end.to_vec());
        let (front, back) = (Vec::new().into_iter(), Vec::new().into_iter());
        Self { values, from, to, front, back, failure }
    }

    /// The rows of a value that are in the range. Records a failure and returns `None` if they
    /// cannot be told apart.
    fn rows(&self, (key, value): Row) -> Option<Rows> {
        if !bundles::is_bundled(&key) {
            return Some(Rows::One((key, value)));
        }
        match bundles::rows(&key, &value) {
            Ok(mut rows) => {
                rows.retain(|(key, _)| *self.from <= **key && **key < *self.to);
                Some(Rows::Several(rows.into_iter()))
            }
            Err(error) => {
                record_failure(self.failure, &error);
                None
            }
        }
    }
}

/// Returns the next value. An error ends the range and is recorded.
pub(super) fn end_on_failure(row: Option<sled::Result<Row>>, failure: &OnceCell<String>) -> Option<Row> {
    match row? {
        Ok(row) => Some(row),
        Err(error) => {
            record_failure(failure, &error);
            None
        }
    }
}

impl Iterator for SledRange<'_> {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        loop {
            if let Some(row) = self.front.next() {
                return Some(row);
            }
            let Some(value) = end_on_failure(self.values.next(), self.failure) else {
                return self.back.next();
            };
            match self.rows(value)? {
                Rows::One(row) => return Some(row),
                Rows::Several(rows) => self.front = rows,
            }
        }
    }
}

impl DoubleEndedIterator for SledRange<'_> {
    fn next_back(&mut self) -> Option<Row> {
        loop {
            if let Some(row) = self.back.next_back() {
                return Some(row);
            }
            let Some(value) = end_on_failure(self.values.next_back(), self.failure) else {
                return self.front.next_back();
            };
            match self.rows(value)? {
                Rows::One(row) => return Some(row),
                Rows::Several(rows) => self.back = rows,
            }
        }
    }
}
