//! The HTTP API: reads requests, calls services, writes responses.
//!
//! Owns everything that is HTTP or JSON. Must never know the store. [`http`] is what all operations share, [`v1`] has one
//! directory per resource with its models and handlers. One table (`routes`) makes both the router and the OpenAPI
//! document; [`dispatch`] does for every operation what they have in common.

pub mod http;
pub mod openapi;
pub mod ops;
pub mod routes;
pub mod text;
pub mod v1;

use std::future::ready;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::http::{HeaderMap, Method, Response};
use axum::routing::on;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::context::Context;
use crate::domain::{PolicyDefaults, SenderName, Tenant};
use crate::limits;
use crate::service::types::{ChangeError, Scope};
use http::auth::{self, Access, AdminKey, Principal};
use http::auth_throttle::AuthThrottle;
use http::body::{self, BodyBudget, HeldBody};
use http::browser::TrustedSite;
use http::idempotency::InFlight;
use http::problem::Problem;
use http::reply::Reply;
use http::server::{GoodKey, Peer};
use routes::{BodySpec, Need, ROUTES, Route};
use v1::cloudevents;
use v1::lists::Query;

/// What an endpoint gets for what its request leaves out.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointDefaults {
    pub policy: PolicyDefaults,
    /// What we go by in a handshake that does not say.
    pub origin: Option<SenderName>,
    /// Whether receivers can call back.
    pub callbacks: bool,
}

/// What the operator can set.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiConfig {
    /// Bound of one event's request body, in bytes; at most [`crate::limits::EVENT_BYTES_MAX`].
    pub max_event_bytes: usize,
    /// How long an `Idempotency-Key` is remembered.
    pub idempotency_ttl: Duration,
    pub defaults: EndpointDefaults,
    /// Time in which a request's body has to arrive.
    pub body_timeout: Duration,
    /// Bound of the request bodies that are held at once, in bytes. Not changed while running.
    pub max_body_bytes: usize,
    pub admin_key: Option<AdminKey>,
    /// Requests without a key that are the operator's (`--dev`); `None`: none are.
    pub keyless: Option<TrustedSite>,
}

