//! Callbacks: a receiver grants its consent later, by a request with a token.

use serde_json::{Value, json};

use super::{
    ORIGIN, PUBLIC, SHORT_PAUSES, callback, delivered, handshake_requests, lane_waits, post, receiver,
    register, reply, until, until_consented, until_refused,
};
use crate::support::{Daemon, answer};

/// Method, headers and body; then the granted rate.
type Call<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, Value);

/// Used, altered and invented tokens: the callback of an endpoint, and the id of another endpoint.
fn forged_callbacks(path: &str, id: &str, other_id: &str) -> [String; 11] {
    let zeros = "0".repeat(64);
    [
        path.to_owned(),
        path[..path.len() - 1].to_owned() + "x",
        path.to_uppercase().replace("/HANDSHAKES", "/handshakes"),
        format!("/handshakes/{id}.{zeros}"),
        format!("/handshakes/{id}."),
        format!("/handshakes/{id}"),
        format!("/handshakes/ep_nobody.{zeros}"),
        "/handshakes/..".to_owned() + &zeros,
        "/handshakes/%00.%C3%A9".to_owned(),
        format!("/handshakes/{}.{}", "x".repeat(5_000), "y".repeat(5_000)),
        path.replace(id, other_id),
    ]
}

#[tokio::test]
async fn callback_by_get_or_post_grants_consent_once() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_in(data.path(), &["--dev"], &[PUBLIC]).await;
    let form = ("content-type", "application/x-www-form-urlencoded");
    let rate = |rate| ("webhook-allowed-rate", rate);
    // Without the header, the granted rate is the requested rate.
    let rows: [Call; 4] = [
        ("GET", &[], "", json!(120)),
        ("POST", &[rate("7")], "", json!(7)),
        ("POST", &[form], "any=thing", json!(120)),
        ("GET", &[rate("*")], "", Value::Null),
    ];
    let mut used = Vec::new();
    for (number, (method, headers, body, agreed)) in rows.into_iter().enumerate() {
        let kind = format!("row.{number}");
        let target = receiver(|_| answer(404)).await;
        let handshake = json!({"origin": ORIGIN, "rate": 120, "callback": true});
        let endpoint = register(&daemon, &target.url, &kind, handshake, json!({})).await;
        until_refused(&daemon, &endpoint).await;
        let event = post(&daemon, &kind).await;
        let path = callback(&handshake_requests(&target)[0]);
        let token = path.rsplit_once('.').unwrap().1;
        assert_eq!(token.len(), 64, "WH-12: 256 bits");
        assert_eq!(delivered(&target).len(), 0);
        for bad in ["0", "-1", "abc", ""] {
            let (status, problem, _) = daemon.call(method, &path, &[rate(bad)], "").await;
            assert_eq!(
                (status, &problem["errors"][0]["header"]),
                (422, &json!("webhook-allowed-rate")),
                "{bad:?}: {problem}"
            );
        }
        // A preview or a scanner sends HEAD, which leaves the link usable.
        let (status, _, sent) = daemon.call("HEAD", &path, headers, "").await;
        assert_eq!((status, sent["allow"].as_str()), (405, "GET, POST"));
        assert_eq!(daemon.get(&endpoint).await["handshake"]["status"], "pending");
        let (status, answer, sent) = daemon.call(method, &path, headers, body).await;
        assert_eq!((status, &answer), (200, &json!({"status": "consented"})), "WH-12 {method} {headers:?}");
        assert_eq!(sent["cache-control"], "no-store");
        let shown = daemon.get(&endpoint).await["handshake"].clone();
        assert_eq!(
            (&shown["status"], &shown["allowedRate"]),
            (&json!("consented"), &agreed),
            "{method} {headers:?}"
        );
        daemon.until(&event, |event| event["status"] == "delivered").await;
        assert_eq!(delivered(&target)[0].headers["webhook-request-origin"], ORIGIN, "WH-11");
        used.push((endpoint, path));
    }
    // They all get the same response, which does not reveal whether the endpoint exists.
    let (endpoint, path) = used.remove(0);
    let id = endpoint.rsplit('/').next().unwrap();
    let zeros = "0".repeat(64);
    let forged = forged_callbacks(&path, id, used[0].0.rsplit('/').next().unwrap());
    let (_, expected, _) = daemon.call("GET", &format!("/handshakes/{id}.{zeros}"), &[], "").await;
    for forged in forged {
        for (method, headers) in
            [("GET", &[][..]), ("POST", &[]), ("POST", &[rate("0")]), ("POST", &[rate("9")])]
        {
            let (status, problem, _) = daemon.call(method, &forged, headers, "").await;
            assert_eq!((status, &problem), (404, &expected), "WH-12 {method} {forged}");
        }
    }
    assert_eq!(
        daemon.get(&endpoint).await["handshake"]["allowedRate"],
        120,
        "a used callback changed the consent"
    );
}

