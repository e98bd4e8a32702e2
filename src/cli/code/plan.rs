//! A plan: the steps from the resources that a daemon has to those that are wanted.
//!
//! Planning only reads. The steps are independent: after a failed one the others go on.

use std::fmt;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use super::compare::{MASK, MemberChange, difference, masked};
use super::export::VERSION;
use crate::cli::client::{Client, Error};
use crate::cli::output::{Session, clean, colour, json_line, line, note};
use crate::quantity::quantity;

/// A kind of resource, in the order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum ResourceKind {
    Tenant,
    EventType,
    Queue,
    Endpoint,
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tenant => "tenant",
            Self::EventType => "event type",
            Self::Queue => "queue",
            Self::Endpoint => "endpoint",
        })
    }
}

/// A wanted resource.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::cli) struct Wanted {
    /// Of queues and endpoints. `None`: that of the key.
    pub(in crate::cli) tenant: Option<String>,
    /// The name of a tenant, type or queue; the uid of an endpoint.
    pub(in crate::cli) name: String,
    pub(in crate::cli) members: Map<String, Value>,
    /// Members of a creation alone: later changes by others stay.
    pub(in crate::cli) initial: Map<String, Value>,
    /// The signing secret of an endpoint.
    pub(in crate::cli) secret: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) enum PlanStep {
    Create {
        kind: ResourceKind,
        wanted: Wanted,
    },
    /// `updated_at` is the time of the last change so far.
    Update {
        kind: ResourceKind,
        wanted: Wanted,
        path: String,
        changes: Vec<MemberChange>,
        rotates: bool,
        updated_at: Value,
    },
    Delete {
        tenant: String,
        name: String,
        id: String,
    },
}

/// The steps and what needs none.
#[derive(Debug, Default)]
pub(in crate::cli) struct ChangePlan {
    pub(in crate::cli) steps: Vec<PlanStep>,
    unchanged: usize,
    /// Remarks for people.
    pub(in crate::cli) notes: Vec<String>,
    /// Sends write-only members again, which cannot be compared.
    resend: bool,
}

/// The counts of executed steps.
#[derive(Debug, Default)]
struct PlanOutcome {
    created: usize,
    changed: usize,
    deleted: usize,
    /// Steps that changed nothing.
    unchanged: usize,
    failures: Vec<(usize, String)>,
}