/// Is told what was refused.
pub trait Observer: Send + Sync {
    /// The `code` of a refused post of events, or of a refused event of a batch.
    fn refused(&self, code: &'static str);
    /// `missing`, `wrong` or `tooMany` keys; `untrustedOrigin` where no key is needed.
    fn authentication_refused(&self, reason: &'static str);
}

/// What all requests share.
pub struct Api {
    pub context: Context,
    config: ArcSwap<ApiConfig>,
    in_flight: InFlight,
    auth_throttle: AuthThrottle,
    body_budget: BodyBudget,
    reads: Arc<Semaphore>,
    observer: Arc<dyn Observer>,
}

impl Api {
    #[must_use]
    pub fn new(context: Context, config: ApiConfig, observer: Arc<dyn Observer>) -> Arc<Self> {
        Arc::new(Self {
            context,
            body_budget: BodyBudget::new(config.max_body_bytes),
            config: ArcSwap::from_pointee(config),
            in_flight: InFlight::default(),
            auth_throttle: AuthThrottle::default(),
            reads: Arc::new(Semaphore::new(limits::READS_MAX)),
            observer,
        })
    }

    /// The configuration from the next request on.
    pub fn reconfigure(&self, config: ApiConfig) {
        self.config.store(Arc::new(config));
    }

    #[must_use]
    pub fn config(&self) -> Arc<ApiConfig> {
        self.config.load_full()
    }

    pub(crate) fn refused(&self, problem: &Problem) {
        self.observer.refused(problem.code());
    }
}

/// One request, authenticated and read.
pub struct Call {
    pub api: Arc<Api>,
    pub config: Arc<ApiConfig>,
    pub principal: Principal,
    /// The request's path, as sent.
    pub path: String,
    /// The path's parameter; empty when the route has none.
    pub id: String,
    pub query: Query,
    pub headers: HeaderMap,
    /// The one of the route's media types that the body has.
    pub media: &'static str,
    pub body: Bytes,
    /// The body's share of what all bodies may take.
    _room: Option<OwnedSemaphorePermit>,
}

impl Call {
    /// The path's parameter as a name or id. What cannot be one does not exist.
    ///
    /// # Errors
    /// 404.
    pub fn named<T: std::str::FromStr>(&self, what: &str) -> Result<T, Problem> {
        self.id.parse().map_err(|_| not_found(what, &self.id))
    }

    /// Why a change to the thing that the path names was refused.
    #[must_use]
    pub fn refused(&self, error: ChangeError, what: &str) -> Problem {
        match error {
            ChangeError::NotFound => not_found(what, &self.id),
            other => other.into(),
        }
    }

    /// Where an event is looked up by its id: one that the daemon gave in the tenant that is named, else in all that the key
    /// may see; one that was chosen in the tenant that is named, else in the key's own, else in `default`.
    ///
    /// # Errors
    /// 422 when the tenant is none, 403 when the key is bound to another.
    pub fn event_scope(&self) -> Result<(Scope, Tenant), Problem> {
        let named: Option<Tenant> = self.query.get("tenant")?;
        let scope = Scope(self.principal.filter(named.clone())?);
        Ok((scope, self.principal.tenant(named)?))
    }

    /// 404 for the event that the path names.
    #[must_use]
    pub fn no_such_event(&self, tenant: &Tenant) -> Problem {
        let hint = if self.principal.scope.0.is_none() && self.query.text("tenant").is_none() {
            "; one with an id that was chosen is looked up with `?tenant=`"
        } else {
            ""
        };
        Problem::NotFound(format!("there is no event `{}` in the tenant `{tenant}`{hint}", self.id))
    }
}

/// 404 for a thing of this kind.
#[must_use]
pub fn not_found(what: &str, id: &str) -> Problem {
    Problem::NotFound(format!("there is no {what} `{id}`"))
}

/// The router of the API listener.
pub fn router(api: Arc<Api>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let handler = move |State(api): State<Arc<Api>>,
                            params: Result<RawPathParams, RawPathParamsRejection>,
                            request: Request| dispatch(api, route, params, request);
        router = router.route(route.path, on(route.verb.filter(), handler));
    }
    router
        .fallback(|| {
            ready(refuse(Problem::NotFound("there is nothing here; the API is under /v1".to_owned())))
        })
        .method_not_allowed_fallback(|path: MatchedPath| ready(refuse_method(path.as_str())))
        .with_state(api)
}

fn refuse(problem: Problem) -> Response<Body> {
    problem.into_reply().into_response()
}

/// 405, with the methods of the route's path.
fn refuse_method(path: &str) -> Response<Body> {
    Problem::MethodNotAllowed.into_reply().with_header("allow", &routes::methods(path)).into_response()
}

/// What every operation has in common: key, role, query, body, idempotency; then its handler.
async fn dispatch(
    api: Arc<Api>,
    route: &'static Route,
    params: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
) -> Response<Body> {
    if request.method() == Method::HEAD && !route.answers_head() {
        return refuse_method(route.path);
    }
    let mut has_good_key = false;
    let reply = match call(Arc::clone(&api), route, params, request).await {
        Ok(call) => {
            has_good_key = route.access != Access::Public;
            if route.is_read() { read(route, &call).await } else { (route.run)(&call).await }
        }
        Err(problem) => Err(problem),
    };
    let mut response = match reply {
        Ok(reply) => reply.into_response(),
        Err(problem) => {
            if route.access == Access::Publish {
                api.refused(&problem);
            }
            refuse(problem)
        }
    };
    if has_good_key {
        response.extensions_mut().insert(GoodKey);
    }
    response
}

/// A read has its turn until its answer is written: answers may be large, and their readers slow.
async fn read(route: &'static Route, call: &Call) -> Result<Reply, Problem> {
    let turn = call.api.reads.clone().acquire_owned().await.ok();
    Ok((route.run)(call).await?.holding(turn))
}

async fn call(
    api: Arc<Api>,
    route: &'static Route,
    params: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
) -> Result<Call, Problem> {
    let config = api.config();
    let (parts, stream) = request.into_parts();
    let principal = match route.access {
        Access::Public => Principal::operator(),
        access => {
            let from =
                parts.extensions.get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip());
            let principal = auth::authenticate(&api, &config, &parts, from)?;
            principal.check(access)?;
            principal
        }
    };
    let params = params.map_err(|_| Problem::NotFound("the path is not UTF-8".to_owned()))?;
    let id = params.iter().next().map(|(_, value)| value.to_owned()).unwrap_or_default();
    let query = Query::parse(parts.uri.query(), route.query)?;
    let (media, (body, room)) = match &route.body {
        None => ("", (Bytes::new(), None)),
        Some(spec) => read_body(&api, &config, spec, &parts.headers, stream).await?,
    };
    let path = parts.uri.path().to_owned();
    Ok(Call { api, config, principal, path, id, query, headers: parts.headers, media, body, _room: room })
}

/// The body, and the one of its operation's media types that it has.
async fn read_body(
    api: &Api,
    config: &ApiConfig,
    spec: &BodySpec,
    headers: &HeaderMap,
    stream: Body,
) -> Result<(&'static str, HeldBody), Problem> {
    let read = |media| {
        body::read(stream, headers, spec.limit.bytes(config, media), config.body_timeout, &api.body_budget)
    };
    if spec.need == Need::Required {
        let media = media_type(headers, spec)?;
        return Ok((media, read(media).await?));
    }
    let held = read("").await?;
    if held.0.is_empty() {
        return Ok(("", held));
    }
    let media = body::media_type(headers, spec.media)?;
    if spec.need == Need::Nothing {
        let body::Nothing {} = body::parse(&held.0)?;
    }
    Ok((media, held))
}

/// What takes CloudEvents takes them in binary mode too, where the media type is that of the data.
fn media_type(headers: &HeaderMap, spec: &BodySpec) -> Result<&'static str, Problem> {
    if spec.media.contains(&cloudevents::STRUCTURED) && cloudevents::is_binary(headers) {
        return Ok(cloudevents::BINARY);
    }
    body::media_type(headers, spec.media)
}

#[cfg(test)]
mod tests;
