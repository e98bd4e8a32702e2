//! `balto endpoints`: manages endpoints.
//!
//! Owns: the translation of options into the members of an endpoint, for a creation and a merge
//! patch. A request contains only the given options; the daemon has the defaults.

mod checks;
mod identity;
mod preview;
mod rate;
mod replay;
mod request;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use identity::IdentityOptions;
use preview::PreviewArgs;
use rate::{Rate, header, header_members};
use replay::ReplayArgs;
use request::RequestOptions;

use super::args::{self, Paging, QueryArgs};
use super::output::{Column, Session, note};
use super::selection::FilterTrialArgs;
use super::test_events::TestArgs;

const COLUMNS: &[Column] = &[
    Column("ID", &["/id"]),
    Column("UID", &["/uid"]),
    Column("STATUS", &["/status"]),
    Column("TENANT", &["/tenant"]),
    Column("URL", &["/url"]),
    Column("EVENT TYPES", &["/eventTypes"]),
    Column("DESCRIPTION", &["/description"]),
];

/// Manage endpoints, the subscriber URLs.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    balto endpoints add https://example.com/hooks --event-types 'order.*,pet.#' --rate 100/1s --max-in-flight 16\n  \
    balto endpoints update ep_01J... --retry-schedule 5s,5m,30m --header 'X-Env: prod'\n  \
    balto endpoints update ep_01J... --rate none\n  \
    balto endpoints rotate-secret ep_01J... --overlap 24h\n  \
    balto endpoints lane ep_01J...                 why deliveries wait")]
pub(crate) enum EndpointsCommand {
    /// Register a URL. The answer shows the generated secret once.
    Add {
        /// The URL that receives the webhooks.
        url: String,
        /// The owner; `*`: all tenants, for a key without one [default: that of the key, or
        /// default].
        #[arg(long)]
        tenant: Option<String>,
        #[command(flatten)]
        options: Box<EndpointOptions>,
        /// The signing secret, whsec_... or whsk_... [default: a generated one].
        #[arg(long, value_name = "SECRET")]
        secret: Option<String>,
        /// Type of the generated secret.
        #[arg(long, conflicts_with = "secret")]
        secret_type: Option<SecretType>,
    },
    /// List endpoints, newest first.
    List {
        /// Only of this tenant; `*`: only those of all tenants.
        #[arg(long)]
        tenant: Option<String>,
        /// active, paused or disabled.
        #[arg(long)]
        status: Option<String>,
        #[command(flatten)]
        paging: Paging,
    },
    /// Show an endpoint.
    Show(EndpointName),
    /// Change the given options. `--rate none` removes the rate.
    Update {
        #[command(flatten)]
        id: EndpointName,
        /// The new URL.
        #[arg(long)]
        url: Option<String>,
        #[command(flatten)]
        options: Box<EndpointOptions>,
    },
    /// Pause delivery. Deliveries wait.
    Pause(EndpointName),
    /// Resume delivery of a paused or disabled endpoint.
    Resume(EndpointName),
    /// Show the signing secret.
    Secret(EndpointName),
    /// Replace the signing secret. Both sign during the overlap.
    RotateSecret {
        #[command(flatten)]
        id: EndpointName,
        /// Time for which the old secret signs, too [default: 24h].
        #[arg(long, value_name = "DURATION", value_parser = args::duration_text)]
        overlap: Option<String>,
        /// The new secret, whsec_... or whsk_... [default: a generated one].
        #[arg(long, value_name = "SECRET")]
        secret: Option<String>,
        /// Type of the generated secret [default: that of the current secret].
        #[arg(long, conflicts_with = "secret")]
        secret_type: Option<SecretType>,
    },
    /// Show the public keys for v1a signatures.
    PublicKeys(EndpointName),
    /// Discard the receiver's consent and request it again now.
    Handshake(EndpointName),
    /// Send a test event to this endpoint alone.
    Test(TestArgs),
    /// Try a filter on an event, or count the stored events that would be delivered.
    TestFilter {
        #[command(flatten)]
        id: EndpointName,
        #[command(flatten)]
        trial: FilterTrialArgs,
    },
    /// Show the request that an event would become, without sending it.
    Preview(PreviewArgs),
    /// Deliver past events, also those that are older than the endpoint, as a job.
    Replay(Box<ReplayArgs>),
    /// Remove an endpoint; its pending deliveries become dead letters.
    Rm(EndpointName),
    /// Show outcomes, success rate, latency and backlog.
    Stats(EndpointName),
    /// Show the waiting deliveries of the lane and the reason.
    Lane(EndpointName),
}

