//! The HTTP API: reads requests, calls services, writes responses.
//!
//! Owns everything that is HTTP or JSON. Must never know the store. [`http`] has the code that all
//! operations share, [`v1`] has one directory per resource. The router and the OpenAPI document are
//! both built from one table ([`routes`]).

pub mod documents;
pub mod http;
pub mod openapi;
pub mod ops;
pub mod routes;
pub mod text;
pub mod v1;

use std::future::ready;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::http::{Extensions, HeaderMap, Method, Response, header};
use axum::routing::on;
use bytes::Bytes;
use hyper::body::Body as _;

use crate::context::Context;
use crate::context::acts::Act;
use crate::context::fair_semaphore::FairSemaphore;
use crate::domain::{Actor, Party, PolicyDefaults, Position, Quota, SenderName, Tenant, address_block};
use crate::limits;
use crate::service::positions::Reached;
use crate::service::types::{ChangeError, Scope};
use crate::service::{Keys, Positions};
use documents::Documents;
use http::arriving_body::{self, BodyBudget, BodyLimits, HeldBody};
use http::auth::{self, Access, AdminKeyHash, Principal};
use http::auth_throttle::AuthThrottle;
use http::body;
use http::browser::TrustedSite;
use http::client_watch::ClientWatch;
use http::connection_limit::RequestSeat;
use http::heavy_work::HeavyWork;
use http::idempotency::InFlight;
use http::key_places::{KeyPlace, KeyPlaces};
use http::problem::{FieldError, Problem};
use http::reply::Reply;
use http::request_log::RequestLog;
use http::response::ReadTurn;
use http::server::{GoodKey, Peer};
use http::shared_room::RoomGuard;
use http::test_limit::TestLimit;
use http::unread::{Caller, ConnectionCloser, UnreadResponses};
use routes::{BodySpec, Need, ROUTES, Route};
use v1::cloudevents;
use v1::feed::query::parse_cursor;
use v1::lists::{BAD_ENCODING, Query, is_well_encoded};

/// The position that an answer reflects.
const POSITION: &str = "balto-position";
/// The position that an answer must reflect, and how long the request waits for it.
const WAIT_POSITION: &str = "balto-wait-position";
const WAIT: &str = "balto-wait";

/// Defaults for the members that an endpoint request omits.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointDefaults {
    pub policy: PolicyDefaults,
    /// The default `WebHook-Request-Origin` of handshakes.
    pub origin: Option<SenderName>,
    /// Whether new endpoints, and endpoints with a new URL, need a handshake.
    pub handshake_required: bool,
    /// Whether receivers can call back.
    pub callbacks: bool,
}

/// Settings of the API. Only [`Self::max_body_bytes`] cannot be reloaded.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiConfig {
    /// Maximum size of one event's body, in bytes; at most [`crate::limits::EVENT_BYTES_MAX`].
    pub max_event_bytes: usize,
    /// How long the response to an `Idempotency-Key` is stored.
    pub idempotency_ttl: Duration,
    /// Whether events of unregistered types are rejected.
    pub types_required: bool,
    pub defaults: EndpointDefaults,
    /// Deadline for receiving a request body.
    pub body_timeout: Duration,
    /// Minimum rate at which a request body arrives, in bytes per second; 0: none.
    pub body_rate_min: usize,
    /// Maximum size of all request bodies in memory together, in bytes.
    pub max_body_bytes: usize,
    /// Maximum number of streams of events at once.
    pub max_streams: usize,
    pub admin_key: Option<AdminKeyHash>,
    /// With `--dev`: the site whose requests need no key. `None`: every request needs one.
    pub keyless: Option<TrustedSite>,
}

