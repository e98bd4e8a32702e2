//! Signing secrets and public keys of an endpoint, and the rotation of secrets.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::handlers::{find, find_writable, write};
use super::settings;
use crate::api::Call;
use crate::api::http::problem::{Errors, Problem};
use crate::api::http::request::Optional;
use crate::api::http::response::Json;
use crate::api::text::Time;
use crate::api::v1::changes::until_written;
use crate::domain::{Endpoint, Sealed, Secret, SecretKind, SignatureScheme, Timestamp};
use crate::rules::signature::{self, SecretError, SigningKey};
use crate::service::{Audits, Secrets};

const OVERLAP_DEFAULT: Duration = Duration::from_secs(24 * 3600);
const OVERLAP_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretBody {
    pub secret: String,
    /// The public key of an ed25519 secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Rotated secrets that still sign.
    pub previous: Vec<PreviousSecret>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreviousSecret {
    pub secret: String,
    pub expires_at: Option<Time>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PublicKeysBody {
    /// The current key first; empty without an active ed25519 key.
    pub public_keys: Vec<PublicKeyBody>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PublicKeyBody {
    /// `whpk_` and base64.
    pub public_key: String,
    /// When a rotated key stops signing; null for the current key.
    pub expires_at: Option<Time>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotateInput {
    /// The same rules as for a new endpoint. Default: generated.
    secret: Option<String>,
    /// Type of the generated secret: `hmac` or `ed25519`. Default: the type of the current secret.
    #[schemars(extend("enum" = ["hmac", "ed25519", null]))]
    secret_type: Option<String>,
    /// How long the old secret also signs, 0s to 30d; default 24h.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    overlap: Option<String>,
}

/// The secret in a request, or the kind of secret to generate.
pub(super) enum RequestedSecret {
    Given(SigningKey),
    /// `None`: the kind of the current secret, or `hmac`.
    Generated(Option<SecretKind>),
}

pub(super) fn requested_secret(
    secret: Option<&str>,
    kind: Option<&str>,
    schemes: &[SignatureScheme],
    errors: &mut Errors,
) -> RequestedSecret {
    let kind = settings::parse_secret_type(kind, errors);
    if kind == Some(SecretKind::Ed25519) && !schemes.iter().all(signature::needs_standard_key) {
        errors.push("/secretType", SecretError::NotSymmetric.to_string());
    }
    match (secret, kind) {
        (Some(_), Some(_)) => errors.push("/secretType", "applies only to a generated secret"),
        (Some(text), None) => {
            let parsed = SigningKey::parse_for(text, schemes).map_err(|error| error.to_string());
            if let Some(key) = errors.check("/secret", parsed) {
                return RequestedSecret::Given(key);
            }
        }
        (None, _) => {}
    }
    RequestedSecret::Generated(kind)
}

/// An unsealed secret. The commit thread seals it.
pub(super) fn to_secret(key: &SigningKey) -> Secret {
    Secret { kind: key.kind, key: Sealed::Plain(key.bytes[..].into()), expires_at: None }
}

pub(super) fn unreadable_secret(error: &impl std::fmt::Display) -> Problem {
    Problem::Unavailable(format!("the endpoint's secret: {error}"))
}

pub(super) type LiveKeys = Vec<(SigningKey, Option<Timestamp>)>;

pub(super) fn live_keys(call: &Call, endpoint: &Endpoint) -> Result<LiveKeys, Problem> {
    let now = call.api.context.now().wall;
    Secrets(&call.api.context).live_keys(endpoint, now).map_err(|error| unreadable_secret(&error))
}

fn secret_response(call: &Call, endpoint: &Endpoint) -> Result<Json<SecretBody>, Problem> {
    let mut live = live_keys(call, endpoint)?.into_iter();
    let current = live.next().map(|(key, _)| key);
    let body = SecretBody {
        secret: current.as_ref().map(SigningKey::text).unwrap_or_default(),
        public_key: current.as_ref().and_then(SigningKey::public_text),
        previous: live
            .map(|(key, expires_at)| PreviousSecret { secret: key.text(), expires_at: expires_at.map(Time) })
            .collect(),
    };
    Ok(Json::new(&body))
}

/// `GET /v1/endpoints/{id}/secret`
pub async fn secret(call: &Call) -> Result<Json<SecretBody>, Problem> {
    let endpoint = find_writable(call)?;
    Audits(&call.api.context).record(Some(endpoint.tenant.clone())).await?;
    secret_response(call, &endpoint)
}

/// `GET /v1/endpoints/{id}/public-keys`
pub async fn public_keys(call: &Call) -> Result<Json<PublicKeysBody>, Problem> {
    let endpoint = find(call)?;
    let keys = live_keys(call, &endpoint)?.into_iter();
    let public_keys = keys
        .filter_map(|(key, expires_at)| {
            Some(PublicKeyBody { public_key: key.public_text()?, expires_at: expires_at.map(Time) })
        })
        .collect();
    Ok(Json::new(&PublicKeysBody { public_keys }))
}

/// `POST /v1/endpoints/{id}/secret/rotate`
pub async fn rotate(
    call: &Call,
    Optional(input): Optional<RotateInput>,
) -> Result<Json<SecretBody>, Problem> {
    let now = call.api.context.now().wall;
    call.run_once(call.principal.scope_text(), async |key| {
        until_written(call, || async {
            let endpoint = find_writable(call)?;
            let changed = rotate_secret(call, &endpoint, &input, now)?;
            let response = secret_response(call, &changed)?;
            let written = write(call, endpoint, changed, response.to_stored(key.clone())).await?;
            Ok(written.map(|_| response))
        })
        .await
    })
    .await
}

fn rotate_secret(
    call: &Call,
    endpoint: &Endpoint,
    input: &RotateInput,
    now: Timestamp,
) -> Result<Endpoint, Problem> {
    let context = &call.api.context;
    let mut errors = Errors::default();
    let (secret, kind) = (input.secret.as_deref(), input.secret_type.as_deref());
    let requested = requested_secret(secret, kind, &endpoint.signatures, &mut errors);
    let bounds = (Duration::ZERO, OVERLAP_MAX);
    let overlap = settings::parse_duration_within(
        &mut errors,
        "/overlap",
        input.overlap.as_deref(),
        OVERLAP_DEFAULT,
        bounds,
    );
    errors.finish()?;
    let key = match requested {
        RequestedSecret::Given(key) => key,
        RequestedSecret::Generated(kind) => {
            let current = endpoint.secrets.first().map(|secret| secret.kind);
            let current = current.filter(|kind| *kind != SecretKind::Text);
            Secrets(context).new_key(kind.or(current).unwrap_or(SecretKind::Hmac))
        }
    };
    // Unsealed, because the expiry times of its secrets change.
    let endpoint = &Secrets(context).opened(endpoint).map_err(|error| unreadable_secret(&error))?;
    let equals_new = |old: &Secret| Secrets(context).open_key(endpoint, old).is_ok_and(|old| old == key);
    if endpoint.secrets.first().is_some_and(equals_new) {
        return Err(Problem::invalid("/secret", "this is the current secret"));
    }
    let secrets = signature::rotate(&endpoint.secrets, to_secret(&key), equals_new, overlap, now);
    let secrets = secrets.map_err(|error| Problem::Conflict(error.to_string()))?;
    Ok(Endpoint { secrets, ..endpoint.clone() })
}
