//! `balto deliveries`: lists, shows, retries and cancels deliveries.

use clap::{Args, Subcommand};

use super::args::{self, Paging};
use super::output::{Column, Session, line};
use super::search::DeliverySearchArgs;

const COLUMNS: &[Column] = &[
    Column("ID", &["/id"]),
    Column("STATUS", &["/status"]),
    Column("TYPE", &["/type", "/eventType", "/event/type"]),
    Column("EVENT", &["/eventId", "/event/id"]),
    Column("ENDPOINT", &["/endpointId"]),
    Column("ATTEMPTS", &["/attempts", "/attemptCount"]),
    Column("NEXT ATTEMPT", &["/nextAttemptAt"]),
    Column("CODE", &["/lastStatusCode"]),
    Column("LAST ERROR", &["/lastError"]),
];

/// Columns of the attempts of a delivery.
pub(super) const ATTEMPTS: &[Column] = &[
    Column("NUMBER", &["/number"]),
    Column("TRIGGER", &["/trigger"]),
    Column("STARTED", &["/startedAt"]),
    Column("TOOK", &["/duration"]),
    Column("CODE", &["/statusCode"]),
    Column("ERROR", &["/error"]),
    Column("REPLY", &["/responseBody"]),
    Column("NEXT ATTEMPT", &["/nextAttemptAt"]),
];

/// List, show, retry and cancel deliveries.
#[derive(Debug, Subcommand)]
pub(crate) enum DeliveriesCommand {
    /// List deliveries, newest first.
    List(Box<DeliveryListArgs>),
    /// Show a delivery and its attempts.
    Show {
        #[arg(value_parser = args::id)]
        id: String,
    },
    /// Print the request of a delivery as a curl command for a shell. Credentials are left out.
    Curl {
        #[arg(value_parser = args::id)]
        id: String,
        /// Sign the request now. Requires an admin key.
        #[arg(long)]
        signed: bool,
    },
    /// Make a delivery due now. It is sent as soon as the endpoint's lane allows.
    Retry {
        #[arg(value_parser = args::id)]
        id: String,
    },
    /// Cancel a pending delivery.
    Cancel {
        #[arg(value_parser = args::id)]
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DeliveryListArgs {
    #[command(flatten)]
    search: DeliverySearchArgs,
    /// Only for this event.
    #[arg(long, value_name = "EVENT_ID", value_parser = args::id)]
    event: Option<String>,
    /// pending, delivered, dead or cancelled.
    #[arg(long)]
    status: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

impl DeliveriesCommand {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        match self {
            Self::List(list) => {
                let query = list.search.query(args::now());
                let query = query.with("eventId", list.event.clone()).with("status", list.status.clone());
                session.list(&["v1", "deliveries"], query, &list.paging, COLUMNS).await
            }
            Self::Show { id } => {
                let answer = session.client.get(&["v1", "deliveries", id], &[]).await?;
                session.show_with(&answer, ("attempts", ATTEMPTS))
            }
            Self::Curl { id, signed } => {
                let query = Some(("signed", "true".to_owned())).filter(|_| *signed);
                let query = Vec::from_iter(query);
                let command = session.client.get(&["v1", "deliveries", id, "curl"], &query).await?;
                Ok(line(command.trim_end())?)
            }
            Self::Retry { id } => {
                let answer = session.client.post(&["v1", "deliveries", id, "retry"], None).await?;
                session.done(&answer, &format!("{id} is due now."))
            }
            Self::Cancel { id } => {
                let answer = session.client.post(&["v1", "deliveries", id, "cancel"], None).await?;
                session.done(&answer, &format!("{id} is cancelled."))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::client::{Client, fake};
    use crate::cli::output::Session;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;

    #[tokio::test]
    async fn filters_become_query_parameters() {
        let (url, task) = fake::serve(vec![("200 OK", r#"{"data":[],"next":null}"#.to_owned())]).await;
        let arguments = "balto deliveries list --endpoint ep_1 --event evt_1 --status dead --status-code 503 --type a.* --id dlv_00 --limit 5 \
            --since 2026-01-01T00:00:00Z";
        let Command::Deliveries(command) = Cli::parse_from(arguments.split_whitespace()).command else {
            panic!("not deliveries")
        };
        command.run(&Session { client: Client::new(&url, None).unwrap(), json: false }).await.unwrap();
        let request = task.await.unwrap().remove(0);
        let expected = "GET /v1/deliveries?endpointId=ep_1&type=a.*&statusCode=503&q=dlv_00&since=2026-01-01T00%3A00%3A00Z\
            &eventId=evt_1&status=dead&limit=5 ";
        assert!(request.starts_with(expected), "{request}");
    }

    #[tokio::test]
    async fn curl_requests_the_command_and_its_signature() {
        let answers = vec![("200 OK", "curl x\n".to_owned()), ("200 OK", "curl x\n".to_owned())];
        let (url, task) = fake::serve(answers).await;
        for arguments in [
            &["balto", "deliveries", "curl", "dlv_1"][..],
            &["balto", "deliveries", "curl", "dlv_1", "--signed"],
        ] {
            let Command::Deliveries(command) = Cli::parse_from(arguments).command else {
                panic!("not deliveries")
            };
            command.run(&Session { client: Client::new(&url, None).unwrap(), json: false }).await.unwrap();
        }
        let requests = task.await.unwrap();
        assert!(requests[0].starts_with("GET /v1/deliveries/dlv_1/curl "), "{}", requests[0]);
        assert!(requests[1].starts_with("GET /v1/deliveries/dlv_1/curl?signed=true "), "{}", requests[1]);
    }

    #[tokio::test]
    async fn retry_and_cancel_post_to_the_delivery() {
        let answers = vec![("202 Accepted", String::new()), ("204 No Content", String::new())];
        let (url, task) = fake::serve(answers).await;
        for action in ["retry", "cancel"] {
            let cli = Cli::parse_from(["balto", "deliveries", action, "dlv_1"]);
            let Command::Deliveries(command) = cli.command else { panic!("not deliveries") };
            command.run(&Session { client: Client::new(&url, None).unwrap(), json: false }).await.unwrap();
        }
        let requests = task.await.unwrap();
        assert!(requests[0].starts_with("POST /v1/deliveries/dlv_1/retry "), "{}", requests[0]);
        assert!(requests[1].starts_with("POST /v1/deliveries/dlv_1/cancel "), "{}", requests[1]);
    }
}
