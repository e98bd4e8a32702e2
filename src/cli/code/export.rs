//! `balto export`: the endpoints, queues and event types of a daemon as a file for `balto apply`.
//!
//! Never prints a secret: not a signing secret, not a sensitive header, not a password. Applying an
//! export changes nothing: data keep their nulls, and the text is read again before it is printed.

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::compare::is_same;
use super::document::value_of;
use super::pages;
use super::placeholders::{FileLanguage, escaped};
use crate::cli::output::{Session, clean, json_line, line, note};

/// Members of an endpoint that a file can have. `clientCertificate` is write-only.
const ENDPOINT: &[&str] = &[
    "uid",
    "tenant",
    "url",
    "amqp",
    "description",
    "eventTypes",
    "headers",
    "rateLimit",
    "maxInFlight",
    "timeout",
    "ordering",
    "retry",
    "format",
    "signature",
    "request",
    "auth",
    "handshake",
    "trace",
    "versions",
    "metadata",
    "filter",
    "labels",
];
const QUEUE: &[&str] = &[
    "name",
    "tenant",
    "description",
    "eventTypes",
    "visibility",
    "maxDeliveries",
    "ordering",
    "retry",
    "maxLeased",
    "maxLease",
    "maxAge",
    "format",
    "versions",
    "metadata",
    "filter",
    "labels",
];
const TYPE: &[&str] =
    &["name", "description", "compatibility", "transitive", "versions", "migrations", "state"];

/// The writable members of a version of an event type.
pub(super) const VERSION: &[&str] = &["schema", "deprecated", "sunset", "examples"];
/// Settings, in which a null is a member that is not set. A null within other members is data.
const SETTINGS: &[&str] = &["amqp", "rateLimit", "retry", "request", "auth", "handshake"];

/// Print endpoints, queues and event types as a file for `balto apply`.
#[derive(Debug, Args)]
#[command(
    after_help = "Endpoints without a uid are left out: give them one with `balto endpoints update ID --uid NAME`. \
    Secrets are left out: signing secrets, sensitive headers, passwords and client certificates.\n\n\
    Examples:\n  balto export --tenant acme > endpoints.toml\n  balto export --format json | jq '.endpoints[].uid'"
)]
pub(crate) struct ExportArgs {
    /// Only endpoints and queues of this tenant; `*`: only those of all tenants.
    #[arg(long)]
    tenant: Option<String>,
    /// Also event types, which belong to no tenant.
    #[arg(long)]
    event_types: bool,
    /// The language of the file.
    #[arg(long, default_value = "toml")]
    format: ExportFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    Toml,
    Json,
}

impl ExportArgs {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let tenant: Vec<_> = self.tenant.iter().map(|tenant| ("tenant", tenant.clone())).collect();
        let mut document = Map::new();
        if self.event_types {
            let types = pages(session, &["v1", "event-types"], &[]).await?;
            let mut full = Vec::new();
            for name in types.iter().filter_map(|one| one["name"].as_str()) {
                // A list leaves the schemas out.
                let one = session.client.get(&["v1", "event-types", name], &[]).await?;
                full.push(type_entry(&serde_json::from_str(&one).context("the answer is not JSON")?));
            }
            document.insert("eventTypes".to_owned(), Value::Array(full));
        }
        let queues = pages(session, &["v1", "queues"], &tenant).await?;
        let queues: Vec<_> = queues.iter().rev().map(|queue| kept(QUEUE, queue)).collect();
        document.insert("queues".to_owned(), Value::Array(queues));
        let endpoints = pages(session, &["v1", "endpoints"], &tenant).await?;
        let mut exported = Vec::new();
        for endpoint in endpoints.iter().rev() {
            if endpoint["uid"].is_null() {
                let id = clean(endpoint["id"].as_str().unwrap_or_default());
                note(&format!("balto: {id} has no uid and is left out"));
            } else {
                told(endpoint).iter().for_each(|remark| note(&format!("balto: {remark}")));
                exported.push(endpoint_entry(endpoint));
            }
        }
        document.insert("endpoints".to_owned(), Value::Array(exported));
        document.retain(|_, list| list.as_array().is_some_and(|list| !list.is_empty()));
        let document = Value::Object(document);
        if session.json || self.format == ExportFormat::Json {
            Ok(json_line(&text_of(&document, FileLanguage::Json)?)?)
        } else {
            Ok(line(text_of(&document, FileLanguage::Toml)?.trim_end())?)
        }
    }
}

