//! The command line: arguments, the HTTP client of the client commands, and their output.
//!
//! Owns: the name and help text of every argument, exit codes (0 done, 1 failed, 2 wrong usage),
//! tables and listings. Client commands know the daemon only through its HTTP contract. The parts
//! that run in this process (the daemon, the checks of a store) come in as a [`Backend`], so this
//! module does not depend on their construction.

mod args;
mod audit;
mod backup;
mod client;
mod code;
mod consumers;
mod dead_letters;
mod deliveries;
mod demo;
mod endpoints;
mod events;
mod feed;
mod files;
mod generated;
mod import;
mod jobs;
mod keys;
pub mod listen;
mod output;
mod overview;
mod projections;
mod queues;
mod search;
mod selection;
mod sources;
mod stop;
mod streams;
mod table;
mod tenants;
mod test_events;
mod types;
mod work;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::config::{ConfigError, ConfigErrors};
use crate::daemon::Findings;
use client::Client;
use output::OutputError;

/// URL of the daemon for client commands, without `BALTO_URL` and `--server`.
const SERVER_DEFAULT: &str = "http://127.0.0.1:8400";

/// The functions of the daemon that the command line calls.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// Runs the daemon until a signal ends it.
    pub serve: fn(ServeArgs) -> anyhow::Result<ExitCode>,
    /// Validates a configuration file; returns warnings.
    pub check_config: fn(&Path) -> Result<Vec<ConfigError>, ConfigErrors>,
    /// Checks a whole data directory (second argument). A configuration file (first) has the
    /// secrets key.
    pub verify: fn(Option<PathBuf>, PathBuf) -> anyhow::Result<Findings>,
    /// Creates a data directory from a backup.
    pub restore: fn(&RestoreArgs) -> anyhow::Result<Findings>,
    /// The OpenAPI document as JSON text.
    pub openapi: fn() -> anyhow::Result<String>,
}

/// A webhook delivery engine: accepts events, signs and delivers them, retries, keeps dead letters.
#[derive(Debug, Parser)]
#[command(
    name = "balto",
    version,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        balto demo                                   see everything work, in a few seconds\n  \
        balto serve --dev                            a daemon for development\n  \
        balto listen --port 9000                     a receiver that prints webhooks\n  \
        balto endpoints add http://127.0.0.1:9000/   subscribe the receiver\n  \
        balto send --type order.paid --data '{\"orderId\": 42}'\n\n\
        Client commands read BALTO_URL, BALTO_API_KEY and BALTO_CA_FILE."
)]
pub struct Cli {
    /// Print JSON instead of tables and listings.
    #[arg(long, global = true)]
    json: bool,
    /// The daemon's API that client commands talk to.
    #[arg(long, global = true, env = "BALTO_URL", hide_env_values = true, value_name = "URL", default_value = SERVER_DEFAULT)]
    server: String,
    /// Certificate authorities (PEM) that client commands trust in addition to those of the
    /// machine.
    #[arg(long, global = true, env = "BALTO_CA_FILE", hide_env_values = true, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Serve(ServeArgs),
    /// Run a tour: a daemon, receivers, retries, a dead letter and its redrive.
    Demo,
    /// Receive webhooks: verify their signatures, print them, relay them, fail on purpose.
    Listen(listen::ListenArgs),
    /// Post an event.
    Send(Box<events::SendArgs>),
    /// Manage endpoints, the subscriber URLs.
    #[command(subcommand)]
    Endpoints(Box<endpoints::EndpointsCommand>),
    /// Publish many, list, show, replay and erase events.
    #[command(subcommand)]
    Events(events::EventsCommand),
    /// List streams, show their events, append.
    #[command(subcommand)]
    Streams(streams::StreamsCommand),
    /// Print all events in order, and follow the log.
    Feed(feed::FeedArgs),
    /// List, show, retry and cancel deliveries.
    #[command(subcommand)]
    Deliveries(deliveries::DeliveriesCommand),
    /// List, show, redrive and purge dead letters.
    #[command(subcommand, name = "dead-letters")]
    DeadLetters(dead_letters::DeadLettersCommand),
    /// Manage consumers, named positions in the log of events.
    #[command(subcommand)]
    Consumers(consumers::ConsumersCommand),
    /// Show how far the state and the consumers have come, or rebuild the state.
    Projections {
        #[command(subcommand)]
        command: Option<projections::ProjectionsCommand>,
    },
    /// Manage queues, from which workers receive messages.
    #[command(subcommand)]
    Queues(Box<queues::QueuesCommand>),
    /// Run a command for each message of a queue.
    Work(Box<work::WorkArgs>),
    /// Manage sources: queues of RabbitMQ whose messages become events.
    #[command(subcommand)]
    Sources(sources::SourcesCommand),
    /// List, show and cancel jobs: bulk work in the background.
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    /// Create, list, change and remove API keys.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// List the acts of operators, newest first.
    Audit(Box<audit::AuditArgs>),
    /// List, show, change and remove tenants.
    #[command(subcommand)]
    Tenants(tenants::TenantsCommand),
    /// List, show, register, check and remove event types.
    #[command(subcommand)]
    Types(types::TypesCommand),
    /// Create and change endpoints, queues and event types, as a file has them.
    Apply(code::ApplyArgs),
    /// Print endpoints, queues and event types as a file for `balto apply`.
    Export(code::ExportArgs),
    /// Import the subscriptions of another product.
    #[command(subcommand)]
    Import(import::ImportCommand),
    /// Show counts and latencies over all endpoints, or those of a tenant.
    Stats(overview::StatsArgs),
    /// List lanes with pending deliveries, and why they wait.
    Lanes(overview::LanesArgs),
    /// Validate a configuration file; exit code 2 reports errors.
    CheckConfig {
        /// The TOML file.
        file: PathBuf,
    },
    /// Check all checksums and invariants of a data directory; exit code 1 reports problems.
    /// Changes nothing.
    #[command(
        after_help = "The command reads the whole journal, rebuilds the state from it in the directory for temporary \
        files (TMPDIR), and compares the two. That directory needs twice the room of the state."
    )]
    Verify {
        /// The data directory of a daemon that is not running.
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// Configuration file (TOML) with the secrets key.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Back up all data of a running daemon.
    Backup(backup::BackupArgs),
    /// Create a data directory from a backup.
    Restore(RestoreArgs),
    /// Print the completions of a shell.
    Completions(generated::CompletionsArgs),
    /// Write the manual pages.
    Man(generated::ManArgs),
    /// Print the OpenAPI 3.1 document of the HTTP API.
    Openapi,
    /// Print the AsyncAPI 3.0 document of the daemon's registered event types.
    Asyncapi,
}

