//! Reads Svix's API, and turns its resources into wanted ones.
//!
//! Owns: pagination, waits after a 429 and the check of answers. Only reads from Svix.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use url::Url;

use crate::cli::client::{http_client, root_cause};
use crate::cli::code::{ResourceKind, Wanted};
use crate::cli::output::{ProgressLine, clean};
use crate::cli::usage;
use crate::domain::{EndpointUid, Label, Tenant};
use crate::limits;
use crate::rules::patterns::ANY_WORDS;

/// Time limit of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests until a 429 or 5xx is a failure.
const TRIES_MAX: u32 = 5;
/// Longest wait for a 429.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Bound of an answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Characters of a wrong answer that are shown.
const SHOWN_CHARACTERS_MAX: usize = 200;
const PAGE: &str = "250";

/// A page of a list. `iterator` names the next one.
#[derive(Deserialize)]
struct SvixPage<T> {
    data: Vec<T>,
    done: bool,
    #[serde(default)]
    iterator: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Application {
    id: String,
    #[serde(default)]
    uid: Option<String>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    metadata: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SvixEndpoint {
    id: String,
    #[serde(default)]
    uid: Option<String>,
    url: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    disabled: bool,
    #[serde(default)]
    filter_types: Option<Vec<String>>,
    #[serde(default)]
    channels: Option<Vec<String>>,
    /// Requests per second; `throttleRate` is its newer name.
    #[serde(default)]
    rate_limit: Option<u32>,
    #[serde(default)]
    throttle_rate: Option<u32>,
    #[serde(default)]
    metadata: Map<String, Value>,
}

#[derive(Default, Deserialize)]
struct EndpointHeaders {
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Names of headers whose values are not shown.
    #[serde(default)]
    sensitive: Vec<String>,
}

#[derive(Deserialize)]
struct SecretKey {
    key: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SvixEventType {
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    deprecated: bool,
    #[serde(default)]
    schemas: Option<BTreeMap<String, Value>>,
}

/// The API of one Svix environment.
pub(super) struct Svix {
    http: reqwest::Client,
    base: Url,
    token: String,
}

impl Svix {
    pub(super) fn new(url: &str, token: &str, ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let mut base: Url = url.parse().map_err(|error| usage(format!("`{url}` is not a URL: {error}")))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(usage(format!("`{url}` is not an http or https URL")));
        }
        if token.is_empty() {
            return Err(usage("the token is empty: set SVIX_TOKEN or --token"));
        }
        let path = base.path().trim_end_matches('/').trim_end_matches("/api/v1").to_owned();
        base.set_path(&path);
        base.set_query(None);
        let http = http_client(&base, ca_file, ANSWER_TIMEOUT)?;
        Ok(Self { http, base, token: token.to_owned() })
    }

    /// All resources, in the order of creation.
    pub(super) async fn read(
        &self,
        only: &[String],
        without_schemas: bool,
        notes: &mut Vec<String>,
    ) -> anyhow::Result<Vec<(ResourceKind, Wanted)>> {
        let progress = ProgressLine::start();
        let mut wanted = Vec::new();
        for event_type in self.list(&["event-type"], &[("with_content", "true")]).await? {
            wanted.push((ResourceKind::EventType, type_of(event_type, without_schemas)));
        }
        for application in self.applications(only).await? {
            progress.show(format!("reading {}", application.id));
            let tenant = tenant_of(&application, notes);
            wanted.push((ResourceKind::Tenant, tenant_settings(&application, &tenant)));
            for endpoint in self.list(&["app", &application.id, "endpoint"], &[]).await? {
                let endpoint = self.endpoint(&application.id, &tenant, endpoint, notes).await?;
                wanted.push((ResourceKind::Endpoint, endpoint));
            }
        }
        Ok(wanted)
    }

    async fn applications(&self, only: &[String]) -> anyhow::Result<Vec<Application>> {
        if only.is_empty() {
            return self.list(&["app"], &[]).await;
        }
        let mut found = Vec::new();
        for id in only {
            found.push(self.get(&["app", id], &[]).await?);
        }
        Ok(found)
    }

    async fn endpoint(
        &self,
        application: &str,
        tenant: &str,
        endpoint: SvixEndpoint,
        notes: &mut Vec<String>,
    ) -> anyhow::Result<Wanted> {
        let path = ["app", application, "endpoint", &endpoint.id];
        let headers: EndpointHeaders = self.get(&[&path[..], &["headers"]].concat(), &[]).await?;
        let secret: SecretKey = self.get(&[&path[..], &["secret"]].concat(), &[]).await?;
        Ok(endpoint_of(tenant, endpoint, headers, secret.key, notes))
    }

    /// All pages of a list.
    async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> anyhow::Result<Vec<T>> {
        let (mut rows, mut iterator): (Vec<T>, Option<String>) = (Vec::new(), None);
        loop {
            let mut query = [query, &[("limit", PAGE)]].concat();
            query.extend(iterator.as_deref().map(|iterator| ("iterator", iterator)));
            let page: SvixPage<T> = self.get(path, &query).await?;
            rows.extend(page.data);
            if page.done {
                return Ok(rows);
            }
            match page.iterator {
                Some(next) if Some(&next) != iterator.as_ref() => iterator = Some(next),
                _ => bail!("Svix's list of {} does not end: its iterator does not move", path.join("/")),
            }
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)]) -> anyhow::Result<T> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let shown = format!("{}{}", url.origin().ascii_serialization(), url.path());
        let (status, bytes) = self.answer(url, &shown).await?;
        match status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => bail!("Svix refuses the token (401 from {shown})"),
            _ => bail!("Svix answered {shown} with {status}: {}", cut(&bytes)),
        }
        serde_json::from_slice(&bytes)
            .with_context(|| format!("Svix's answer to {shown} is not as documented: {}", cut(&bytes)))
    }

    /// Waits and tries again after a 429 or a failure of the server.
    async fn answer(&self, url: Url, shown: &str) -> anyhow::Result<(StatusCode, Vec<u8>)> {
        let mut pause = Duration::from_secs(1);
        for attempt in 1.. {
            let request =
                self.http.get(url.clone()).bearer_auth(&self.token).header("accept", "application/json");
            let failed =
                |error: reqwest::Error| anyhow::anyhow!("cannot reach {shown}: {}", root_cause(&error));
            let mut answer = request.send().await.map_err(failed)?;
            let status = answer.status();
            if attempt < TRIES_MAX && (status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()) {
                tokio::time::sleep(retry_after(&answer).unwrap_or(pause).min(WAIT_MAX)).await;
                pause *= 2;
                continue;
            }
            let mut bytes = Vec::new();
            while let Some(chunk) = answer.chunk().await.map_err(failed)? {
                anyhow::ensure!(bytes.len() + chunk.len() <= ANSWER_BYTES_MAX, "{shown} answered too much");
                bytes.extend_from_slice(&chunk);
            }
            return Ok((status, bytes));
        }
        unreachable!("the last attempt returns")
    }
}