/// The text of the file. It is read again, since TOML cannot hold everything: for example it has a
/// bound of nesting.
///
/// # Errors
/// When the text would not be read as the same document.
fn text_of(document: &Value, language: FileLanguage) -> anyhow::Result<String> {
    let document = escaped(document, language);
    let text = match language {
        FileLanguage::Toml => toml::to_string_pretty(&document).map_err(|error| error.to_string()),
        FileLanguage::Json => serde_json::to_string_pretty(&document).map_err(|error| error.to_string()),
    };
    let read = text.and_then(|text| value_of(&text).map(|read| (text, read)));
    let reason = match read {
        Ok((text, read)) if is_same(&document, &read) => return Ok(text),
        Ok(_) => "it would be read as another value".to_owned(),
        Err(error) => error,
    };
    match language {
        FileLanguage::Toml => anyhow::bail!("TOML cannot hold this export; use --format json ({reason})"),
        FileLanguage::Json => anyhow::bail!("JSON cannot hold this export ({reason})"),
    }
}

/// Remarks about secrets that the file lacks.
fn told(endpoint: &Value) -> Vec<String> {
    let name = clean(endpoint["uid"].as_str().unwrap_or_default());
    let mut remarks = Vec::new();
    if endpoint["sensitiveHeaderNames"].as_array().is_some_and(|names| !names.is_empty()) {
        remarks.push(format!("{name}: the values of its sensitive headers are left out"));
    }
    if !endpoint["auth"].is_null() {
        remarks.push(format!("{name}: the secret of its authorization is left out"));
    }
    if !endpoint["amqp"]["username"].is_null() {
        remarks.push(format!("{name}: the password of its broker is left out"));
    }
    if !endpoint["clientCertificate"].is_null() {
        remarks.push(format!("{name}: its client certificate is left out"));
    }
    remarks
}

fn endpoint_entry(endpoint: &Value) -> Value {
    let mut entry = kept(ENDPOINT, endpoint);
    if endpoint["status"] == "paused" {
        entry["status"] = json!("paused");
    }
    if let Some(Value::Object(handshake)) = entry.get_mut("handshake") {
        // The others are its result.
        handshake.retain(|name, _| ["origin", "rate", "callback"].contains(&name.as_str()));
    }
    entry
}

fn type_entry(event_type: &Value) -> Value {
    let mut entry = kept(TYPE, event_type);
    if let Some(Value::Object(versions)) = entry.get_mut("versions") {
        // Uses and counts of a version are read-only.
        versions.values_mut().for_each(|version| *version = kept(VERSION, version));
    }
    entry
}

/// The named members that are not null.
fn kept(names: &[&str], resource: &Value) -> Value {
    let members = names.iter().filter_map(|name| {
        let value = resource.get(*name).filter(|value| !value.is_null())?;
        let value = if SETTINGS.contains(name) { without_nulls(value) } else { value.clone() };
        Some(((*name).to_owned(), value))
    });
    Value::Object(members.collect())
}

/// The value without members that are null.
fn without_nulls(value: &Value) -> Value {
    let Value::Object(members) = value else { return value.clone() };
    let kept = members.iter().filter(|(_, value)| !value.is_null());
    Value::Object(kept.map(|(name, value)| (name.clone(), without_nulls(value))).collect())
}

#[cfg(test)]
mod tests;
