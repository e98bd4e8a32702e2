//! `balto apply` and `balto export`: endpoints, queues and event types as code.
//!
//! An endpoint is known by its uid, a queue and an event type by its name. A member that the file
//! does not have stays as it is. Applying a file twice changes nothing.

mod canonical;
mod compare;
mod document;
mod export;
mod placeholders;
mod plan;

use std::collections::BTreeSet;
use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Map, Value};

use super::client::Error;
use super::output::{Session, clean, note};
use super::usage;
use crate::quantity::quantity;
use document::{Document, suggestion};
pub(super) use export::ExportArgs;
pub(super) use plan::{ChangePlan, PlanStep, ResourceKind, Wanted};

/// Rows of a page.
const PAGE: &str = "250";

/// Create and change endpoints, queues and event types, as a file has them.
#[derive(Debug, Args)]
#[command(
    after_help = "The members are those of the API, in TOML or JSON. An endpoint is known by its uid, a queue and an event type by \
    its name. A member that the file does not have stays as it is. A value \"${NAME}\" is read from the environment variable NAME; \"$${NAME}\" is that text itself, and \"${null}\" is null.\n\n\
    Example of a file:\n  \
    tenant = \"acme\"\n\n  \
    [[endpoints]]\n  \
    uid = \"crm\"\n  \
    url = \"https://crm.example.com/hooks\"\n  \
    eventTypes = [\"order.*\"]\n  \
    secret = \"${CRM_SECRET}\"\n\n  \
    [[queues]]\n  \
    name = \"mail\"\n  \
    eventTypes = [\"mail.#\"]\n\n\
    Examples:\n  \
    balto apply -f endpoints.toml --dry-run\n  \
    balto apply -f endpoints.toml --prune --yes"
)]
pub(super) struct ApplyArgs {
    /// The file; `-` is standard input.
    #[arg(long, short, value_name = "FILE")]
    file: PathBuf,
    /// Print the differences, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Delete endpoints with a uid that the file does not have, of the tenants that it has.
    #[arg(long)]
    prune: bool,
    /// Delete without a question.
    #[arg(long, requires = "prune")]
    yes: bool,
    /// Send secrets that cannot be compared again: sensitive headers, passwords, client
    /// certificates.
    #[arg(long)]
    resend_secrets: bool,
}

impl ApplyArgs {
    pub(super) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let mut document = document::read(&self.file, &|name| std::env::var(name).ok())?;
        check_members(session, &document).await?;
        set_tenant(session, &mut document).await?;
        let mut plan = ChangePlan::new(self.resend_secrets);
        for (kind, wanted) in &document.wanted {
            plan.add(&session.client, *kind, wanted.clone()).await?;
        }
        if self.prune {
            let unwanted = unwanted(session, &document).await?;
            if !unwanted.is_empty() && !self.dry_run && !self.yes {
                confirm(&unwanted)?;
            }
            plan.steps.extend(unwanted);
        }
        plan.finish(session, self.dry_run).await
    }
}

/// Checks the names of members against the API document of the daemon: also a dry run finds a typo.
async fn check_members(session: &Session, document: &Document) -> anyhow::Result<()> {
    let text = session.client.get(&["v1", "openapi.json"], &[]).await?;
    let api: Value = serde_json::from_str(&text).context("the daemon's API document is not JSON")?;
    for (kind, wanted) in &document.wanted {
        let schema = match kind {
            ResourceKind::Endpoint => "EndpointInput",
            ResourceKind::Queue => "QueueInput",
            ResourceKind::EventType => "TypeInput",
            ResourceKind::Tenant => continue,
        };
        let Some(known) = api["components"]["schemas"][schema]["properties"].as_object() else { continue };
        if let Some(name) = wanted.members.keys().find(|name| !known.contains_key(*name)) {
            let near = suggestion(name, known.keys().map(String::as_str));
            return Err(usage(format!("{kind} {}: {name}: is not a known member{near}", wanted.name)));
        }
    }
    Ok(())
}

/// Resources without a tenant belong to the key's tenant, or to `default`.
async fn set_tenant(session: &Session, document: &mut Document) -> anyhow::Result<()> {
    let lacks = |(kind, wanted): &(ResourceKind, Wanted)| {
        matches!(kind, ResourceKind::Endpoint | ResourceKind::Queue) && wanted.tenant.is_none()
    };
    if document.tenant.is_some() || !document.wanted.iter().any(lacks) {
        return Ok(());
    }
    let query = [("tenant", "default".to_owned()), ("limit", "1".to_owned())];
    match session.client.get(&["v1", "endpoints"], &query).await {
        Ok(_) => {
            for (_, wanted) in document.wanted.iter_mut().filter(|one| lacks(one)) {
                wanted.tenant = Some("default".to_owned());
            }
            Ok(())
        }
        // The key is bound to another tenant.
        Err(Error::Refused(problem)) if problem.status == 403 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// All rows of a list.
async fn pages(
    session: &Session,
    path: &[&str],
    query: &[(&'static str, String)],
) -> anyhow::Result<Vec<Value>> {
    let (mut rows, mut cursor) = (Vec::new(), None);
    loop {
        let mut query = query.to_vec();
        query.push(("limit", PAGE.to_owned()));
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let text = session.client.get(path, &query).await?;
        let mut page: Map<String, Value> = serde_json::from_str(&text).context("the answer is not a list")?;
        match page.remove("data") {
            Some(Value::Array(data)) => rows.extend(data),
            _ => anyhow::bail!("the answer is not a list"),
        }
        match page.remove("next") {
            Some(Value::String(next)) => cursor = Some(next),
            _ => return Ok(rows),
        }
    }
}

/// Endpoints with a uid that the file does not have, of the tenants that it has.
async fn unwanted(session: &Session, document: &Document) -> anyhow::Result<Vec<PlanStep>> {
    let named = document.wanted.iter().filter(|(kind, _)| *kind == ResourceKind::Endpoint);
    let wanted: BTreeSet<_> = named.map(|(_, one)| (one.tenant.clone(), one.name.clone())).collect();
    let mut tenants: BTreeSet<_> = wanted.iter().map(|(tenant, _)| tenant.clone()).collect();
    tenants.extend(document.tenant.clone().map(Some));
    let mut steps = Vec::new();
    for tenant in tenants {
        let query: Vec<_> = tenant.iter().map(|tenant| ("tenant", tenant.clone())).collect();
        for endpoint in pages(session, &["v1", "endpoints"], &query).await? {
            let text = |name: &str| endpoint[name].as_str().unwrap_or_default().to_owned();
            let known = (tenant.clone(), text("uid"));
            if !endpoint["uid"].is_null() && !wanted.contains(&known) {
                steps.push(PlanStep::Delete { tenant: text("tenant"), name: text("uid"), id: text("id") });
            }
        }
    }
    Ok(steps)
}

fn confirm(unwanted: &[PlanStep]) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        return Err(usage(format!(
            "--prune would delete {}: add --yes, or look with --dry-run",
            quantity(unwanted.len(), "endpoint", "endpoints")
        )));
    }
    for step in unwanted {
        if let PlanStep::Delete { tenant, name, .. } = step {
            note(&format!("- endpoint {}/{}", clean(tenant), clean(name)));
        }
    }
    note(&format!(
        "Delete {}? Pending deliveries become dead letters. [y/N]",
        quantity(unwanted.len(), "endpoint", "endpoints")
    ));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    anyhow::ensure!(matches!(answer.trim(), "y" | "Y" | "yes"), "nothing was changed");
    Ok(())
}
