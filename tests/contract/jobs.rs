//! Jobs: bulk work in steps, its progress, pace, end, and life through a kill.

use std::path::Path;

use serde_json::{Value, json};

use super::command_line::answer_of;
use super::support::Daemon;
use super::{ADMIN, call_as, is_problem, key, keyed, list, text};

/// Number of past events.
const EVENTS: usize = 30;

async fn admin(daemon: &Daemon, method: &str, path: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    call_as(daemon, ADMIN, method, path, &body).await
}

/// Publishes events of a tenant that no endpoint wants yet.
async fn publish_past(daemon: &Daemon, tenant: &str, count: usize) {
    let event = json!({"type": "order.paid", "data": 1, "tenant": tenant});
    let (status, answer) =
        admin(daemon, "POST", "/events/batch", json!({"events": vec![event; count]})).await;
    assert_eq!(status, 202, "{answer}");
}

/// A paused endpoint at a URL that needs no receiver.
async fn paused(daemon: &Daemon, tenant: &str) -> String {
    let hook = json!({"url": "http://127.0.0.1:19999/", "tenant": tenant, "status": "paused"});
    let (status, made) = admin(daemon, "POST", "/endpoints", hook).await;
    assert_eq!(status, 201, "{made}");
    text(&made, "id")
}

/// Starts a replay to an endpoint.
async fn replay(daemon: &Daemon, endpoint: &str, more: Value) -> Value {
    let mut body = json!({"since": "2020-01-01T00:00:00Z"});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let (status, started) = admin(daemon, "POST", &format!("/endpoints/{endpoint}/replay"), body).await;
    assert_eq!(status, 202, "{started}");
    started
}

async fn deliveries(daemon: &Daemon, endpoint: &str) -> usize {
    let path = format!("/deliveries?endpointId={endpoint}&limit=250");
    list(&admin(daemon, "GET", &path, Value::Null).await.1).len()
}

async fn shown(daemon: &Daemon, job: &str) -> Value {
    let (status, job) = admin(daemon, "GET", &format!("/jobs/{job}"), Value::Null).await;
    assert_eq!(status, 200, "{job}");
    job
}

fn verify(data: &Path) {
    let checked = std::process::Command::new(env!("CARGO_BIN_EXE_balto"))
        .args(["verify", "--data-dir"])
        .arg(data)
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

/// A step of a paced replay examines many events, and selects few.
#[tokio::test]
async fn pace_counts_deliveries_and_not_examined_events() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    daemon.key = Some(ADMIN.to_owned());
    let endpoint = paused(&daemon, "acme").await;
    let (_, _) =
        admin(&daemon, "PATCH", &format!("/endpoints/{endpoint}"), json!({"eventTypes": ["none"]})).await;
    let rare = json!({"type": "rare", "data": 1, "tenant": "acme"});
    assert_eq!(admin(&daemon, "POST", "/events", rare).await.0, 202);
    publish_past(&daemon, "acme", EVENTS).await;
    let started = replay(&daemon, &endpoint, json!({"rate": 1, "eventTypes": ["rare"]})).await;
    let expected = (&json!(1), &json!(1), &json!("completed"));
    assert_eq!((&started["count"], &started["done"], &started["status"]), expected, "{started}");
}