/// Counts rejected requests.
pub trait Observer: Send + Sync {
    /// A publish request, or one event of a batch, was rejected with this problem `code`.
    fn on_rejected(&self, code: &'static str);
    /// `reason` is `missing`, `wrong`, `expired`, `tooMany` or, with `--dev`, `untrustedOrigin`.
    fn on_authentication_failed(&self, reason: &'static str);
}

/// The API, as one request uses it.
pub struct Api {
    /// Carries the act of a request for one.
    pub context: Context,
    shared: Arc<ApiShared>,
}

impl Deref for Api {
    type Target = ApiShared;

    fn deref(&self) -> &ApiShared {
        &self.shared
    }
}

/// State shared by all requests.
pub struct ApiShared {
    config: ArcSwap<ApiConfig>,
    in_flight: InFlight,
    auth_throttle: AuthThrottle,
    test_limit: TestLimit,
    documents: Documents,
    body_budget: BodyBudget,
    /// Turns of reads. Parties with waiting reads get equal shares.
    reads: FairSemaphore<Party>,
    unread: UnreadResponses,
    key_connections: KeyPlaces,
    key_reads: KeyPlaces,
    heavy_work: HeavyWork,
    observer: Arc<dyn Observer>,
}

impl Api {
    #[must_use]
    pub fn new(context: Context, config: ApiConfig, observer: Arc<dyn Observer>) -> Arc<Self> {
        let shared = ApiShared {
            body_budget: BodyBudget::new(config.max_body_bytes),
            config: ArcSwap::from_pointee(config),
            in_flight: InFlight::default(),
            auth_throttle: AuthThrottle::default(),
            test_limit: TestLimit::default(),
            documents: Documents::default(),
            reads: FairSemaphore::new(limits::READS_MAX),
            unread: UnreadResponses::default(),
            key_connections: KeyPlaces::new(Quota::ConnectionsPerKey),
            key_reads: KeyPlaces::new(Quota::ReadsPerKey),
            heavy_work: HeavyWork::default(),
            observer,
        };
        Arc::new(Self { context, shared: Arc::new(shared) })
    }

    /// The API for a request for an act of an operator. Its first commit has the audit entry.
    fn acting(&self, act: Act) -> Arc<Self> {
        Arc::new(Self { context: self.context.acting(act), shared: self.shared.clone() })
    }

    /// Replaces the configuration, from the next request on.
    pub fn reconfigure(&self, config: ApiConfig) {
        self.config.store(Arc::new(config));
    }

    #[must_use]
    pub fn config(&self) -> Arc<ApiConfig> {
        self.config.load_full()
    }

    /// Response bytes that clients have not read yet.
    #[must_use]
    pub fn unread_bytes(&self) -> usize {
        self.unread.bytes()
    }

    pub(crate) fn on_rejected(&self, problem: &Problem) {
        self.observer.on_rejected(problem.code());
    }
}

/// An authenticated request with its body.
pub struct Call {
    pub api: Arc<Api>,
    pub route: &'static Route,
    pub config: Arc<ApiConfig>,
    pub principal: Principal,
    /// The request uses the share of this party.
    pub party: Party,
    /// The path, as sent.
    pub path: String,
    /// The path parameter; empty for routes without one.
    pub id: String,
    pub query: Query,
    pub headers: HeaderMap,
    /// The body's media type: one of the route's.
    pub media: &'static str,
    pub body: Bytes,
    /// For requests that wait: a wait ends when its client has gone.
    pub client: ClientWatch,
    /// The request's connection.
    pub(crate) seat: RequestSeat,
    /// The body's share of the body budget.
    _budget: Option<RoomGuard<Party>>,
    /// Of a read with a key whose reads are limited.
    _read: Option<KeyPlace>,
}

impl Call {
    /// Whether the request waits for something. It must not hold a read permit then.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.query.text("wait").or_else(|| self.query.text("waitPosition")).is_some()
    }

    /// Completes when the answer of a wait can go to no client: the connection has ended, or the
    /// key is not valid any more.
    pub async fn gone(&self) {
        let Some(key) = &self.principal.key else { return self.client.gone().await };
        tokio::select! {
            () = self.client.gone() => {}
            () = Keys(&self.api.context).revoked(key) => {}
        }
    }

    /// Runs a computation about this many bytes beside other requests.
    pub async fn heavy_work<R>(&self, bytes: usize, work: impl FnOnce() -> R) -> R {
        self.api.heavy_work.run(&self.party, bytes, work).await
    }

    /// Parses the path parameter as a name or id.
    ///
    /// # Errors
    /// 404 for a malformed value: no resource can have it.
    pub fn parse_id<T: std::str::FromStr>(&self, what: &str) -> Result<T, Problem> {
        self.id.parse().map_err(|_| not_found(what, &self.id))
    }

    /// Parses the path parameter as the name of a resource that the request may create.
    ///
    /// # Errors
    /// 422 for a malformed value: no request can create a resource with it.
    pub fn parse_new_name<T: std::str::FromStr<Err: std::fmt::Display>>(&self) -> Result<T, Problem> {
        let parameter = self.route.path_parameters().next().unwrap_or_default();
        self.id.parse().map_err(|error| Problem::parameter(parameter, format!("{error}, in the path")))
    }

    /// The problem for a failed change of the resource in the path.
    #[must_use]
    pub fn change_problem(&self, error: ChangeError, what: &str) -> Problem {
        match error {
            ChangeError::NotFound => not_found(what, &self.id),
            other => other.into(),
        }
    }

    /// Where to look up an event. A generated id: in the scope of `?tenant=`, or of the key. A
    /// publisher id: in the tenant of `?tenant=`, or of the key, or `default`.
    ///
    /// # Errors
    /// 422 for a malformed tenant, 403 when the key is bound to another tenant.
    pub fn event_scope(&self) -> Result<(Scope, Tenant), Problem> {
        let named: Option<Tenant> = self.query.get("tenant")?;
        let scope = Scope(self.principal.tenant_filter(named.clone())?);
        Ok((scope, self.principal.tenant(named)?))
    }

    /// 404 for the event in the path.
    #[must_use]
    pub fn event_not_found(&self, tenant: &Tenant) -> Problem {
        let hint = if self.principal.scope.0.is_none() && self.query.text("tenant").is_none() {
            "; for an id that the publisher chose, name the tenant with `?tenant=`"
        } else {
            ""
        };
        Problem::NotFound(format!("event `{}` not found in tenant `{tenant}`{hint}", self.id))
    }
}

#[must_use]
pub fn not_found(what: &str, id: &str) -> Problem {
    Problem::NotFound(format!("{what} `{id}` not found"))
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
            ready(problem_response(Problem::NotFound("unknown path; the API is under /v1".to_owned())))
        })
        .method_not_allowed_fallback(|path: MatchedPath| ready(method_not_allowed(path.as_str())))
        .with_state(api)
}

