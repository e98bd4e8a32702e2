//! Table C: answers of name servers, and when they are checked.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use balto::courier::{Resolver, SystemResolver};
use balto::domain::ErrorClass;
use balto::domain::ReceiverAnswer::Status;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;

use super::fixture::{
    BLOCKED, DnsAnswer, EchoReceiver, FnResolver, KEY, NameServer, Question, courier, delivered, endpoint,
    failure, open, outbound_request, save, send, strict, until,
};
use crate::support::raw::{Raw, post};
use crate::support::{Daemon, WAIT_MAX, answer, has_program, next_request, quiet, say, serve};

/// 127.16.0.0/12 represents the public Internet; the rest of loopback is forbidden as usual.
const PUBLIC: &str = "127.16.0.0/12";
const OUTSIDE: &str = "127.16.0.1";
const INSIDE: &str = "127.0.0.1";

fn dns_answer(name: &str, asked: usize) -> DnsAnswer {
    let addresses = |list: &[&'static str]| DnsAnswer::Addresses(list.to_vec());
    match name {
        "public.example" => addresses(&[OUTSIDE]),
        // C1
        "loopback.example" => addresses(&["127.0.0.1"]),
        "metadata.example" => addresses(&["169.254.169.254"]),
        "private6.example" => addresses(&["fd00::1"]),
        "mapped.example" => addresses(&["::ffff:127.0.0.1"]),
        // C2: the current answers of these services
        "169.254.169.254.nip.io" => addresses(&["169.254.169.254"]),
        "localtest.me" => addresses(&["127.0.0.1", "::1"]),
        "127.0.0.1.sslip.io" => addresses(&["127.0.0.1"]),
        // C3, C4
        "later.example" if asked == 0 => addresses(&[OUTSIDE]),
        "later.example" => addresses(&[INSIDE]),
        "mended.example" if asked == 1 => addresses(&["fe80::1"]),
        "mended.example" => addresses(&[OUTSIDE]),
        "rebinds.example" => addresses(&[if asked.is_multiple_of(2) { OUTSIDE } else { INSIDE }]),
        // C5
        "both.example" => addresses(&[OUTSIDE, INSIDE]),
        "both.reversed.example" => addresses(&[INSIDE, OUTSIDE]),
        "many.example" => addresses(&[OUTSIDE, "127.16.0.2", "127.16.0.3", "127.16.0.4", "10.0.0.1"]),
        // C6
        "alias.example" => DnsAnswer::Alias("internal.target.example".to_owned()),
        "internal.target.example" => addresses(&["10.0.0.1"]),
        "circle.example" => DnsAnswer::Alias("circle.two.example".to_owned()),
        "circle.two.example" => DnsAnswer::Alias("circle.example".to_owned()),
        "itself.example" => DnsAnswer::Alias("itself.example".to_owned()),
        // C7
        "failure.example" => DnsAnswer::Failure,
        "unknown.example" => DnsAnswer::NoSuchName,
        "empty.example" => DnsAnswer::Nothing,
        "silent.example" => DnsAnswer::Silence,
        "noise.example" => DnsAnswer::Noise,
        _ => match name.strip_suffix(".chain.example").and_then(|number| number.parse::<u32>().ok()) {
            Some(50) => addresses(&[OUTSIDE]),
            Some(number) => DnsAnswer::Alias(format!("{}.chain.example", number + 1)),
            None => DnsAnswer::NoSuchName,
        },
    }
}

/// Name, whether it can be saved, and the error at send. An unresolvable name is kept at save,
/// because it may resolve later, and is checked at each send.
const ROWS: &[(&str, &str, bool, ErrorClass)] = &[
    ("C1", "loopback.example", false, ErrorClass::BlockedAddress),
    ("C1", "metadata.example", false, ErrorClass::BlockedAddress),
    ("C1", "private6.example", false, ErrorClass::BlockedAddress),
    ("C1", "mapped.example", false, ErrorClass::BlockedAddress),
    ("C2", "169.254.169.254.nip.io", false, ErrorClass::BlockedAddress),
    ("C2", "localtest.me", false, ErrorClass::BlockedAddress),
    ("C2", "127.0.0.1.sslip.io", false, ErrorClass::BlockedAddress),
    ("C5", "four.public.six.private.example", false, ErrorClass::BlockedAddress),
    ("C5", "four.private.six.public.example", false, ErrorClass::BlockedAddress),
    ("C5", "both.example", false, ErrorClass::BlockedAddress),
    ("C5", "both.reversed.example", false, ErrorClass::BlockedAddress),
    ("C5", "many.example", false, ErrorClass::BlockedAddress),
    ("C6", "alias.example", false, ErrorClass::BlockedAddress),
    ("C6", "circle.example", true, ErrorClass::Dns),
    ("C6", "itself.example", true, ErrorClass::Dns),
    ("C6", "1.chain.example", true, ErrorClass::Dns),
    ("C7", "failure.example", true, ErrorClass::Dns),
    ("C7", "unknown.example", true, ErrorClass::Dns),
    ("C7", "empty.example", true, ErrorClass::Dns),
    ("C7", "silent.example", true, ErrorClass::Dns),
    ("C7", "noise.example", true, ErrorClass::Dns),
];

/// The forbidden family answers first, so that the check has to wait for the other.
fn dns_answer_of_family(question: &Question) -> DnsAnswer {
    let addresses = |list: &[&'static str]| DnsAnswer::Addresses(list.to_vec());
    let late = |list: &[&'static str]| DnsAnswer::Late(20, Box::new(addresses(list)));
    match (question.name.as_str(), question.is_for_six()) {
        ("four.public.six.private.example", true) => addresses(&["fd00::1"]),
        ("four.public.six.private.example", false) => late(&[OUTSIDE]),
        ("four.private.six.public.example", true) => late(&["2606:4700:4700::1111"]),
        ("four.private.six.public.example", false) => addresses(&[INSIDE]),
        _ => dns_answer(&question.name, question.before),
    }
}

fn dns(names: &NameServer) -> Arc<dyn Resolver> {
    Arc::new(SystemResolver::new(&[names.address]).unwrap())
}

/// The daemon's environment for [`PUBLIC`] and this name server.
fn environment_with_dns(names: &NameServer) -> [(&'static str, String); 3] {
    [
        ("BALTO__EGRESS__ALLOW_HTTP", "true".to_owned()),
        ("BALTO__EGRESS__ALLOW_NETWORKS", PUBLIC.to_owned()),
        ("BALTO__EGRESS__NAMESERVERS", names.address.to_string()),
    ]
}

async fn daemon_with_dns(data: &Path, names: &NameServer) -> Daemon {
    let asking = environment_with_dns(names);
    let environment: Vec<_> = asking.iter().map(|(name, value)| (*name, value.as_str())).collect();
    strict(data, &environment).await
}

#[tokio::test]
async fn dns_answers_are_checked_at_save_and_at_send() {
    let names = NameServer::answering(dns_answer_of_family).await;
    let echo = EchoReceiver::open().await;
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon_with_dns(data.path(), &names).await;
    let courier = courier(open(&[PUBLIC]), dns(&names));
    // Control: an allowed name is delivered to.
    let url = format!("http://public.example:{}/", echo.port);
    assert_eq!(save(&daemon, &url).await, Ok(url.clone()));
    assert_eq!(send(&courier, &url).await.outcome, Ok(Status(200)));
    // C6: a short chain of aliases is followed.
    assert_eq!(
        send(&courier, &format!("http://46.chain.example:{}/", echo.port)).await.outcome,
        Ok(Status(200))
    );
    assert_eq!(echo.connections(), [OUTSIDE, OUTSIDE].map(|at| at.parse::<IpAddr>().unwrap()));

    let mut sending = tokio::task::JoinSet::new();
    for (row, name, kept, class) in ROWS {
        let url = format!("http://{name}:{}/", echo.port);
        let saved = save(&daemon, &url).await;
        match kept {
            true => assert_eq!(saved, Ok(url.clone()), "{row} {name} at save"),
            false => assert_eq!(saved, Err(BLOCKED.to_owned()), "{row} {name} at save"),
        }
        let courier = courier.clone();
        sending.spawn(async move {
            let reply = send(&courier, &url).await;
            assert_eq!(failure(&reply).0, *class, "{row} {name} at send: {:?}", reply.outcome);
        });
    }
    while let Some(sent) = sending.join_next().await {
        sent.unwrap();
    }
    assert_eq!(echo.connections().len(), 2, "connections to forbidden addresses: {:?}", echo.connections());
}

/// A name that was public at save is blocked by the real daemon, and the attempt's record says so.
#[tokio::test]
async fn c3_name_that_becomes_internal_is_blocked_at_send() {
    let names = NameServer::start(dns_answer).await;
    let echo = EchoReceiver::open().await;
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon_with_dns(data.path(), &names).await;
    endpoint(&daemon, &format!("http://later.example:{}/", echo.port), "a").await;
    let delivery = delivered(&daemon, "a").await;
    assert_eq!((&delivery["status"], &delivery["reason"]), (&json!("dead"), &json!("attemptsExhausted")));
    let attempt = &delivery["attempts"][0];
    assert_eq!((&attempt["errorClass"], &attempt["error"]), (&json!("blockedAddress"), &json!(BLOCKED)));
    assert_eq!(names.asked("later.example"), 2, "once when it was saved, once when it was sent to");
    assert_eq!(echo.connections(), Vec::<IpAddr>::new());
}

/// A temporarily wrong DNS record costs attempts, not events.
#[tokio::test]
async fn c3_blocked_name_is_retried_until_it_is_corrected() {
    let names = NameServer::start(dns_answer).await;
    let echo = EchoReceiver::open().await;
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon_with_dns(data.path(), &names).await;
    let body = json!({"url": format!("http://mended.example:{}/", echo.port), "eventTypes": ["a"],
        "retry": {"schedule": ["1s", "1s"]}});
    daemon.post("/endpoints", &body.to_string()).await;
    let delivery = delivered(&daemon, "a").await;
    assert_eq!(delivery["status"], "delivered", "{delivery}");
    let attempts = delivery["attempts"].as_array().unwrap();
    let classes: Vec<_> = attempts.iter().map(|attempt| &attempt["errorClass"]).collect();
    assert_eq!(classes, [&json!("blockedAddress"), &serde_json::Value::Null], "{delivery}");
    assert_eq!(echo.connections(), [OUTSIDE.parse::<IpAddr>().unwrap()]);
}

/// Each attempt makes one lookup and connects to its answer: a second lookup cannot differ.
#[tokio::test]
async fn c4_rebinding_name_never_leads_to_an_internal_address() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let resolver = FnResolver(move |_: &str| {
        let inside = count.fetch_add(1, Ordering::SeqCst) % 2 == 1;
        Ok(vec![if inside { INSIDE } else { OUTSIDE }.parse().unwrap()])
    });
    // Closed connections force a new connection for each attempt.
    let closing = EchoReceiver::closing().await;
    let courier = courier(open(&[PUBLIC]), Arc::new(resolver));
    let (mut arrived, mut blocked) = (0, 0);
    for number in 0..1_000 {
        match send(&courier, &format!("http://a.example:{}/", closing.port)).await.outcome {
            Ok(Status(200)) => arrived += 1,
            Err((ErrorClass::BlockedAddress, _)) => blocked += 1,
            other => panic!("attempt {number}: {other:?}"),
        }
    }
    assert_eq!((arrived, blocked), (500, 500));
    assert_eq!(asked.load(Ordering::SeqCst), 1_000, "one lookup per attempt");
    let outside: IpAddr = OUTSIDE.parse().unwrap();
    assert!(closing.connections().iter().all(|at| *at == outside), "an attempt reached an internal address");
    // The same with a real name server, whose answers have a TTL of zero.
    let names = NameServer::start(dns_answer).await;
    let courier = super::fixture::courier(open(&[PUBLIC]), dns(&names));
    for _ in 0..200 {
        let reply = send(&courier, &format!("http://rebinds.example:{}/", closing.port)).await;
        assert!(
            matches!(reply.outcome, Ok(Status(200)) | Err((ErrorClass::BlockedAddress, _))),
            "{:?}",
            reply.outcome
        );
    }
    assert!(closing.connections().iter().all(|at| *at == outside), "an attempt reached an internal address");
}

/// A resolver that answers after the deadline.
struct HangingResolver;

#[async_trait]
impl Resolver for HangingResolver {
    async fn lookup(&self, _host: String) -> io::Result<Vec<IpAddr>> {
        tokio::time::sleep(Duration::from_secs(60)).await;
        Ok(vec![OUTSIDE.parse().unwrap()])
    }
}

#[tokio::test(start_paused = true)]
async fn c8_hanging_resolver_ends_the_attempt_at_the_dns_deadline() {
    let courier = courier(open(&[PUBLIC]), Arc::new(HangingResolver));
    let started = tokio::time::Instant::now();
    let reply = courier.send(outbound_request("http://a.example/", Duration::from_secs(60))).await.unwrap();
    let silent = (ErrorClass::Dns, "the name servers did not answer in time");
    assert_eq!(failure(&reply), silent);
    assert_eq!(started.elapsed(), Duration::from_secs(5), "virtual time");
    // A shorter timeout of the attempt gives the same error.
    let reply =
        courier.send(outbound_request("http://a.example/", Duration::from_millis(300))).await.unwrap();
    assert_eq!(failure(&reply), silent);
    // A save has a shorter deadline, and keeps an unresolvable name.
    let started = tokio::time::Instant::now();
    assert!(courier.check_url("http://a.example/").await.is_ok());
    assert_eq!(started.elapsed(), Duration::from_secs(2));
}

/// A resolver that reports each lookup, and fails it on request.
#[derive(Default)]
struct GatedResolver {
    asked: Notify,
    released: Notify,
}

#[async_trait]
impl Resolver for GatedResolver {
    async fn lookup(&self, _host: String) -> io::Result<Vec<IpAddr>> {
        self.asked.notify_one();
        self.released.notified().await;
        Err(io::ErrorKind::Other.into())
    }
}

/// As after SIGSTOP or a suspend: the answer could not arrive in that time.
#[tokio::test(start_paused = true)]
async fn c8_suspended_time_is_not_charged_to_the_name_servers() {
    let stopped = Arc::new(GatedResolver::default());
    let courier = courier(open(&[PUBLIC]), stopped.clone());
    let sending = tokio::spawn(async move {
        courier.send(outbound_request("http://a.example/", Duration::from_secs(60))).await.unwrap()
    });
    stopped.asked.notified().await;
    tokio::time::advance(Duration::from_secs(30)).await;
    // The deadline is noticed before the answer is there.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    stopped.released.notify_one();
    let failed = (ErrorClass::Dns, "the name servers could not resolve the host name");
    assert_eq!(failure(&sending.await.unwrap()), failed);
}

/// A lookup needs a socket: a missing file descriptor is not a failure of the name.
#[tokio::test]
async fn c8_lookup_without_a_file_descriptor_is_repeated_uncharged() {
    let names = NameServer::start(|_, _| DnsAnswer::Addresses(vec![OUTSIDE])).await;
    let echo = EchoReceiver::open().await;
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon_with_dns(data.path(), &names).await;
    endpoint(&daemon, &format!("http://good.example:{}/", echo.port), "a.b").await;
    // Over a connection that is already open.
    let mut publisher = Raw::connect(daemon.address()).await;
    let key = format!("authorization: Bearer {}\r\n", daemon.key.as_ref().unwrap());
    let mut publish = async |kind: &str| {
        publisher
            .send(post("/v1/events", &key, &json!({"type": kind, "data": 1}).to_string()).as_bytes())
            .await;
        assert_eq!(publisher.answer().await.unwrap().status, 202);
    };
    publish("for.nobody").await;
    // Freed descriptors are below the limit, so they cannot be used either.
    daemon.limit_descriptors(3);
    let asked = names.asked("good.example");
    publish("a.b").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((names.asked("good.example"), echo.connections()), (asked, Vec::new()), "it had a descriptor");
    daemon.limit_descriptors(1_000);
    let ended = |page: &serde_json::Value| page["data"][0]["status"] != "pending";
    let delivery = daemon.until("/deliveries?limit=1", ended).await["data"][0].clone();
    assert_eq!(
        (&delivery["status"], &delivery["attemptCount"]),
        (&json!("delivered"), &json!(1)),
        "{delivery}"
    );
}

/// A hundred hanging lookups hold no resource that another lookup needs.
#[tokio::test]
async fn c8_hanging_lookups_do_not_delay_others() {
    let names = NameServer::start(|name, _| match name {
        "good.example" => DnsAnswer::Addresses(vec![OUTSIDE]),
        _ => DnsAnswer::Silence,
    })
    .await;
    let echo = EchoReceiver::open().await;
    let courier = courier(open(&[PUBLIC]), dns(&names));
    let mut hanging = tokio::task::JoinSet::new();
    for number in 0..100 {
        let courier = courier.clone();
        hanging.spawn(async move { send(&courier, &format!("http://h{number}.example/")).await });
    }
    until("the last hanging lookup", || names.asked("h99.example") > 0).await;
    assert_eq!(send(&courier, &format!("http://good.example:{}/", echo.port)).await.outcome, Ok(Status(200)));
    assert_eq!(
        hanging.try_join_next().map(|ended| ended.unwrap().outcome),
        None,
        "a hanging lookup has ended"
    );
    hanging.shutdown().await;
}

#[tokio::test]
async fn c9_kept_connection_is_reused_and_a_new_one_is_checked() {
    let turned = Arc::new(AtomicUsize::new(0));
    let now = turned.clone();
    let resolver = FnResolver(move |_: &str| {
        let address = if now.load(Ordering::SeqCst) == 0 { OUTSIDE } else { INSIDE };
        Ok(vec![address.parse().unwrap()])
    });
    let echo = EchoReceiver::open().await;
    let courier = courier(open(&[PUBLIC]), Arc::new(resolver));
    let url = format!("http://a.example:{}/", echo.port);
    assert_eq!(send(&courier, &url).await.outcome, Ok(Status(200)));
    turned.store(1, Ordering::SeqCst);
    // Over the kept connection, to the checked address.
    let reply = send(&courier, &url).await;
    assert_eq!((reply.outcome, &reply.body[..]), (Ok(Status(200)), OUTSIDE.as_bytes()));
    assert_eq!(echo.connections().len(), 1);
    // Two concurrent requests need a second connection, which makes another lookup and is checked.
    let (one, two) = tokio::join!(send(&courier, &url), send(&courier, &url));
    assert_eq!(one.outcome, Ok(Status(200)));
    assert_eq!(failure(&two), (ErrorClass::BlockedAddress, BLOCKED));
    assert_eq!(echo.connections(), [OUTSIDE.parse::<IpAddr>().unwrap()]);
}

/// The real daemon, its configuration file and SIGHUP. The receiver observes the end of its
/// connection.
#[tokio::test]
async fn c10_reload_that_closes_a_network_drops_its_connections() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("balto.toml");
    let config = |denied: &str| {
        format!(
            "[egress]\nallow_networks = [\"127.0.0.0/8\"]\ndeny_networks = [{denied}]\nallow_http = true\n"
        )
    };
    std::fs::write(&file, config("")).unwrap();
    let mut command = serve(&data.path().join("data"), &["--config", file.to_str().unwrap()]);
    command.env("BALTO__AUTH__ADMIN_KEY", KEY);
    let mut daemon = Daemon::spawn(command);
    daemon.key = Some(KEY.to_owned());
    daemon.until_ready().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (opened, closed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (opened.clone(), closed.clone());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (opened, closed) = counts.clone();
            opened.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut buffer = Vec::new();
                while next_request(&mut stream, &mut buffer).await.is_some() {
                    stream.write_all(answer(200).as_bytes()).await.unwrap();
                }
                closed.fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    endpoint(&daemon, &url, "a").await;
    for _ in 0..3 {
        assert_eq!(delivered(&daemon, "a").await["status"], "delivered");
    }
    assert_eq!(
        (opened.load(Ordering::SeqCst), closed.load(Ordering::SeqCst)),
        (1, 0),
        "one connection, kept"
    );
    let hang_up = |daemon: &Daemon| {
        assert!(Command::new("kill").arg("-HUP").arg(daemon.pid().to_string()).status().unwrap().success());
    };
    std::fs::write(&file, config("\"127.0.0.0/8\"")).unwrap();
    hang_up(&daemon);
    until("the end of the connection", || closed.load(Ordering::SeqCst) == 1).await;
    let delivery = delivered(&daemon, "a").await;
    assert_eq!(delivery["reason"], "blockedAddress", "{delivery}");
    assert!(save(&daemon, &url).await.is_err());
    // The network is open again: a new connection is made.
    std::fs::write(&file, config("\"10.0.0.0/8\"")).unwrap();
    hang_up(&daemon);
    let deadline = std::time::Instant::now() + WAIT_MAX;
    while save(&daemon, &url).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "the network stays closed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(delivered(&daemon, "a").await["status"], "delivered");
    assert!(opened.load(Ordering::SeqCst) > 1, "the dropped connection was used");
}

/// The command in a private mount namespace, where this file replaces one in `/etc`.
pub(crate) fn with_file(command: &Command, file: &Path, in_etc: &str) -> Command {
    let mut inside = Command::new("unshare");
    let script = format!("mount --bind \"$0\" {in_etc} && exec \"$@\"");
    inside.args(["--mount", "sh", "-c", &script]).arg(file);
    inside.arg(command.get_program()).args(command.get_args());
    inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    inside
}

#[tokio::test]
async fn c11_hosts_file_is_checked_like_any_answer() {
    let data = tempfile::tempdir().unwrap();
    let hosts = data.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost public.example\n127.16.0.1 other.example\n").unwrap();
    let trial = with_file(&Command::new("true"), &hosts, "/etc/hosts");
    if !has_program("unshare") || !quiet(trial).status().is_ok_and(|status| status.success()) {
        say("SKIPPED: a mount namespace cannot be made here");
        return;
    }
    let names = NameServer::start(|_, _| DnsAnswer::Addresses(vec![OUTSIDE])).await;
    let echo = EchoReceiver::open().await;
    let store = data.path().join("data");
    let environment: HashMap<_, _> = environment_with_dns(&names).into_iter().collect();
    let daemon = daemon_with_dns(&store, &names).await;
    // The name server's answer is public.
    endpoint(&daemon, &format!("http://public.example:{}/", echo.port), "a").await;
    endpoint(&daemon, &format!("http://other.example:{}/", echo.port), "b").await;
    let key = daemon.key.clone();
    drop(daemon);
    let mut command = serve(&store, &[]);
    command.envs(&environment).env("BALTO__AUTH__ADMIN_KEY", key.as_ref().unwrap());
    let mut daemon = Daemon::spawn(quiet(with_file(&command, &hosts, "/etc/hosts")));
    daemon.key = key;
    daemon.until_ready().await;
    let refused = save(&daemon, &format!("http://public.example:{}/", echo.port)).await;
    assert_eq!(refused, Err(BLOCKED.to_owned()));
    let delivery = delivered(&daemon, "a").await;
    assert_eq!(delivery["attempts"][0]["errorClass"], "blockedAddress", "{delivery}");
    // Control: the file is read before the name server is queried.
    assert_eq!(delivered(&daemon, "b").await["status"], "delivered");
    assert_eq!(echo.connections(), [OUTSIDE.parse::<IpAddr>().unwrap()]);
}
