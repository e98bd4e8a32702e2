//! `balto tenants`: lists, shows, changes and removes tenants.
//!
//! Owns: the translation of options into a merge patch. `set` creates the settings of a tenant that
//! does not exist yet.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::args::{self, Paging, QueryArgs};
use super::client::Error;
use super::endpoints::Retry;
use super::jobs::BulkArgs;
use super::output::{Column, Session};
use crate::config::units::parse_size;
use crate::domain::{Quota, Tenant};

const COLUMNS: &[Column] = &[
    Column("TENANT", &["/tenant"]),
    Column("NAME", &["/name"]),
    Column("ENDPOINTS", &["/usage/endpoints"]),
    Column("KEYS", &["/usage/keys"]),
    Column("PENDING", &["/usage/pendingDeliveries"]),
    Column("DEAD", &["/usage/deadLetters"]),
    Column("EVENTS", &["/usage/storedEvents"]),
    Column("BYTES", &["/usage/storedBytes"]),
    Column("EVENTS/H", &["/usage/lastHour/events"]),
];

/// List, show, change and remove tenants. Needs a key without a tenant; `show` also accepts an
/// admin key of the tenant.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    balto tenants list\n  \
    balto tenants set acme --name 'Acme Inc.' --quota endpoints=50 --quota eventsPerSecond=200\n  \
    balto tenants set acme --quota storedBytes=10GiB --quota endpoints=default\n  \
    balto tenants rm acme --confirm acme")]
pub(crate) enum TenantsCommand {
    /// List tenants with their usage, by name.
    List {
        #[command(flatten)]
        paging: Paging,
    },
    /// Show a tenant with its quotas and usage.
    Show(Name),
    /// Change the given settings, or create them.
    Set {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        options: Box<Options>,
    },
    /// Delete a tenant's keys, sources, consumers, endpoints and settings. Retention removes its
    /// events.
    Rm {
        #[command(flatten)]
        name: Name,
        /// The tenant again, because this cannot be undone.
        #[arg(long, value_name = "TENANT")]
        confirm: String,
        #[command(flatten)]
        bulk: BulkArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Name {
    #[arg(value_name = "TENANT", value_parser = tenant)]
    tenant: String,
}

fn tenant(text: &str) -> Result<String, String> {
    text.parse::<Tenant>().map(|tenant| tenant.to_string()).map_err(|error| error.to_string())
}

#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// A name for people.
    #[arg(long = "name", value_name = "TEXT")]
    display_name: Option<String>,
    /// A JSON object; replaces the present one.
    #[arg(long, value_name = "JSON", value_parser = metadata)]
    metadata: Option<Value>,
    /// A limit: NAME=NUMBER, NAME=off or NAME=default. Repeatable. Names: endpoints, patternBytes,
    /// wildcardParts, headerBytes, keys, consumers, pendingDeliveries, storedBytes,
    /// eventsPerSecond, bytesPerSecond, connectionsPerKey, readsPerKey. Numbers may have a unit:
    /// 10GiB.
    #[arg(long = "quota", value_name = "NAME=LIMIT", value_parser = quota)]
    quotas: Vec<(String, Value)>,
    /// Requests at once to each new endpoint.
    #[arg(long, value_name = "N")]
    max_in_flight: Option<u32>,
    /// Timeout of an attempt at each new endpoint.
    #[arg(long, value_name = "DURATION", value_parser = args::duration_text)]
    timeout: Option<String>,
    #[command(flatten)]
    retry: Retry,
}

fn metadata(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(other) => Err(format!("`{other}` is not a JSON object")),
        Err(error) => Err(format!("not JSON: {error}")),
    }
}

fn quota(text: &str) -> Result<(String, Value), String> {
    let (name, limit) = text.split_once('=').ok_or("must be NAME=NUMBER, NAME=off or NAME=default")?;
    if Quota::from_word(name).is_none() {
        let names: Vec<_> = Quota::ALL.iter().map(|quota| quota.as_str()).collect();
        return Err(format!("unknown quota `{name}`; the quotas are {}", names.join(", ")));
    }
    let value = match limit {
        "off" => json!("off"),
        "default" => Value::Null,
        number => parse_size(number)
            .map(Value::from)
            .ok_or_else(|| format!("`{number}` is not a whole number, a size, off or default"))?,
    };
    Ok((name.to_owned(), value))
}

