//! The router of the ops listener: metrics, liveness and readiness. No key is asked for: bind it where only the
//! operator's network reaches it.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Response;
use axum::routing::get;
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::api::http::problem::Problem;
use crate::api::http::reply::Reply;
use crate::panics;

/// Gives the metrics' content type and text.
pub type Metrics = Arc<dyn Fn() -> (&'static str, Vec<u8>) + Send + Sync>;
/// Whether requests can be answered, else why not.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

#[derive(Serialize)]
struct Status {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// `/metrics`, `/healthz` and `/readyz`.
pub fn router(metrics: Metrics, ready: Ready) -> Router {
    let turns = Arc::new(Semaphore::new(1));
    Router::new()
        .route("/metrics", get(move || show(metrics.clone(), turns.clone())))
        .route("/healthz", get(|| std::future::ready(status(Ok(())))))
        .route("/readyz", get(move || std::future::ready(status(ready()))))
        .fallback(|| std::future::ready(unknown()))
        .method_not_allowed_fallback(|| {
            std::future::ready(Problem::MethodNotAllowed.into_reply().into_response())
        })
}

/// One text is made at a time, and beside the threads that serve: clients that ask without end do not delay probes.
async fn show(metrics: Metrics, turns: Arc<Semaphore>) -> Response<Body> {
    let turn = turns.acquire_owned().await;
    let made = tokio::task::spawn_blocking(move || {
        let text = panics::contain(|| metrics());
        drop(turn);
        text
    });
    match made.await.map_err(|error| error.to_string()) {
        Ok(Ok((media, body))) => {
            Reply::bytes(200, Bytes::from(body)).with_content_type(media).into_response()
        }
        failed => {
            tracing::error!(?failed, "metrics failed");
            Problem::Unavailable("the daemon's log says why".to_owned()).into_reply().into_response()
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

fn unknown() -> Response<Body> {
    Problem::NotFound("this listener has /metrics, /healthz and /readyz".to_owned())
        .into_reply()
        .into_response()
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn readiness_says_why_not() {
        let router = router(
            Arc::new(|| ("text/plain; version=0.0.4", b"x 1\n".to_vec())),
            Arc::new(|| Err("draining".to_owned())),
        );
        let ask = |path: &'static str| {
            let router = router.clone();
            async move {
                let response = router.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
                let status = response.status().as_u16();
                let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
                (status, String::from_utf8(body.to_vec()).unwrap())
            }
        };
        assert_eq!(ask("/healthz").await, (200, r#"{"status":"ok"}"#.to_owned()));
        assert_eq!(ask("/readyz").await, (503, r#"{"status":"unavailable","reason":"draining"}"#.to_owned()));
        assert_eq!(ask("/metrics").await, (200, "x 1\n".to_owned()));
        assert_eq!(ask("/nope").await.0, 404);
    }
}
