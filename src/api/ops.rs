//! The router of the ops listener: metrics, liveness and readiness.
//!
//! It needs no key: bind it to an address that only the operator's network can reach. With `--dev`
//! a browser can reach it too, so the rules of [`crate::api::http::browser`] apply.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Response;
use axum::middleware::{self, Next};
use axum::routing::get;
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::api::http::browser::TrustedSite;
use crate::api::http::problem::Problem;
use crate::api::http::reply::Reply;
use crate::panics;

/// Returns the content type and text of the metrics.
pub type RenderMetrics = Arc<dyn Fn() -> (&'static str, Vec<u8>) + Send + Sync>;
/// Whether the daemon is ready; the error is the reason.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The trusted site. `None`: every request is served. A reload replaces it.
pub type Site = Arc<ArcSwapOption<TrustedSite>>;

#[derive(Serialize)]
struct Status {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// `/metrics`, `/healthz` and `/readyz`.
pub fn router(metrics: RenderMetrics, ready: Ready, site: Site) -> Router {
    let permits = Arc::new(Semaphore::new(1));
    Router::new()
        .route("/metrics", get(move || metrics_response(metrics.clone(), permits.clone())))
        .route("/healthz", get(|| std::future::ready(status(Ok(())))))
        .route("/readyz", get(move || std::future::ready(status(ready()))))
        .fallback(|| std::future::ready(unknown_path()))
        .method_not_allowed_fallback(|| {
            std::future::ready(Problem::MethodNotAllowed.into_reply().into_response())
        })
        .layer(middleware::from_fn(move |request, next| reject_foreign_pages(site.clone(), request, next)))
}

async fn reject_foreign_pages(site: Site, request: Request, next: Next) -> Response<Body> {
    let site = site.load_full();
    match site.map_or(Ok(()), |site| site.check_request(request.uri(), request.headers())) {
        Ok(()) => next.run(request).await,
        Err(reason) => Problem::UntrustedOrigin(reason).into_reply().into_response(),
    }
}

/// Renders one text at a time, in the blocking pool, so that frequent scrapes do not delay probes.
async fn metrics_response(metrics: RenderMetrics, permits: Arc<Semaphore>) -> Response<Body> {
    let permit = permits.acquire_owned().await;
    let rendered = tokio::task::spawn_blocking(move || {
        let text = panics::contain(|| metrics());
        drop(permit);
        text
    });
    match rendered.await.map_err(|error| error.to_string()) {
        Ok(Ok((media, body))) => {
            Reply::bytes(200, Bytes::from(body)).with_content_type(media).into_response()
        }
        failed => {
            tracing::error!(?failed, "metrics failed");
            Problem::Unavailable("see the daemon's log".to_owned()).into_reply().into_response()
        }
    }
}

fn status(result: Result<(), String>) -> Response<Body> {
    let reply = match result {
        Ok(()) => Reply::json(200, &Status { status: "ok", reason: None }),
        Err(reason) => Reply::json(503, &Status { status: "unavailable", reason: Some(reason) }),
    };
    reply.into_response()
}

fn unknown_path() -> Response<Body> {
    Problem::NotFound("this listener has /metrics, /healthz and /readyz".to_owned())
        .into_reply()
        .into_response()
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn readiness_shows_its_reason() {
        let router = router(
            Arc::new(|| ("text/plain; version=0.0.4", b"x 1\n".to_vec())),
            Arc::new(|| Err("draining".to_owned())),
            Site::default(),
        );
        let get = |path: &'static str| {
            let router = router.clone();
            async move {
                let response = router.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
                let status = response.status().as_u16();
                let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
                (status, String::from_utf8(body.to_vec()).unwrap())
            }
        };
        assert_eq!(get("/healthz").await, (200, r#"{"status":"ok"}"#.to_owned()));
        assert_eq!(get("/readyz").await, (503, r#"{"status":"unavailable","reason":"draining"}"#.to_owned()));
        assert_eq!(get("/metrics").await, (200, "x 1\n".to_owned()));
        assert_eq!(get("/nope").await.0, 404);
    }

    #[tokio::test]
    async fn trusted_site_rejects_foreign_pages() {
        let site = Site::default();
        let router =
            router(Arc::new(|| ("text/plain", b"x 1\n".to_vec())), Arc::new(|| Ok(())), site.clone());
        let status = async |path: &str, host: &str| {
            let request = Request::get(path).header("host", host).body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap().status().as_u16()
        };
        for path in ["/metrics", "/healthz", "/readyz"] {
            assert_eq!(status(path, "rebind.example:8401").await, 200, "{path} without a site");
        }
        site.store(Some(Arc::new(TrustedSite::new(false, None, false))));
        for path in ["/metrics", "/healthz", "/readyz", "/nope"] {
            assert_eq!(status(path, "rebind.example:8401").await, 403, "{path}");
        }
        assert_eq!(status("/metrics", "127.0.0.1:8401").await, 200);
        let page =
            Request::get("/metrics").header("host", "localhost").header("origin", "http://evil.example");
        let answer = router.clone().oneshot(page.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status().as_u16(), 403);
        let probe = Request::get("/readyz").body(Body::empty()).unwrap();
        assert_eq!(router.oneshot(probe).await.unwrap().status().as_u16(), 200, "HTTP/1.0 without `Host`");
    }
}
