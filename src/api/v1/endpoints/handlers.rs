//! Endpoints: create, list, get, change, delete, pause and resume.

use std::sync::Arc;

use serde_json::Value;

use super::amqp;
use super::model::{EndpointBody, EndpointInput, NewEndpointInput};
use super::outgoing::{TOKEN_URL, check_header_names, merge_auth};
use super::secrets::{RequestedSecret, live_keys, requested_secret, to_secret};
use super::selection::check_filter_room;
use super::settings::EndpointSettings;
use crate::api::http::problem::{Errors, Problem, pointer};
use crate::api::http::request::{MergePatch, Nothing, Required};
use crate::api::http::response::{Created, Json, NoContent};
use crate::api::v1::changes::{patched, unless_interrupted, until_written};
use crate::api::v1::event_types;
use crate::api::v1::lists::{self, List, ListBody};
use crate::api::{Call, not_found};
use crate::context::responses::Remember;
use crate::domain::{
    Audience, ClientCertificate, Endpoint, EndpointAuth, EndpointId, EndpointNumber, EndpointStatus,
    EndpointTransport, EndpointUid, Idempotency, Label, Pattern, Position, Sealed, SecretKind,
    SignatureScheme, Tenant,
};
use crate::limits;
use crate::rules::handshake;
use crate::rules::headers::is_secret;
use crate::service::endpoints::EndpointFilter;
use crate::service::types::{IdentityError, RefusedUrl, is_broker_url, is_same_origin};
use crate::service::{Endpoints, Secrets, Tenants};

/// Does not check unchanged headers in `kept`: they were legal when they were stored.
fn check_settings(
    call: &Call,
    input: &EndpointInput,
    kept: &[(Box<str>, Box<str>)],
    errors: &mut Errors,
) -> EndpointSettings {
    let check = |name: &str, value: &str| {
        let is_kept = kept.iter().any(|(one, other)| (&**one, &**other) == (name, value));
        if is_kept { Ok(()) } else { Endpoints(&call.api.context).check_header(name, value) }
    };
    input.settings(&call.config.defaults, check, errors)
}

/// Checks that the tenant's patterns together stay within their bound.
fn check_room(
    call: &Call,
    tenant: &Tenant,
    patterns: &[Pattern],
    replaced: Option<EndpointNumber>,
    errors: &mut Errors,
) {
    errors.check("/eventTypes", Endpoints(&call.api.context).check_patterns(tenant, patterns, replaced));
}

/// # Errors
/// `validation_failed` for a malformed URL, `forbidden_url` for one that policy rejects.
async fn check_url(call: &Call, url: &str) -> Result<Box<str>, Problem> {
    let checked = Endpoints(&call.api.context).check_url(url).await;
    checked.map_err(|refused| refused_url(call, refused))
}

/// As [`check_url`], of the endpoint itself: it may be the URL of a broker.
async fn check_own_url(call: &Call, url: &str) -> Result<Box<str>, Problem> {
    if !is_broker_url(url) {
        return check_url(call, url).await;
    }
    let checked = Endpoints(&call.api.context).check_broker_url(url).await;
    checked.map_err(|refused| refused_url(call, refused))
}

pub(in crate::api::v1) fn refused_url(call: &Call, refused: RefusedUrl) -> Problem {
    let forbidden = |detail| Problem::ForbiddenUrl { pointer: "/url", detail };
    match refused {
        RefusedUrl::Malformed(detail) => Problem::invalid("/url", detail),
        RefusedUrl::Forbidden(detail) => forbidden(detail.to_owned()),
        RefusedUrl::Blocked(blocked) => forbidden(match call.principal.audience() {
            Audience::Operator => blocked.operator_message(),
            // Tenants must not learn the addresses of this machine.
            Audience::Tenant => blocked.to_string(),
        }),
    }
}

fn url_text<'a>(input: &'a EndpointInput, errors: &mut Errors) -> &'a str {
    match input.url.as_deref() {
        None => errors.push("/url", "missing field `url`"),
        Some(url) if url.len() > limits::URL_BYTES_MAX => {
            errors.push("/url", format!("at most {} bytes", limits::URL_BYTES_MAX));
        }
        Some(_) => {}
    }
    input.url.as_deref().unwrap_or_default()
}

