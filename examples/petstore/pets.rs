//! A pet is an aggregate: its state is the fold of the events in its stream.
//!
//! Load, decide, append. The append names the version that the decision rests on, so of two
//! decisions on the same state only one is stored; the other one is taken again on the new state.

use anyhow::bail;
use reqwest::Method;
use serde_json::{Value, json};

use crate::balto::{Client, list, text};

/// The state of a pet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pet {
    pub(crate) name: String,
    pub(crate) doses: u64,
    /// The order that adopted it, or the shelter.
    pub(crate) adopted_by: Option<String>,
}

impl Pet {
    /// Events come in version 2.0; some publishers use 1.0.
    fn apply(&mut self, event: &Value) {
        let data = &event["data"];
        match event["type"].as_str() {
            Some("pet.registered") => self.name = data["name"].as_str().unwrap_or_default().to_owned(),
            Some("pet.vaccinated") => self.doses = data["dose"].as_u64().unwrap_or_default(),
            Some("pet.adopted") => {
                self.adopted_by = Some(data["orderId"].as_str().unwrap_or("the shelter").to_owned());
            }
            _ => {}
        }
    }

    /// The state that Balto folds by the rules of the event types.
    pub(crate) fn state(&self) -> Value {
        json!({"name": self.name, "doses": self.doses, "adoptedBy": self.adopted_by})
    }
}

/// The same fold as [`Pet::apply`], as rules for Balto. The rule of `pet.adopted` is with its
/// versions.
pub(crate) async fn register(balto: &Client) -> anyhow::Result<()> {
    for (name, rules) in [
        (
            "registered",
            json!([{"op": "add", "path": "/state", "value": {"name": "", "doses": 0, "adoptedBy": null}},
                   {"op": "copy", "from": "/data/name", "path": "/state/name"}]),
        ),
        ("vaccinated", json!([{"op": "copy", "from": "/data/dose", "path": "/state/doses"}])),
    ] {
        let definition = json!({"versions": {"1.0": {"schema": {"type": "object"}}}, "state": rules});
        balto.put(&format!("/event-types/pet.{name}"), definition).await?;
    }
    Ok(())
}

/// A wish that a pet's state may not allow.
#[derive(Clone, Debug)]
pub(crate) enum PetCommand {
    Register { name: String },
    Vaccinate,
    Adopt { adopter: String, order: String },
}

/// The events that a command leads to; none if it was done before. Pure: no I/O, easily tested.
fn decide(id: &str, pet: &Pet, command: &PetCommand) -> Result<Vec<Value>, String> {
    let event = |kind: &str, version: &str, data: Value| {
        Ok(vec![json!({"type": format!("pet.{kind}"), "version": version, "data": data})])
    };
    match command {
        PetCommand::Register { name } if pet.name.is_empty() => {
            event("registered", "1.0", json!({"petId": id, "name": name}))
        }
        PetCommand::Register { .. } => Ok(Vec::new()),
        _ if pet.name.is_empty() => Err(format!("there is no pet {id}")),
        PetCommand::Vaccinate => event("vaccinated", "1.0", json!({"petId": id, "dose": pet.doses + 1})),
        PetCommand::Adopt { adopter, order } => match &pet.adopted_by {
            None => {
                event("adopted", "2.0", json!({"petId": id, "adopter": {"name": adopter}, "orderId": order}))
            }
            Some(before) if before == order => Ok(Vec::new()),
            Some(_) => Err(format!("{} has a home already", pet.name)),
        },
    }
}

/// The state of a pet, and the version of its stream.
pub(crate) async fn load(balto: &Client, id: &str) -> anyhow::Result<(Pet, u64)> {
    let (mut pet, mut version, mut from) = (Pet::default(), 0, Some(1));
    while let Some(next) = from {
        let path = format!("/streams/pet-{id}/events?fromVersion={next}&versions=latest");
        let (status, page) = balto.call(Method::GET, &path, None).await?;
        match status {
            404 => break,
            200 => {}
            _ => bail!("{path}: {page}"),
        }
        for event in list(&page, "data")? {
            pet.apply(event);
            version = event["streamVersion"].as_u64().unwrap_or_default();
        }
        from = page["nextVersion"].as_u64();
    }
    Ok((pet, version))
}

/// The outcome of a command.
#[derive(Debug)]
pub(crate) struct Done {
    /// Decisions that another one overtook.
    pub(crate) conflicts: u32,
    /// Position of the last event; `None` if there was nothing to do.
    pub(crate) position: Option<u64>,
}

/// Carries out a command. The inner error is a refusal by the pet's rules.
pub(crate) async fn execute(
    balto: &Client,
    id: &str,
    command: &PetCommand,
) -> anyhow::Result<Result<Done, String>> {
    let mut conflicts = 0;
    loop {
        let (pet, version) = load(balto, id).await?;
        let events = match decide(id, &pet, command) {
            Ok(events) if events.is_empty() => return Ok(Ok(Done { conflicts, position: None })),
            Ok(events) => events,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let expected = if version == 0 { json!("none") } else { json!(version) };
        let append = json!({"expectedVersion": expected, "events": events});
        let path = format!("/streams/pet-{id}/events");
        let (status, answer) = balto.call(Method::POST, &path, Some(&append)).await?;
        match (status, answer["code"].as_str()) {
            (202, _) => return Ok(Ok(Done { conflicts, position: answer["position"].as_u64() })),
            (409, Some("version_conflict")) => conflicts += 1,
            _ => bail!("{path}: {answer}"),
        }
    }
}

/// The last adoption of a pet in the log, for the proof.
pub(crate) fn adopter(event: &Value) -> anyhow::Result<&str> {
    text(&event["data"]["adopter"], "name")
}