impl Command {
    /// Whether SIGTERM no longer ends the process by itself: such a command must not block on its
    /// outputs.
    fn handles_signals(&self) -> bool {
        matches!(self, Self::Serve(_) | Self::Demo | Self::Listen(_) | Self::Work(_) | Self::Backup(_))
    }
}

/// Options of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(
    after_help = "Environment variables BALTO__SECTION__KEY override the file; flags override both.\n\n\
    Examples:\n  balto serve --dev\n  balto serve --config /etc/balto/balto.toml"
)]
pub struct ServeArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The data directory.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// For development, insecure: no API key, http and loopback targets allowed, data in
    /// ./balto-data.
    ///
    /// Requests without a key must name localhost, a loopback address or the host of
    /// server.public_url, and must not come from a foreign web page.
    #[arg(long)]
    pub dev: bool,
    /// With --dev: allow listeners beyond loopback. Every machine that reaches one has all rights.
    #[arg(long, requires = "dev")]
    pub dev_listen_anywhere: bool,
}

/// Source and destination of a restore.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct RestoreArgs {
    /// A file that `balto backup` wrote, or a FIFO; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub from: PathBuf,
    /// The new data directory: missing, empty, or left unfinished by an earlier restore.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Configuration file (TOML) with the secrets key, which authenticates the backup.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Accept a backup that is not authenticated, or whose key is lost.
    #[arg(long)]
    pub unauthenticated: bool,
}

/// Arguments that are valid one by one and contradict each other: exit code 2, as for other wrong
/// usage.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

fn usage(message: impl Into<String>) -> anyhow::Error {
    UsageError(message.into()).into()
}

/// Parses the arguments, runs the command, and reports a failure on standard error.
#[must_use]
pub fn run(backend: &Backend, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.into_iter().collect();
    if arguments.get(1).is_some_and(|first| first == work::guard::ARGUMENT) {
        work::guard::run(arguments.get(2).and_then(|grace| grace.to_str()));
        return ExitCode::SUCCESS;
    }
    let (ended, note): (_, fn(&str)) = match Cli::try_parse_from(arguments) {
        Ok(cli) => {
            let note = if cli.command.handles_signals() { output::last_note } else { output::note };
            (dispatch(backend, cli), note)
        }
        Err(message) => (print_parser_message(message), output::note),
    };
    ended.unwrap_or_else(|error| {
        if error.downcast_ref::<OutputError>().is_some_and(OutputError::is_closed) {
            return ExitCode::SUCCESS;
        }
        note(&format!("balto: {error:#}"));
        if error.is::<UsageError>() { ExitCode::from(2) } else { ExitCode::FAILURE }
    })
}

/// Help and version end with 0, wrong usage with 2.
fn print_parser_message(message: clap::Error) -> anyhow::Result<ExitCode> {
    let code = if message.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
    output::parser_message(message)?;
    Ok(code)
}

