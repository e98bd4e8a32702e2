//! Requests that the API rejects before it calls a service, sent through the real router.

use crate::service::Endpoints;
use axum::http::{Method, header};
use tower::ServiceExt;

use super::*;

/// The directory is removed when it is dropped.
fn api() -> (Router, tempfile::TempDir) {
    let (router, _, directory) = api_and_context();
    (router, directory)
}

fn api_and_context() -> (Router, Context, tempfile::TempDir) {
    let config = ApiConfig {
        max_event_bytes: 1024,
        idempotency_ttl: Duration::from_secs(60),
        types_required: false,
        defaults: v1::endpoints::settings::tests::defaults(),
        body_timeout: Duration::from_secs(5),
        body_rate_min: 0,
        max_body_bytes: 1 << 20,
        max_streams: 10,
        admin_key: Some(AdminKeyHash::new("secret")),
        keyless: None,
    };
    let (context, _, directory) = crate::service::tests::context();
    (router(Api::new(context.clone(), config, Arc::new(NoObserver))), context, directory)
}

struct NoObserver;

impl Observer for NoObserver {
    fn on_rejected(&self, _: &'static str) {}
    fn on_authentication_failed(&self, _: &'static str) {}
}

async fn send(
    router: &Router,
    method: Method,
    path: &str,
    media: Option<&str>,
    body: &str,
) -> (u16, String, HeaderMap) {
    let mut request = axum::http::Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, "Bearer secret");
    if let Some(media) = media {
        request = request.header(header::CONTENT_TYPE, media);
    }
    let response = router.clone().oneshot(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    (parts.status.as_u16(), String::from_utf8(body.to_vec()).unwrap(), parts.headers)
}

/// Method, path, content type, body; expected status and a part of the response.
type Case<'a> = (Method, &'a str, Option<&'a str>, &'a str, u16, &'a str);

#[tokio::test]
async fn bad_requests_are_rejected_with_their_problem() {
    let (router, _directory) = api();
    const JSON: Option<&str> = Some("application/json");
    let large = format!("{{\"type\":\"a\",\"data\":\"{}\"}}", "x".repeat(2000));
    let table: &[Case] = &[
        (Method::POST, "/v1/events", JSON, "{", 400, "malformed"),
        (Method::POST, "/v1/events", JSON, "", 400, "malformed"),
        (Method::POST, "/v1/events", JSON, r#"{"type":"a","data":1,"x":1}"#, 422, "/x"),
        (Method::POST, "/v1/events", JSON, r#"{"type":7,"data":1}"#, 422, "/type"),
        (Method::POST, "/v1/events", JSON, r#"{"type":"a b","data":1}"#, 422, "/type"),
        (
            Method::POST,
            "/v1/events",
            JSON,
            r#"{"type":"a","data":1,"expectedVersion":1}"#,
            422,
            "/expectedVersion",
        ),
        (Method::POST, "/v1/events", JSON, r#"{"type":"a","data":1,"metadata":[]}"#, 422, "/metadata"),
        (Method::POST, "/v1/events", JSON, r#"{"type":"a","data":1,"tenant":"balto"}"#, 422, "/tenant"),
        (Method::POST, "/v1/events", JSON, r#"{"type":"a","data":1,"deliverAt":"soon"}"#, 422, "/deliverAt"),
        (Method::POST, "/v1/events", JSON, r#"{"type":"a","data":1,"id":"batch"}"#, 422, "/v1/events/batch"),
        (Method::POST, "/v1/events", JSON, &large, 413, "\"limit\":1024"),
        (Method::POST, "/v1/events", Some("text/plain"), "{}", 415, "unsupported_media_type"),
        (Method::POST, "/v1/events", None, "{}", 415, "unsupported_media_type"),
        (Method::PUT, "/v1/events", JSON, "{}", 405, "method_not_allowed"),
        (Method::POST, "/v1/endpoints", JSON, "{}", 422, "/url"),
        (Method::POST, "/v1/endpoints", JSON, r#"{"url":"x","timeout":"1 s"}"#, 422, "/timeout"),
        (Method::POST, "/v1/endpoints", JSON, r#"{"url":"x","eventTypes":["a..b"]}"#, 422, "/eventTypes/0"),
        (Method::POST, "/v1/endpoints", JSON, r#"{"url":"x","headers":{"Host":"y"}}"#, 422, "/headers/Host"),
        (Method::GET, "/v1/deliveries/nope", None, "", 404, "not_found"),
        (Method::GET, "/v1/nope", None, "", 404, "not_found"),
        (Method::GET, "/v1/events?limit=0", None, "", 422, "limit"),
        (Method::GET, "/v1/events?what=0", None, "", 422, "what"),
        (Method::GET, "/v1/events?cursor=AAAA", None, "", 422, "cursor"),
        (Method::GET, "/v1/dead-letters?reason=boredom", None, "", 422, "reason"),
    ];
    for (method, path, media, body, status, part) in table {
        let (got, answer, headers) = send(&router, method.clone(), path, *media, body).await;
        assert_eq!(got, *status, "{method} {path} {body}: {answer}");
        assert!(answer.contains(part), "{method} {path} {body}: {answer}");
        assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(headers[header::CACHE_CONTROL], "no-store");
        assert_eq!(headers.contains_key(header::ALLOW), *status == 405);
    }
}

#[tokio::test]
async fn request_without_a_key_is_rejected() {
    let request = axum::http::Request::get("/v1/endpoints").body(Body::empty()).unwrap();
    let (router, _directory) = api();
    let response = router.oneshot(request).await.unwrap();
    assert_eq!(response.status().as_u16(), 401);
    assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
}

/// An earlier version stored credentials in plain headers, and header names that are rejected now.
#[tokio::test]
async fn credentials_of_earlier_versions_are_hidden() {
    let (router, context, _directory) = api_and_context();
    let scope = Scope(None);
    let id: crate::domain::EndpointId = "ep_1".parse().unwrap();
    let header = |name: &str, value: &str| (name.into(), value.into());
    let headers = vec![header("Authorization", "Bearer hush"), header("X_Env", "prod")];
    let saved =
        crate::domain::Endpoint { headers, retry: None, ..crate::rules::tests::endpoint(0, "default", &[]) };
    Endpoints(&context).create(crate::domain::Endpoint { id: id.clone(), ..saved }, None).await.unwrap();
    for path in ["/v1/endpoints/ep_1", "/v1/endpoints"] {
        let (_, shown, _) = send(&router, Method::GET, path, None, "").await;
        assert!(
            !shown.contains("hush") && shown.contains(r#""sensitiveHeaderNames":["authorization"]"#),
            "{shown}"
        );
    }
    let plain = |context: &Context| Endpoints(context).get(&scope, &id).unwrap().headers.clone();
    let sealed = |context: &Context| -> Vec<_> {
        let endpoint = Endpoints(context).get(&scope, &id).unwrap();
        endpoint.sensitive_headers.iter().map(|(name, _)| name.to_string()).collect()
    };
    let patch = async |body: &str| {
        let (status, answer, _) =
            send(&router, Method::PATCH, "/v1/endpoints/ep_1", Some("application/json"), body).await;
        assert!(status == 200 && !answer.contains("hush"), "{body}: {status} {answer}");
    };
    patch(r#"{"description":"d"}"#).await;
    assert_eq!(
        (plain(&context), sealed(&context)),
        (vec![header("X_Env", "prod")], vec!["authorization".to_owned()])
    );
    patch(r#"{"headers":{"X_Env":null},"sensitiveHeaders":{"Authorization":null}}"#).await;
    assert_eq!((plain(&context), sealed(&context)), (Vec::new(), Vec::new()));
}

async fn patch(router: &Router, id: &crate::domain::EndpointId, body: &str) -> (u16, String) {
    let path = format!("/v1/endpoints/{id}");
    let (status, text, _) =
        send(router, Method::PATCH, &path, Some("application/merge-patch+json"), body).await;
    (status, text)
}

/// An earlier version stored it: with patterns that are neither canonical nor within the bounds.
#[tokio::test]
async fn patch_keeps_patterns_beyond_the_bounds() {
    let (router, context, _directory) = api_and_context();
    let patterns: Vec<_> =
        (0..limits::PATTERNS_MAX).map(|n| format!("{}x{n}", "#.*.a.".repeat(20))).collect();
    let endpoint = crate::rules::tests::endpoint(0, Tenant::DEFAULT, &patterns);
    let endpoint = crate::domain::Endpoint { retry: None, ..endpoint };
    let stored = Endpoints(&context).create(endpoint, None).await.unwrap();
    let (status, body) = patch(&router, &stored.id, r#"{"description":"x"}"#).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        context.outbox_of(stored.number).endpoint(stored.number).unwrap().event_types,
        stored.event_types
    );
    let again = serde_json::json!({"eventTypes": patterns}).to_string();
    let (status, body) = patch(&router, &stored.id, &again).await;
    assert_eq!(status, 422, "{body}");
    assert!(body.contains("/eventTypes/0"), "{body}");
    let (status, body) = patch(&router, &stored.id, r##"{"eventTypes":["a.#.*.#","a.*.#.#"]}"##).await;
    assert_eq!(status, 200, "{body}");
    assert!(body.contains(r##""eventTypes":["a.*.#"]"##), "{body}");
}

/// The patterns of all endpoints of a tenant share a bound.
#[tokio::test]
async fn tenant_with_too_many_patterns_is_refused() {
    let (router, context, _directory) = api_and_context();
    let body = |n: usize| {
        let patterns: Vec<_> = (0..64).map(|m| format!("{}p{n}.{m}.#", "a.*.".repeat(7))).collect();
        serde_json::json!({"url": "https://example.com/", "eventTypes": patterns}).to_string()
    };
    let fit = limits::PATTERN_STATES_MAX / (64 * 18);
    for n in 0..fit {
        let patterns: Vec<_> = (0..64).map(|m| format!("{}p{n}.{m}.#", "a.*.".repeat(7))).collect();
        let endpoint = crate::rules::tests::endpoint(0, Tenant::DEFAULT, &patterns);
        Endpoints(&context).create(endpoint, None).await.unwrap();
    }
    let json = Some("application/json");
    let (status, text, _) = send(&router, Method::POST, "/v1/endpoints", json, &body(fit)).await;
    assert_eq!(status, 422, "{text}");
    assert!(text.contains("/eventTypes") && text.contains("65536"), "{text}");
    let (status, text, _) = send(&router, Method::POST, "/v1/endpoints", json, &body(0)).await;
    assert_eq!(status, 201, "shared patterns need no room: {text}");
}