impl Options {
    /// The merge patch.
    fn patch(&self) -> anyhow::Result<Map<String, Value>> {
        args::given_once("--quota", self.quotas.iter().map(|(name, _)| name.as_str()))?;
        let mut patch = Map::new();
        if let Some(name) = &self.display_name {
            patch.insert("name".to_owned(), json!(name));
        }
        if !self.quotas.is_empty() {
            patch.insert("quotas".to_owned(), Value::Object(self.quotas.iter().cloned().collect()));
        }
        let mut delivery = Map::new();
        delivery.extend(self.max_in_flight.map(|limit| ("maxInFlight".to_owned(), json!(limit))));
        delivery.extend(self.timeout.as_ref().map(|timeout| ("timeout".to_owned(), json!(timeout))));
        delivery.extend(self.retry.members().map(|retry| ("retry".to_owned(), retry)));
        if !delivery.is_empty() {
            patch.insert("delivery".to_owned(), Value::Object(delivery));
        }
        if patch.is_empty() && self.metadata.is_none() {
            return Err(super::usage(
                "nothing to set: give --name, --metadata, --quota, --max-in-flight, --timeout or an option of retries",
            ));
        }
        Ok(patch)
    }
}

impl TenantsCommand {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let client = &session.client;
        match self {
            Self::List { paging } => {
                session.list(&["v1", "tenants"], QueryArgs::default(), paging, COLUMNS).await
            }
            Self::Show(Name { tenant }) => show(session, &client.get(&["v1", "tenants", tenant], &[]).await?),
            Self::Set { name: Name { tenant }, options } => set(session, tenant, options).await,
            Self::Rm { name: Name { tenant }, confirm, bulk } => {
                let mut body = Map::new();
                body.insert("confirm".to_owned(), json!(confirm));
                bulk.add_to(&mut body);
                let body = Value::Object(body).to_string();
                bulk.finish(session, &client.delete_with(&["v1", "tenants", tenant], body).await?).await
            }
        }
    }
}

/// The members of a tenant that are printed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownTenant<'a> {
    tenant: &'a Value,
    name: &'a Value,
    metadata: &'a Value,
    delivery: &'a Value,
    created_at: &'a Value,
    updated_at: &'a Value,
    stored_events: &'a Value,
    dead_letters: &'a Value,
    events_in_last_hour: &'a Value,
    attempts_in_last_hour: &'a Value,
    quotas: Vec<ShownQuota<'a>>,
}

/// A row of the table of quotas.
#[derive(Serialize)]
struct ShownQuota<'a> {
    quota: &'static str,
    /// Null for a rate, and for a quota of each key.
    used: &'a Value,
    /// `off` for none.
    limit: Value,
    /// Whether the tenant's own limit replaces the default.
    from: &'static str,
}

impl<'a> ShownTenant<'a> {
    fn new(body: &'a Value) -> Self {
        let quota = |quota: Quota| {
            let quota = quota.as_str();
            let limit = &body["limits"][quota];
            ShownQuota {
                quota,
                used: &body["usage"][quota],
                limit: if limit.is_null() { json!("off") } else { limit.clone() },
                from: if body["quotas"][quota].is_null() { "default" } else { "tenant" },
            }
        };
        Self {
            tenant: &body["tenant"],
            name: &body["name"],
            metadata: &body["metadata"],
            delivery: &body["delivery"],
            created_at: &body["createdAt"],
            updated_at: &body["updatedAt"],
            stored_events: &body["usage"]["storedEvents"],
            dead_letters: &body["usage"]["deadLetters"],
            events_in_last_hour: &body["usage"]["lastHour"]["events"],
            attempts_in_last_hour: &body["usage"]["lastHour"]["attempts"],
            quotas: Quota::ALL.map(quota).into(),
        }
    }
}

