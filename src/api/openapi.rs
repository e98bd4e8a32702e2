//! The OpenAPI 3.1 document, built from the route table.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::api::http::auth::Access;
use crate::api::routes::{BodySpec, Need, ROUTES, Repeat, Route, Verb};
use crate::api::v1::lists::{self, Kind, Param};
use crate::api::v1::{cloudevents, events};
use crate::domain::{ClosedList as _, Quota};
use crate::limits;

/// The document, without the event types.
#[must_use]
pub fn document() -> Value {
    let settings = || {
        SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
    };
    let mut request_schemas = settings().for_deserialize().into_generator();
    let mut response_schemas = settings().for_serialize().into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let item = paths.entry(route.path).or_insert_with(|| json!({}));
        item[route.verb.as_str()] = operation(route, &mut request_schemas, &mut response_schemas);
    }
    let mut schemas = response_schemas.take_definitions(true);
    schemas.extend(request_schemas.take_definitions(true));
    schemas.insert("Problem".to_owned(), problem_schema());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Balto",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A webhook delivery engine: durable outbox, signed deliveries, retries, dead letters.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    })
}

fn operation(
    route: &Route,
    request_schemas: &mut SchemaGenerator,
    response_schemas: &mut SchemaGenerator,
) -> Value {
    let mut operation = json!({
        "operationId": route.operation,
        "summary": route.summary,
        "tags": [tag(route.path)],
        "parameters": parameters(route),
        "responses": responses(route, response_schemas),
        "security": if route.access == Access::Public { json!([]) } else { json!([{"key": []}]) },
    });
    if route.access != Access::Public {
        operation["description"] = format!("Roles: {}.", route.access.roles().join(", ")).into();
    }
    if let Some(spec) = &route.body {
        operation["requestBody"] = request_body(spec, request_schemas);
    }
    operation
}

fn tag(path: &str) -> &str {
    let rest = path.strip_prefix("/v1/").unwrap_or(path);
    rest.split('/').next().unwrap_or(rest)
}

fn request_body(spec: &BodySpec, generator: &mut SchemaGenerator) -> Value {
    let schema = (spec.schema)(generator);
    let content: Map<String, Value> = spec
        .media
        .iter()
        .map(|media| {
            let schema = match *media {
                events::handlers::NDJSON => json!({"type": "string"}),
                cloudevents::STRUCTURED => cloudevents::schema(),
                cloudevents::BATCHED => json!({
                    "type": "array", "maxItems": limits::BATCH_EVENTS_MAX, "items": cloudevents::schema(),
                }),
                _ => schema.clone(),
            };
            ((*media).to_owned(), json!({"schema": schema}))
        })
        .collect();
    json!({"required": spec.need == Need::Required, "content": content})
}

fn parameters(route: &Route) -> Vec<Value> {
    let mut parameters = Vec::new();
    for name in route.path_parameters() {
        let schema = schema_of(match name {
            "tenant" => lists::TENANT_NAME,
            "name" if route.path.starts_with("/v1/event-types/") => lists::TENANT_NAME,
            "stream" => lists::STREAM,
            "name" => lists::RESOURCE_NAME,
            "id" if route.path.starts_with("/v1/endpoints/") => lists::RESOURCE_NAME,
            _ => lists::ID,
        });
        parameters.push(json!({"name": name, "in": "path", "required": true, "schema": schema}));
    }
    parameters.extend(route.query.iter().map(query_parameter));
    if route.repeat != Repeat::Plain {
        parameters.push(json!({
            "name": "Idempotency-Key",
            "in": "header",
            "description": "Repeating a request with the same key and the same body, byte for byte, returns the original response with \
                `Idempotent-Replayed: true`. In the response for an event, `duplicate` is then true. Responses 429, 503 and 507, \
                and `quota_exceeded`, are not stored; retry them with the same key.",
            "schema": {
                "type": "string", "minLength": 1, "maxLength": limits::IDEMPOTENCY_KEY_BYTES_MAX,
                "pattern": "^[!#-~]+$",
            },
        }));
    }
    parameters
}