#[tokio::test]
async fn job_continues_after_a_kill_and_cancelled_one_does_not() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    daemon.key = Some(ADMIN.to_owned());
    publish_past(&daemon, "acme", EVENTS).await;
    let (endpoint, other) = (paused(&daemon, "acme").await, paused(&daemon, "acme").await);

    // A dry run counts, and changes nothing.
    let counted = replay(&daemon, &endpoint, json!({"dryRun": true})).await;
    let expected = json!({"id": null, "count": EVENTS, "done": 0, "status": null, "dryRun": true,
        "statusUrl": null});
    assert_eq!(counted, expected);
    assert_eq!((deliveries(&daemon, &endpoint).await, list(&daemon.get("/jobs").await).len()), (0, 0));

    // A cancelled job stops; its steps stay.
    let slow = replay(&daemon, &other, json!({"rate": 1})).await;
    assert_eq!(
        (&slow["count"], &slow["done"], &slow["status"]),
        (&json!(EVENTS), &json!(1), &json!("running")),
        "{slow}"
    );
    let slow = text(&slow, "id");
    let cancel = format!("/jobs/{slow}/cancel");
    let (status, cancelled) = admin(&daemon, "POST", &cancel, Value::Null).await;
    assert_eq!((status, &cancelled["status"]), (202, &json!("cancelled")), "{cancelled}");
    assert!(cancelled["endedAt"].is_string() && cancelled["done"].as_u64().unwrap() < 5, "{cancelled}");
    is_problem(&admin(&daemon, "POST", &cancel, Value::Null).await, 409, "conflict", "cancelled twice");

    // A paced job goes on where it was.
    let started = replay(&daemon, &endpoint, json!({"rate": 8, "eventTypes": ["order.*"]})).await;
    let path = format!("/jobs/{}", text(&started, "id"));
    assert_eq!(started["statusUrl"], format!("/v1{path}"));
    let running = daemon.until(&path, |job| job["done"].as_u64().unwrap() > 8).await;
    assert_eq!((&running["status"], &running["endedAt"]), (&json!("running"), &Value::Null), "{running}");
    assert_eq!(daemon.metric("balto_jobs_running", "").await as u64, 1);
    daemon.kill();
    let mut daemon = keyed(data.path()).await;
    daemon.key = Some(ADMIN.to_owned());
    let again = shown(&daemon, &text(&started, "id")).await;
    assert_eq!((&again["status"], &again["startedAt"]), (&json!("running"), &running["startedAt"]));
    assert!(again["done"].as_u64() >= running["done"].as_u64(), "{again} after {running}");
    let ended = daemon.until(&path, |job| job["status"] != "running").await;
    let members = [&ended["status"], &ended["done"], &ended["count"], &ended["error"], &ended["rate"]];
    assert_eq!(
        members,
        [&json!("completed"), &json!(EVENTS), &json!(EVENTS), &Value::Null, &json!(8)],
        "{ended}"
    );
    assert_eq!((&ended["kind"], &ended["target"]), (&json!("replayEndpoint"), &json!(endpoint)), "{ended}");
    assert_eq!((&ended["tenant"], &ended["filter"]["eventTypes"]), (&json!("acme"), &json!(["order.*"])));
    assert_eq!(deliveries(&daemon, &endpoint).await, EVENTS, "each event once");
    assert_eq!(shown(&daemon, &slow).await, cancelled, "a cancelled job stays as it ended");
    assert_eq!(deliveries(&daemon, &other).await as u64, cancelled["done"].as_u64().unwrap());
    assert!(daemon.metric("balto_job_steps_total", "replayEndpoint").await >= 1.0);
    assert_eq!(daemon.terminate(), Some(0));
    verify(data.path());
}

/// During the job, a publisher chooses an id for an event that is the start of other ids.
#[tokio::test]
async fn id_of_a_running_job_keeps_its_meaning() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    daemon.key = Some(ADMIN.to_owned());
    let endpoint = paused(&daemon, "default").await;
    publish_past(&daemon, "default", 9).await;
    assert_eq!(admin(&daemon, "DELETE", &format!("/endpoints/{endpoint}"), Value::Null).await.0, 204);
    daemon.until("/dead-letters", |letters| list(letters).len() == 9).await;
    let id = text(&list(&daemon.get("/events?limit=1").await)[0], "id");
    let start = &id[.."evt_01M".len()];
    let (status, started) =
        admin(&daemon, "POST", "/dead-letters/purge", json!({"q": start, "rate": 4})).await;
    let members = [&started["count"], &started["done"], &started["status"]];
    assert_eq!((status, members), (202, [&json!(9), &json!(4), &json!("running")]), "{started}");
    let chosen = json!({"type": "none", "data": 1, "id": start});
    assert_eq!(admin(&daemon, "POST", "/events", chosen).await.0, 202);
    daemon.kill();
    let mut daemon = keyed(data.path()).await;
    daemon.key = Some(ADMIN.to_owned());
    let path = format!("/jobs/{}", text(&started, "id"));
    let ended = daemon.until(&path, |job| job["status"] != "running").await;
    assert_eq!((&ended["done"], &ended["filter"]["q"]), (&json!(9), &json!(start)), "{ended}");
    assert_eq!(list(&daemon.get("/dead-letters").await).len(), 0);
    // A new job finds the event.
    let body = json!({"q": start, "dryRun": true});
    assert_eq!(admin(&daemon, "POST", "/dead-letters/purge", body).await.1["count"], 0);
    assert_eq!(daemon.terminate(), Some(0));
    verify(data.path());
}