fn problem_response(problem: Problem) -> Response<Body> {
    problem.into_reply().into_response()
}

/// 405, with the methods of the route's path.
fn method_not_allowed(path: &str) -> Response<Body> {
    Problem::MethodNotAllowed.into_reply().with_header("allow", &routes::methods(path)).into_response()
}

/// Authenticates and reads a request, runs its handler, and builds the response.
async fn dispatch(
    api: Arc<Api>,
    route: &'static Route,
    params: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
) -> Response<Body> {
    if request.method() == Method::HEAD && !route.accepts_head() {
        return method_not_allowed(route.path);
    }
    let now = || api.context.now().monotonic;
    let log = RequestLog::begin(request.headers(), now);
    let method = request.method().clone();
    let mut has_good_key = false;
    let peer = peer_address(request.extensions());
    let closer = request.extensions().get::<ConnectionCloser>().cloned().unwrap_or_default();
    let seat = request.extensions().get::<RequestSeat>().cloned().unwrap_or_default();
    let reply = match read_call(Arc::clone(&api), route, params, request, &seat).await {
        Ok(call) => {
            has_good_key = route.access != Access::Public;
            respond(route, &call, &seat, caller(route, &call.principal, peer), closer).await
        }
        Err(problem) => Err(problem),
    };
    let mut response = match reply {
        Ok(reply) => reply.into_response(),
        Err(problem) => {
            if route.access == Access::Publish {
                api.on_rejected(&problem);
            }
            problem_response(problem)
        }
    };
    if let Some(log) = log {
        log.end(method.as_str(), route.path, response.status().as_u16(), now());
    }
    if has_good_key {
        response.extensions_mut().insert(GoodKey);
    }
    response
}

