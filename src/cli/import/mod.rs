//! `balto import`: brings the subscriptions of another product over.

mod svix;

use clap::{Args, Subcommand};

use super::code::ChangePlan;
use super::output::Session;
use svix::Svix;

/// Import tenants, endpoints, secrets and event types of another product.
#[derive(Debug, Subcommand)]
pub(super) enum ImportCommand {
    /// Import the applications, endpoints, secrets and event types of Svix.
    Svix(SvixArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "An application becomes a tenant, named by its uid or id. An endpoint keeps its uid, or gets svix-ID; it sends the \
    raw data with the headers of Svix, so receivers verify it as before. Channels become labels. A disabled \
    endpoint is created paused, as is one with an asymmetric key, which cannot be read. Running it again changes only what has changed in Svix.\n\n\
    Examples:\n  \
    SVIX_TOKEN=sk_... balto import svix --url https://api.eu.svix.com --dry-run\n  \
    SVIX_TOKEN=sk_... balto import svix --url https://svix.internal:8071 --application app_2abc"
)]
pub(super) struct SvixArgs {
    /// The API of Svix.
    #[arg(long, value_name = "URL")]
    url: String,
    /// An API token for the whole environment.
    #[arg(long, env = "SVIX_TOKEN", hide_env_values = true)]
    token: String,
    /// Only this application, by id or uid; may be given several times.
    #[arg(long = "application", value_name = "APP_ID")]
    applications: Vec<String>,
    /// Register event types without their schemas: Svix does not check data, Balto does.
    #[arg(long)]
    without_schemas: bool,
    /// Print the differences, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

impl ImportCommand {
    pub(super) async fn run(
        &self,
        session: &Session,
        ca_file: Option<&std::path::Path>,
    ) -> anyhow::Result<()> {
        let Self::Svix(arguments) = self;
        let svix = Svix::new(&arguments.url, &arguments.token, ca_file)?;
        let mut plan = ChangePlan::new(false);
        let wanted = svix.read(&arguments.applications, arguments.without_schemas, &mut plan.notes).await?;
        for (kind, wanted) in wanted {
            plan.add(&session.client, kind, wanted).await?;
        }
        plan.finish(session, arguments.dry_run).await
    }
}
