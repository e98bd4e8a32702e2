//! The table of operations, from which the router and the OpenAPI document are built.

use std::future::Future;
use std::pin::Pin;

use axum::routing::MethodFilter;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::Value;

use crate::api::http::auth::Access;
use crate::api::http::problem::Problem;
use crate::api::http::reply::Reply;
use crate::api::http::request::RequestBody;
use crate::api::http::response::{OperationResponse, ReadTurn};
use crate::api::v1::lists::{self, Param};
use crate::api::v1::{
    audit, backup, cloudevents, consumers, dead_letters, deliveries, endpoints, erasure, event_types, events,
    feed, handshakes, jobs, keys, overview, projections, queues, sources, streams, tenants,
};
use crate::api::{ApiConfig, Call, documents};
use crate::limits;

/// The future of a handler's reply.
pub type Answering<'a> = Pin<Box<dyn Future<Output = Result<Reply, Problem>> + Send + 'a>>;
/// Returns the JSON schema of a type.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Verb {
    #[must_use]
    pub fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
            Self::Put => MethodFilter::PUT,
            Self::Patch => MethodFilter::PATCH,
            Self::Delete => MethodFilter::DELETE,
        }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Put => "put",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

/// Effect of repeating a request with the same `Idempotency-Key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// The header is ignored.
    Plain,
    /// The original response is returned. The handler commits the response with its effect.
    Stored,
    /// The first request invalidates the resource in its path.
    Once,
}

/// The size limit of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Event,
    Batch,
    Request,
}

impl Limit {
    /// In bytes.
    #[must_use]
    pub fn bytes(self, config: &ApiConfig, media: &str) -> usize {
        match self {
            Self::Event if media == cloudevents::BATCHED => limits::BATCH_BYTES_MAX,
            Self::Event => config.max_event_bytes,
            Self::Batch => limits::BATCH_BYTES_MAX,
            Self::Request => limits::REQUEST_BYTES_MAX,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Required,
    Optional,
    /// No body, or `{}`.
    Nothing,
}

pub struct BodySpec {
    pub need: Need,
    pub limit: Limit,
    pub media: &'static [&'static str],
    pub schema: SchemaOf,
}

pub struct Route {
    pub verb: Verb,
    pub path: &'static str,
    pub operation: &'static str,
    pub summary: &'static str,
    pub access: Access,
    pub query: &'static [Param],
    pub body: Option<BodySpec>,
    pub repeat: Repeat,
    pub status: u16,
    pub answer: Option<SchemaOf>,
    pub turn: ReadTurn,
    pub other_media: &'static [&'static str],
    pub run: for<'a> fn(&'a Call) -> Answering<'a>,
}

impl Route {
    /// Whether the limit of concurrent reads applies. It must not apply to operations that wait.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.verb == Verb::Get && self.repeat != Repeat::Once
    }

    /// Whether its effects are acts of an operator, which the audit log has.
    #[must_use]
    pub fn is_act(&self) -> bool {
        matches!(self.access, Access::Admin | Access::Operator)
    }

    /// The names of the parameters in the path.
    pub fn path_parameters(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }

    /// Whether `HEAD` is answered like `GET`, without the body. Links with an effect reject `HEAD`,
    /// because previews and scanners send it.
    #[must_use]
    pub fn accepts_head(&self) -> bool {
        self.verb == Verb::Get && self.repeat != Repeat::Once
    }
}

/// Whether the path of an event with this id belongs to another operation.
#[must_use]
pub fn is_reserved_event_id(id: &str) -> bool {
    ROUTES.iter().any(|route| route.path.strip_prefix("/v1/events/") == Some(id))
}

pub fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

/// Status, schema, turn and further media types of a response.
type Declared = (u16, Option<SchemaOf>, ReadTurn, &'static [&'static str]);

