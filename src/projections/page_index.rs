//! Which pages a list looks at: all, those with events of a tenant, or of a stream.

use super::pages::{self, first_position, last_position, page_of};
use super::rows::Rows;
use super::{streams, tenant_pages};

/// Most tenants with streams for which a list of one stream over all tenants uses the streams.
const TENANTS_MAX: usize = 64;

/// Pages that may have wanted events. All wanted events are on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageIndex<'a> {
    All,
    Tenant(&'a str),
    /// The streams of this name of some tenants.
    Streams(Vec<Box<str>>, &'a str),
}

impl<'a> PageIndex<'a> {
    /// The fewest pages that have all events of a tenant (of all if `None`) and of a stream.
    #[must_use]
    pub fn new(rows: &dyn Rows, tenant: Option<&'a str>, stream: Option<&'a str>) -> Self {
        let tenants = |stream| match tenant {
            Some(tenant) => Some(vec![tenant.into()]),
            None => streams::tenants_with(rows, stream, TENANTS_MAX),
        };
        let of_stream = stream.and_then(|stream| Some(Self::Streams(tenants(stream)?, stream)));
        of_stream.unwrap_or_else(|| tenant.map_or(Self::All, Self::Tenant))
    }

    /// The last page at or below `page`.
    #[must_use]
    pub fn at_or_below(&self, rows: &dyn Rows, page: u64) -> Option<u64> {
        match self {
            Self::All => pages::page_at_or_below(rows, page),
            Self::Tenant(tenant) => tenant_pages::page_at_or_below(rows, tenant, page),
            Self::Streams(tenants, stream) => {
                let last = last_position(page);
                let newest =
                    tenants.iter().filter_map(|tenant| streams::newest_until(rows, (tenant, stream), last));
                newest.max().map(page_of)
            }
        }
    }

    /// The first page at or above `page`.
    #[must_use]
    pub fn at_or_above(&self, rows: &dyn Rows, page: u64) -> Option<u64> {
        match self {
            Self::All => pages::page_at_or_above(rows, page),
            Self::Tenant(tenant) => tenant_pages::page_at_or_above(rows, tenant, page),
            Self::Streams(tenants, stream) => {
                let first = crate::domain::Position(first_position(page));
                let oldest =
                    tenants.iter().filter_map(|tenant| streams::oldest_from(rows, (tenant, stream), first));
                oldest.min().map(page_of)
            }
        }
    }
}

#[cfg(test)]
mod tests;