#[derive(Debug, Args)]
pub(crate) struct EndpointName {
    /// The id of an endpoint, or its uid.
    #[arg(value_name = "ENDPOINT_ID", value_parser = args::id)]
    pub(super) id: String,
}

impl EndpointName {
    fn as_str(&self) -> &str {
        &self.id
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Ordering {
    None,
    Key,
    Endpoint,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Standard,
    Cloudevents,
    Raw,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SecretType {
    Hmac,
    Ed25519,
}

/// Options of an endpoint, for a creation and a change.
#[derive(Debug, Default, Args)]
pub(crate) struct EndpointOptions {
    /// A text for people.
    #[arg(long)]
    description: Option<String>,
    /// Topic patterns: * is one word, # any number of them.
    #[arg(long, value_name = "PATTERN,...", value_delimiter = ',')]
    event_types: Vec<String>,
    /// Convert events of a type to a version: TYPE:VERSION, or TYPE:latest. An update with `TYPE:`
    /// removes the pin. Repeatable.
    #[arg(long = "pin", value_name = "TYPE:VERSION", value_parser = args::pin_change)]
    pins: Vec<String>,
    /// A header that every request carries; may be given several times. An update with an empty
    /// value removes it. Credentials (Authorization, X-Api-Key, ...) are stored as with
    /// --sensitive-header.
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// As --header, for a value that is never shown again.
    #[arg(long = "sensitive-header", value_name = "NAME: VALUE", value_parser = header)]
    sensitive_headers: Vec<(String, String)>,
    /// Rate of requests, such as 100/1s.
    #[arg(long, value_name = "N/DURATION", value_parser = Rate::parse)]
    rate: Option<Rate>,
    /// Requests that may be sent at once after a pause, within the rate.
    #[arg(long, value_name = "N")]
    burst: Option<u32>,
    /// Limit of requests at once.
    #[arg(long, value_name = "N")]
    max_in_flight: Option<u32>,
    /// Time limit of a request.
    #[arg(long, value_name = "DURATION", value_parser = args::duration_text)]
    timeout: Option<String>,
    /// Order of deliveries: none, by ordering key, or of the whole endpoint.
    #[arg(long)]
    ordering: Option<Ordering>,
    /// Body format.
    #[arg(long)]
    format: Option<Format>,
    #[command(flatten)]
    identity: IdentityOptions,
    #[command(flatten)]
    request: RequestOptions,
    /// Request the receiver's consent first (CloudEvents web hooks), with this DNS name as the
    /// sender; `default` is the daemon's name, `none` needs no consent.
    #[arg(long, value_name = "ORIGIN")]
    handshake: Option<String>,
    /// Requests per minute that the request for consent names.
    #[arg(long, value_name = "N")]
    handshake_rate: Option<u32>,
    /// Whether the receiver may consent later, at a callback URL.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    handshake_callback: Option<bool>,
    /// Whether deliveries continue the event's trace.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    trace: Option<bool>,
    /// A PEM file with the client certificate for TLS and its chain.
    #[arg(long, value_name = "FILE", value_parser = text_of, requires = "client_key")]
    client_certificate: Option<String>,
    /// A PEM file with the private key of the client certificate, without a passphrase.
    #[arg(long, value_name = "FILE", value_parser = text_of, requires = "client_certificate")]
    client_key: Option<String>,
    /// Remove the client certificate (in an update).
    #[arg(long, conflicts_with = "client_certificate")]
    no_client_certificate: bool,
    #[command(flatten)]
    retry: Retry,
}

/// Either a fixed schedule, or the parameters of an exponential backoff.
#[derive(Debug, Default, Args)]
pub(super) struct Retry {
    /// The intervals between attempts.
    #[arg(long, value_name = "DURATION,...", value_delimiter = ',', value_parser = args::duration_text,
        conflicts_with_all = ["retry_initial", "retry_multiplier", "retry_max_interval", "max_attempts"])]
    retry_schedule: Vec<String>,
    /// The first interval of an exponential backoff.
    #[arg(long, value_name = "DURATION", value_parser = args::duration_text)]
    retry_initial: Option<String>,
    /// Factor between an interval and the next.
    #[arg(long, value_name = "FACTOR", value_parser = args::number)]
    retry_multiplier: Option<f64>,
    /// The longest interval.
    #[arg(long, value_name = "DURATION", value_parser = args::duration_text)]
    retry_max_interval: Option<String>,
    /// Attempts until a delivery becomes a dead letter.
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// Time since its first attempt until a delivery becomes a dead letter.
    #[arg(long, value_name = "DURATION", value_parser = args::duration_text)]
    max_age: Option<String>,
}

/// The text of a file.
fn text_of(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

fn word(value: &impl ValueEnum) -> Value {
    value.to_possible_value().map_or(Value::Null, |value| Value::from(value.get_name()))
}

/// Sets a member when there is a value for it.
fn set(members: &mut Map<String, Value>, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        members.insert(name.to_owned(), value.into());
    }
}

fn non_empty(members: Map<String, Value>) -> Option<Value> {
    (!members.is_empty()).then_some(Value::Object(members))
}

impl Retry {
    /// The `retry` object, if an option gives one of its members.
    pub(super) fn members(&self) -> Option<Value> {
        let mut members = Map::new();
        let schedule = (!self.retry_schedule.is_empty()).then(|| self.retry_schedule.clone());
        set(&mut members, "schedule", schedule);
        set(&mut members, "initial", self.retry_initial.clone());
        set(&mut members, "multiplier", self.retry_multiplier);
        set(&mut members, "maxInterval", self.retry_max_interval.clone());
        set(&mut members, "maxAttempts", self.max_attempts);
        set(&mut members, "maxAge", self.max_age.clone());
        non_empty(members)
    }
}

impl EndpointOptions {
    fn members(&self) -> Map<String, Value> {
        let mut members = Map::new();
        self.identity.add_to(&mut members);
        set(&mut members, "description", self.description.clone());
        let types = (!self.event_types.is_empty()).then(|| self.event_types.clone());
        set(&mut members, "eventTypes", types);
        set(&mut members, "versions", (!self.pins.is_empty()).then(|| args::pins(&self.pins)));
        set(&mut members, "headers", header_members(&self.headers));
        set(&mut members, "sensitiveHeaders", header_members(&self.sensitive_headers));
        set(&mut members, "rateLimit", self.rate_limit());
        set(&mut members, "maxInFlight", self.max_in_flight);
        set(&mut members, "timeout", self.timeout.clone());
        set(&mut members, "ordering", self.ordering.as_ref().map(word));
        set(&mut members, "format", self.format.as_ref().map(word));
        self.request.add_to(&mut members);
        set(&mut members, "handshake", self.handshake());
        set(&mut members, "trace", self.trace);
        set(&mut members, "retry", self.retry.members());
        set(&mut members, "clientCertificate", self.client_certificate());
        members
    }