/// The answer, or `None` for 404.
async fn found(
    client: &Client,
    path: &[&str],
    query: &[(&'static str, String)],
) -> anyhow::Result<Option<Value>> {
    match client.get(path, query).await {
        Ok(answer) => Ok(Some(serde_json::from_str(&answer).context("the daemon's answer is not JSON")?)),
        Err(Error::Refused(problem)) if problem.status == 404 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn tenant_query(tenant: Option<&String>) -> Vec<(&'static str, String)> {
    tenant.map(|tenant| ("tenant", tenant.clone())).into_iter().collect()
}

impl Wanted {
    async fn existing(&self, client: &Client, kind: ResourceKind) -> anyhow::Result<Option<Value>> {
        let query = tenant_query(self.tenant.as_ref());
        match kind {
            ResourceKind::Tenant => {
                let tenant = found(client, &["v1", "tenants", &self.name], &[]).await?;
                // Without settings a tenant exists by use.
                Ok(tenant.filter(|tenant| !tenant["createdAt"].is_null()))
            }
            ResourceKind::EventType => found(client, &["v1", "event-types", &self.name], &[]).await,
            ResourceKind::Queue => found(client, &["v1", "queues", &self.name], &query).await,
            ResourceKind::Endpoint => {
                let query = [query, vec![("uid", self.name.clone())]].concat();
                let list = found(client, &["v1", "endpoints"], &query).await?;
                Ok(list.and_then(|list| list["data"].as_array()?.first().cloned()))
            }
        }
    }

    /// The members of a creation.
    fn creation(&self, kind: ResourceKind) -> Map<String, Value> {
        let mut members = self.members.clone();
        members.extend(self.initial.clone());
        members.retain(|_, value| !value.is_null());
        let name = match kind {
            ResourceKind::Tenant | ResourceKind::EventType => return members,
            ResourceKind::Queue => "name",
            ResourceKind::Endpoint => "uid",
        };
        members.insert(name.to_owned(), json!(self.name));
        members.extend(self.tenant.as_ref().map(|tenant| ("tenant".to_owned(), json!(tenant))));
        members.extend(self.secret.as_ref().map(|secret| ("secret".to_owned(), json!(secret))));
        members
    }

    fn shown(&self, kind: ResourceKind) -> String {
        match (&self.tenant, kind) {
            (Some(tenant), ResourceKind::Queue | ResourceKind::Endpoint) => {
                format!("{kind} {tenant}/{}", self.name)
            }
            _ => format!("{kind} {}", self.name),
        }
    }
}

impl ChangePlan {
    pub(in crate::cli) fn new(resend: bool) -> Self {
        Self { resend, ..Self::default() }
    }

    /// Adds the step for a wanted resource, if one is needed.
    pub(in crate::cli) async fn add(
        &mut self,
        client: &Client,
        kind: ResourceKind,
        mut wanted: Wanted,
    ) -> anyhow::Result<()> {
        let existing = wanted.existing(client, kind).await.with_context(|| wanted.shown(kind))?;
        let Some(existing) = existing else {
            self.steps.push(PlanStep::Create { kind, wanted });
            return Ok(());
        };
        if kind == ResourceKind::Endpoint && existing["status"] == "disabled" {
            let reason = existing["disabledReason"].as_str().unwrap_or("unknown");
            self.notes.push(format!("{} is disabled ({reason})", wanted.shown(kind)));
        }
        let changes = difference(kind, &wanted.members, &existing, self.resend);
        if kind == ResourceKind::EventType {
            wanted.members = complete_definition(&wanted.members, &existing);
        }
        let path = existing["id"].as_str().unwrap_or(&wanted.name).to_owned();
        let rotates = match &wanted.secret {
            Some(secret) => !has_secret(client, &path, secret).await?,
            None => false,
        };
        if changes.is_empty() && !rotates {
            self.unchanged += 1;
        } else {
            let updated_at = existing["updatedAt"].clone();
            self.steps.push(PlanStep::Update { kind, wanted, path, changes, rotates, updated_at });
        }
        Ok(())
    }

    /// Prints the plan and, unless it is a dry run, executes it.
    ///
    /// # Errors
    /// When a step fails.
    pub(in crate::cli) async fn finish(self, session: &Session, dry_run: bool) -> anyhow::Result<()> {
        if !session.json {
            self.notes.iter().for_each(|remark| note(&format!("balto: {}", clean(remark))));
            for step in &self.steps {
                line(&step.lines(colour()))?;
            }
        }
        let mut outcome = PlanOutcome::default();
        if !dry_run {
            for (index, step) in self.steps.iter().enumerate() {
                match step.execute(&session.client).await {
                    Ok(true) => outcome.count(step),
                    Ok(false) => outcome.unchanged += 1,
                    Err(error) => outcome.failures.push((index, format!("{error:#}"))),
                }
            }
        }
        if session.json {
            json_line(&self.record(dry_run, &outcome).to_string())?;
        } else {
            self.print_end(dry_run, &outcome)?;
        }
        let failed = outcome.failures.len();
        anyhow::ensure!(failed == 0, "{failed} of {} failed", quantity(self.steps.len(), "step", "steps"));
        Ok(())
    }

    fn print_end(&self, dry_run: bool, outcome: &PlanOutcome) -> anyhow::Result<()> {
        for (index, error) in &outcome.failures {
            note(&format!("balto: {}: {error}", clean(&self.steps[*index].title())));
        }
        let unchanged = self.unchanged;
        if dry_run {
            let mut planned = PlanOutcome::default();
            self.steps.iter().for_each(|step| planned.count(step));
            let PlanOutcome { created, changed, deleted, .. } = planned;
            line(&format!(
                "Dry run: {created} to create, {changed} to change, {deleted} to delete, {unchanged} unchanged."
            ))?;
        } else {
            let PlanOutcome { created, changed, deleted, .. } = outcome;
            let unchanged = unchanged + outcome.unchanged;
            line(&format!(
                "{created} created, {changed} changed, {deleted} deleted, {unchanged} unchanged."
            ))?;
        }
        Ok(())
    }

    fn record(&self, dry_run: bool, outcome: &PlanOutcome) -> Value {
        let error =
            |index| outcome.failures.iter().find(|(failed, _)| *failed == index).map(|(_, text)| text);
        let steps: Vec<_> =
            self.steps.iter().enumerate().map(|(index, step)| step.record(error(index))).collect();
        json!({"dryRun": dry_run, "steps": steps, "unchanged": self.unchanged, "notes": self.notes})
    }
}

/// A `PUT` replaces a definition, so members and versions that are not wanted are sent as they are.
/// So are members of a version that the file names without them.
fn complete_definition(wanted: &Map<String, Value>, existing: &Value) -> Map<String, Value> {
    let mut definition =
        present(existing, &["description", "compatibility", "transitive", "migrations", "state"]);
    let mut versions = Map::new();
    for (version, found) in existing["versions"].as_object().into_iter().flatten() {
        versions.insert(version.clone(), Value::Object(present(found, VERSION)));
    }
    for (version, wanted) in wanted.get("versions").and_then(Value::as_object).into_iter().flatten() {
        match (versions.get_mut(version), wanted) {
            (Some(Value::Object(kept)), Value::Object(given)) => kept.extend(given.clone()),
            _ => drop(versions.insert(version.clone(), wanted.clone())),
        }
    }
    definition.extend(wanted.clone());
    definition.insert("versions".to_owned(), Value::Object(versions));
    definition
}

/// The named members that are not null.
fn present(resource: &Value, names: &[&str]) -> Map<String, Value> {
    let value = |name: &&str| resource.get(*name).filter(|value| !value.is_null()).cloned();
    names.iter().filter_map(|name| Some(((*name).to_owned(), value(name)?))).collect()
}

/// Whether an endpoint signs with this secret now.
async fn has_secret(client: &Client, id: &str, secret: &str) -> anyhow::Result<bool> {
    let found = found(client, &["v1", "endpoints", id, "secret"], &[]).await?;
    Ok(found.is_some_and(|found| found["secret"] == secret))
}

impl PlanOutcome {
    fn count(&mut self, step: &PlanStep) {
        match step {
            PlanStep::Create { .. } => self.created += 1,
            PlanStep::Update { .. } => self.changed += 1,
            PlanStep::Delete { .. } => self.deleted += 1,
        }
    }
}

impl PlanStep {
    /// Returns whether something changed.
    async fn execute(&self, client: &Client) -> anyhow::Result<bool> {
        match self {
            Self::Create { kind, wanted } => {
                let body = Value::Object(wanted.creation(*kind)).to_string();
                match kind {
                    ResourceKind::Tenant => client.put(&["v1", "tenants", &wanted.name], &[], body).await?,
                    ResourceKind::EventType => {
                        client.put(&["v1", "event-types", &wanted.name], &[], body).await?
                    }
                    ResourceKind::Queue => client.create(&["v1", "queues"], body, None).await?,
                    ResourceKind::Endpoint => client.create(&["v1", "endpoints"], body, None).await?,
                };
            }
            Self::Update { kind, wanted, path, changes, rotates, updated_at } => {
                let mut has_changed = *rotates;
                if !changes.is_empty() {
                    let answer = update(client, *kind, wanted, path, changes).await?;
                    has_changed |= changes.iter().any(|change| !has_null(&change.new))
                        || serde_json::from_str::<Value>(&answer)
                            .is_ok_and(|answer| answer["updatedAt"] != *updated_at);
                }
                if *rotates {
                    let body = json!({"secret": wanted.secret}).to_string();
                    client.post(&["v1", "endpoints", path, "secret", "rotate"], Some(body)).await?;
                }
                return Ok(has_changed);
            }
            Self::Delete { id, .. } => drop(client.delete(&["v1", "endpoints", id]).await?),
        }
        Ok(true)
    }

    fn title(&self) -> String {
        match self {
            Self::Create { kind, wanted } | Self::Update { kind, wanted, .. } => wanted.shown(*kind),
            Self::Delete { tenant, name, .. } => format!("endpoint {tenant}/{name}"),
        }
    }

    /// The step as text: a title, and a line for each member.
    fn lines(&self, coloured: bool) -> String {
        let paint = |sign: &str, code: &str| {
            let text = format!("{sign} {}", clean(&self.title()));
            if coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text }
        };
        let told = |name: &str, value: &Value| clean(&masked(name, value).to_string());
        match self {
            Self::Create { kind, wanted } => {
                let mut text = paint("+", "32");
                for (name, value) in wanted.creation(*kind) {
                    if !["uid", "name", "tenant"].contains(&name.as_str()) || *kind == ResourceKind::Tenant {
                        text.push_str(&format!("\n    {}: {}", clean(&name), told(&name, &value)));
                    }
                }
                text
            }
            Self::Update { changes, rotates, .. } => {
                let mut text = paint("~", "33");
                for MemberChange { name, old, new, .. } in changes {
                    let (old, new) = (told(name, old), told(name, new));
                    text.push_str(&format!("\n    {}: {old} -> {new}", clean(name)));
                }
                if *rotates {
                    text.push_str(&format!("\n    secret: {MASK} -> {MASK} (rotated; both sign for 24h)"));
                }
                text
            }
            Self::Delete { .. } => paint("-", "31"),
        }
    }

    fn record(&self, error: Option<&String>) -> Value {
        let mut changes = Map::new();
        let (action, kind, tenant, name) = match self {
            Self::Create { kind, wanted } => {
                for (name, value) in wanted.creation(*kind) {
                    changes.insert(name.clone(), json!({"to": masked(&name, &value)}));
                }
                ("create", *kind, wanted.tenant.as_ref(), &wanted.name)
            }
            Self::Update { kind, wanted, changes: members, rotates, .. } => {
                for MemberChange { name, old, new, .. } in members {
                    let change = json!({"from": masked(name, old), "to": masked(name, new)});
                    changes.insert(name.clone(), change);
                }
                if *rotates {
                    changes.insert("secret".to_owned(), json!({"from": MASK, "to": MASK}));
                }
                ("update", *kind, wanted.tenant.as_ref(), &wanted.name)
            }
            Self::Delete { tenant, name, .. } => ("delete", ResourceKind::Endpoint, Some(tenant), name),
        };
        json!({"action": action, "kind": kind.to_string(), "tenant": tenant, "name": name,
            "changes": changes, "error": error})
    }
}

/// Whether the value has a null, whose default may be in effect already: the daemon does not show
/// the defaults of its configuration.
fn has_null(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(|members| members.values().any(has_null))
}

async fn update(
    client: &Client,
    kind: ResourceKind,
    wanted: &Wanted,
    path: &str,
    changes: &[MemberChange],
) -> Result<String, Error> {
    let patch = changes.iter().map(|change| (change.name.clone(), change.patch.clone()));
    let patch: Map<String, Value> = patch.collect();
    match kind {
        ResourceKind::Tenant => {
            client.patch(&["v1", "tenants", path], Value::Object(patch).to_string()).await
        }
        ResourceKind::EventType => {
            let body = Value::Object(wanted.members.clone()).to_string();
            client.put(&["v1", "event-types", &wanted.name], &[], body).await
        }
        ResourceKind::Queue => {
            let query = tenant_query(wanted.tenant.as_ref());
            let body = Value::Object(patch).to_string();
            client.patch_to(&["v1", "queues", &wanted.name], &query, body).await
        }
        ResourceKind::Endpoint => {
            client.patch(&["v1", "endpoints", path], Value::Object(patch).to_string()).await
        }
    }
}