/// The `Retry-After` of an answer, in seconds.
fn retry_after(answer: &reqwest::Response) -> Option<Duration> {
    let text = answer.headers().get("retry-after")?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

fn cut(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes).trim().chars().take(SHOWN_CHARACTERS_MAX).collect();
    clean(&text)
}

/// The application's uid, or its id if the uid is not valid as a name of a tenant.
fn tenant_of(application: &Application, notes: &mut Vec<String>) -> String {
    let Some(uid) = &application.uid else { return application.id.clone() };
    match uid.parse::<Tenant>() {
        Ok(_) if uid != Tenant::OPERATOR => uid.clone(),
        _ => {
            notes.push(format!(
                "application {}: `{uid}` is not a name of a tenant; its id is used",
                application.id
            ));
            application.id.clone()
        }
    }
}

fn tenant_settings(application: &Application, tenant: &str) -> Wanted {
    let mut members = Map::new();
    members.insert("name".to_owned(), json!(application.name));
    members.insert("metadata".to_owned(), json!(application.metadata));
    Wanted { name: tenant.to_owned(), members, ..Wanted::default() }
}

/// Svix numbers versions `1`, `2`; Balto's default version is `1.0`.
fn version_of(name: &str) -> String {
    if name.bytes().all(|byte| byte.is_ascii_digit()) { format!("{name}.0") } else { name.to_owned() }
}

fn type_of(event_type: SvixEventType, without_schemas: bool) -> Wanted {
    let schemas = event_type.schemas.unwrap_or_default();
    let mut versions = Map::new();
    for (version, schema) in schemas {
        let schema = if without_schemas { json!({}) } else { schema };
        versions.insert(version_of(&version), json!({"schema": schema, "deprecated": event_type.deprecated}));
    }
    if versions.is_empty() {
        versions.insert("1.0".to_owned(), json!({"schema": {}, "deprecated": event_type.deprecated}));
    }
    let mut members = Map::new();
    members.insert("description".to_owned(), json!(event_type.description));
    members.insert("versions".to_owned(), Value::Object(versions));
    let mut initial = Map::new();
    // Svix promises nothing about its versions.
    initial.insert("compatibility".to_owned(), json!("none"));
    Wanted { name: event_type.name, members, initial, ..Wanted::default() }
}

