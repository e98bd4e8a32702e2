//! The search: a read model of pets, kept in one file and fed by a consumer of the log.
//!
//! Rows and cursor are written at once, so each event counts exactly once, whenever the process
//! dies. The consumer tells others how far the search is; its position may lag behind the file's.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::balto::{Client, list, text};
use crate::pets;

/// The name of the consumer.
pub(crate) const CONSUMER: &str = "pet-search";

/// A row of the search.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) doses: u64,
    pub(crate) adopter: Option<String>,
}

/// The file: rows, and the position of the last event in them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) position: u64,
    pub(crate) rows: BTreeMap<String, Row>,
}

impl Table {
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        serde_json::from_slice(&fs::read(path)?).context("the search file is damaged")
    }

    /// Replaces the file, all or nothing. A database has transactions for this.
    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let draft = path.with_extension("draft");
        fs::write(&draft, serde_json::to_vec(self)?)?;
        fs::File::open(&draft)?.sync_all()?;
        Ok(fs::rename(&draft, path)?)
    }

    /// Applies an event, unless the rows have it already.
    pub(crate) fn apply(&mut self, event: &Value) -> anyhow::Result<()> {
        let position = event["position"].as_u64().context("an event has a position")?;
        if position <= self.position {
            return Ok(());
        }
        self.position = position;
        let data = &event["data"];
        let row = self.rows.entry(text(data, "petId")?.to_owned()).or_default();
        match text(event, "type")? {
            "pet.registered" => row.name = text(data, "name")?.to_owned(),
            "pet.vaccinated" => row.doses = data["dose"].as_u64().unwrap_or_default(),
            "pet.adopted" => row.adopter = Some(pets::adopter(event)?.to_owned()),
            _ => {}
        }
        Ok(())
    }

    /// Pets without a home.
    pub(crate) fn available(&self) -> Vec<&str> {
        let free = self.rows.values().filter(|row| row.adopter.is_none());
        free.map(|row| row.name.as_str()).collect()
    }
}

/// Creates the consumer. It reads every adoption in version 2.0.
pub(crate) async fn create(balto: &Client) -> anyhow::Result<()> {
    let consumer = json!({"types": ["pet.#"], "versions": {"pet.adopted": "2.0"}});
    balto.put(&format!("/consumers/{CONSUMER}"), consumer).await?;
    Ok(())
}

/// Follows the log, for ever.
pub(crate) async fn follow(balto: Client, path: PathBuf) -> anyhow::Result<Infallible> {
    let mut position = balto.get(&format!("/consumers/{CONSUMER}")).await?["position"].clone();
    loop {
        let page = balto.get(&format!("/consumers/{CONSUMER}/events?wait=20s")).await?;
        let mut table = Table::read(&path)?;
        for event in list(&page, "data")? {
            table.apply(event)?;
        }
        table.write(&path)?;
        // `from` refuses the commit of a second search that runs by mistake.
        let commit = json!({"position": page["next"], "from": position});
        balto.post(&format!("/consumers/{CONSUMER}/commit"), commit).await?;
        position = page["next"].clone();
    }
}

/// Waits until the search has an event: "adopt a pet, then see it in the search".
pub(crate) async fn wait_for(balto: &Client, position: u64) -> anyhow::Result<()> {
    let path = format!("/consumers/{CONSUMER}?waitPosition={position}&wait=20s");
    let shown = balto.get(&path).await?;
    let reached: u64 = text(&shown, "position")?.parse()?;
    anyhow::ensure!(reached >= position, "the search is at {reached} instead of {position}");
    Ok(())
}

/// A table from the whole log, for a rebuild and for the proof.
pub(crate) async fn rebuilt(balto: &Client) -> anyhow::Result<Table> {
    let (mut table, mut after) = (Table::default(), "oldest".to_owned());
    loop {
        let path = format!("/feed?types=pet.%23&versions=pet.adopted:2.0&limit=1000&after={after}");
        let page = balto.get(&path).await?;
        for event in list(&page, "data")? {
            table.apply(event)?;
        }
        if page["caughtUp"] == true {
            return Ok(table);
        }
        text(&page, "next")?.clone_into(&mut after);
    }
}
