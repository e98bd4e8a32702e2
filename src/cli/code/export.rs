//! `balto export`: the endpoints, queues and event types of a daemon as a file for `balto apply`.
//!
//! Never prints a secret: not a signing secret, not a sensitive header, not a password.

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::pages;
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
                full.push(kept(TYPE, &serde_json::from_str(&one).context("the answer is not JSON")?));
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
        if session.json || self.format == ExportFormat::Json {
            return Ok(json_line(&serde_json::to_string_pretty(&document)?)?);
        }
        let text = toml::to_string_pretty(&Value::Object(document)).context("cannot write TOML")?;
        Ok(line(text.trim_end())?)
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

/// The named members, without nulls, which TOML does not have.
fn kept(names: &[&str], resource: &Value) -> Value {
    let members = names.iter().filter_map(|name| Some(((*name).to_owned(), plain(resource.get(*name)?)?)));
    Value::Object(members.collect())
}

/// The value without nulls; without counts and uses of a version of an event type.
fn plain(value: &Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(members) => {
            let kept =
                members.iter().filter(|(name, _)| !["eventsLastDay", "pinnedBy"].contains(&name.as_str()));
            let kept = kept.filter_map(|(name, value)| Some((name.clone(), plain(value)?)));
            Some(Value::Object(kept.collect()))
        }
        Value::Array(items) => Some(items.iter().filter_map(plain).collect()),
        other => Some(other.clone()),
    }
}

#[cfg(test)]
mod tests;
