//! Two versions of one event type. Publishers and readers move to the new one when they like.

use serde_json::{Value, json};

use crate::balto::Client;

/// Registers `pet.adopted`: in version 1.0 the adopter is a name, in 2.0 an object with a name.
/// Balto refuses data that matches neither, and converts in both directions.
pub(crate) async fn register(balto: &Client) -> anyhow::Result<()> {
    let text = json!({"type": "string"});
    let schema = |adopter: Value| {
        json!({"type": "object", "required": ["petId", "adopter"],
               "properties": {"petId": text, "adopter": adopter, "orderId": text}})
    };
    let named = json!({"type": "object", "required": ["name"], "properties": {"name": text}});
    let definition = json!({
        "description": "A pet has a new home",
        "versions": {
            "1.0": {"schema": schema(text.clone()), "deprecated": true,
                    "examples": [{"petId": "rex", "adopter": "Ann"}]},
            "2.0": {"schema": schema(named),
                    "examples": [{"petId": "rex", "adopter": {"name": "Ann"}}]},
        },
        "migrations": [
            {"from": "1.0", "to": "2.0", "patch": [
                {"op": "move", "from": "/adopter", "path": "/name"},
                {"op": "add", "path": "/adopter", "value": {}},
                {"op": "move", "from": "/name", "path": "/adopter/name"}]},
            {"from": "2.0", "to": "1.0", "patch": [
                {"op": "move", "from": "/adopter/name", "path": "/name"},
                {"op": "remove", "path": "/adopter"},
                {"op": "move", "from": "/name", "path": "/adopter"}]},
        ],
        // For data of version 2.0, also when 1.0 was published.
        "state": [
            {"op": "add", "path": "/state/adoptedBy", "value": "the shelter"},
            {"op": "copy", "from": "/data/orderId", "path": "/state/adoptedBy", "optional": true}],
    });
    balto.put("/event-types/pet.adopted", definition).await?;
    Ok(())
}

/// An old publisher: it knows version 1.0 only.
pub(crate) async fn publish_as_the_shelter(
    balto: &Client,
    pet: &str,
    adopter: &str,
) -> anyhow::Result<Value> {
    let event = json!({
        "type": "pet.adopted", "version": "1.0", "stream": format!("pet-{pet}"),
        "data": {"petId": pet, "adopter": adopter},
    });
    balto.post("/events", event).await
}
