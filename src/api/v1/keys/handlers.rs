//! API keys. The response to the creation contains the secret; only its hash is stored.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::model::{KeyBody, KeyInput, KeyPatch};
use crate::api::http::problem::{Errors, Problem};
use crate::api::http::request::{MergePatch, Required};
use crate::api::http::response::{Created, Json, NoContent};
use crate::api::http::{auth, body};
use crate::api::v1::lists::{self, List, ListBody};
use crate::api::{Call, not_found, text};
use crate::domain::{ApiKey, Idempotency, KeyId, Role, Tenant, Timestamp};
use crate::service::Keys;
use crate::service::pages::cut;

const SECRET_BYTES: usize = 32;
const DESCRIPTION_BYTES_MAX: usize = 1_024;

fn parse_role(word: &str) -> Result<Role, String> {
    Role::from_word(word).ok_or_else(|| format!("must be one of {}", Role::ALL.map(Role::as_str).join(", ")))
}

/// `POST /v1/keys`
pub async fn create(call: &Call, Required(input): Required<KeyInput>) -> Result<Created<KeyBody>, Problem> {
    let mut errors = Errors::default();
    let role = errors.check("/role", parse_role(&input.role));
    let tenant: Option<Tenant> = input.tenant.and_then(|tenant| errors.check("/tenant", tenant.parse()));
    let description = check_description(input.description, &mut errors);
    if tenant.as_ref().is_some_and(|tenant| tenant.as_str() == Tenant::OPERATOR) && role != Some(Role::Viewer)
    {
        errors.push("/tenant", "the tenant `balto` is reserved; only a viewer can be bound to it");
    }
    let now = call.api.context.now().wall;
    let expires_at = input.expires_at.and_then(|text| errors.check("/expiresAt", text::parse_time(&text)));
    if expires_at.is_some_and(|at| at <= now) {
        errors.push("/expiresAt", "must be in the future");
    }
    errors.finish()?;
    let key = NewKey { role: role.unwrap_or(Role::Viewer), tenant, description, expires_at };
    call.run_once(call.principal.scope_text(), async |idempotency| create_key(call, &key, idempotency).await)
        .await
}

/// Checks the text for people. Lists show it in one line, so it has no control characters.
fn check_description(text: Option<String>, errors: &mut Errors) -> Box<str> {
    let text = text.unwrap_or_default();
    if text.len() > DESCRIPTION_BYTES_MAX {
        errors.push("/description", format!("at most {DESCRIPTION_BYTES_MAX} bytes"));
    }
    if text.chars().any(char::is_control) {
        errors.push("/description", "must have no control characters");
    }
    text.into()
}

/// A validated request to create a key.
struct NewKey {
    role: Role,
    tenant: Option<Tenant>,
    description: Box<str>,
    expires_at: Option<Timestamp>,
}

async fn create_key(
    call: &Call,
    new: &NewKey,
    idempotency: Option<Idempotency>,
) -> Result<Created<KeyBody>, Problem> {
    let context = &call.api.context;
    let secret = format!("balto_{}", URL_SAFE_NO_PAD.encode(context.random_bytes::<SECRET_BYTES>()));
    let key = ApiKey {
        id: Keys(context).new_id(),
        role: new.role,
        tenant: new.tenant.clone(),
        description: new.description.clone(),
        hash: auth::hash_secret(&secret),
        created_at: context.now().wall,
        expires_at: new.expires_at,
    };
    let mut body = KeyBody::new(&key, None);
    // The stored response must not contain the secret.
    let remember = Created::new(&body).to_stored(idempotency);
    body.secret = Some(secret);
    let location = format!("/v1/keys/{}", key.id);
    Keys(context).create(key, remember).await?;
    Ok(Created::new(&body).with_header("location", &location))
}

fn shown(call: &Call, key: &ApiKey) -> KeyBody {
    KeyBody::new(key, Keys(&call.api.context).last_use(&key.id))
}

/// `GET /v1/keys`
pub async fn list(call: &Call) -> Result<Json<ListBody<KeyBody>>, Problem> {
    let limit = call.query.limit()?;
    let after = call.query.text("cursor").map(|cursor| lists::decode(List::Keys, cursor)).transpose()?;
    let mut keys = Keys(&call.api.context).list();
    keys.retain(|key| after.as_ref().is_none_or(|after| sort_key(key) < *after));
    keys.sort_by_cached_key(|key| std::cmp::Reverse(sort_key(key)));
    let more = cut(&mut keys, limit);
    let next = keys.last().filter(|_| more).map(|key| lists::encode(List::Keys, &sort_key(key)));
    let data = keys.iter().map(|key| shown(call, key)).collect();
    Ok(lists::list_reply(&call.path, &call.query, data, next))
}

/// Sorts by time of creation, then by id.
fn sort_key(key: &ApiKey) -> Vec<u8> {
    let mut bytes = key.created_at.millis().to_be_bytes().to_vec();
    bytes.extend_from_slice(key.id.as_str().as_bytes());
    bytes
}

/// `GET /v1/keys/{id}`
pub async fn get(call: &Call) -> Result<Json<KeyBody>, Problem> {
    let id: KeyId = call.parse_id("key")?;
    let key = Keys(&call.api.context).get(&id).ok_or_else(|| not_found("key", &call.id))?;
    Ok(Json::new(&shown(call, &key)))
}

/// `PATCH /v1/keys/{id}`: its description. Role, tenant, secret and expiry are final.
pub async fn patch(
    call: &Call,
    MergePatch { patch, .. }: MergePatch<KeyPatch>,
) -> Result<Json<KeyBody>, Problem> {
    let id: KeyId = call.parse_id("key")?;
    let KeyPatch { description } = body::parse_value(patch)?;
    let mut errors = Errors::default();
    let description = check_description(description, &mut errors);
    errors.finish()?;
    let changed = Keys(&call.api.context).describe(&id, description).await;
    let key = changed.map_err(|error| call.change_problem(error, "key"))?;
    Ok(Json::new(&shown(call, &key)))
}

/// `DELETE /v1/keys/{id}`
pub async fn delete(call: &Call) -> Result<NoContent, Problem> {
    let id: KeyId = call.parse_id("key")?;
    Keys(&call.api.context).delete(&id).await.map_err(|error| call.change_problem(error, "key"))?;
    Ok(NoContent::empty())
}
