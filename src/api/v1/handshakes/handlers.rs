//! The handshake of web hooks as the API has it: asking again, and the callbacks by which receivers agree.

use super::model::Granted;
use crate::api::Call;
use crate::api::http::problem::{FieldError, Problem};
use crate::api::http::reply::Reply;
use crate::api::v1::endpoints::handlers::{change, conflict_unless_active, shown};
use crate::domain::{Endpoint, EndpointId};
use crate::rules::handshake;
use crate::service::Handshakes;
use crate::service::types::ChangeError;

/// Where callbacks go; the endpoint's id, a dot and a token follow.
const CALLBACKS: &str = "/v1/handshakes/";
const ALLOWED_RATE: &str = "webhook-allowed-rate";

/// What the URLs of callbacks begin with, for a daemon that is reached at `public_url`.
#[must_use]
pub fn callback_base(public_url: &str) -> String {
    format!("{}{CALLBACKS}", public_url.trim_end_matches('/'))
}

/// `POST /v1/endpoints/{id}/handshake`
pub async fn ask(call: &Call) -> Result<Reply, Problem> {
    let changed = change(call, |endpoint| {
        let Some(present) = &endpoint.handshake else {
            return Err(Problem::Conflict("the endpoint has no handshake".to_owned()));
        };
        conflict_unless_active(endpoint)?;
        Ok(Endpoint { handshake: Some(handshake::asked_anew(present)), ..endpoint.clone() })
    });
    Ok(Reply::json(202, &shown(call, &*changed.await?)))
}

/// `GET` and `POST /v1/handshakes/{token}`. What was never good is answered as what is no longer.
pub async fn grant(call: &Call) -> Result<Reply, Problem> {
    let unknown = || Problem::NotFound("this callback is not known, or has been used".to_owned());
    let (id, token) = call.id.rsplit_once('.').ok_or_else(unknown)?;
    let id: EndpointId = id.parse().map_err(|_| unknown())?;
    let lines = call.headers.get_all(ALLOWED_RATE).iter();
    let lines: Vec<_> = lines.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    let rate = (!lines.is_empty()).then(|| lines.join(", "));
    match Handshakes(&call.api.context).grant(&id, token, rate.as_deref()).await {
        Ok(()) => Ok(Reply::json(200, &Granted { status: "consented" })),
        Err(ChangeError::NotFound) => Err(unknown()),
        Err(ChangeError::NotAllowed(detail)) => {
            Err(Problem::Validation(vec![FieldError::header(ALLOWED_RATE, detail)]))
        }
        Err(error @ (ChangeError::Conflict | ChangeError::Repeated | ChangeError::Store(_))) => {
            Err(error.into())
        }
    }
}