/// The headers with unsealed values. The commit thread seals them.
fn sensitive_headers(settings: &EndpointSettings) -> Vec<(Box<str>, Sealed)> {
    let plain =
        |(name, value): (&String, &String)| (name.as_str().into(), Sealed::Plain(value.as_bytes().into()));
    settings.sensitive_headers.iter().map(plain).collect()
}

/// Moves credentials to the sensitive headers: earlier versions stored them as plain headers.
fn move_secret_headers(endpoint: &Endpoint) -> Endpoint {
    let mut endpoint = endpoint.clone();
    let headers = std::mem::take(&mut endpoint.headers);
    let (secret, plain): (Vec<_>, _) = headers.into_iter().partition(|(name, _)| is_secret(name));
    endpoint.headers = plain;
    for (name, value) in secret {
        let name = name.to_ascii_lowercase();
        endpoint.sensitive_headers.push((name.into(), Sealed::Plain(value.as_bytes().into())));
    }
    endpoint.sensitive_headers.sort_by(|one, other| one.0.cmp(&other.0));
    endpoint
}

/// The sensitive headers after a change: those of the patch, and those in `kept` that it omits.
fn merge_sensitive_headers(
    kept: &[(Box<str>, Sealed)],
    patch: &Value,
    settings: &EndpointSettings,
    errors: &mut Errors,
) -> Vec<(Box<str>, Sealed)> {
    let change = patch.get("sensitiveHeaders");
    let names_in = |change: Option<&Value>, name: &str| {
        let object = change.and_then(Value::as_object);
        object.is_some_and(|object| object.keys().any(|key| key.eq_ignore_ascii_case(name)))
    };
    let named =
        |name: &str| names_in(change, name) || (is_secret(name) && names_in(patch.get("headers"), name));
    let removes_all = change.is_some_and(Value::is_null);
    let mut headers = kept.to_vec();
    headers.retain(|(name, _)| !removes_all && !named(name));
    for (name, _) in &settings.headers {
        if headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
            errors.push(pointer("/headers", name), "the header is also in `sensitiveHeaders`");
        }
    }
    headers.extend(sensitive_headers(settings));
    headers.sort_by(|one, other| one.0.cmp(&other.0));
    if headers.len() + settings.headers.len() > limits::HEADERS_MAX {
        errors.push("/sensitiveHeaders", format!("at most {} headers together", limits::HEADERS_MAX));
    }
    headers
}

fn parse_client_certificate(
    call: &Call,
    input: &EndpointInput,
    errors: &mut Errors,
) -> Option<ClientCertificate> {
    let input = input.client_certificate.as_ref()?;
    let checked = Secrets(&call.api.context).client_certificate(&input.certificate, &input.key);
    checked
        .map_err(|error| match error {
            IdentityError::Certificate(detail) => errors.push("/clientCertificate/certificate", detail),
            IdentityError::Key(detail) => errors.push("/clientCertificate/key", detail),
        })
        .ok()
}

fn check_certificate_url(certificate: Option<&ClientCertificate>, url: &str, errors: &mut Errors) {
    let is_secure =
        |scheme: &str| scheme.eq_ignore_ascii_case("https:") || scheme.eq_ignore_ascii_case("amqps:");
    if certificate.is_some() && !url.get(..6).is_some_and(is_secure) {
        errors.push("/clientCertificate", "requires an https or amqps URL");
    }
}

/// Checks a new token URL, and stores its canonical form.
///
/// # Errors
/// As [`check_url`].
async fn check_token_url(
    call: &Call,
    auth: Option<&mut EndpointAuth>,
    kept: Option<&EndpointAuth>,
) -> Result<(), Problem> {
    let Some(EndpointAuth::OAuth2(client)) = auth else { return Ok(()) };
    if matches!(kept, Some(EndpointAuth::OAuth2(kept)) if kept.token_url == client.token_url) {
        return Ok(());
    }
    client.token_url = check_url(call, &client.token_url).await.map_err(|problem| match problem {
        Problem::ForbiddenUrl { detail, .. } => {
            let detail = format!("`auth.oauth2.tokenUrl`: {detail}");
            Problem::ForbiddenUrl { pointer: TOKEN_URL, detail }
        }
        Problem::Validation(errors) => {
            let detail = errors.into_iter().next().map(|error| error.detail).unwrap_or_default();
            Problem::invalid(TOKEN_URL, detail)
        }
        other => other,
    })?;
    Ok(())
}