    fn handshake(&self) -> Option<Value> {
        let mut members = Map::new();
        match self.handshake.as_deref() {
            Some("none") => return Some(Value::Null),
            Some("default") | None => {}
            Some(origin) => set(&mut members, "origin", Some(origin)),
        }
        set(&mut members, "rate", self.handshake_rate);
        set(&mut members, "callback", self.handshake_callback);
        (self.handshake.is_some() || !members.is_empty()).then_some(Value::Object(members))
    }

    fn client_certificate(&self) -> Option<Value> {
        match (&self.client_certificate, &self.client_key) {
            (Some(certificate), Some(key)) => Some(json!({"certificate": certificate, "key": key})),
            _ => self.no_client_certificate.then_some(Value::Null),
        }
    }

    fn rate_limit(&self) -> Option<Value> {
        let mut members = Map::new();
        match &self.rate {
            Some(Rate::Unlimited) => return Some(Value::Null),
            Some(Rate::Limited { limit, per }) => {
                set(&mut members, "limit", Some(*limit));
                set(&mut members, "per", Some(per.as_str()));
            }
            None => {}
        }
        set(&mut members, "burst", self.burst);
        non_empty(members)
    }

    /// The members of a new endpoint. An option that removes something is wrong usage or has no
    /// effect.
    fn creation(&self, url: &str, tenant: Option<&str>, secret: Option<&str>) -> anyhow::Result<Value> {
        if self.burst.is_some() && !matches!(self.rate, Some(Rate::Limited { .. })) {
            return Err(super::usage("--burst needs a --rate such as 100/1s"));
        }
        if let Some(pin) = self.pins.iter().find(|pin| pin.ends_with(':')) {
            return Err(super::usage(format!("the pin {pin} has no version")));
        }
        if let Some((name, _)) =
            self.headers.iter().chain(&self.sensitive_headers).find(|(_, value)| value.is_empty())
        {
            return Err(super::usage(format!("the header {name} has no value")));
        }
        let mut members = self.checked([("url", Some(url)), ("tenant", tenant), ("secret", secret)])?;
        members.retain(|_, value| !value.is_null());
        Ok(Value::Object(members))
    }