#[tokio::test]
async fn callback_needs_no_key_and_works_for_the_last_requests() {
    let data = tempfile::tempdir().unwrap();
    let key = "an-admin-key-for-the-tests";
    let environment = [
        SHORT_PAUSES[0],
        PUBLIC,
        ("BALTO__AUTH__ADMIN_KEY", key),
        ("BALTO__EGRESS__ALLOW_HTTP", "true"),
        ("BALTO__EGRESS__ALLOW_NETWORKS", "127.0.0.0/8"),
    ];
    let daemon = Daemon::start_in(data.path(), &[], &environment).await;
    let bearer = format!("Bearer {key}");
    let auth = [("authorization", bearer.as_str())];
    let target = receiver(|_| answer(404)).await;
    let call = async |handshake: Value| {
        let body = json!({"url": target.url, "handshake": handshake}).to_string();
        let (status, made, _) = daemon.call("POST", "/endpoints", &auth, &body).await;
        (status, made)
    };
    let (status, problem) = call(json!({"callback": true})).await;
    assert_eq!(
        (status, &problem["errors"][0]["pointer"]),
        (422, &json!("/handshake/origin")),
        "the request needs no host name"
    );
    let (status, made) = call(json!({"origin": ORIGIN, "callback": true})).await;
    assert_eq!(status, 201, "{made}");
    until("three requests", || handshake_requests(&target).len() >= 3).await;
    let first = callback(&handshake_requests(&target)[0]);
    assert_ne!(first, callback(&handshake_requests(&target)[1]), "each receiver gets another callback URL");
    let endpoint = format!("/endpoints/{}", made["id"].as_str().unwrap());
    for (path, status) in
        [(&first, 200), (&first, 404), (&callback(&handshake_requests(&target)[1]), 404), (&endpoint, 401)]
    {
        assert_eq!(daemon.call("GET", path, &[], "").await.0, status, "{path}");
    }
}

#[tokio::test]
async fn consent_and_callbacks_survive_a_crash() {
    let data = tempfile::tempdir().unwrap();
    let environment = [PUBLIC];
    let mut daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    let agreeing = receiver(|_| reply(200, &["WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: 77"])).await;
    let hesitant = receiver(|_| answer(404)).await;
    let agreed = register(&daemon, &agreeing.url, "a", json!({"origin": ORIGIN}), json!({})).await;
    let handshake = json!({"origin": ORIGIN, "callback": true});
    let pending = register(&daemon, &hesitant.url, "b", handshake, json!({})).await;
    let (before, waiting) = (until_consented(&daemon, &agreed).await, until_refused(&daemon, &pending).await);
    let event = post(&daemon, "b").await;
    daemon.kill();
    drop(daemon);
    let mut daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    assert_eq!(daemon.get(&agreed).await["handshake"], before);
    assert_eq!(daemon.get(&pending).await["handshake"], waiting);
    daemon.until(&post(&daemon, "a").await, |event| event["status"] == "delivered").await;
    assert_eq!(delivered(&agreeing)[0].headers["webhook-request-origin"], ORIGIN);
    assert_eq!(handshake_requests(&agreeing).len(), 1, "WH-14: the receiver was asked again");
    lane_waits(&daemon, &pending, "handshake").await;
    let path = callback(&handshake_requests(&hesitant)[0]);
    assert_eq!(daemon.call("POST", &path, &[("webhook-allowed-rate", "60000")], "").await.0, 200);
    // The 200 is durable: after a crash the consent holds and the token stays used.
    daemon.kill();
    drop(daemon);
    let daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    daemon.until(&event, |event| event["status"] == "delivered").await;
    assert_eq!(daemon.call("POST", &path, &[], "").await.0, 404);
    assert_eq!(handshake_requests(&hesitant).len(), 1);
}
