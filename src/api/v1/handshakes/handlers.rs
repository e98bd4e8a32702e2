//! Handshakes: repeating the request, and the callbacks by which receivers grant consent.

use super::model::Granted;
use crate::api::Call;
use crate::api::http::problem::{FieldError, Problem};
use crate::api::http::request::Nothing;
use crate::api::http::response::{Accepted, Json};
use crate::api::v1::endpoints::handlers::{change, conflict_unless_active, endpoint_body};
use crate::api::v1::endpoints::model::EndpointBody;
use crate::domain::{Endpoint, EndpointId};
use crate::rules::handshake;
use crate::service::Handshakes;
use crate::service::types::ChangeError;

/// The path of callbacks; endpoint id, a dot and a token follow.
const CALLBACKS: &str = "/v1/handshakes/";
const ALLOWED_RATE: &str = "webhook-allowed-rate";

/// The prefix of callback URLs below `public_url`.
#[must_use]
pub fn callback_base(public_url: &str) -> String {
    format!("{}{CALLBACKS}", public_url.trim_end_matches('/'))
}

/// `POST /v1/endpoints/{id}/handshake`
pub async fn repeat(call: &Call, _: Nothing) -> Result<Accepted<EndpointBody>, Problem> {
    let changed = change(call, |endpoint| {
        let Some(current) = &endpoint.handshake else {
            return Err(Problem::Conflict("the endpoint has no handshake".to_owned()));
        };
        conflict_unless_active(endpoint)?;
        Ok(Endpoint { handshake: Some(handshake::restart_handshake(current)), ..endpoint.clone() })
    });
    Ok(Accepted::new(&endpoint_body(call, &*changed.await?)))
}

/// `GET` and `POST /v1/handshakes/{token}`. Used and unknown tokens get the same response.
pub async fn grant(call: &Call) -> Result<Json<Granted>, Problem> {
    let unknown = || Problem::NotFound("unknown or used callback".to_owned());
    let (id, token) = call.id.rsplit_once('.').ok_or_else(unknown)?;
    let id: EndpointId = id.parse().map_err(|_| unknown())?;
    let lines = call.headers.get_all(ALLOWED_RATE).iter();
    let lines: Vec<_> = lines.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    let rate = (!lines.is_empty()).then(|| lines.join(", "));
    match Handshakes(&call.api.context).grant(&id, token, rate.as_deref()).await {
        Ok(()) => Ok(Json::new(&Granted { status: "consented" })),
        Err(ChangeError::NotFound) => Err(unknown()),
        Err(ChangeError::NotAllowed(detail)) => {
            Err(Problem::Validation(vec![FieldError::header(ALLOWED_RATE, detail)]))
        }
        Err(
            error @ (ChangeError::Conflict
            | ChangeError::Erased
            | ChangeError::UidTaken
            | ChangeError::Repeated
            | ChangeError::TooManyJobs
            | ChangeError::QuotaExceeded(_)
            | ChangeError::Store(_)),
        ) => Err(error.into()),
    }
}
