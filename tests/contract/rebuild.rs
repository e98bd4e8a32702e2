//! A rebuild of the state: rights, one at a time, its progress, and the command line.

use std::process::Command;

use serde_json::{Value, json};

use super::{ADMIN, call_as, is_problem, key, keyed};

const PATH: &str = "/projections/state/rebuild";

#[tokio::test]
async fn only_an_operator_rebuilds_the_state() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    for (role, tenant) in [("viewer", None), ("publisher", None), ("worker", None), ("admin", Some("acme"))] {
        let other = key(&daemon, role, tenant).await;
        let answer = call_as(&daemon, &other, "POST", PATH, "").await;
        is_problem(&answer, 403, "forbidden", role);
    }
    is_problem(&call_as(&daemon, "wrong", "POST", PATH, "").await, 401, "unauthorized", "a wrong key");
    is_problem(&call_as(&daemon, ADMIN, "GET", PATH, "").await, 405, "method_not_allowed", "GET");
    let other = call_as(&daemon, ADMIN, "POST", "/projections/pet-search/rebuild", "").await;
    is_problem(&other, 404, "not_found", "another projection");
    let (_, shown) = call_as(&daemon, ADMIN, "GET", "/projections", "").await;
    assert!(shown["data"][0].get("rebuild").is_none(), "a refused request began one: {shown}");
}

#[tokio::test]
async fn second_rebuild_is_rejected_while_one_runs() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let batch = json!({"events": vec![json!({"type": "a", "data": 1}); 1_000]}).to_string();
    for _ in 0..8 {
        assert_eq!(call_as(&daemon, ADMIN, "POST", "/events/batch", &batch).await.0, 202);
    }
    let tenant = key(&daemon, "viewer", Some("acme")).await;
    let (status, begun) = call_as(&daemon, ADMIN, "POST", PATH, "").await;
    assert_eq!((status, &begun["rebuild"]["status"]), (202, &json!("running")), "{begun}");
    assert_eq!(begun["rebuild"]["endedAt"], Value::Null);
    let second = call_as(&daemon, ADMIN, "POST", PATH, "").await;
    is_problem(&second, 409, "conflict", "a second rebuild");
    let ended = loop {
        let (status, page) = call_as(&daemon, ADMIN, "GET", "/projections", "").await;
        assert_eq!(status, 200, "reads go on: {page}");
        let state = page["data"][0].clone();
        assert_eq!(state["rows"]["acceptedEvents"], 8_000, "{state}");
        if state["rebuild"]["status"] != "running" {
            break state;
        }
    };
    let done = ended["rebuild"]["done"].as_u64().unwrap();
    assert_eq!(
        (&ended["rebuild"]["status"], &ended["rebuild"]["error"]),
        (&json!("completed"), &Value::Null)
    );
    assert!(done >= 8_000 && ended["rebuild"]["total"] == done, "{ended}");
    assert!(ended["rebuild"]["endedAt"].is_string(), "{ended}");
    let (_, page) = call_as(&daemon, &tenant, "GET", "/projections", "").await;
    assert!(page["data"][0].get("rebuild").is_none(), "of the operator only: {page}");
}

#[tokio::test]
async fn command_line_waits_for_the_rebuild() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    call_as(&daemon, ADMIN, "POST", "/events", r#"{"type": "a", "data": 1}"#).await;
    let api = daemon.api.trim_end_matches("/v1").to_owned();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_balto"));
        command.args(arguments).env("BALTO_URL", &api).env("BALTO_API_KEY", ADMIN);
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let listed = run(&["projections"]).await.unwrap();
    assert!(listed.status.success() && String::from_utf8_lossy(&listed.stdout).contains("POSITION"));
    let rebuilt = run(&["--json", "projections", "rebuild", "state"]).await.unwrap();
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    let shown: Value = serde_json::from_slice(&rebuilt.stdout).unwrap();
    assert_eq!((&shown["name"], &shown["rebuild"]["status"]), (&json!("state"), &json!("completed")));
    let begun = run(&["--json", "projections", "rebuild", "state", "--no-wait"]).await.unwrap();
    assert!(begun.status.success(), "{}", String::from_utf8_lossy(&begun.stderr));
    let wrong = run(&["projections", "rebuild", "pet-search"]).await.unwrap();
    assert_eq!(wrong.status.code(), Some(2), "{}", String::from_utf8_lossy(&wrong.stderr));
}
