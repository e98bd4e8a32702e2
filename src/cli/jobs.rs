//! `balto jobs`: lists, shows and cancels jobs. Options of the commands that start one.
//!
//! Owns: the wait for the end of a job, and its progress bar.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::args::{self, Paging, QueryArgs, TimeArg};
use super::output::{Column, Session};

/// Pause between two reads of a job.
const POLL_PAUSE: Duration = Duration::from_millis(250);

const COLUMNS: &[Column] = &[
    Column("ID", &["/id"]),
    Column("KIND", &["/kind"]),
    Column("STATUS", &["/status"]),
    Column("TENANT", &["/tenant"]),
    Column("TARGET", &["/target"]),
    Column("DONE", &["/done"]),
    Column("COUNT", &["/count"]),
    Column("STARTED", &["/startedAt"]),
    Column("ENDED", &["/endedAt"]),
];

/// List, show and cancel jobs: bulk redrive, purge and replay, and the deletion of tenants.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    balto jobs list --status running\n  \
    balto jobs show job_01J... --wait\n  \
    balto jobs cancel job_01J...")]
pub(crate) enum JobsCommand {
    /// List jobs that run and the last that ended, newest first.
    List {
        /// Only jobs that change data of this tenant.
        #[arg(long)]
        tenant: Option<String>,
        /// redriveDeadLetters, purgeDeadLetters, replayEndpoint, replayQueue, purgeQueue or
        /// deleteTenant.
        #[arg(long)]
        kind: Option<String>,
        /// running, completed, failed or cancelled.
        #[arg(long)]
        status: Option<String>,
        #[command(flatten)]
        paging: Paging,
    },
    /// Show a job and its progress.
    Show {
        #[arg(value_name = "JOB_ID", value_parser = args::id)]
        id: String,
        /// Wait for its end; a terminal shows a progress bar.
        #[arg(long)]
        wait: bool,
    },
    /// End a job after its current step. Completed steps stay.
    Cancel {
        #[arg(value_name = "JOB_ID", value_parser = args::id)]
        id: String,
    },
}

impl JobsCommand {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        match self {
            Self::List { tenant, kind, status, paging } => {
                let query = QueryArgs::default().with("tenant", tenant.clone());
                let query = query.with("kind", kind.clone()).with("status", status.clone());
                session.list(&["v1", "jobs"], query, paging, COLUMNS).await
            }
            Self::Show { id, wait: true } => wait(session, id).await,
            Self::Show { id, wait: false } => {
                session.show(&session.client.get(&["v1", "jobs", id], &[]).await?)
            }
            Self::Cancel { id } => {
                session.show(&session.client.post(&["v1", "jobs", id, "cancel"], None).await?)
            }
        }
    }
}

/// Options of a command that starts a job.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct BulkArgs {
    /// Count only, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Wait for the end of the job; a terminal shows a progress bar.
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
}

impl BulkArgs {
    /// Whether an option is given, which applies to several items only.
    pub(crate) fn is_given(&self) -> bool {
        self.dry_run || self.wait
    }

    /// Adds the members of the request.
    pub(crate) fn add_to(&self, body: &mut Map<String, Value>) {
        if self.dry_run {
            body.insert("dryRun".to_owned(), json!(true));
        }
    }

    /// Prints the answer of the start, or waits for the job's end and prints the job.
    pub(crate) async fn finish(&self, session: &Session, answer: &str) -> anyhow::Result<()> {
        match serde_json::from_str::<Started>(answer) {
            Ok(Started { id: Some(id) }) if self.wait => wait(session, &id).await,
            _ => session.show(answer),
        }
    }
}

/// The answer to a request that starts a job.
#[derive(Deserialize)]
struct Started {
    id: Option<String>,
}

/// The members of a job that the wait needs.
#[derive(Deserialize)]
struct Progress {
    status: String,
    #[serde(default)]
    count: u64,
    #[serde(default)]
    done: u64,
    error: Option<String>,
}

/// Waits for the end of a job, and prints it.
async fn wait(session: &Session, id: &str) -> anyhow::Result<()> {
    let bar = progress_bar(std::io::stderr().is_terminal());
    loop {
        let answer = session.client.get(&["v1", "jobs", id], &[]).await?;
        let job: Progress = serde_json::from_str(&answer)?;
        bar.set_length(job.count.max(job.done));
        bar.set_position(job.done);
        if job.status == "running" {
            tokio::time::sleep(POLL_PAUSE).await;
            continue;
        }
        bar.finish_and_clear();
        session.show(&answer)?;
        return match (job.status.as_str(), job.error) {
            ("completed", _) => Ok(()),
            (status, None) => Err(anyhow::anyhow!("the job is {status}; completed steps stay")),
            (_, Some(error)) => Err(anyhow::anyhow!("the job failed: {}", super::output::clean(&error))),
        };
    }
}

fn progress_bar(is_terminal: bool) -> ProgressBar {
    if !is_terminal {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let template = "{bar:40} {pos}/{len} ({percent}%) {per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// The past events of a replay.
#[derive(Debug, Args)]
pub(crate) struct PastArgs {
    /// From this time on: RFC 3339, or a duration before now (24h).
    #[arg(long, value_name = "TIME", value_parser = TimeArg::parse)]
    since: TimeArg,
    /// Before this time: RFC 3339, or a duration before now (15m).
    #[arg(long, value_name = "TIME", value_parser = TimeArg::parse)]
    until: Option<TimeArg>,
    /// Only events that were not delivered.
    #[arg(long)]
    only_undelivered: bool,
    /// Most events per second [default: unlimited].
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    #[command(flatten)]
    pub(crate) bulk: BulkArgs,
}

impl PastArgs {
    /// The request.
    pub(crate) fn body(&self) -> Map<String, Value> {
        let now = args::now();
        let mut body = Map::new();
        body.insert("since".to_owned(), json!(self.since.before(now)));
        body.extend(self.until.as_ref().map(|until| ("until".to_owned(), json!(until.before(now)))));
        if self.only_undelivered {
            body.insert("onlyUndelivered".to_owned(), json!(true));
        }
        body.extend(self.rate.map(|rate| ("rate".to_owned(), json!(rate))));
        self.bulk.add_to(&mut body);
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::{Client, fake};

    fn session(url: &str) -> Session {
        Session { client: Client::new(url, None).unwrap(), json: true }
    }

    fn job(status: &str, error: &str) -> (&'static str, String) {
        ("200 OK", format!(r#"{{"id":"job_1","status":"{status}","count":4,"done":2,"error":{error}}}"#))
    }

    #[tokio::test]
    async fn wait_ends_with_the_job() {
        let (url, task) = fake::serve(vec![job("running", "null"), job("completed", "null")]).await;
        let bulk = BulkArgs { wait: true, dry_run: false };
        bulk.finish(&session(&url), r#"{"id":"job_1","count":4,"done":0}"#).await.unwrap();
        let requests = task.await.unwrap();
        assert!(requests.iter().all(|request| request.starts_with("GET /v1/jobs/job_1 ")), "{requests:?}");
    }

    #[tokio::test]
    async fn failed_and_cancelled_jobs_are_failures() {
        for (status, error, text) in [
            ("failed", "\"the endpoint was deleted\"", "the job failed: the endpoint was deleted"),
            ("cancelled", "null", "the job is cancelled; completed steps stay"),
        ] {
            let (url, _task) = fake::serve(vec![job(status, error)]).await;
            let failed = wait(&session(&url), "job_1").await.unwrap_err();
            assert_eq!(failed.to_string(), text);
        }
    }
}
