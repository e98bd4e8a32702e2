//! Guessed API keys.

use std::net::{IpAddr, Ipv4Addr};

use super::until;
use crate::support::Daemon;

/// A client with its own loopback address.
fn client_at(last: u8) -> reqwest::Client {
    let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
    reqwest::Client::builder().no_proxy().local_address(address).build().unwrap()
}

async fn list_events_with(
    client: &reqwest::Client,
    daemon: &Daemon,
    authorization: &str,
) -> (u16, Option<String>, String) {
    let request = client.get(format!("{}/events", daemon.api)).header("authorization", authorization);
    let reply = request.send().await.unwrap();
    let retry_after = reply.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    (reply.status().as_u16(), retry_after, reply.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_guessing_is_throttled_and_blocks_no_valid_client() {
    let data = tempfile::tempdir().unwrap();
    // A short admin key, which an attacker could guess in time.
    let admin = "Bearer summer-2026-summer";
    let daemon =
        Daemon::start_in(data.path(), &[], &[("BALTO__AUTH__ADMIN_KEY", "summer-2026-summer")]).await;
    let (status, made, _) =
        daemon.call("POST", "/keys", &[("authorization", admin)], r#"{"role":"viewer"}"#).await;
    assert_eq!(status, 201, "{made}");
    let generated = format!("Bearer {}", made["secret"].as_str().unwrap());
    let attacker = client_at(66);
    let prefix = &generated[..generated.len() - 1];
    let odd = ["Bearer ", "Bearer", "Basic c3VtbWVyLTIwMjY6", "bearer\tx", "", "Bearer \u{e9}"];
    let (_, _, refusal) = list_events_with(&attacker, &daemon, "Bearer wrong").await;
    for authorization in
        odd.into_iter().chain([prefix, &admin[..16], &format!("{admin}x"), &admin.to_uppercase()])
    {
        let (status, _, body) = list_events_with(&attacker, &daemon, authorization).await;
        assert_eq!((status, &body), (401, &refusal), "{authorization:?} gets a different response");
    }
    let mut statuses = std::collections::BTreeMap::<u16, u32>::new();
    for number in 0..1_000 {
        let (status, retry_after, _) =
            list_events_with(&attacker, &daemon, &format!("Bearer guess-{number}")).await;
        assert_eq!(retry_after.is_some(), status == 429);
        *statuses.entry(status).or_default() += 1;
    }
    // 300 immediately, and one more for each second that the requests took.
    let checked = statuses[&401];
    assert!((200..400).contains(&checked) && statuses[&429] == 1_000 - checked, "{statuses:?}");
    // A refill may happen just before the request, but not ten times in a row.
    let mut throttled = false;
    for _ in 0..10 {
        list_events_with(&attacker, &daemon, "Bearer guess").await;
        throttled |= list_events_with(&attacker, &daemon, admin).await.0 == 429;
    }
    assert!(throttled, "a guessable key was checked after a thousand guesses");
    for client in [&client_at(66), &client_at(1)] {
        assert_eq!(list_events_with(client, &daemon, &generated).await.0, 200, "a valid key is locked out");
    }
    assert_eq!(list_events_with(&client_at(2), &daemon, admin).await.0, 200, "another address is locked out");
    until("the admin key works again", async || list_events_with(&attacker, &daemon, admin).await.0 == 200)
        .await;
    let counted = daemon.metric("balto_authentications_refused_total", "reason=\"tooMany\"").await;
    assert!(counted >= f64::from(statuses[&429]), "{counted}");
    assert!(
        daemon.metric("balto_authentications_refused_total", "reason=\"wrong\"").await >= f64::from(checked)
    );
    assert!(daemon.metric("balto_authentications_refused_total", "reason=\"missing\"").await >= 3.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_admin_key_works_from_a_throttled_address() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(data.path(), &[]).await;
    let admin = std::fs::read_to_string(data.path().join("admin.key")).unwrap();
    let admin = format!("Bearer {}", admin.trim());
    let client = client_at(1);
    let mut last = 0;
    for number in 0..400 {
        last = list_events_with(&client, &daemon, &format!("Bearer guess-{number}")).await.0;
    }
    assert_eq!(last, 429);
    assert_eq!(list_events_with(&client, &daemon, &admin).await.0, 200);
}