/// Reports a missing handshake, if the configuration requires one.
fn check_required_handshake(call: &Call, errors: &mut Errors) {
    if call.config.defaults.handshake_required {
        errors.push(
            "/handshake",
            "is required, because `handshake.required` is configured; `{}` asks the receiver for consent",
        );
    }
}

/// `POST /v1/endpoints`
pub async fn create(
    call: &Call,
    Required(NewEndpointInput(mut input)): Required<NewEndpointInput>,
) -> Result<Created<EndpointBody>, Problem> {
    let mut errors = Errors::default();
    amqp::lift_credentials(&mut input, &mut errors);
    let url = url_text(&input, &mut errors);
    let tenant = lists::check_owner(input.tenant.as_deref(), &mut errors);
    let mut settings = check_settings(call, &input, &[], &mut errors);
    let transport = amqp::check_transport(&input, &mut settings, &mut errors);
    let (secret, kind) = (input.secret.as_deref(), input.secret_type.as_deref());
    let secret = requested_secret(secret, kind, &settings.signatures, &mut errors);
    let id = Endpoints(&call.api.context).new_id();
    let client_certificate = parse_client_certificate(call, &input, &mut errors);
    check_certificate_url(client_certificate.as_ref(), url, &mut errors);
    if settings.headers.len() + settings.sensitive_headers.len() > limits::HEADERS_MAX {
        errors.push("/sensitiveHeaders", format!("at most {} headers together", limits::HEADERS_MAX));
    }
    if settings.handshake.is_none() && transport == EndpointTransport::Http {
        check_required_handshake(call, &mut errors);
    }
    // Only reports a missing secret.
    merge_auth(None, Some(settings.auth.clone()), &mut errors);
    errors.finish()?;
    let tenant = call.principal.tenant(tenant)?;
    call.principal.check_reserved(&tenant)?;
    let url = url.to_owned();
    let scope = tenant.to_string();
    call.run_once(&scope, async |key| {
        let new = NewEndpoint { id, tenant, url, transport, settings, secret, client_certificate };
        register(call, new, key).await
    })
    .await
}

/// A validated request to create an endpoint.
struct NewEndpoint {
    id: EndpointId,
    tenant: Tenant,
    url: String,
    transport: EndpointTransport,
    settings: EndpointSettings,
    secret: RequestedSecret,
    client_certificate: Option<ClientCertificate>,
}

async fn register(
    call: &Call,
    new: NewEndpoint,
    idempotency: Option<Idempotency>,
) -> Result<Created<EndpointBody>, Problem> {
    let NewEndpoint { id, tenant, url, transport, settings, secret, client_certificate } = new;
    let mut errors = Errors::default();
    check_room(call, &tenant, &settings.event_types, None, &mut errors);
    check_filter_room(call, &tenant, &settings.selection, None, &mut errors);
    event_types::pins::check(call, &settings.versions, &[], &mut errors);
    std::mem::take(&mut errors).finish()?;
    let url = check_own_url(call, &url).await?;
    let mut auth = settings.auth.as_ref().map(|settings| settings.auth.clone());
    check_token_url(call, auth.as_mut(), None).await?;
    let now = call.api.context.now().wall;
    let key = match secret {
        RequestedSecret::Given(key) => key,
        RequestedSecret::Generated(kind) => {
            Secrets(&call.api.context).new_key(kind.unwrap_or(SecretKind::Hmac))
        }
    };
    let tenant_settings = Tenants(&call.api.context).settings(&tenant);
    let delivery = tenant_settings.map(|settings| settings.delivery.clone()).unwrap_or_default();
    let endpoint = Endpoint {
        number: EndpointNumber(0),
        sensitive_headers: sensitive_headers(&settings),
        secrets: vec![to_secret(&key)],
        id,
        uid: settings.uid,
        tenant,
        transport,
        url,
        description: settings.description,
        event_types: settings.event_types,
        selection: settings.selection,
        headers: settings.headers,
        rate_limit: settings.rate_limit,
        max_in_flight: settings.max_in_flight.or(delivery.max_in_flight),
        timeout: settings.timeout.or(delivery.timeout),
        ordering: settings.ordering,
        retry: settings.retry.or(delivery.retry),
        format: settings.format,
        signatures: settings.signatures,
        request: settings.request,
        auth,
        handshake: settings.handshake,
        client_certificate,
        trace: settings.trace,
        versions: settings.versions,
        metadata: settings.metadata,
        status: settings.status,
        created_at: now,
        updated_at: now,
        revision: Position(0),
    };
    check_header_names(&endpoint, &mut errors);
    errors.finish()?;
    let mut body = endpoint_body(call, &endpoint);
    body.secret = Some(key.text());
    body.public_key = key.public_text();
    let response = Created::new(&body).with_header("location", &format!("/v1/endpoints/{}", endpoint.id));
    Endpoints(&call.api.context).create(endpoint, response.to_stored(idempotency)).await?;
    Ok(response)
}