#[tokio::test]
async fn jobs_are_listed_and_hidden_from_other_tenants() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    daemon.key = Some(ADMIN.to_owned());
    let (acme, viewer) =
        (key(&daemon, "admin", Some("acme")).await, key(&daemon, "viewer", Some("acme")).await);
    let other = key(&daemon, "admin", Some("other")).await;
    publish_past(&daemon, "acme", EVENTS).await;
    let endpoint = paused(&daemon, "acme").await;
    let by_operator = text(&replay(&daemon, &endpoint, json!({})).await, "id");
    let (_, purged) = call_as(&daemon, &acme, "POST", "/dead-letters/purge", "{}").await;
    assert_eq!((&purged["count"], &purged["status"]), (&json!(0), &json!("completed")), "{purged}");
    let by_tenant = text(&purged, "id");
    let (_, all) = admin(&daemon, "POST", "/dead-letters/redrive", Value::Null).await;
    let of_all = text(&all, "id");

    let ids = |page: &Value| list(page).iter().map(|job| text(job, "id")).collect::<Vec<_>>();
    assert_eq!(ids(&daemon.get("/jobs").await), [of_all.clone(), by_tenant.clone(), by_operator.clone()]);
    let first = daemon.get("/jobs?limit=1&status=completed").await;
    let rest = daemon.get(&format!("/jobs?limit=2&cursor={}", text(&first, "next"))).await;
    assert_eq!(
        (ids(&first), ids(&rest)),
        (vec![of_all.clone()], vec![by_tenant.clone(), by_operator.clone()])
    );
    assert_eq!(rest["next"], Value::Null);
    for (filter, expected) in [
        ("kind=replayEndpoint", vec![&by_operator]),
        ("kind=purgeDeadLetters&tenant=acme", vec![&by_tenant]),
        ("tenant=acme", vec![&by_tenant, &by_operator]),
        ("status=running", vec![]),
    ] {
        let found = ids(&daemon.get(&format!("/jobs?{filter}")).await);
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{filter}");
    }
    for (filter, parameter) in [("kind=x", "kind"), ("status=done", "status"), ("tenant=a b", "tenant")] {
        let filter = filter.replace(' ', "%20");
        let refused = admin(&daemon, "GET", &format!("/jobs?{filter}"), Value::Null).await;
        is_problem(&refused, 422, "validation_failed", &filter);
        assert_eq!(refused.1["errors"][0]["parameter"], parameter, "{}", refused.1);
    }

    // A tenant sees its own jobs, and not the key of the operator.
    let own = call_as(&daemon, &viewer, "GET", "/jobs", "").await.1;
    assert_eq!(ids(&own), [by_tenant.clone(), by_operator.clone()]);
    assert!(list(&own)[0]["startedBy"]["keyId"].is_string(), "{own}");
    assert_eq!(list(&own)[1]["startedBy"], json!({"keyId": null, "role": "admin", "tenant": null}));
    is_problem(
        &call_as(&daemon, &viewer, "POST", &format!("/jobs/{by_tenant}/cancel"), "").await,
        403,
        "forbidden",
        "a viewer",
    );
    assert_eq!(ids(&call_as(&daemon, &other, "GET", "/jobs", "").await.1), Vec::<String>::new());
    for id in [&by_operator, &of_all, &"job_unknown".to_owned()] {
        for (method, path) in [("GET", format!("/jobs/{id}")), ("POST", format!("/jobs/{id}/cancel"))] {
            is_problem(&call_as(&daemon, &other, method, &path, "").await, 404, "not_found", &path);
        }
    }

    // The deletion of a tenant is the operator's.
    let confirm = json!({"confirm": "acme", "dryRun": true});
    let (status, counted) = admin(&daemon, "DELETE", "/tenants/acme", confirm).await;
    assert_eq!((status, &counted["count"], &counted["id"]), (202, &json!(3), &Value::Null), "{counted}");
    assert_eq!((&counted["endpoints"], &counted["keys"]), (&json!(1), &json!(2)), "{counted}");
    assert_eq!(call_as(&daemon, &acme, "GET", "/jobs", "").await.0, 200, "a dry run deletes nothing");
    let (status, deleted) = admin(&daemon, "DELETE", "/tenants/acme", json!({"confirm": "acme"})).await;
    assert_eq!((status, &deleted["status"], &deleted["done"]), (202, &json!("completed"), &json!(3)));
    let newcomer = key(&daemon, "admin", Some("acme")).await;
    let job = format!("/jobs/{}", text(&deleted, "id"));
    is_problem(&call_as(&daemon, &newcomer, "GET", &job, "").await, 404, "not_found", "the operator's job");
    let kept = daemon.get(&job).await;
    assert_eq!((&kept["kind"], &kept["target"]), (&json!("deleteTenant"), &json!("acme")), "{kept}");
}