fn dispatch(backend: &Backend, cli: Cli) -> anyhow::Result<ExitCode> {
    let session = || session(&cli.server, cli.ca_file.as_deref(), cli.json);
    match cli.command {
        Command::Serve(_) | Command::Demo if cli.json => {
            return Err(usage("`serve` and `demo` have no --json; for the log of `serve` set log.format"));
        }
        Command::Serve(args) => return (backend.serve)(args),
        Command::CheckConfig { file } => {
            return Ok(files::print_config_check(&file, (backend.check_config)(&file), cli.json)?);
        }
        Command::Verify { data_dir, config } => {
            return Ok(files::print_findings(&(backend.verify)(config, data_dir)?, cli.json)?);
        }
        Command::Restore(args) => return Ok(files::print_findings(&(backend.restore)(&args)?, cli.json)?),
        Command::Openapi => output::line((backend.openapi)()?.trim_end())?,
        Command::Completions(args) => args.run()?,
        Command::Man(args) => args.run()?,
        Command::Asyncapi => {
            let session = session()?;
            let document = block_on(async { Ok(session.client.get(&["v1", "asyncapi.json"], &[]).await?) })?;
            output::json_line(document.trim_end())?;
        }
        Command::Demo => block_on(demo::run())?,
        Command::Listen(args) => block_on(listen::run(args, cli.ca_file.as_deref(), cli.json))?,
        Command::Backup(args) => block_on(args.run(&session()?))?,
        Command::Send(args) => block_on(args.run(&session()?))?,
        Command::Endpoints(command) => block_on(command.run(&session()?))?,
        Command::Events(command) => block_on(command.run(&session()?))?,
        Command::Streams(command) => block_on(command.run(&session()?))?,
        Command::Feed(args) => block_on(args.run(&session()?))?,
        Command::Deliveries(command) => block_on(command.run(&session()?))?,
        Command::DeadLetters(command) => block_on(command.run(&session()?))?,
        Command::Consumers(command) => block_on(command.run(&session()?))?,
        Command::Projections { command } => {
            let command = command.unwrap_or_default();
            block_on(command.run(&session()?))?;
        }
        Command::Queues(command) => block_on(command.run(&session()?))?,
        Command::Work(args) => block_on(args.run(session()?))?,
        Command::Sources(command) => block_on(command.run(&session()?))?,
        Command::Jobs(command) => block_on(command.run(&session()?))?,
        Command::Keys(command) => block_on(command.run(&session()?))?,
        Command::Audit(args) => block_on(args.run(&session()?))?,
        Command::Tenants(command) => block_on(command.run(&session()?))?,
        Command::Types(command) => block_on(command.run(&session()?))?,
        Command::Apply(args) => block_on(args.run(&session()?))?,
        Command::Export(args) => block_on(args.run(&session()?))?,
        Command::Import(command) => block_on(command.run(&session()?, cli.ca_file.as_deref()))?,
        Command::Stats(args) => block_on(args.run(&session()?))?,
        Command::Lanes(args) => block_on(args.run(&session()?))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn session(server: &str, ca_file: Option<&Path>, json: bool) -> anyhow::Result<output::Session> {
    let key = std::env::var("BALTO_API_KEY").ok().filter(|key| !key.is_empty());
    Ok(output::Session { client: Client::with_ca_file(server, key, ca_file)?, json })
}

fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    // On the heap: the futures of the tour and of lists are large.
    let done = runtime.block_on(Box::pin(future));
    // A write to a stalled output must not delay the end.
    runtime.shutdown_background();
    done
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn argument_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_and_options_are_described() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for option in command.get_opts() {
                assert!(option.get_help().is_some(), "{} --{}", command.get_name(), option.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn serve_parses_its_flags() {
        let cli = Cli::parse_from(["balto", "serve", "--config", "a.toml", "--data-dir", "d", "--dev"]);
        let Command::Serve(args) = cli.command else { panic!("not serve: {:?}", cli.command) };
        let expected = ServeArgs {
            config: Some("a.toml".into()),
            data_dir: Some("d".into()),
            dev: true,
            dev_listen_anywhere: false,
        };
        assert_eq!(args, expected);
        assert!(Cli::try_parse_from(["balto", "serve", "--dev-listen-anywhere"]).is_err());
    }

    #[test]
    fn closed_output_is_no_failure() {
        let is_closed = |error: anyhow::Error| error.downcast_ref().is_some_and(OutputError::is_closed);
        let of = |kind: ErrorKind| OutputError::from(std::io::Error::from(kind));
        assert!(is_closed(of(ErrorKind::BrokenPipe).into()));
        assert!(is_closed(anyhow::Error::from(of(ErrorKind::BrokenPipe)).context("the daemon's log")));
        assert!(!is_closed(of(ErrorKind::StorageFull).into()));
        assert!(!is_closed(std::io::Error::from(ErrorKind::BrokenPipe).into()), "of another file");
    }

    #[test]
    fn global_options_are_accepted_after_the_command() {
        let cli = Cli::parse_from(["balto", "events", "list", "--json", "--server", "http://h:1"]);
        assert!(cli.json);
        assert_eq!(cli.server, "http://h:1");
    }
}