/// The endpoint with the defaults in effect.
pub fn endpoint_body(call: &Call, endpoint: &Endpoint) -> EndpointBody {
    EndpointBody::new(endpoint, &call.config.defaults, call.principal.audience())
}

/// Finds the endpoint of the path by its id or uid.
pub(super) fn find(call: &Call) -> Result<Arc<Endpoint>, Problem> {
    let found = Endpoints(&call.api.context).find(&call.principal.scope, &call.id);
    let found = found.map_err(|error| Problem::Conflict(error.to_string()))?;
    found.ok_or_else(|| not_found("endpoint", &call.id))
}

/// Finds an endpoint to change: not one of the reserved tenant, except for the operator.
pub(super) fn find_writable(call: &Call) -> Result<Arc<Endpoint>, Problem> {
    let endpoint = find(call)?;
    call.principal.check_reserved(&endpoint.tenant)?;
    Ok(endpoint)
}

/// `GET /v1/endpoints`
pub async fn list(call: &Call) -> Result<Json<ListBody<EndpointBody>>, Problem> {
    let tenant = call.principal.tenant_filter(call.query.owner()?)?;
    let status = call.query.word("status", lists::ENDPOINT_STATUSES)?;
    let uid: Option<EndpointUid> = call.query.get("uid")?;
    let label: Option<Label> = call.query.get("label")?;
    let (after, limit) = (call.query.cursor(List::Endpoints)?, call.query.limit()?);
    let wanted = EndpointFilter { tenant, status, uid, label };
    let page = Endpoints(&call.api.context).list(&call.principal.scope, &wanted, after, limit);
    let data = page.items.iter().map(|endpoint| endpoint_body(call, endpoint)).collect();
    Ok(lists::page_reply(&call.path, &call.query, List::Endpoints, &page, data))
}

/// `GET /v1/endpoints/{id}`
pub async fn get(call: &Call) -> Result<Json<EndpointBody>, Problem> {
    Ok(Json::new(&endpoint_body(call, &*find(call)?)))
}

/// `PATCH /v1/endpoints/{id}`
pub async fn patch(
    call: &Call,
    MergePatch { patch, .. }: MergePatch<EndpointInput>,
) -> Result<Json<EndpointBody>, Problem> {
    let written = until_written(call, || async {
        let endpoint = find_writable(call)?;
        let changed = apply_patch(call, &endpoint, &patch).await?;
        write(call, endpoint, changed, None).await
    });
    Ok(Json::new(&endpoint_body(call, &*written.await?)))
}

/// Checks that the live secrets suit the signature schemes.
fn check_keys(
    call: &Call,
    endpoint: &Endpoint,
    schemes: &[SignatureScheme],
    errors: &mut Errors,
) -> Result<(), Problem> {
    let keys = live_keys(call, endpoint)?;
    let unsuitable = keys.iter().enumerate().find_map(|(index, (key, expires_at))| {
        key.check_all(schemes).err().map(|error| (index, *expires_at, error))
    });
    match unsuitable {
        None => {}
        Some((0, _, error)) => {
            errors.push("/signature", format!("does not match the current secret; rotate it first: {error}"));
        }
        Some((_, expires_at, error)) => {
            let until = expires_at.map(|at| format!(" until {}", at.rfc3339())).unwrap_or_default();
            let detail = format!(
                "does not match an older secret, which signs{until}; rotate with the overlap `0s` to end it: {error}"
            );
            errors.push("/signature", detail);
        }
    }
    Ok(())
}

