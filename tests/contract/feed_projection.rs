//! The projection of `docs/feed.md`, as a reader would copy it: it and the daemon are killed again
//! and again, and every event counts once.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::support::{Daemon, Progress, has_program, say, seed};

/// The program of the page.
fn program() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/feed.md");
    let page = std::fs::read_to_string(page).unwrap();
    let code = page.split("```python\n").nth(1).unwrap();
    code.split("```").next().unwrap().to_owned()
}

fn start(program: &Path, database: &Path, daemon: &Daemon) -> Child {
    let url = daemon.api.strip_suffix("/v1").unwrap();
    let mut command = Command::new("python3");
    command.arg(program).arg(database).env("BALTO_URL", url).env_remove("BALTO_API_KEY");
    command.stderr(Stdio::inherit()).spawn().unwrap()
}

/// The balances in the database.
fn balances(database: &Path) -> BTreeMap<String, i64> {
    let query = "import json,sqlite3,sys; print(json.dumps(dict(sqlite3.connect(sys.argv[1]).execute('SELECT account, amount FROM balance').fetchall())))";
    let found = Command::new("python3").args(["-c", query]).arg(database).output().unwrap();
    serde_json::from_slice(&found.stdout).unwrap_or_default()
}

#[tokio::test]
async fn projection_of_the_documentation_counts_each_event_once() {
    if !has_program("python3") {
        say("SKIPPED: no python3");
        return;
    }
    let mut random = fastrand::Rng::with_seed(seed());
    let below = tempfile::tempdir().unwrap();
    let (data, database, file) =
        (below.path().join("data"), below.path().join("balances.db"), below.path().join("projection.py"));
    std::fs::write(&file, program()).unwrap();
    let mut daemon = Daemon::start(&data).await;
    let mut projection = start(&file, &database, &daemon);
    let mut expected = BTreeMap::<String, i64>::new();
    for round in 0..12 {
        let mut events = Vec::new();
        for _ in 0..random.usize(1..60) {
            let (account, amount) = (format!("account-{}", random.u32(0..4)), random.i64(1..100));
            let is_credit = random.bool();
            *expected.entry(account.clone()).or_default() += if is_credit { amount } else { -amount };
            let kind = if is_credit { "account.credited" } else { "account.debited" };
            events.push(json!({"type": kind, "stream": account, "data": {"amount": amount}}));
            events.push(json!({"type": "other", "data": 1}));
        }
        daemon.post("/events/batch", &json!({ "events": events }).to_string()).await;
        tokio::time::sleep(Duration::from_millis(random.u64(0..120))).await;
        if round % 2 == 0 {
            projection.kill().unwrap();
            projection.wait().unwrap();
        }
        if round % 4 == 3 {
            daemon.kill();
            daemon = Daemon::start(&data).await;
            // The daemon has another port now.
            let _gone = projection.kill();
            projection.wait().unwrap();
        }
        if projection.try_wait().unwrap().is_some() {
            projection = start(&file, &database, &daemon);
        }
    }
    let mut progress = Progress::from(BTreeMap::new());
    loop {
        let found = balances(&database);
        if found == expected {
            break;
        }
        assert!(progress.goes_on(found.clone()), "the balances stay {found:?}, not {expected:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Nothing more changes.
    daemon.post("/events", r#"{"type":"account.credited","stream":"last","data":{"amount":1}}"#).await;
    expected.insert("last".to_owned(), 1);
    let mut progress = Progress::from(BTreeMap::new());
    while balances(&database) != expected {
        assert!(progress.goes_on(balances(&database)), "the last event is missing");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    projection.kill().unwrap();
    projection.wait().unwrap();
}