fn query_parameter(param: &Param) -> Value {
    let schema = schema_of(param.kind);
    json!({"name": param.name, "in": "query", "description": param.about, "schema": schema})
}

fn schema_of(kind: Kind) -> Value {
    match kind {
        Kind::Text(pattern, bytes) => {
            json!({"type": "string", "pattern": pattern, "minLength": 1, "maxLength": bytes})
        }
        Kind::Time => json!({"type": "string", "format": "date-time"}),
        Kind::Position => json!({"type": "integer", "minimum": 0, "maximum": i64::MAX}),
        Kind::Wait => {
            json!({"type": "string", "pattern": "^([0-9]{1,4}ms|[1-5]?[0-9]s|1m)$", "examples": ["10s"]})
        }
        Kind::Limit => schema_of(Kind::Count(limits::PAGE_ITEMS_MAX, limits::PAGE_ITEMS_DEFAULT)),
        Kind::Count(most, usual) => {
            json!({"type": "integer", "minimum": 1, "maximum": most, "default": usual})
        }
        Kind::Any(bytes) => json!({"type": "string", "maxLength": bytes}),
        Kind::Word(words) => json!({"type": "string", "enum": words}),
    }
}

/// The error statuses of an operation, with their descriptions.
fn error_statuses(route: &Route) -> Vec<(u16, &'static str)> {
    let mut list = Vec::new();
    let secured = route.access != Access::Public;
    let has_id = route.path.contains('{');
    let writes = route.verb != Verb::Get;
    // A callback commits its consent, also as a `GET`.
    let commits = writes || (!secured && has_id);
    if route.body.is_some() || route.repeat != Repeat::Plain {
        list.push((400, "The request is malformed"));
    }
    if secured {
        list.push((401, "No valid API key"));
        list.push((403, "The API key does not allow this"));
    }
    // The feed can be that of a consumer.
    if has_id || route.operation == "readFeed" {
        list.push((404, "Not found"));
    }
    list.push((405, "The method is not allowed"));
    let reads_feed = ["readFeed", "readConsumer"].contains(&route.operation);
    let begins_anywhere = ["readStream", "getStreamState", "putConsumer", "resetConsumer"];
    if reads_feed || begins_anywhere.contains(&route.operation) {
        list.push((410, "Retention has removed the version or the position"));
    }
    // A delivery may have no request, and a uid may be that of several endpoints.
    let is_ambiguous = route.operation == "getDeliveryCurl" || route.path.starts_with("/v1/endpoints/{id}");
    if writes || is_ambiguous || reads_feed {
        list.push((409, "Conflict"));
    }
    if route.body.is_some() {
        list.push((408, "The body did not arrive in time"));
        list.push((413, "The body is too large"));
        list.push((415, "The media type is not supported"));
    }
    // Every operation rejects unknown query parameters.
    list.push((422, "The request is well-formed but not valid"));
    if secured || commits || route.is_read() {
        list.push((429, "Too many requests"));
    }
    list.push((431, "The request line and the headers are too large"));
    if secured || commits {
        list.push((503, "The service is unavailable"));
    }
    if commits {
        list.push((507, "The disk is full"));
    }
    list
}

