//! Documents that name the registered event types: webhooks in the OpenAPI document, and AsyncAPI.
//!
//! Each document is built once per revision of the types. Its size is bounded: types that do not
//! fit are left out, and the document says so.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::api::Call;
use crate::api::http::problem::Problem;
use crate::api::http::public_document::PublicDocument;
use crate::api::http::reply::Reply;
use crate::api::http::response::Json;
use crate::api::openapi;
use crate::domain::{TypeDefinition, TypeVersion};
use crate::limits;
use crate::service::EventTypes;
use crate::service::event_types::TypesRevision;
use crate::service::types::value_of;

/// The document of one revision.
#[derive(Default)]
pub struct RevisedDocument(Mutex<Option<(TypesRevision, Arc<OnceLock<PublicDocument>>)>>);

impl RevisedDocument {
    /// The document for the present types; 304 if the client has it.
    async fn reply(&self, call: &Call, build: fn(&[Arc<TypeDefinition>]) -> Value) -> Reply {
        let (revision, types) = EventTypes(&call.api.context).all();
        let tag = revision.tag();
        if has_tag(&call.headers, &tag) {
            return Reply::not_modified().with_header("etag", &tag);
        }
        let document = {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match &*known {
                Some((of, document)) if *of == revision => document.clone(),
                _ => known.insert((revision, Arc::default())).1.clone(),
            }
        };
        let bytes = if document.get().is_some() { 0 } else { limits::HEAVY_WORK_BYTES };
        let build = || PublicDocument::new(Bytes::from(build(&types).to_string()));
        let reply = |document: &PublicDocument| document.reply(&call.headers);
        let reply = call.heavy_work(bytes, || reply(document.get_or_init(build))).await;
        reply.with_header("etag", &tag)
    }
}

fn has_tag(headers: &HeaderMap, tag: &str) -> bool {
    let given = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    given.flat_map(|value| value.split(',')).any(|one| one.trim().trim_start_matches("W/") == tag)
}

/// `GET /v1/openapi.json`
pub async fn openapi(call: &Call) -> Result<Json<Map<String, Value>>, Problem> {
    Ok(Json::from_reply(call.api.documents.openapi.reply(call, openapi_document).await))
}

/// `GET /v1/asyncapi.json`
pub async fn asyncapi(call: &Call) -> Result<Json<Map<String, Value>>, Problem> {
    Ok(Json::from_reply(call.api.documents.asyncapi.reply(call, asyncapi_document).await))
}

/// The documents that are made from the event types.
#[derive(Default)]
pub struct Documents {
    openapi: RevisedDocument,
    asyncapi: RevisedDocument,
}

/// The newest versions that fit, and whether that is all.
fn fitting(types: &[Arc<TypeDefinition>]) -> (Vec<(&TypeDefinition, &TypeVersion)>, bool) {
    let mut bytes = 0;
    let newest = types.iter().filter_map(|definition| Some((&**definition, definition.latest()?)));
    let fits = |(_, version): &(&TypeDefinition, &TypeVersion)| {
        bytes += 1_024 + version.schema.len() + version.examples.first().map_or(0, |example| example.len());
        bytes <= limits::TYPE_DOCUMENT_BYTES_MAX
    };
    let fitting: Vec<_> = newest.take_while(fits).collect();
    let is_all = fitting.len() == types.len();
    (fitting, is_all)
}

const LEFT_OUT: &str = "Some event types are left out, because the document would be too large.";

fn openapi_document(types: &[Arc<TypeDefinition>]) -> Value {
    let mut document = openapi::document();
    let (types, is_all) = fitting(types);
    let mut webhooks = Map::new();
    for (definition, version) in types {
        let name = definition.name.as_str();
        document["components"]["schemas"][component(name)] = schema(name, version);
        let mut content = json!({"schema": envelope(name, version)});
        if let Some(example) = example(name, version) {
            content["example"] = example;
        }
        let mut operation = json!({
            "summary": name,
            "description": definition.description,
            "requestBody": {"required": true, "content": {"application/json": content}},
            "responses": {"2XX": {"description": "The event is delivered. Any other status is a failure."}},
            "security": [],
        });
        if version.deprecated {
            operation["deprecated"] = true.into();
        }
        webhooks.insert(name.to_owned(), json!({"post": operation}));
    }
    if !webhooks.is_empty() {
        document["webhooks"] = Value::Object(webhooks);
    }
    if !is_all {
        document["info"]["description"] = LEFT_OUT.into();
    }
    document
}