/// The response declaration of a handler without a body.
const fn response<'a, H, F, R>(_: &H) -> Declared
where
    H: Fn(&'a Call) -> F,
    F: Future<Output = Result<R, Problem>>,
    R: OperationResponse,
{
    (R::STATUS, R::SCHEMA, R::TURN, R::OTHER_MEDIA)
}

/// The declarations of a handler with a body.
const fn request_and_response<'a, H, B, F, R>(_: &H) -> (BodySpec, Declared)
where
    H: Fn(&'a Call, B) -> F,
    B: RequestBody,
    F: Future<Output = Result<R, Problem>>,
    R: OperationResponse,
{
    (B::SPEC, (R::STATUS, R::SCHEMA, R::TURN, R::OTHER_MEDIA))
}

/// One row of the table. `body HANDLER` is a handler that takes a body. Body, status and response
/// are those of the handler's types.
macro_rules! route {
    ($verb:ident $path:literal, $operation:literal, $summary:literal, $access:ident, $query:expr,
     $repeat:ident, body $run:path) => {
        route!(@row $verb $path, $operation, $summary, $access, $query, $repeat,
            Some(const { request_and_response(&$run).0 }), const { request_and_response(&$run).1 },
            |call| Box::pin(async { Ok($run(call, RequestBody::read(call)?).await?.into_reply()) }))
    };
    ($verb:ident $path:literal, $operation:literal, $summary:literal, $access:ident, $query:expr,
     $repeat:ident, $run:path) => {
        route!(@row $verb $path, $operation, $summary, $access, $query, $repeat,
            None, const { response(&$run) },
            |call| Box::pin(async { Ok($run(call).await?.into_reply()) }))
    };
    (@row $verb:ident $path:literal, $operation:literal, $summary:literal, $access:ident,
     $query:expr, $repeat:ident, $body:expr, $response:expr, $run:expr) => {
        Route {
            verb: Verb::$verb,
            path: $path,
            operation: $operation,
            summary: $summary,
            access: Access::$access,
            query: $query,
            body: $body,
            repeat: Repeat::$repeat,
            status: $response.0,
            answer: $response.1,
            turn: $response.2,
            other_media: $response.3,
            run: $run,
        }
    };
}

use lists::NONE;

/// The methods of a path, as `Allow` lists them.
#[must_use]
pub fn methods(path: &str) -> String {
    let mut methods = Vec::new();
    for route in ROUTES.iter().filter(|route| route.path == path) {
        methods.push(route.verb.as_str().to_uppercase());
        if route.accepts_head() {
            methods.push("HEAD".to_owned());
        }
    }
    methods.join(", ")
}

/// Every operation of the API listener.
pub static ROUTES: &[Route] = &[
    route!(Post "/v1/events", "publishEvent", "Publish an event: Balto's own format, or a CloudEvent in structured, batched or binary mode",
        Publish, lists::PUBLISH, Stored, body events::handlers::post),
    route!(Get "/v1/events", "listEvents", "List events, newest first",
        ReadEvents, lists::EVENTS, Plain, events::handlers::list),
    route!(Post "/v1/events/batch", "publishEvents", "Publish up to 1,000 independent events",
        Publish, NONE, Stored, body events::batch::post_batch),
    route!(Get "/v1/events/{id}", "getEvent", "Get an event and its deliveries",
        ReadEvents, lists::EVENT_AND_WAIT, Plain, events::handlers::get),
    route!(Post "/v1/events/{id}/replay", "replayEvent", "Deliver an event again",
        Admin, lists::ONE_EVENT, Stored, body events::handlers::replay),
    route!(Post "/v1/events/{id}/erase", "eraseEvent", "Erase an event's content from all reads at once, and from the disk soon after",
        Admin, lists::ONE_EVENT, Plain, body erasure::handlers::event),
    route!(Get "/v1/streams", "listStreams", "List the streams of a tenant, by name",
        ReadEvents, streams::query::STREAMS, Plain, streams::handlers::list),
    route!(Get "/v1/streams/{stream}", "getStream", "Get the version of a stream, or wait for its next event",
        ReadEvents, streams::query::STREAM_AND_WAIT, Plain, streams::handlers::get),
    route!(Post "/v1/streams/{stream}/events", "appendToStream", "Append events to a stream: all of them, or none",
        Publish, streams::query::APPEND, Stored, body streams::append::append),
    route!(Get "/v1/streams/{stream}/events", "readStream", "Read the events of a stream by version",
        ReadEvents, streams::query::STREAM_EVENTS, Plain, streams::handlers::read),
    route!(Get "/v1/streams/{stream}/state", "getStreamState", "Get the state of a stream, by the rules of its event types",
        ReadEvents, streams::query::STREAM_STATE, Plain, streams::handlers::state),
    route!(Post "/v1/streams/{stream}/erase", "eraseStream", "Erase the content of all events of a stream from all reads, and from the disk soon after",
        Admin, streams::query::ONE_STREAM, Plain, body erasure::handlers::stream),
    route!(Post "/v1/endpoints", "createEndpoint", "Register an endpoint",
        Admin, NONE, Stored, body endpoints::handlers::create),
    route!(Get "/v1/endpoints", "listEndpoints", "List endpoints, newest first",
        Read, lists::ENDPOINTS, Plain, endpoints::handlers::list),
    route!(Get "/v1/endpoints/{id}", "getEndpoint", "Get an endpoint",
        Read, NONE, Plain, endpoints::handlers::get),
    route!(Patch "/v1/endpoints/{id}", "updateEndpoint", "Change an endpoint by merge patch; null restores a default",
        Admin, NONE, Plain, body endpoints::handlers::patch),
    route!(Delete "/v1/endpoints/{id}", "deleteEndpoint", "Delete an endpoint",
        Admin, NONE, Plain, endpoints::handlers::delete),
    route!(Post "/v1/endpoints/{id}/pause", "pauseEndpoint", "Hold an endpoint's deliveries",
        Admin, NONE, Plain, body endpoints::handlers::pause),
    route!(Post "/v1/endpoints/{id}/resume", "resumeEndpoint", "Resume a paused or disabled endpoint",
        Admin, NONE, Plain, body endpoints::handlers::resume),
    route!(Post "/v1/endpoints/{id}/handshake", "requestHandshake", "Revoke consent and repeat the handshake at once",
        Admin, NONE, Plain, body handshakes::handlers::repeat),
    route!(Get "/v1/handshakes/{token}", "openHandshake", "Grant a receiver's consent by opening its callback URL",
        Public, NONE, Once, handshakes::handlers::grant),
    route!(Post "/v1/handshakes/{token}", "grantHandshake", "Grant a receiver's consent, optionally with `WebHook-Allowed-Rate`",
        Public, NONE, Plain, handshakes::handlers::grant),
    route!(Post "/v1/endpoints/{id}/test", "testEndpoint", "Send a test event to this endpoint alone: a fixed one, or the example of a registered type",
        Admin, NONE, Stored, body endpoints::test_event::test),
    route!(Post "/v1/endpoints/{id}/preview", "previewEndpoint", "Show the request that an event would become, without sending it",
        Admin, NONE, Plain, body endpoints::preview::preview),
    route!(Post "/v1/endpoints/{id}/filter/test", "testEndpointFilter", "Try a filter on an event, or count the stored events that would be delivered",
        Read, NONE, Plain, body endpoints::selection::test_filter),
    route!(Get "/v1/endpoints/{id}/secret", "getEndpointSecret", "Get the signing secrets",
        Admin, NONE, Plain, endpoints::secrets::secret),
    route!(Get "/v1/endpoints/{id}/public-keys", "getEndpointPublicKeys", "Get the public keys that verify `v1a` signatures",
        Read, NONE, Plain, endpoints::secrets::public_keys),
    route!(Post "/v1/endpoints/{id}/secret/rotate", "rotateEndpointSecret", "Rotate the signing secret",
        Admin, NONE, Stored, body endpoints::secrets::rotate),
    route!(Get "/v1/endpoints/{id}/stats", "getEndpointStats", "Get counts and latencies of a time window",
        Read, lists::WINDOW, Plain, endpoints::reports::stats),
    route!(Get "/v1/endpoints/{id}/lane", "getEndpointLane", "Get the state of an endpoint's lane: pending deliveries and the wait reason",
        Read, NONE, Plain, endpoints::reports::lane),
    route!(Post "/v1/endpoints/{id}/replay", "replayEndpoint", "Deliver past events to an endpoint",
        Admin, NONE, Stored, body endpoints::reports::replay),
    route!(Post "/v1/queues", "createQueue", "Create a queue; the same queue again is answered with 200",
        Admin, NONE, Stored, body queues::handlers::create),
    route!(Get "/v1/queues", "listQueues", "List queues, newest first",
        Read, lists::QUEUES, Plain, queues::handlers::list),
    route!(Get "/v1/queues/{name}", "getQueue", "Get a queue",
        Read, lists::ONE_QUEUE, Plain, queues::handlers::get),
    route!(Patch "/v1/queues/{name}", "updateQueue", "Change a queue by merge patch; null restores a default",
        Admin, lists::ONE_QUEUE, Plain, body queues::handlers::patch),
    route!(Delete "/v1/queues/{name}", "deleteQueue", "Delete a queue; its messages become dead letters",
        Admin, lists::ONE_QUEUE, Plain, queues::handlers::delete),
    route!(Post "/v1/queues/{name}/pause", "pauseQueue", "Give out no more messages; leases still end",
        Admin, lists::ONE_QUEUE, Plain, body queues::handlers::pause),
    route!(Post "/v1/queues/{name}/resume", "resumeQueue", "Give out messages again",
        Admin, lists::ONE_QUEUE, Plain, body queues::handlers::resume),
    route!(Post "/v1/queues/{name}/purge", "purgeQueue", "Cancel all messages of a queue, leased ones included",
        Admin, lists::ONE_QUEUE, Stored, body queues::reports::purge),
    route!(Post "/v1/queues/{name}/replay", "replayQueue", "Deliver past events to a queue",
        Admin, lists::ONE_QUEUE, Stored, body queues::reports::replay),
    route!(Post "/v1/queues/{name}/filter/test", "testQueueFilter", "Try a filter on an event, or count the stored events that would be delivered",
        Read, lists::ONE_QUEUE, Plain, body queues::reports::test_filter),
    route!(Post "/v1/queues/{name}/receive", "receiveMessages", "Lease messages; waits for the first one at most `wait`",
        Work, lists::ONE_QUEUE, Plain, body queues::messages::receive),
    route!(Post "/v1/queues/{name}/ack", "acknowledgeMessages", "End leases: the work is done",
        Work, lists::ONE_QUEUE, Plain, body queues::messages::ack),
    route!(Post "/v1/queues/{name}/nack", "rejectMessages", "End leases: the work failed; the messages come again, or become dead letters",
        Work, lists::ONE_QUEUE, Plain, body queues::messages::nack),
    route!(Post "/v1/queues/{name}/release", "releaseMessages", "End leases: the messages return to the front, uncounted",
        Work, lists::ONE_QUEUE, Plain, body queues::messages::release),
    route!(Post "/v1/queues/{name}/extend", "extendLeases", "Keep leases for longer",
        Work, lists::ONE_QUEUE, Plain, body queues::messages::extend),
    route!(Get "/v1/queues/{name}/leases", "listLeases", "List messages under lease, oldest first",
        Read, lists::LEASES, Plain, queues::reports::leases),
    route!(Get "/v1/queues/{name}/stats", "getQueueStats", "Get counts and lease times of a time window",
        Read, lists::QUEUE_WINDOW, Plain, queues::reports::stats),
    route!(Get "/v1/queues/{name}/lane", "getQueueLane", "Get the state of a queue's lane: messages, leases, workers and the wait reason",
        Read, lists::ONE_QUEUE, Plain, queues::reports::lane),
    route!(Get "/v1/deliveries", "listDeliveries", "List deliveries, newest first",
        ReadEvents, lists::DELIVERIES, Plain, deliveries::handlers::list),
    route!(Get "/v1/deliveries/{id}", "getDelivery", "Get a delivery and its attempts",
        ReadEvents, NONE, Plain, deliveries::handlers::get),
    route!(Get "/v1/deliveries/{id}/curl", "getDeliveryCurl", "Get the request of a delivery as a curl command for a POSIX shell",
        ReadEvents, lists::CURL, Plain, deliveries::handlers::curl_command),
    route!(Post "/v1/deliveries/{id}/retry", "retryDelivery", "Make a delivery due now",
        Admin, NONE, Stored, body deliveries::handlers::retry),
    route!(Post "/v1/deliveries/{id}/cancel", "cancelDelivery", "Cancel a pending delivery",
        Admin, NONE, Stored, body deliveries::handlers::cancel),
    route!(Get "/v1/dead-letters", "listDeadLetters", "List dead letters, newest first",
        Read, lists::DEAD_LETTERS, Plain, dead_letters::handlers::list),
    route!(Post "/v1/dead-letters/redrive", "redriveDeadLetters", "Redrive all dead letters that match a filter; without a filter, all that the key can see",
        Admin, NONE, Stored, body dead_letters::handlers::redrive_matching),
    route!(Post "/v1/dead-letters/purge", "purgeDeadLetters", "Purge all dead letters that match a filter; `{}` matches all that the key can see",
        Admin, NONE, Stored, body dead_letters::handlers::purge_matching),
    route!(Get "/v1/dead-letters/{deliveryId}", "getDeadLetter", "Get a dead letter with its event and attempts",
        Read, NONE, Plain, dead_letters::handlers::get),
    route!(Delete "/v1/dead-letters/{deliveryId}", "purgeDeadLetter", "Purge a dead letter",
        Admin, NONE, Plain, dead_letters::handlers::purge),
    route!(Post "/v1/dead-letters/{deliveryId}/redrive", "redriveDeadLetter", "Redrive a dead letter: start a new retry series",
        Admin, NONE, Stored, body dead_letters::handlers::redrive),
    route!(Get "/v1/consumers", "listConsumers", "List consumers with their lag, by tenant and name",
        ReadEvents, lists::CONSUMERS, Plain, consumers::handlers::list),
    route!(Put "/v1/consumers/{name}", "putConsumer", "Create a consumer, or change what it reads; an existing one keeps its position",
        Admin, NONE, Plain, body consumers::handlers::put),
    route!(Get "/v1/consumers/{name}", "getConsumer", "Get a consumer with its lag; with `waitPosition`, when it has committed that position",
        ReadEvents, lists::CONSUMER_AND_WAIT, Plain, consumers::handlers::get),
    route!(Delete "/v1/consumers/{name}", "deleteConsumer", "Delete a consumer",
        Admin, lists::CONSUMER, Plain, consumers::handlers::delete),
    route!(Get "/v1/consumers/{name}/events", "readConsumer", "Read the events after a consumer's position, in order",
        ReadEvents, lists::CONSUMER_FEED, Plain, consumers::handlers::events),
    route!(Post "/v1/consumers/{name}/commit", "commitConsumer", "Move a consumer forward; `from` rejects the commit of a second instance",
        Work, lists::CONSUMER, Plain, body consumers::handlers::commit),
    route!(Post "/v1/consumers/{name}/reset", "resetConsumer", "Move a consumer forward or back",
        Admin, lists::CONSUMER, Plain, body consumers::handlers::reset),
    route!(Get "/v1/jobs", "listJobs", "List jobs, newest first: bulk work that runs, and the last that ended",
        Read, lists::JOBS, Plain, jobs::handlers::list),
    route!(Get "/v1/jobs/{id}", "getJob", "Get a job and its progress",
        Read, NONE, Plain, jobs::handlers::get),
    route!(Post "/v1/jobs/{id}/cancel", "cancelJob", "End a job after its current step; completed steps stay",
        Admin, NONE, Plain, body jobs::handlers::cancel),
    route!(Get "/v1/audit", "listAudit", "List the acts of operators, newest first",
        Admin, lists::AUDIT, Plain, audit::handlers::list),
    route!(Get "/v1/backup", "getBackup", "Get a part of a full backup, for `balto restore`",
        Operator, lists::BACKUP, Plain, backup::handlers::part),
    route!(Post "/v1/keys", "createKey", "Create an API key",
        Operator, NONE, Stored, body keys::handlers::create),
    route!(Get "/v1/keys", "listKeys", "List API keys, newest first",
        Operator, lists::KEYS, Plain, keys::handlers::list),
    route!(Get "/v1/keys/{id}", "getKey", "Get an API key, without its secret",
        Operator, NONE, Plain, keys::handlers::get),
    route!(Patch "/v1/keys/{id}", "updateKey", "Change the description of an API key by merge patch; null removes it",
        Operator, NONE, Plain, body keys::handlers::patch),
    route!(Delete "/v1/keys/{id}", "deleteKey", "Delete an API key",
        Operator, NONE, Plain, keys::handlers::delete),
    route!(Get "/v1/tenants", "listTenants", "List tenants with their usage, by name",
        Operator, lists::TENANTS, Plain, tenants::handlers::list),
    route!(Get "/v1/tenants/{tenant}", "getTenant", "Get a tenant with its quotas and usage; a key that is bound to a tenant gets its own",
        Admin, NONE, Plain, tenants::handlers::get),
    route!(Put "/v1/tenants/{tenant}", "putTenant", "Create or replace the settings of a tenant",
        Operator, NONE, Plain, body tenants::handlers::put),
    route!(Patch "/v1/tenants/{tenant}", "updateTenant", "Change the settings of a tenant by merge patch; null restores a default",
        Operator, NONE, Plain, body tenants::handlers::patch),
    route!(Delete "/v1/tenants/{tenant}", "deleteTenant", "Delete a tenant's keys, sources, consumers, endpoints and settings; its events stay until retention removes them",
        Operator, NONE, Plain, body tenants::handlers::delete),
    route!(Get "/v1/event-types", "listEventTypes", "List registered event types, by name",
        ReadEvents, lists::TENANTS, Plain, event_types::handlers::list),
    route!(Get "/v1/event-types/{name}", "getEventType", "Get an event type with its schemas and migrations",
        ReadEvents, NONE, Plain, event_types::handlers::get),
    route!(Put "/v1/event-types/{name}", "putEventType", "Register an event type, or replace its definition",
        Operator, lists::TYPE_CHANGE, Plain, body event_types::handlers::put),
    route!(Delete "/v1/event-types/{name}", "deleteEventType", "Delete an event type; its events stay",
        Operator, lists::FORCED, Plain, event_types::handlers::delete),
    route!(Post "/v1/sources", "createSource", "Create a source: a broker's queue whose messages become events",
        Operator, NONE, Stored, body sources::handlers::create),
    route!(Get "/v1/sources", "listSources", "List sources with what they do now, by name",
        Operator, lists::TENANTS, Plain, sources::handlers::list),
    route!(Get "/v1/sources/{name}", "getSource", "Get a source with its connection and counts",
        Operator, NONE, Plain, sources::handlers::get),
    route!(Patch "/v1/sources/{name}", "updateSource", "Change a source by merge patch; it connects again",
        Operator, NONE, Plain, body sources::handlers::patch),
    route!(Delete "/v1/sources/{name}", "deleteSource", "Delete a source; its queue stays at the broker",
        Operator, NONE, Plain, sources::handlers::delete),
    route!(Post "/v1/sources/{name}/pause", "pauseSource", "Pause a source; its messages wait at the broker",
        Operator, NONE, Plain, body sources::handlers::pause),
    route!(Post "/v1/sources/{name}/resume", "resumeSource", "Resume a source",
        Operator, NONE, Plain, body sources::handlers::resume),
    route!(Get "/v1/stats", "getStats", "Get counts and latencies over all endpoints, or those of a tenant",
        Read, lists::OVERVIEW, Plain, overview::handlers::stats),
    route!(Get "/v1/lanes", "listLanes", "List lanes of endpoints and queues with pending deliveries, with their wait reasons",
        Read, lists::LANES, Plain, overview::handlers::lanes),
    route!(Get "/v1/feed", "readFeed", "Read all events in order, from a cursor on",
        ReadEvents, lists::FEED, Plain, feed::handlers::get),
    route!(Get "/v1/projections", "listProjections", "List the state and the consumers with their positions and lags",
        Read, lists::PROJECTIONS, Plain, projections::handlers::list),
    route!(Post "/v1/projections/state/rebuild", "rebuildState", "Rebuild the state from the journal while the old one serves",
        Operator, NONE, Plain, projections::handlers::rebuild),
    route!(Get "/v1/openapi.json", "getOpenapi", "Get this document",
        Public, NONE, Plain, documents::openapi),
    route!(Get "/v1/asyncapi.json", "getAsyncapi", "Get the registered event types as an AsyncAPI 3.0 document",
        Public, NONE, Plain, documents::asyncapi),
];