/// Runs the handler. A read holds its turn until its response is made and counts against
/// [`UnreadResponses`], because its reader may be slow. A wait may be ended for another party.
async fn respond(
    route: &'static Route,
    call: &Call,
    seat: &RequestSeat,
    caller: Caller,
    closer: ConnectionCloser,
) -> Result<Reply, Problem> {
    if let Some((position, wait)) = position_wait(&call.headers)? {
        seat.endable(&call.party, wait_for_position(call, position, wait)).await?;
        auth::check_again(&call.api, &call.principal)?;
    }
    // Read before the handler runs: its answer reflects at least this.
    let reflected = Positions(&call.api.context).readable();
    let takes_turn = route.is_read() && route.turn == ReadTurn::Request && !call.waits();
    let _turn = if takes_turn { Some(call.api.reads.turn(&call.party).await) } else { None };
    let mut reply = if call.waits() {
        let reply = seat.endable(&call.party, (route.run)(call)).await?;
        auth::check_again(&call.api, &call.principal)?;
        reply
    } else {
        (route.run)(call).await?
    };
    if route.is_read() && route.access != Access::Public && reply.header(POSITION).is_none() {
        reply = reply.with_header(POSITION, &reflected.to_string());
    }
    call.api.unread.hold(reply, route.is_read(), caller, closer).await
}

/// Waits until answers reflect the position that the request names.
async fn wait_for_position(call: &Call, position: Position, wait: Duration) -> Result<(), Problem> {
    let waited = Positions(&call.api.context).wait(call.party.clone(), position, wait, call.gone());
    match waited.await? {
        Reached::Yes => Ok(()),
        Reached::No => Err(Problem::NotCaughtUp { position }),
    }
}

/// The position that a request waits for, and for how long.
fn position_wait(headers: &HeaderMap) -> Result<Option<(Position, Duration)>, Problem> {
    let text = |name: &'static str| match headers.get_all(name).iter().collect::<Vec<_>>()[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.to_str().unwrap_or_default())),
        _ => Err(Problem::Validation(vec![FieldError::header(name, "duplicate header")])),
    };
    let invalid = |name, detail| Problem::Validation(vec![FieldError::header(name, detail)]);
    let (position, wait) = (text(WAIT_POSITION)?, text(WAIT)?);
    let wait = match wait.map(text::parse_duration) {
        None => limits::POSITION_WAIT_DEFAULT,
        Some(Ok(wait)) if wait <= limits::POSITION_WAIT_MAX => wait,
        Some(Ok(_)) => {
            return Err(invalid(
                WAIT,
                format!("at most {}", text::format_duration(limits::POSITION_WAIT_MAX)),
            ));
        }
        Some(Err(reason)) => return Err(invalid(WAIT, reason)),
    };
    let Some(position) = position else { return Ok(None) };
    match parse_cursor(position) {
        Ok(position) => Ok(Some((position, wait))),
        Err(_) => Err(invalid(WAIT_POSITION, "must be a position, such as 1240".to_owned())),
    }
}

fn peer_of(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<Peer>().map(|peer| peer.0.ip())
}