/// Prints a tenant: its quotas as a table, beside what it uses of them.
fn show(session: &Session, answer: &str) -> anyhow::Result<()> {
    if session.json {
        return session.show(answer);
    }
    let body: Value = serde_json::from_str(answer).context("the answer is not JSON")?;
    session.show(&serde_json::to_string(&ShownTenant::new(&body))?)
}

/// Changes the settings, or creates those of a new tenant.
async fn set(session: &Session, tenant: &str, options: &Options) -> anyhow::Result<()> {
    let (client, path) = (&session.client, ["v1", "tenants", tenant]);
    let patch = options.patch()?;
    if let Some(metadata) = &options.metadata {
        // A merge patch would keep the members of the present object.
        let mut cleared = patch.clone();
        cleared.insert("metadata".to_owned(), Value::Null);
        let mut wanted = patch;
        wanted.insert("metadata".to_owned(), metadata.clone());
        return match client.patch(&path, Value::Object(cleared).to_string()).await {
            Ok(_) => show(session, &client.patch(&path, Value::Object(wanted).to_string()).await?),
            Err(error) => create(session, tenant, error, wanted).await,
        };
    }
    match client.patch(&path, Value::Object(patch.clone()).to_string()).await {
        Ok(answer) => show(session, &answer),
        Err(error) => create(session, tenant, error, patch).await,
    }
}

async fn create(
    session: &Session,
    tenant: &str,
    error: Error,
    wanted: Map<String, Value>,
) -> anyhow::Result<()> {
    match error {
        Error::Refused(problem) if problem.status == 404 => {
            let body = Value::Object(wanted).to_string();
            show(session, &session.client.put(&["v1", "tenants", tenant], &[], body).await?)
        }
        error => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn quota_is_a_number_a_size_off_or_default() {
        assert_eq!(quota("endpoints=50"), Ok(("endpoints".to_owned(), json!(50))));
        assert_eq!(quota("storedBytes=1GiB"), Ok(("storedBytes".to_owned(), json!(1 << 30))));
        assert_eq!(quota("keys=off"), Ok(("keys".to_owned(), json!("off"))));
        assert_eq!(quota("keys=default"), Ok(("keys".to_owned(), Value::Null)));
        for wrong in ["endpoints", "endpoints=", "endpoints=-1", "endpoints=many", "typo=5"] {
            assert!(quota(wrong).is_err(), "{wrong}");
        }
        assert!(quota("endpoint=5").unwrap_err().contains("endpoints, patternBytes"));
    }

    #[test]
    fn quotas_are_shown_beside_their_usage() {
        let body = json!({"tenant": "acme", "quotas": {"keys": 5}, "limits": {"keys": 5, "storedBytes": null},
            "usage": {"keys": 2, "storedBytes": 900, "lastHour": {"events": 7}}});
        let shown = ShownTenant::new(&body);
        let row = |wanted: Quota| {
            let row = shown.quotas.iter().find(|row| row.quota == wanted.as_str()).unwrap();
            (row.used.clone(), row.limit.clone(), row.from)
        };
        assert_eq!(row(Quota::Keys), (json!(2), json!(5), "tenant"));
        assert_eq!(row(Quota::StoredBytes), (json!(900), json!("off"), "default"));
        assert_eq!(row(Quota::ReadsPerKey).0, Value::Null);
        assert_eq!((shown.events_in_last_hour, shown.quotas.len()), (&json!(7), Quota::ALL.len()));
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn options_become_a_merge_patch() {
        let line =
            "set --name Acme --quota keys=default --quota endpoints=5 --timeout 3s --retry-schedule 5s,1m";
        let Line { options } = Line::try_parse_from(line.split(' ')).unwrap();
        let expected = json!({"name": "Acme", "quotas": {"keys": null, "endpoints": 5},
            "delivery": {"timeout": "3s", "retry": {"schedule": ["5s", "1m"]}}});
        assert_eq!(Value::Object(options.patch().unwrap()), expected);
        assert!(Options::default().patch().is_err());
        let twice = "set --quota endpoints=1 --quota endpoints=2";
        let Line { options } = Line::try_parse_from(twice.split(' ')).unwrap();
        assert_eq!(options.patch().unwrap_err().to_string(), "--quota gives endpoints twice: give it once");
    }
}
