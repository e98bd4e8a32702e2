//! Commands of tenants, statistics and lanes.

use serde_json::json;

use crate::command_line::{answer_of, balto};
use crate::endpoint;
use crate::support::{Daemon, Receiver};

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_tenants_and_overview_print_text_and_json() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(500).await;
    endpoint(&daemon, &receiver, json!({"tenant": "acme", "retry": {"schedule": ["1h"]}})).await;
    answer_of(&daemon, &["send", "--type", "a", "--tenant", "acme"]);
    daemon.until("/stats", |stats| stats["attempts"] == 1).await;
    for (arguments, words) in [
        (&["tenants", "set", "acme", "--name", "Acme", "--quota", "endpoints=5"][..], "Acme"),
        (&["tenants", "list"], "acme"),
        (&["tenants", "show", "acme"], "Acme"),
        (&["stats"], "attempts"),
        (&["stats", "--tenant", "acme", "--since", "1h"], "attempts"),
        (&["stats", "--hourly"], "HOUR"),
        (&["lanes"], "acme"),
        (&["lanes", "--oldest-due", "--limit", "1"], "acme"),
    ] {
        let shown = balto(&daemon, arguments);
        assert_eq!(shown.code, 0, "{arguments:?}: {}", shown.err);
        assert!(shown.out.contains(words), "{arguments:?}: {}", shown.out);
        assert!(answer_of(&daemon, arguments).is_object(), "{arguments:?}");
    }
}
