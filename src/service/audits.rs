//! The audit log: the acts of operators.

use std::sync::Arc;

use crate::context::Context;
use crate::domain::{AuditEntry, Position, Record, Tenant};
use crate::outbox::draft::Unavailable;
use crate::projections::acts::AuditFilter;
use crate::projections::reads::Cursor;
use crate::service::pages::Pages;
use crate::service::types::Page;

/// Reads of the audit log.
#[derive(Clone, Copy)]
pub struct Audits<'a>(pub &'a Context);

impl Audits<'_> {
    /// Entries with their positions, newest first.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn list(
        self,
        filter: AuditFilter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Page<(Position, Arc<AuditEntry>)>, Unavailable> {
        let page = Pages(self.0)
            .collect(None, after, limit, move |state, after, limit| {
                state.audit_entries(&filter, after, limit)
            })
            .await?;
        let mut items = Vec::with_capacity(page.items.len());
        for position in page.items {
            if let Some(Record::Audited(entry)) = self.0.record_at(position).await? {
                items.push((position, entry));
            }
        }
        Ok(Page { items, next: page.next, as_of: page.as_of })
    }

    /// Records an act that is not a commit, such as the read of a secret, before it is done.
    ///
    /// # Errors
    /// When the commit failed. The act must not be done then.
    pub async fn record(self, tenant: Option<Tenant>) -> Result<(), Unavailable> {
        self.0.record_act(tenant).await
    }
}
