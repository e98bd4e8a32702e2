//! Projections: list, rebuild.

use super::model::ProjectionBody;
use crate::api::Call;
use crate::api::http::problem::Problem;
use crate::api::http::response::{Accepted, Json};
use crate::api::v1::lists::ListBody;
use crate::domain::Audience;
use crate::service::Projections;

/// `GET /v1/projections`: the state and all consumers; for a key of one tenant, its consumers and
/// the state's position without the numbers of all tenants.
pub async fn list(call: &Call) -> Result<Json<ListBody<ProjectionBody>>, Problem> {
    let projections = Projections(&call.api.context);
    let mut state = ProjectionBody::from(projections.state().await?);
    if call.principal.audience() == Audience::Tenant {
        (state.rows, state.bytes, state.rebuild) = (None, None, None);
    }
    let consumers = projections.consumers(call.principal.scope.0.as_ref()).await?;
    let data = std::iter::once(state).chain(consumers.into_iter().map(ProjectionBody::from)).collect();
    Ok(Json::new(&ListBody { data, next: None }))
}

/// `POST /v1/projections/state/rebuild`: the answer shows the state with its `rebuild`.
///
/// # Errors
/// 409 while another rebuild runs, 507 without free disk space.
pub async fn rebuild(call: &Call) -> Result<Accepted<ProjectionBody>, Problem> {
    let projections = Projections(&call.api.context);
    if !projections.rebuild_state().await? {
        return Err(Problem::Conflict("a rebuild of the state runs already".to_owned()));
    }
    Ok(Accepted::new(&ProjectionBody::from(projections.state().await?)))
}
