//! `balto types`: lists, shows, registers, checks and removes event types.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::args::{Paging, QueryArgs};
use super::output::{Column, Session};
use crate::domain::EventType;

const COLUMNS: &[Column] = &[
    Column("NAME", &["/name"]),
    Column("LATEST", &["/latest"]),
    Column("COMPATIBILITY", &["/compatibility"]),
    Column("DESCRIPTION", &["/description"]),
];

/// List, show, register, check and remove event types. Changes need a key without a tenant.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    balto types list\n  \
    balto types check pet.adopted pet-adopted.json\n  \
    balto types put pet.adopted pet-adopted.json\n  \
    balto types rm pet.adopted")]
pub(crate) enum TypesCommand {
    /// List registered types, by name.
    List {
        #[command(flatten)]
        paging: Paging,
    },
    /// Show a type with its schemas and migrations.
    Show(TypeName),
    /// Register a type, or replace its definition.
    #[command(visible_alias = "register")]
    Put {
        #[command(flatten)]
        name: TypeName,
        #[command(flatten)]
        definition: DefinitionFile,
        /// Also register an incompatible version.
        #[arg(long)]
        force: bool,
    },
    /// Check a definition against the registered one and the stored events. Stores nothing.
    Check {
        #[command(flatten)]
        name: TypeName,
        #[command(flatten)]
        definition: DefinitionFile,
    },
    /// Delete a type. Its events stay.
    Rm {
        #[command(flatten)]
        name: TypeName,
        /// Also delete a type that endpoints pin.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct TypeName {
    #[arg(value_name = "TYPE", value_parser = type_name)]
    name: String,
}

fn type_name(text: &str) -> Result<String, String> {
    text.parse::<EventType>().map(|name| name.to_string()).map_err(|error| error.to_string())
}

#[derive(Debug, Args)]
pub(crate) struct DefinitionFile {
    /// A JSON file with the definition; `-` is standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl DefinitionFile {
    fn read(&self) -> anyhow::Result<String> {
        let text = if self.file.as_os_str() == "-" {
            std::io::read_to_string(std::io::stdin())
        } else {
            std::fs::read_to_string(&self.file)
        };
        text.map_err(|error| super::usage(format!("cannot read {}: {error}", self.file.display())))
    }
}

/// A query with this parameter set, or none.
fn flag(name: &'static str, is_set: bool) -> Vec<(&'static str, String)> {
    is_set.then(|| (name, "true".to_owned())).into_iter().collect()
}

impl TypesCommand {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let client = &session.client;
        match self {
            Self::List { paging } => {
                session.list(&["v1", "event-types"], QueryArgs::default(), paging, COLUMNS).await
            }
            Self::Show(TypeName { name }) => {
                session.show(&client.get(&["v1", "event-types", name], &[]).await?)
            }
            Self::Put { name, definition, force } => {
                put(session, name, definition, flag("force", *force)).await
            }
            Self::Check { name, definition } => put(session, name, definition, flag("dryRun", true)).await,
            Self::Rm { name: TypeName { name }, force } => {
                client.delete_where(&["v1", "event-types", name], &flag("force", *force)).await?;
                Ok(())
            }
        }
    }
}

async fn put(
    session: &Session,
    TypeName { name }: &TypeName,
    definition: &DefinitionFile,
    query: Vec<(&'static str, String)>,
) -> anyhow::Result<()> {
    let definition = definition.read()?;
    session.show(&session.client.put(&["v1", "event-types", name], &query, definition).await?)
}
