//! The audit log: list.

use super::model::AuditBody;
use crate::api::Call;
use crate::api::http::problem::Problem;
use crate::api::http::response::Json;
use crate::api::v1::jobs::model::is_visible;
use crate::api::v1::lists::{self, List, ListBody};
use crate::domain::KeyId;
use crate::limits;
use crate::service::Audits;
use crate::service::types::AuditFilter;

/// `GET /v1/audit`
pub async fn list(call: &Call) -> Result<Json<ListBody<AuditBody>>, Problem> {
    let (since, until) = call.query.window()?;
    // `actor` and `action` have the syntax of an id of a key.
    let id = |name| call.query.get::<KeyId>(name).map(|id| id.map(|id| id.as_str().into()));
    if call.query.text("target").is_some_and(|target| target.len() > limits::NAME_BYTES_MAX) {
        let text = format!("must be at most {} bytes", limits::NAME_BYTES_MAX);
        return Err(Problem::parameter("target", text));
    }
    let filter = AuditFilter {
        tenant: call.principal.tenant_filter(call.query.owner()?)?,
        actor: id("actor")?,
        action: id("action")?,
        target: call.query.text("target").map(Into::into),
        since,
        until,
    };
    let (after, limit) = (call.query.cursor(List::Audit)?, call.query.limit()?);
    let scope = &call.principal.scope;
    let page = Audits(&call.api.context).list(filter, after, limit).await?;
    // A filter by a key of another tenant must not tell which entries are its.
    let hides = |entry: &crate::domain::AuditEntry| {
        call.query.text("actor").is_some() && !is_visible(&entry.actor, scope)
    };
    let shown = page.items.iter().filter(|(_, entry)| !hides(entry));
    let data = shown.map(|(position, entry)| AuditBody::new(*position, entry, scope)).collect();
    Ok(lists::page_reply(&call.path, &call.query, List::Audit, &page, data))
}
