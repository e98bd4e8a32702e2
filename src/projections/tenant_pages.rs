//! Index of pages by tenant (`t`): a walk for one tenant visits only pages with its events.
//!
//! A span covers [`SPAN_PAGES`] pages. A tenant has a row for each span in which it has events: the
//! numbers of its pages within the span, ascending, with two bytes each. Only the first event of a
//! tenant on a page changes a row. Invariant: a page is listed exactly while the rows have an event
//! of the tenant on it. Readers tolerate pages without such an event.

use std::collections::HashSet;
use std::ops::ControlFlow;

use super::rows::{Key, Rows, u64_at};
use crate::failpoints::{self, Bound, Mutation};
use crate::limits;

/// Pages per span.
const SPAN_PAGES: u64 = 1_024;
/// Bytes of a page's number within its span.
const NUMBER_BYTES: usize = 2;
/// Bytes of the span's number, at the end of a key.
const SPAN_BYTES: usize = 8;
const _: () = assert!(SPAN_PAGES <= 1 << (8 * NUMBER_BYTES));
const _: () = assert!(SPAN_PAGES as usize * NUMBER_BYTES <= limits::STATE_VALUE_BYTES_MAX);

/// [`SPAN_PAGES`]; tests use smaller spans.
fn span_pages() -> u64 {
    failpoints::bound(Bound::SpanPages, SPAN_PAGES as usize) as u64
}

type Number = [u8; NUMBER_BYTES];

/// The numbers in a row's value. Big-endian, so that byte order is number order.
fn numbers(value: &[u8]) -> &[Number] {
    value.as_chunks().0
}

/// The row of a page, and the page's number in it.
fn place(tenant: &str, page: u64) -> (Vec<u8>, Number) {
    let number = u16::try_from(page % span_pages()).expect("a span has at most 65,536 pages");
    (key(tenant, page / span_pages()), number.to_be_bytes())
}

fn key(tenant: &str, span: u64) -> Vec<u8> {
    Key::new(b't').bytes(tenant.as_bytes()).bytes(&[0]).u64(span).0
}

fn page(key: &[u8], number: Number) -> u64 {
    let first = u64_at(key, key.len() - SPAN_BYTES).saturating_mul(span_pages());
    first.saturating_add(u64::from(u16::from_be_bytes(number)))
}

/// Whether the page is listed.
pub(super) fn lists(rows: &dyn Rows, tenant: &str, page: u64) -> bool {
    let (key, number) = place(tenant, page);
    rows.get(&key).is_some_and(|value| numbers(&value).binary_search(&number).is_ok())
}

/// Lists a page.
fn add(rows: &mut dyn Rows, tenant: &str, page: u64) {
    let (key, number) = place(tenant, page);
    let mut value = rows.get(&key).unwrap_or_default();
    if let Err(at) = numbers(&value).binary_search(&number) {
        let at = at * NUMBER_BYTES;
        value.splice(at..at, number);
        rows.put(&key, value);
    }
}

/// Unlists a page without events of the tenant.
pub(super) fn remove(rows: &mut dyn Rows, tenant: &str, page: u64) {
    let (key, number) = place(tenant, page);
    let mut value = rows.get(&key).unwrap_or_default();
    if let Ok(at) = numbers(&value).binary_search(&number) {
        let at = at * NUMBER_BYTES;
        value.drain(at..at + NUMBER_BYTES);
        if value.is_empty() { rows.remove(&key) } else { rows.put(&key, value) }
    }
}

/// The last page at or below `at` that has events of the tenant.
pub(super) fn page_at_or_below(rows: &dyn Rows, tenant: &str, at: u64) -> Option<u64> {
    let (last, number) = place(tenant, at);
    let mut found = None;
    rows.scan_back(&key(tenant, 0), &[&last[..], &[0]].concat(), &mut |key, value| {
        let all = numbers(value);
        let count = if *key == last { all.partition_point(|one| *one <= number) } else { all.len() };
        found = all[..count].last().map(|number| page(key, *number));
        if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    found
}

/// The first page at or above `at` that has events of the tenant.
pub(super) fn page_at_or_above(rows: &dyn Rows, tenant: &str, at: u64) -> Option<u64> {
    let (first, number) = place(tenant, at);
    let mut found = None;
    let end = [&key(tenant, u64::MAX)[..], &[0]].concat();
    rows.scan(&first, &end, &mut |key, value| {
        let all = numbers(value);
        let skipped = if *key == first { all.partition_point(|one| *one < number) } else { 0 };
        found = all[skipped..].first().map(|number| page(key, *number));
        if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    found
}

/// The tenant of a row, and the number of pages that it lists. `None` for a malformed row.
pub(super) fn read<'a>(key: &'a [u8], value: &[u8]) -> Option<(&'a str, u64)> {
    let (tenant, span) = key.get(1..)?.split_last_chunk::<SPAN_BYTES>()?;
    let tenant = std::str::from_utf8(tenant.strip_suffix(&[0])?).ok()?;
    let (all, rest) = value.as_chunks::<NUMBER_BYTES>();
    let is_ascending = all.windows(2).all(|pair| pair[0] < pair[1]);
    let is_within = |number: &Number| u64::from(u16::from_be_bytes(*number)) < span_pages();
    let is_sound = is_ascending && rest.is_empty() && all.last().is_some_and(is_within);
    let is_span = u64::from_be_bytes(*span) <= u64::MAX / span_pages();
    (is_sound && is_span).then_some((tenant, all.len() as u64))
}

/// The tenants with events on the newest page, so that most events read and write no row. Its
/// memory is bounded by the positions of a page.
#[derive(Debug, Default)]
pub(super) struct OpenPage {
    page: Option<u64>,
    /// The rows can list the page only for `tenants`.
    is_whole: bool,
    tenants: HashSet<Box<str>>,
}

impl OpenPage {
    /// Lists the page of a new event of the tenant. Call this for events in order of position.
    pub(super) fn note(&mut self, rows: &mut dyn Rows, tenant: &str, page: u64) {
        if self.page != Some(page) {
            // All events of a page that follows another one are noted here. The first page may have
            // begun before a restart.
            let is_whole = self.page.is_some_and(|before| before < page);
            *self = Self { page: Some(page), is_whole, tenants: HashSet::new() };
        }
        if self.tenants.contains(tenant) {
            return;
        }
        if failpoints::is_active(Mutation::ForgetTenantPage) && !self.tenants.is_empty() {
            return;
        }
        self.tenants.insert(tenant.into());
        if self.is_whole {
            let (key, number) = place(tenant, page);
            rows.append(&key, &number);
        } else {
            add(rows, tenant, page);
        }
    }

    /// Call this when events of a page were deleted.
    pub(super) fn forget(&mut self, page: u64) {
        if self.page == Some(page) && !failpoints::is_active(Mutation::TrustOpenPage) {
            self.is_whole = false;
            self.tenants.clear();
        }
    }
}

#[cfg(test)]
mod tests;