/// The members of the endpoint after a merge patch.
fn merged_input(call: &Call, endpoint: &Endpoint, patch: &Value) -> Result<EndpointInput, Problem> {
    patched(endpoint_body(call, endpoint).into_input(endpoint), patch)
}

/// Reports members that no patch can change.
fn check_fixed_members(endpoint: &Endpoint, input: &EndpointInput, patch: &Value, errors: &mut Errors) {
    if input.tenant.as_deref() != Some(endpoint.tenant.as_str()) {
        errors.push("/tenant", "cannot be changed");
    }
    for member in ["secret", "secretType"] {
        if patch.get(member).is_some() {
            errors.push(pointer("", member), "cannot be changed here; use POST secret/rotate");
        }
    }
}

async fn apply_patch(call: &Call, endpoint: &Endpoint, patch: &Value) -> Result<Endpoint, Problem> {
    let endpoint = &move_secret_headers(endpoint);
    let mut input = merged_input(call, endpoint, patch)?;
    // Unchanged patterns may exceed the bounds: an earlier version stored them.
    let keeps_patterns = patch.get("eventTypes").is_none();
    input.event_types = input.event_types.filter(|_| !keeps_patterns);
    let mut errors = Errors::default();
    amqp::lift_credentials(&mut input, &mut errors);
    let url = url_text(&input, &mut errors);
    check_fixed_members(endpoint, &input, patch, &mut errors);
    let mut settings = check_settings(call, &input, &endpoint.headers, &mut errors);
    let transport = amqp::check_transport(&input, &mut settings, &mut errors);
    // Another origin drops write-only values, so that no other receiver gets them.
    let is_same_receiver = is_same_origin(url, &endpoint.url);
    let (kept_headers, kept_certificate) = if is_same_receiver {
        (endpoint.sensitive_headers.as_slice(), endpoint.client_certificate.clone())
    } else {
        (&[][..], None)
    };
    let kept_auth = endpoint.auth.as_ref().filter(|_| is_same_receiver);
    let is_given = patch.get("auth").is_some() || transport != endpoint.transport || input.amqp.is_some();
    let given_auth = is_given.then(|| settings.auth.clone());
    let mut auth = merge_auth(kept_auth, given_auth, &mut errors);
    let sensitive_headers = merge_sensitive_headers(kept_headers, patch, &settings, &mut errors);
    let event_types = if keeps_patterns {
        endpoint.event_types.clone()
    } else {
        check_room(call, &endpoint.tenant, &settings.event_types, Some(endpoint.number), &mut errors);
        settings.event_types
    };
    let client_certificate = match patch.get("clientCertificate") {
        None => kept_certificate,
        Some(_) => parse_client_certificate(call, &input, &mut errors),
    };
    check_certificate_url(client_certificate.as_ref(), url, &mut errors);
    check_filter_room(call, &endpoint.tenant, &settings.selection, Some(endpoint), &mut errors);
    event_types::pins::check(call, &settings.versions, &endpoint.versions, &mut errors);
    check_keys(call, endpoint, &settings.signatures, &mut errors)?;
    // An endpoint without a handshake stays as it is, but not at another URL.
    let is_http = transport == EndpointTransport::Http;
    if is_http && settings.handshake.is_none() && (endpoint.handshake.is_some() || url != &*endpoint.url) {
        check_required_handshake(call, &mut errors);
    }
    std::mem::take(&mut errors).finish()?;
    let url = if url == &*endpoint.url { endpoint.url.clone() } else { check_own_url(call, url).await? };
    check_token_url(call, auth.as_mut(), endpoint.auth.as_ref()).await?;
    let (current, same_url) = (endpoint.handshake.as_ref(), url == endpoint.url);
    let changed = Endpoint {
        uid: settings.uid,
        transport,
        handshake: handshake::apply_change(current, settings.handshake, same_url),
        url,
        description: settings.description,
        event_types,
        selection: settings.selection,
        headers: settings.headers,
        sensitive_headers,
        rate_limit: settings.rate_limit,
        max_in_flight: settings.max_in_flight,
        timeout: settings.timeout,
        ordering: settings.ordering,
        retry: settings.retry,
        format: settings.format,
        signatures: settings.signatures,
        request: settings.request,
        auth,
        client_certificate,
        trace: settings.trace,
        versions: settings.versions,
        metadata: settings.metadata,
        ..endpoint.clone()
    };
    check_header_names(&changed, &mut errors);
    errors.finish()?;
    if patch.get("status").is_some() { with_status(changed, settings.status) } else { Ok(changed) }
}