fn peer_address(extensions: &Extensions) -> IpAddr {
    peer_of(extensions).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// The caller that the unread response counts for.
fn caller(route: &Route, principal: &Principal, peer: IpAddr) -> Caller {
    match (&principal.key, route.access) {
        (_, Access::Public) => Caller::Address(address_block(peer)),
        (Some(key), _) => Caller::Key(key.clone()),
        (None, _) => Caller::Administrator,
    }
}

async fn read_call(
    api: Arc<Api>,
    route: &'static Route,
    params: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
    seat: &RequestSeat,
) -> Result<Call, Problem> {
    let config = api.config();
    let (parts, stream) = request.into_parts();
    let principal = match route.access {
        Access::Public => Principal::operator(),
        access => {
            let from = peer_address(&parts.extensions);
            let principal = auth::authenticate(&api, &config, &parts, from)?;
            principal.check(access)?;
            principal
        }
    };
    let party = match route.access {
        Access::Public => Party::NoKey,
        _ => principal.scope.party(),
    };
    let mut read = None;
    if route.access != Access::Public {
        seat.enter(&party);
        read = enter_key(&api, &principal, route, seat)?;
    }
    let params = params.map_err(|_| Problem::NotFound("the path is not UTF-8".to_owned()))?;
    if !is_well_encoded(parts.uri.path()) {
        return Err(Problem::NotFound(format!("the path {BAD_ENCODING}")));
    }
    let id = params.iter().next().map(|(_, value)| value.to_owned()).unwrap_or_default();
    let query = Query::parse(parts.uri.query(), route.query)?;
    let (media, (body, budget)) = match &route.body {
        None => ("", (Bytes::new(), None)),
        Some(spec) => {
            let read = read_body(&api, &config, spec, &party, &parts.headers, stream);
            seat.endable(&party, read).await?
        }
    };
    let path = parts.uri.path().to_owned();
    let api = if route.is_act() {
        let target = Some(id.as_str()).filter(|id| !id.is_empty()).map(Into::into);
        let actor =
            Actor { key: principal.key.clone(), role: principal.role, tenant: principal.scope.0.clone() };
        api.acting(Act::new(actor, route.operation, target, peer_of(&parts.extensions)))
    } else {
        api
    };
    let client = parts.extensions.get::<ClientWatch>().cloned().unwrap_or_default();
    let headers = parts.headers;
    Ok(Call {
        api,
        route,
        config,
        principal,
        party,
        path,
        id,
        query,
        headers,
        media,
        body,
        client,
        seat: seat.clone(),
        _budget: budget,
        _read: read,
    })
}

/// Counts a request for its key: its connection, and its read if it is one.
///
/// # Errors
/// When the key has as many connections or reads as a quota of its tenant allows.
fn enter_key(
    api: &Api,
    principal: &Principal,
    route: &Route,
    seat: &RequestSeat,
) -> Result<Option<KeyPlace>, Problem> {
    let bound = principal.key.as_ref().zip(principal.scope.0.as_ref());
    let enter = |places: &KeyPlaces| {
        let Some((key, tenant)) = bound else { return Ok(None) };
        let limit = api.context.quotas(tenant).limit(places.quota());
        let place = limit.map(|limit| places.enter(key, limit)).transpose();
        place.inspect_err(|exceeded| api.context.metrics().quota_refused(exceeded.quota))
    };
    let entered = seat.enter_key(bound.map(|(key, _)| key), || enter(&api.key_connections));
    let read = entered.and_then(|()| if route.is_read() { enter(&api.key_reads) } else { Ok(None) });
    read.map_err(Problem::QuotaExceeded)
}

async fn read_body(
    api: &Api,
    config: &ApiConfig,
    spec: &BodySpec,
    party: &Party,
    headers: &HeaderMap,
    stream: Body,
) -> Result<(&'static str, HeldBody), Problem> {
    let is_empty = stream.is_end_stream();
    let read = |media| {
        let bytes = spec.limit.bytes(config, media);
        let limits = BodyLimits { bytes, timeout: config.body_timeout, rate_min: config.body_rate_min };
        arriving_body::read(stream, headers, limits, &api.body_budget, party)
    };
    if spec.need == Need::Required {
        let media = media_type(headers, spec).map_err(|problem| {
            let is_missing = is_empty && !headers.contains_key(header::CONTENT_TYPE);
            if is_missing { Problem::Malformed("the request needs a body".to_owned()) } else { problem }
        })?;
        return Ok((media, read(media).await?));
    }
    let held = read("").await?;
    if held.0.is_empty() {
        return Ok(("", held));
    }
    let media = body::media_type(headers, spec.media)?;
    Ok((media, held))
}

/// Routes for structured CloudEvents also accept binary mode, where `Content-Type` is the data's.
fn media_type(headers: &HeaderMap, spec: &BodySpec) -> Result<&'static str, Problem> {
    if spec.media.contains(&cloudevents::STRUCTURED) && cloudevents::is_binary(headers) {
        return Ok(cloudevents::BINARY);
    }
    body::media_type(headers, spec.media)
}

#[cfg(test)]
mod tests;