#[tokio::test]
async fn bad_pace_and_too_many_jobs_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    daemon.key = Some(ADMIN.to_owned());
    publish_past(&daemon, "acme", 1_000).await;
    let endpoint = paused(&daemon, "acme").await;
    let path = format!("/endpoints/{endpoint}/replay");
    for (path, body) in [
        (path.as_str(), json!({"since": "2020-01-01T00:00:00Z", "rate": 0})),
        (path.as_str(), json!({"since": "2020-01-01T00:00:00Z", "rate": 100_001})),
        ("/dead-letters/redrive", json!({"rate": 0})),
    ] {
        let refused = admin(&daemon, "POST", path, body).await;
        is_problem(&refused, 422, "validation_failed", path);
        assert_eq!(refused.1["errors"][0]["pointer"], "/rate", "{}", refused.1);
    }
    // Each of them rests for a second after one event.
    let body = json!({"since": "2020-01-01T00:00:00Z", "rate": 1});
    let mut started = 0;
    let refused = loop {
        let answer = admin(&daemon, "POST", &path, body.clone()).await;
        if answer.0 != 202 {
            break answer;
        }
        started += 1;
        assert!(started <= 200, "no limit");
    };
    is_problem(&refused, 409, "conflict", "too many jobs");
    assert!(started >= 100, "{started}");
}

#[tokio::test]
async fn command_line_waits_for_jobs_and_lists_acts() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let event = json!({"type": "order.paid", "data": 1});
    daemon.post("/events/batch", &json!({"events": vec![event; EVENTS]}).to_string()).await;
    let hook = json!({"url": "http://127.0.0.1:19999/", "status": "paused"}).to_string();
    let endpoint = text(&daemon.post("/endpoints", &hook).await, "id");
    let replay = ["endpoints", "replay", &endpoint, "--since", "1h"];
    let counted = answer_of(&daemon, &[&replay[..], &["--dry-run"]].concat());
    assert_eq!((&counted["count"], &counted["dryRun"]), (&json!(EVENTS), &json!(true)), "{counted}");
    let ended = answer_of(&daemon, &[&replay[..], &["--rate", "30", "--wait"]].concat());
    assert_eq!((&ended["status"], &ended["done"]), (&json!("completed"), &json!(EVENTS)), "{ended}");
    let id = text(&ended, "id");
    assert_eq!(answer_of(&daemon, &["jobs", "show", &id]), ended);
    assert_eq!(answer_of(&daemon, &["jobs", "list", "--kind", "replayEndpoint"])["data"], json!([ended]));
    let wiped = answer_of(&daemon, &["dead-letters", "purge", "--all", "--wait"]);
    assert_eq!((&wiped["kind"], &wiped["count"]), (&json!("purgeDeadLetters"), &json!(0)), "{wiped}");

    let made = answer_of(&daemon, &["keys", "create", "--role", "viewer", "--description", "dashboard"]);
    let key = text(&made, "id");
    assert_eq!((&made["description"], made["secret"].is_string()), (&json!("dashboard"), true), "{made}");
    let changed = answer_of(&daemon, &["keys", "update", &key, "--description", "wall"]);
    assert_eq!((&changed["description"], &changed["id"]), (&json!("wall"), &json!(key)), "{changed}");
    assert_eq!(answer_of(&daemon, &["keys", "list"])["data"], json!([changed]));
    assert_eq!(answer_of(&daemon, &["keys", "rm", &key]), json!({}));
    let acts = answer_of(&daemon, &["audit", "--target", &key, "--since", "1h"]);
    let actions: Vec<_> = list(&acts).iter().map(|act| text(act, "action")).collect();
    assert_eq!(actions, ["deleteKey", "updateKey", "createKey"], "{acts}");
}