    fn patch(&self, url: Option<&str>) -> anyhow::Result<Value> {
        let members = self.checked([("url", url), ("tenant", None), ("secret", None)])?;
        non_empty(members).ok_or_else(|| super::usage("no change: give at least one option"))
    }
}

impl EndpointsCommand {
    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        match self {
            Self::Add { url, tenant, options, secret, secret_type } => {
                let mut body = options.creation(url, tenant.as_deref(), secret.as_deref())?;
                if let Some(kind) = secret_type {
                    if !body["secretType"].is_null() {
                        return Err(super::usage("--members and an option give secretType: give it once"));
                    }
                    body["secretType"] = word(kind);
                }
                let answer = session.client.create(&["v1", "endpoints"], body.to_string(), None).await?;
                session.show(&answer)?;
                if !session.json && secret.is_none() {
                    note("Store the secret: the receiver needs it to verify signatures.");
                }
                Ok(())
            }
            Self::List { tenant, status, paging } => {
                let query =
                    QueryArgs::default().with("tenant", tenant.clone()).with("status", status.clone());
                session.list(&["v1", "endpoints"], query, paging, COLUMNS).await
            }
            Self::Update { id, url, options } => {
                let body = options.patch(url.as_deref())?.to_string();
                session.show(&session.client.patch(&["v1", "endpoints", &id.id], body).await?)
            }
            Self::RotateSecret { id, overlap, secret, secret_type } => {
                let body = rotation(overlap.as_deref(), secret.as_deref(), secret_type.as_ref());
                let path = ["v1", "endpoints", &id.id, "secret", "rotate"];
                session.done(&session.client.post(&path, Some(body)).await?, "The secret is rotated.")
            }
            Self::Rm(id) => {
                let answer = session.client.delete(&["v1", "endpoints", &id.id]).await?;
                session.done(&answer, &format!("{} is removed.", id.id))
            }
            Self::TestFilter { id, trial } => {
                let path = ["v1", "endpoints", &id.id, "filter", "test"];
                session.show(&session.client.post(&path, Some(trial.body().to_string())).await?)
            }
            Self::Show(id) => look(session, id, &[]).await,
            Self::Secret(id) => look(session, id, &["secret"]).await,
            Self::PublicKeys(id) => look(session, id, &["public-keys"]).await,
            Self::Stats(id) => look(session, id, &["stats"]).await,
            Self::Lane(id) => look(session, id, &["lane"]).await,
            Self::Pause(id) => act(session, id, "pause", "is paused").await,
            Self::Resume(id) => act(session, id, "resume", "is active").await,
            Self::Handshake(id) => act(session, id, "handshake", "is asked for consent again").await,
            Self::Test(test) => test.run(session).await,
            Self::Preview(arguments) => arguments.run(session).await,
            Self::Replay(arguments) => arguments.run(session).await,
        }
    }
}