fn asyncapi_document(types: &[Arc<TypeDefinition>]) -> Value {
    let (types, is_all) = fitting(types);
    let (mut channels, mut operations) = (Map::new(), Map::new());
    let (mut messages, mut schemas) = (Map::new(), Map::new());
    for (definition, version) in types {
        let name = definition.name.as_str();
        schemas.insert(component(name), schema(name, version));
        let mut message = json!({
            "name": name,
            "title": name,
            "summary": definition.description,
            "contentType": "application/json",
            "payload": envelope(name, version),
        });
        if let Some(example) = example(name, version) {
            message["examples"] = json!([{"payload": example}]);
        }
        messages.insert(name.to_owned(), message);
        channels.insert(
            name.to_owned(),
            json!({
                "address": name,
                "messages": {name: {"$ref": format!("#/components/messages/{name}")}},
            }),
        );
        operations.insert(
            format!("send.{name}"),
            json!({
                "action": "send",
                "channel": {"$ref": format!("#/channels/{name}")},
                "messages": [{"$ref": format!("#/channels/{name}/messages/{name}")}],
            }),
        );
    }
    let description = if is_all { "The registered event types, in their newest version." } else { LEFT_OUT };
    json!({
        "asyncapi": "3.0.0",
        "info": {"title": "Balto", "version": env!("CARGO_PKG_VERSION"), "description": description},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    })
}

/// Name of the component with the schema of a type. No schema of the API has a dot in its name.
fn component(name: &str) -> String {
    format!("event.{name}")
}

/// The schema of `data`, whose references to itself lead to the component.
fn schema(name: &str, version: &TypeVersion) -> Value {
    let mut schema = value_of(&version.schema).unwrap_or(Value::Bool(true));
    let has_own_base = schema.get("$id").is_some();
    if !has_own_base {
        redirect(&mut schema, &format!("#/components/schemas/{}", component(name)));
    }
    if let Some(members) = schema.as_object_mut() {
        members.shift_remove("$schema");
    }
    schema
}

fn redirect(schema: &mut Value, target: &str) {
    match schema {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(reference) if name == "$ref" => {
                        if reference == "#" || reference.starts_with("#/") {
                            *reference = format!("{target}{}", &reference[1..]);
                        }
                    }
                    // Values, not schemas.
                    _ if matches!(name.as_str(), "const" | "enum" | "default" | "examples") => {}
                    member => redirect(member, target),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| redirect(item, target)),
        _ => {}
    }
}

/// The schema of a request body in the format `standard`.
fn envelope(name: &str, version: &TypeVersion) -> Value {
    let text = || json!({"type": "string"});
    json!({
        "type": "object",
        "required": ["id", "type", "timestamp", "version", "tenant", "data"],
        "properties": {
            "id": text(),
            "type": {"const": name},
            "timestamp": {"type": "string", "format": "date-time"},
            "version": {"const": version.version.as_str()},
            "tenant": text(),
            "stream": text(),
            "streamVersion": {"type": "integer", "minimum": 1},
            "data": {"$ref": format!("#/components/schemas/{}", component(name))},
        },
    })
}

fn example(name: &str, version: &TypeVersion) -> Option<Value> {
    let data = value_of(version.examples.first()?)?;
    Some(json!({
        "id": "evt_01J00000000000000000000000", "type": name, "timestamp": "2030-01-01T00:00:00.000Z",
        "version": version.version.as_str(), "tenant": "default", "data": data,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Compatibility, Position, Timestamp};

    fn definition(name: &str, schema: &str) -> Arc<TypeDefinition> {
        let version = TypeVersion {
            version: "1.0".parse().unwrap(),
            schema: schema.into(),
            deprecated: true,
            sunset: None,
            examples: vec!["{\"a\":1}".into()],
        };
        Arc::new(TypeDefinition {
            name: name.parse().unwrap(),
            description: "".into(),
            compatibility: Compatibility::Forward,
            transitive: false,
            versions: vec![version],
            migrations: Vec::new(),
            state: None,
            created_at: Timestamp::ZERO,
            updated_at: Timestamp::ZERO,
            revision: Position(1),
        })
    }

    #[test]
    fn references_of_a_schema_lead_to_its_component() {
        let schema = r##"{"$ref":"#/$defs/a","$defs":{"a":{"items":{"$ref":"#"},"const":{"$ref":"#"}}}}"##;
        for document in [openapi_document, asyncapi_document] {
            let document = document(&[definition("pet.adopted", schema)]);
            let component = &document["components"]["schemas"]["event.pet.adopted"];
            assert_eq!(component["$ref"], "#/components/schemas/event.pet.adopted/$defs/a");
            assert_eq!(component["$defs"]["a"]["items"]["$ref"], "#/components/schemas/event.pet.adopted");
            assert_eq!(component["$defs"]["a"]["const"]["$ref"], "#", "a value is not a reference");
            assert!(document.pointer("/components/schemas/event.pet.adopted/$defs/a").is_some());
        }
    }

    #[test]
    fn types_beyond_the_bound_are_left_out() {
        let large = format!("{{\"description\":\"{}\"}}", "x".repeat(limits::SCHEMA_BYTES_MAX - 20));
        let count = limits::TYPE_DOCUMENT_BYTES_MAX / limits::SCHEMA_BYTES_MAX + 2;
        let types: Vec<_> = (0..count).map(|number| definition(&format!("t.t{number}"), &large)).collect();
        let document = asyncapi_document(&types);
        assert_eq!(document["info"]["description"], LEFT_OUT);
        assert!(document["channels"].as_object().unwrap().len() < count);
        assert_eq!(asyncapi_document(&types[..1])["channels"].as_object().unwrap().len(), 1);
    }
}