fn responses(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut responses = Map::new();
    let mut success = json!({"description": route.summary});
    if let Some(schema) = route.answer {
        success["content"] = json!({"application/json": {"schema": schema(generator)}});
    }
    for media in route.other_media {
        let schema = match *media {
            cloudevents::BATCHED => json!({"type": "array", "items": cloudevents::schema()}),
            _ => json!({"type": "string"}),
        };
        success["content"][*media] = json!({ "schema": schema });
    }
    if let Some(headers) = success_headers(route) {
        success["headers"] = headers;
    }
    if let Some(links) = links(route) {
        success["links"] = links;
    }
    // `PUT` creates, or replaces. The creation of the same queue again changes nothing.
    match (route.verb, route.operation) {
        (Verb::Put, _) => drop(responses.insert("201".to_owned(), success.clone())),
        (_, "createQueue") => drop(responses.insert("200".to_owned(), success.clone())),
        _ => {}
    }
    responses.insert(route.status.to_string(), success);
    if route.operation == "getStream" {
        let text = json!({"schema": {"type": "string"}});
        responses.insert(
            "304".to_owned(),
            json!({"description": "The version is that of `If-None-Match`", "headers": {"ETag": text}}),
        );
    }
    for (status, description) in error_statuses(route) {
        let mut response = json!({
            "description": description,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        });
        let header = |text: &str| json!({"schema": {"type": text}});
        match status {
            401 => response["headers"] = json!({"WWW-Authenticate": header("string")}),
            405 => response["headers"] = json!({"Allow": header("string")}),
            // A rejection that depends on stored state is stored, and repeated.
            409 | 422 if route.access == Access::Publish => {
                response["headers"] = json!({"Idempotent-Replayed": header("string")});
            }
            429 | 503 | 507 => response["headers"] = json!({"Retry-After": header("integer")}),
            _ => {}
        }
        responses.insert(status.to_string(), response);
    }
    Value::Object(responses)
}

/// The links of a response: all operations on the resource whose id it contains.
fn links(route: &Route) -> Option<Value> {
    let (prefix, id) = match route.operation {
        "publishEvent" => ("/v1/events/{id}", "$response.body#/id"),
        "createEndpoint" => ("/v1/endpoints/{id}", "$response.body#/id"),
        "createKey" => ("/v1/keys/{id}", "$response.body#/id"),
        "getEvent" => ("/v1/deliveries/{id}", "$response.body#/deliveries/0/id"),
        _ => return None,
    };
    let targets = ROUTES.iter().filter(|route| route.path.starts_with(prefix));
    let link = |route: &Route| {
        let link = json!({"operationId": route.operation, "parameters": {"id": id}});
        (route.operation.to_owned(), link)
    };
    Some(Value::Object(targets.map(link).collect()))
}

fn success_headers(route: &Route) -> Option<Value> {
    let text = json!({"schema": {"type": "string"}});
    if route.query.iter().any(|param| matches!(param.kind, Kind::Limit)) {
        return Some(json!({"Link": text, "Balto-Position": {"schema": {"type": "integer"}}}));
    }
    (route.repeat != Repeat::Plain).then(|| json!({"Location": text, "Idempotent-Replayed": text}))
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "description": "RFC 9457 problem details.",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": {"type": "string", "examples": ["urn:balto:problem:validation_failed"]},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"type": "string", "description": "Stable."},
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["pointer", "detail"],
                    "properties": {
                        "pointer": {"type": "string", "description": "JSON pointer into the body, or the name of a parameter or header."},
                        "parameter": {"type": "string", "description": "The invalid parameter of the query or the path."},
                        "header": {"type": "string", "description": "The invalid header."},
                        "detail": {"type": "string"},
                    },
                },
            },
            "expected": {"type": ["integer", "string"]},
            "index": {"type": "integer", "description": "Of the event in an atomic request."},
            "stream": {"type": "string"},
            "firstVersion": {"type": "integer", "description": "The first version that can be read."},
            "actual": {"type": ["integer", "string", "null"]},
            "oldest": {"type": "string", "description": "The first cursor that can be read."},
            "head": {"type": "string", "description": "The last cursor of the log."},
            "limit": {"type": "integer"},
            "quota": {"type": "string", "enum": Quota::WORDS},
            "value": {"type": "integer", "description": "The value that the request would reach."},
            "accepted": {"type": "array", "items": {"type": "string"}},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn document_has_every_route_and_no_dangling_reference() {
        let document = document();
        for route in ROUTES {
            let operation = &document["paths"][route.path][route.verb.as_str()];
            assert_eq!(operation["operationId"], route.operation);
            assert!(operation["responses"][route.status.to_string()].is_object(), "{}", route.operation);
        }
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "dangling {reference}");
        }
    }

    #[test]
    fn operation_ids_are_unique() {
        let mut ids: Vec<_> = ROUTES.iter().map(|route| route.operation).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), ROUTES.len());
    }
}