fn with_status(endpoint: Endpoint, status: EndpointStatus) -> Result<Endpoint, Problem> {
    if status == EndpointStatus::Paused { paused(endpoint) } else { Ok(resumed(endpoint)) }
}

/// Reads the endpoint, decides and writes. Retries after concurrent changes.
pub async fn change(
    call: &Call,
    decide: impl Fn(&Endpoint) -> Result<Endpoint, Problem> + Send + Sync,
) -> Result<Arc<Endpoint>, Problem> {
    until_written(call, || async {
        let endpoint = find_writable(call)?;
        let changed = decide(&endpoint)?;
        write(call, endpoint, changed, None).await
    })
    .await
}

/// Writes a change of an endpoint or a queue; `None` if it was changed concurrently.
pub(in crate::api::v1) async fn write(
    call: &Call,
    endpoint: Arc<Endpoint>,
    mut changed: Endpoint,
    remember: Option<Remember>,
) -> Result<Option<Arc<Endpoint>>, Problem> {
    if changed == *endpoint {
        return Ok(Some(endpoint));
    }
    changed.updated_at = call.api.context.now().wall;
    unless_interrupted(Endpoints(&call.api.context).update(changed, remember).await)
}

/// `DELETE /v1/endpoints/{id}`
pub async fn delete(call: &Call) -> Result<NoContent, Problem> {
    let endpoint = find_writable(call)?;
    Endpoints(&call.api.context).delete(&call.principal.scope, &endpoint.id).await?;
    Ok(NoContent::empty())
}

/// # Errors
/// 409 for a paused or disabled endpoint.
pub fn conflict_unless_active(endpoint: &Endpoint) -> Result<(), Problem> {
    let status = match endpoint.status {
        EndpointStatus::Active => return Ok(()),
        EndpointStatus::Paused => "paused",
        EndpointStatus::Disabled { .. } => "disabled",
    };
    Err(Problem::Conflict(format!("the endpoint is {status}; resume it first")))
}

/// # Errors
/// 409 for a disabled endpoint.
fn paused(endpoint: Endpoint) -> Result<Endpoint, Problem> {
    if endpoint.status != EndpointStatus::Paused {
        conflict_unless_active(&endpoint)?;
    }
    Ok(Endpoint { status: EndpointStatus::Paused, ..endpoint })
}

/// Without consent, also restarts the handshake.
fn resumed(endpoint: Endpoint) -> Endpoint {
    let pending = endpoint.handshake.as_ref().filter(|handshake| handshake.consent.is_none());
    let restarted =
        pending.filter(|_| endpoint.status != EndpointStatus::Active).map(handshake::restart_handshake);
    let handshake = restarted.or_else(|| endpoint.handshake.clone());
    Endpoint { status: EndpointStatus::Active, handshake, ..endpoint }
}

/// `POST /v1/endpoints/{id}/pause`
pub async fn pause(call: &Call, _: Nothing) -> Result<Json<EndpointBody>, Problem> {
    let changed = change(call, |endpoint| paused(endpoint.clone()));
    Ok(Json::new(&endpoint_body(call, &*changed.await?)))
}

/// `POST /v1/endpoints/{id}/resume`. Without consent, also restarts the handshake.
pub async fn resume(call: &Call, _: Nothing) -> Result<Json<EndpointBody>, Problem> {
    let changed = change(call, |endpoint| Ok(resumed(endpoint.clone())));
    Ok(Json::new(&endpoint_body(call, &*changed.await?)))
}