fn endpoint_of(
    tenant: &str,
    endpoint: SvixEndpoint,
    headers: EndpointHeaders,
    key: String,
    notes: &mut Vec<String>,
) -> Wanted {
    let title = format!("endpoint {tenant}/{}", endpoint.id);
    let mut remark = |text: &dyn Display| notes.push(format!("{title}: {text}"));
    let uid = endpoint.uid.as_ref().filter(|uid| uid.parse::<EndpointUid>().is_ok());
    let uid = uid.cloned().unwrap_or_else(|| format!("svix-{}", endpoint.id));
    let channels = endpoint.channels.unwrap_or_default();
    let (labels, others): (Vec<_>, Vec<_>) =
        channels.into_iter().partition(|channel| channel.parse::<Label>().is_ok());
    // An asymmetric key is shown as its public half.
    let secret = key.starts_with("whsec_").then_some(key);
    let has_all_channels = others.is_empty() && labels.len() <= limits::LABELS_MAX;
    if !has_all_channels {
        remark(&format_args!(
            "at most {} channels that are labels are imported; it is created paused",
            limits::LABELS_MAX
        ));
    }
    if secret.is_none() {
        remark(
            &"its private key cannot be read; it is created paused, with a new key that its receiver needs",
        );
    }
    for name in &headers.sensitive {
        remark(&format_args!("the value of the header {name} cannot be read"));
    }
    let mut members = Map::new();
    let mut set = |name: &str, value: Value| drop(members.insert(name.to_owned(), value));
    set("url", json!(endpoint.url));
    set("description", json!(endpoint.description));
    // Svix has no list for all types; the API refuses an empty one.
    let types = endpoint.filter_types.filter(|types| !types.is_empty());
    set("eventTypes", types.map_or_else(|| json!([ANY_WORDS]), |types| json!(types)));
    set("labels", labels.into_iter().take(limits::LABELS_MAX).collect());
    let rate = endpoint.throttle_rate.or(endpoint.rate_limit);
    set("rateLimit", rate.map_or(Value::Null, |limit| json!({"limit": limit, "per": "1s"})));
    let shown = headers.headers.into_iter().filter(|(name, _)| !headers.sensitive.contains(name));
    set("headers", Value::Object(shown.map(|(name, value)| (name, json!(value))).collect()));
    let mut metadata = endpoint.metadata;
    metadata.insert("svixId".to_owned(), json!(endpoint.id));
    set("metadata", Value::Object(metadata));
    set("format", json!("raw"));
    set("signature", json!("svix"));
    let mut initial = Map::new();
    if endpoint.disabled || !has_all_channels || secret.is_none() {
        initial.insert("status".to_owned(), json!("paused"));
    }
    if secret.is_none() {
        initial.insert("secretType".to_owned(), json!("ed25519"));
    }
    Wanted { tenant: Some(tenant.to_owned()), name: uid, members, initial, secret }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::fake;

    fn endpoint(text: &str, headers: EndpointHeaders, key: &str) -> (Wanted, Vec<String>) {
        let mut notes = Vec::new();
        let endpoint = serde_json::from_str(text).unwrap();
        (endpoint_of("acme", endpoint, headers, key.to_owned(), &mut notes), notes)
    }

    #[test]
    fn endpoint_keeps_what_balto_has_and_says_what_it_lacks() {
        let (wanted, notes) =
            endpoint(r#"{"id": "ep_1", "url": "https://h/"}"#, EndpointHeaders::default(), "whsec_x");
        assert_eq!((wanted.name.as_str(), wanted.secret.as_deref()), ("svix-ep_1", Some("whsec_x")));
        assert!(wanted.initial.is_empty() && notes.is_empty(), "{notes:?}");
        let text = r#"{"id": "ep_1", "uid": "crm", "url": "https://h/", "disabled": false, "rateLimit": 5,
            "channels": ["a"], "filterTypes": ["x.y"], "metadata": {"k": "v"}}"#;
        let headers = EndpointHeaders {
            headers: BTreeMap::from([("X-A".to_owned(), "1".to_owned())]),
            sensitive: vec!["Authorization".to_owned()],
        };
        let (wanted, notes) = endpoint(text, headers, "whpk_x");
        assert_eq!(wanted.name, "crm");
        assert_eq!(Value::Object(wanted.initial), json!({"status": "paused", "secretType": "ed25519"}));
        assert_eq!(wanted.members["rateLimit"], json!({"limit": 5, "per": "1s"}));
        assert_eq!(wanted.members["metadata"], json!({"k": "v", "svixId": "ep_1"}));
        assert_eq!(wanted.members["labels"], json!(["a"]));
        assert_eq!(notes.len(), 2, "{notes:?}");
    }

    #[test]
    fn endpoint_without_types_takes_all_types() {
        for (types, expected) in
            [(Value::Null, json!(["#"])), (json!([]), json!(["#"])), (json!(["a.b"]), json!(["a.b"]))]
        {
            let text = json!({"id": "ep_1", "url": "https://h/", "filterTypes": types}).to_string();
            let (wanted, _) = endpoint(&text, EndpointHeaders::default(), "whsec_x");
            assert_eq!(wanted.members["eventTypes"], expected, "{types}");
        }
    }

    #[test]
    fn channels_are_labels() {
        let of = |channels: Value| {
            let text = json!({"id": "ep_1", "url": "https://h/", "channels": channels}).to_string();
            endpoint(&text, EndpointHeaders::default(), "whsec_x")
        };
        for (channels, labels) in [
            (Value::Null, json!([])),
            (json!([]), json!([])),
            (json!(["project-1", "eu.west_2"]), json!(["project-1", "eu.west_2"])),
        ] {
            let (wanted, notes) = of(channels);
            assert_eq!((&wanted.members["labels"], wanted.initial.len(), notes.len()), (&labels, 0, 0));
        }
        let many: Vec<_> = (0..=limits::LABELS_MAX).map(|number| number.to_string()).collect();
        for (channels, count) in [(json!(["a b", "c"]), 1), (json!(many), limits::LABELS_MAX)] {
            let (wanted, notes) = of(channels);
            assert_eq!(wanted.members["labels"].as_array().map(Vec::len), Some(count));
            assert_eq!((wanted.initial.get("status"), notes.len()), (Some(&json!("paused")), 1), "{notes:?}");
        }
    }

    #[test]
    fn versions_of_types_have_a_minor_number() {
        let text = r#"{"name": "a.b", "description": "d", "schemas": {"1": {"type": "object"}, "v2": true}}"#;
        let wanted = type_of(serde_json::from_str(text).unwrap(), false);
        let versions = wanted.members["versions"].as_object().unwrap();
        assert_eq!(versions.keys().collect::<Vec<_>>(), ["1.0", "v2"]);
        assert_eq!(versions["1.0"]["schema"], json!({"type": "object"}));
        let wanted = type_of(serde_json::from_str(r#"{"name": "a.b"}"#).unwrap(), false);
        assert_eq!(wanted.members["versions"], json!({"1.0": {"schema": {}, "deprecated": false}}));
    }

    #[tokio::test]
    async fn wrong_answers_are_named() {
        let rows = [
            ("401 Unauthorized", "{}", "Svix refuses the token"),
            ("404 Not Found", r#"{"code":"not_found"}"#, "404 Not Found: {\"code\":\"not_found\"}"),
            ("200 OK", "<html>", "is not as documented: <html>"),
            ("200 OK", r#"{"data": [{"id": 5}], "done": true}"#, "is not as documented"),
            ("200 OK", r#"{"data": [], "done": false, "iterator": null}"#, "does not end"),
        ];
        for (status, body, expected) in rows {
            let (url, _task) = fake::serve(vec![(status, body.to_owned())]).await;
            let svix = Svix::new(&format!("{url}/api/v1/"), "t", None).unwrap();
            let error = svix.list::<Application>(&["app"], &[]).await.unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
    }

    #[tokio::test]
    async fn pages_are_followed_and_a_429_is_waited_for() {
        let page =
            |id: &str, done: bool| json!({"data": [{"id": id}], "done": done, "iterator": id}).to_string();
        let (url, task) = fake::serve(vec![
            ("429 Too Many Requests\r\nretry-after: 0", String::new()),
            ("200 OK", page("app_1", false)),
            ("200 OK", page("app_2", true)),
        ])
        .await;
        let svix = Svix::new(&url, "t0ken", None).unwrap();
        let found = svix.applications(&[]).await.unwrap();
        assert_eq!(found.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["app_1", "app_2"]);
        let requests = task.await.unwrap();
        assert!(requests[1].starts_with("GET /api/v1/app?limit=250 "), "{}", requests[1]);
        assert!(requests[2].starts_with("GET /api/v1/app?limit=250&iterator=app_1 "), "{}", requests[2]);
        assert!(requests[2].contains("authorization: Bearer t0ken\r\n"), "{}", requests[2]);
    }

    #[test]
    fn wrong_url_or_token_is_wrong_usage() {
        for (url, token) in [("nonsense", "t"), ("ftp://h/", "t"), ("https://h/", "")] {
            let error = Svix::new(url, token, None).err().unwrap();
            assert!(error.is::<crate::cli::UsageError>(), "{url}: {error}");
        }
    }
}