async fn look(session: &Session, id: &EndpointName, part: &[&str]) -> anyhow::Result<()> {
    let path = [&["v1", "endpoints", id.id.as_str()], part].concat();
    session.show(&session.client.get(&path, &[]).await?)
}

async fn act(session: &Session, id: &EndpointName, action: &str, words: &str) -> anyhow::Result<()> {
    let answer = session.client.post(&["v1", "endpoints", &id.id, action], None).await?;
    session.done(&answer, &format!("{} {words}.", id.id))
}

fn rotation(overlap: Option<&str>, secret: Option<&str>, kind: Option<&SecretType>) -> String {
    let mut members = Map::new();
    set(&mut members, "overlap", overlap);
    set(&mut members, "secret", secret);
    set(&mut members, "secretType", kind.map(word));
    json!(members).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, UsageError};
    use clap::Parser as _;

    fn parse(arguments: &[&str]) -> EndpointsCommand {
        match Cli::parse_from(["balto", "endpoints"].iter().chain(arguments)).command {
            Command::Endpoints(command) => *command,
            other => panic!("not endpoints: {other:?}"),
        }
    }

    fn creation(arguments: &[&str]) -> anyhow::Result<Value> {
        match parse(&[&["add"], arguments].concat()) {
            EndpointsCommand::Add { url, tenant, options, secret, secret_type: _ } => {
                options.creation(&url, tenant.as_deref(), secret.as_deref())
            }
            other => panic!("not add: {other:?}"),
        }
    }

    fn patch(arguments: &[&str]) -> anyhow::Result<Value> {
        match parse(&[&["update", "ep_1"], arguments].concat()) {
            EndpointsCommand::Update { url, options, .. } => options.patch(url.as_deref()),
            other => panic!("not update: {other:?}"),
        }
    }

    #[test]
    fn requests_contain_the_given_options_alone() {
        assert_eq!(creation(&["https://h/x"]).unwrap(), json!({"url": "https://h/x"}));
        assert_eq!(patch(&["--timeout", "5s"]).unwrap(), json!({"timeout": "5s"}));
    }

    #[test]
    fn client_certificate_is_read_from_files_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name).display().to_string();
        for name in ["certificate", "key"] {
            std::fs::write(file(name), name).unwrap();
        }
        let (certificate, key) = (file("certificate"), file("key"));
        let both = ["--client-certificate", certificate.as_str(), "--client-key", key.as_str()];
        let member = json!({"certificate": "certificate", "key": "key"});
        assert_eq!(creation(&[&["https://h/"], &both[..]].concat()).unwrap()["clientCertificate"], member);
        assert_eq!(patch(&both).unwrap(), json!({"clientCertificate": member}));
        assert_eq!(patch(&["--no-client-certificate"]).unwrap(), json!({"clientCertificate": null}));
        let missing = file("nothing");
        for wrong in [
            vec!["--client-certificate", certificate.as_str()],
            vec!["--client-certificate", missing.as_str(), "--client-key", key.as_str()],
        ] {
            assert!(
                Cli::try_parse_from([&["balto", "endpoints", "update", "ep_1"], &wrong[..]].concat())
                    .is_err()
            );
        }
    }

    #[test]
    fn every_option_has_its_member() {
        let arguments = "https://h/x|--tenant|acme|--description|d|--event-types|order.*,pet.#|--header\
            |X-Env: prod|--header|X-B:2|--rate|100/1s|--burst|50|--max-in-flight|16\
            |--timeout|15s|--ordering|key|--format|cloudevents|--handshake\
            |events.example.com|--handshake-rate|120|--handshake-callback|--trace\
            |--signature|github|--secret|whsec_x|--retry-initial|5s|--retry-multiplier|3\
            |--retry-max-interval|6h|--max-attempts|12|--max-age|72h";
        let body = creation(&arguments.split('|').collect::<Vec<_>>());
        let expected = json!({"url": "https://h/x", "tenant": "acme", "description": "d",
            "eventTypes": ["order.*", "pet.#"], "headers": {"X-Env": "prod", "X-B": "2"},
            "rateLimit": {"limit": 100, "per": "1s", "burst": 50}, "maxInFlight": 16, "timeout": "15s",
            "ordering": "key", "format": "cloudevents", "trace": true,
            "handshake": {"origin": "events.example.com", "rate": 120, "callback": true}, "signature": "github", "secret": "whsec_x",
            "retry": {"initial": "5s", "multiplier": 3.0, "maxInterval": "6h", "maxAttempts": 12, "maxAge": "72h"}});
        assert_eq!(body.unwrap(), expected);
    }

    #[test]
    fn schedule_excludes_exponential_parameters() {
        let body = patch(&["--retry-schedule", "5s,5m,30m"]).unwrap();
        assert_eq!(body, json!({"retry": {"schedule": ["5s", "5m", "30m"]}}));
        let both =
            ["balto", "endpoints", "update", "ep_1", "--retry-schedule", "5s", "--retry-initial", "1s"];
        assert!(Cli::try_parse_from(both).is_err());
    }

    #[test]
    fn patch_removes_a_rate_a_header_and_a_pin() {
        let pins = patch(&["--pin", "pet.adopted:1.0", "--pin", "pet.lost:"]).unwrap();
        assert_eq!(pins, json!({"versions": {"pet.adopted": "1.0", "pet.lost": null}}));
        let body = patch(&["--rate", "none", "--header", "X-Env:"]).unwrap();
        assert_eq!(body, json!({"rateLimit": null, "headers": {"X-Env": null}}));
        assert_eq!(patch(&["--burst", "5"]).unwrap(), json!({"rateLimit": {"burst": 5}}));
        assert_eq!(patch(&["--handshake", "none"]).unwrap(), json!({"handshake": null}));
        assert_eq!(patch(&["--handshake-rate", "5"]).unwrap(), json!({"handshake": {"rate": 5}}));
        let body = patch(&["--handshake", "default", "--trace", "false"]).unwrap();
        assert_eq!(body, json!({"handshake": {}, "trace": false}));
        assert!(patch(&[]).unwrap_err().is::<UsageError>());
    }

    #[test]
    fn creation_refuses_options_for_updates_alone() {
        assert!(creation(&["https://h/", "--burst", "5"]).unwrap_err().is::<UsageError>());
        assert!(creation(&["https://h/", "--header", "X-Env:"]).unwrap_err().is::<UsageError>());
        assert!(creation(&["https://h/", "--pin", "pet.lost:"]).unwrap_err().is::<UsageError>());
        assert_eq!(creation(&["https://h/", "--rate", "none"]).unwrap(), json!({"url": "https://h/"}));
    }

    #[test]
    fn value_without_effect_is_wrong_usage() {
        for (arguments, reason) in [
            (&["--rate", "none", "--burst", "3"][..], "omit --burst"),
            (&["--handshake", "none", "--handshake-rate", "5"], "omit --handshake-rate"),
            (&["--handshake", "none", "--handshake-callback"], "omit --handshake-rate"),
            (&["--header", "X-A: 1", "--header", "x-a: 2"], "--header gives x-a twice"),
            (&["--sensitive-header", "X-A: 1", "--sensitive-header", "X-A: 1"], "gives x-a twice"),
            (&["--pin", "a.b:1.0", "--pin", "a.b:"], "--pin gives a.b twice"),
            (&["--members", r#"{"retry": {"initial": "1s"}}"#, "--max-attempts", "3"], "give retry"),
            (&["--members", r#"{"url": "https://a/"}"#, "--url", "https://b/"], "give url"),
        ] {
            let error = patch(arguments).unwrap_err();
            assert!(error.is::<UsageError>() && error.to_string().contains(reason), "{arguments:?}: {error}");
        }
        assert!(creation(&["https://h/", "--rate", "none", "--burst", "3"]).is_err());
        assert!(creation(&["https://h/", "--members", r#"{"url": "https://a/"}"#]).is_err());
    }

    #[test]
    fn rotation_contains_the_given_options_alone() {
        assert_eq!(rotation(None, None, None), "{}");
        assert_eq!(rotation(Some("1h"), None, None), r#"{"overlap":"1h"}"#);
    }
}
