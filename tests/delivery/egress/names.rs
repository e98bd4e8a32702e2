//! Table C: what a resolver may say, and when.

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
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;

use super::world::{
    BLOCKED, By, Ears, KEY, Names, Question, Says, courier, delivered, endpoint, failure, open, parcel, save,
    send, strict, until,
};
use crate::support::raw::{Raw, post};
use crate::support::{Daemon, PATIENCE, answer, has, next_request, quiet, say, serve};

/// 127.16.0.0/12 stands for the public Internet; the rest of loopback is as forbidden as it always is.
const PUBLIC: &str = "127.16.0.0/12";
const OUTSIDE: &str = "127.16.0.1";
const INSIDE: &str = "127.0.0.1";

fn says(name: &str, asked: usize) -> Says {
    let addresses = |list: &[&'static str]| Says::Addresses(list.to_vec());
    match name {
        "public.example" => addresses(&[OUTSIDE]),
        // C1
        "loopback.example" => addresses(&["127.0.0.1"]),
        "metadata.example" => addresses(&["169.254.169.254"]),
        "private6.example" => addresses(&["fd00::1"]),
        "mapped.example" => addresses(&["::ffff:127.0.0.1"]),
        // C2: what these say today
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
        "alias.example" => Says::Alias("internal.target.example".to_owned()),
        "internal.target.example" => addresses(&["10.0.0.1"]),
        "circle.example" => Says::Alias("circle.two.example".to_owned()),
        "circle.two.example" => Says::Alias("circle.example".to_owned()),
        "itself.example" => Says::Alias("itself.example".to_owned()),
        // C7
        "failure.example" => Says::Failure,
        "unknown.example" => Says::NoSuchName,
        "empty.example" => Says::Nothing,
        "silent.example" => Says::Silence,
        "noise.example" => Says::Noise,
        _ => match name.strip_suffix(".chain.example").and_then(|number| number.parse::<u32>().ok()) {
            Some(50) => addresses(&[OUTSIDE]),
            Some(number) => Says::Alias(format!("{}.chain.example", number + 1)),
            None => Says::NoSuchName,
        },
    }
}

/// The name; what saving it comes to; what sending to it comes to. At save, what cannot be resolved is kept (it may come
/// up later), and is judged whenever it is sent to.
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

/// The family that is forbidden answers first, so that the other is waited for.
fn says_of_family(question: &Question) -> Says {
    let addresses = |list: &[&'static str]| Says::Addresses(list.to_vec());
    let late = |list: &[&'static str]| Says::Late(20, Box::new(addresses(list)));
    match (question.name.as_str(), question.is_for_six()) {
        ("four.public.six.private.example", true) => addresses(&["fd00::1"]),
        ("four.public.six.private.example", false) => late(&[OUTSIDE]),
        ("four.private.six.public.example", true) => late(&["2606:4700:4700::1111"]),
        ("four.private.six.public.example", false) => addresses(&[INSIDE]),
        _ => says(&question.name, question.before),
    }
}

fn dns(names: &Names) -> Arc<dyn Resolver> {
    Arc::new(SystemResolver::new(&[names.address]).unwrap())
}

/// The daemon's environment for [`PUBLIC`] and this name server.
fn asking(names: &Names) -> [(&'static str, String); 3] {
    [
        ("BALTO__EGRESS__ALLOW_HTTP", "true".to_owned()),
        ("BALTO__EGRESS__ALLOW_NETWORKS", PUBLIC.to_owned()),
        ("BALTO__EGRESS__NAMESERVERS", names.address.to_string()),
    ]
}

async fn daemon_asking(data: &Path, names: &Names) -> Daemon {
    let asking = asking(names);
    let environment: Vec<_> = asking.iter().map(|(name, value)| (*name, value.as_str())).collect();
    strict(data, &environment).await
}

#[tokio::test]
async fn answers_are_judged_when_saved_and_when_sent_to() {
    let names = Names::answering(says_of_family).await;
    let ears = Ears::open().await;
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon_asking(data.path(), &names).await;
    let courier = courier(open(&[PUBLIC]), dns(&names));
    // The control: what is not forbidden arrives.
    let url = format!("http://public.example:{}/", ears.port);
    assert_eq!(save(&daemon, &url).await, Ok(url.clone()));
    assert_eq!(send(&courier, &url).await.outcome, Ok(200));
    // C6: aliases in moderation are followed.
    assert_eq!(send(&courier, &format!("http://46.chain.example:{}/", ears.port)).await.outcome, Ok(200));
    assert_eq!(ears.heard(), [OUTSIDE, OUTSIDE].map(|at| at.parse::<IpAddr>().unwrap()));

    let mut sending = tokio::task::JoinSet::new();
    for (row, name, kept, class) in ROWS {
        let url = format!("http://{name}:{}/", ears.port);
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
    assert_eq!(ears.heard().len(), 2, "connections to what must not be reached: {:?}", ears.heard());
}

/// An endpoint whose name was public when it was saved, through the real daemon, up to the attempt's record.
#[tokio::test]
async fn c3_a_name_that_turns_inside_after_it_was_saved_is_blocked_at_send() {
    let names = Names::start(says).await;
    let ears = Ears::open().await;
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon_asking(data.path(), &names).await;
    endpoint(&daemon, &format!("http://later.example:{}/", ears.port), "a").await;
    let delivery = delivered(&daemon, "a").await;
    assert_eq!((&delivery["status"], &delivery["reason"]), (&json!("dead"), &json!("attemptsExhausted")));
    let attempt = &delivery["attempts"][0];
    assert_eq!((&attempt["errorClass"], &attempt["error"]), (&json!("blockedAddress"), &json!(BLOCKED)));
    assert_eq!(names.asked("later.example"), 2, "once when it was saved, once when it was sent to");
    assert_eq!(ears.heard(), Vec::<IpAddr>::new());
}

/// A wrong record for a while costs attempts, not events.
#[tokio::test]
async fn c3_blocked_name_is_retried_until_it_is_mended() {
    let names = Names::start(says).await;
    let ears = Ears::open().await;
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon_asking(data.path(), &names).await;
    let body = json!({"url": format!("http://mended.example:{}/", ears.port), "eventTypes": ["a"],
        "retry": {"schedule": ["1s", "1s"]}});
    daemon.post("/endpoints", &body.to_string()).await;
    let delivery = delivered(&daemon, "a").await;
    assert_eq!(delivery["status"], "delivered", "{delivery}");
    let attempts = delivery["attempts"].as_array().unwrap();
    let classes: Vec<_> = attempts.iter().map(|attempt| &attempt["errorClass"]).collect();
    assert_eq!(classes, [&json!("blockedAddress"), &serde_json::Value::Null], "{delivery}");
    assert_eq!(ears.heard(), [OUTSIDE.parse::<IpAddr>().unwrap()]);
}

/// Each attempt asks once and connects to what it was told then: there is no second lookup that could say otherwise.
#[tokio::test]
async fn c4_a_name_that_rebinds_a_thousand_times_never_leads_inside() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let resolver = By(move |_: &str| {
        let inside = count.fetch_add(1, Ordering::SeqCst) % 2 == 1;
        Ok(vec![if inside { INSIDE } else { OUTSIDE }.parse().unwrap()])
    });
    // Each attempt has to connect.
    let closing = Ears::closing().await;
    let courier = courier(open(&[PUBLIC]), Arc::new(resolver));
    let (mut arrived, mut blocked) = (0, 0);
    for number in 0..1_000 {
        match send(&courier, &format!("http://a.example:{}/", closing.port)).await.outcome {
            Ok(200) => arrived += 1,
            Err((ErrorClass::BlockedAddress, _)) => blocked += 1,
            other => panic!("attempt {number}: {other:?}"),
        }
    }
    assert_eq!((arrived, blocked), (500, 500));
    assert_eq!(asked.load(Ordering::SeqCst), 1_000, "one lookup per attempt");
    let outside: IpAddr = OUTSIDE.parse().unwrap();
    assert!(closing.heard().iter().all(|at| *at == outside), "somebody came to the inside");
    // The same with a real name server, whose answers may not be remembered.
    let names = Names::start(says).await;
    let courier = super::world::courier(open(&[PUBLIC]), dns(&names));
    for _ in 0..200 {
        let reply = send(&courier, &format!("http://rebinds.example:{}/", closing.port)).await;
        assert!(
            matches!(reply.outcome, Ok(200) | Err((ErrorClass::BlockedAddress, _))),
            "{:?}",
            reply.outcome
        );
    }
    assert!(closing.heard().iter().all(|at| *at == outside), "somebody came to the inside");
}

/// Never an answer.
struct Hangs;

#[async_trait]
impl Resolver for Hangs {
    async fn lookup(&self, _host: String) -> io::Result<Vec<IpAddr>> {
        tokio::time::sleep(Duration::from_secs(60)).await;
        Ok(vec![OUTSIDE.parse().unwrap()])
    }
}

#[tokio::test(start_paused = true)]
async fn c8_a_resolver_that_hangs_ends_the_attempt_at_the_dns_deadline() {
    let courier = courier(open(&[PUBLIC]), Arc::new(Hangs));
    let started = tokio::time::Instant::now();
    let reply = courier.send(parcel("http://a.example/", Duration::from_secs(60))).await.unwrap();
    let silent = (ErrorClass::Dns, "the name servers did not answer in time");
    assert_eq!(failure(&reply), silent);
    assert_eq!(started.elapsed(), Duration::from_secs(5), "told time, not measured");
    // A shorter timeout of the attempt says the same.
    let reply = courier.send(parcel("http://a.example/", Duration::from_millis(300))).await.unwrap();
    assert_eq!(failure(&reply), silent);
    // Saving waits for less, and then keeps what nobody knows.
    let started = tokio::time::Instant::now();
    assert!(courier.check_url("http://a.example/").await.is_ok());
    assert_eq!(started.elapsed(), Duration::from_secs(2));
}

/// Says that it is asked, and cannot say anything else once it is told to.
#[derive(Default)]
struct Stopped {
    asked: Notify,
    told: Notify,
}

#[async_trait]
impl Resolver for Stopped {
    async fn lookup(&self, _host: String) -> io::Result<Vec<IpAddr>> {
        self.asked.notify_one();
        self.told.notified().await;
        Err(io::ErrorKind::Other.into())
    }
}

/// As after SIGSTOP, or when the machine slept: the answer had no chance to come in.
#[tokio::test(start_paused = true)]
async fn c8_time_in_which_the_process_stood_still_is_not_the_name_servers() {
    let stopped = Arc::new(Stopped::default());
    let courier = courier(open(&[PUBLIC]), stopped.clone());
    let sending = tokio::spawn(async move {
        courier.send(parcel("http://a.example/", Duration::from_secs(60))).await.unwrap()
    });
    stopped.asked.notified().await;
    tokio::time::advance(Duration::from_secs(30)).await;
    // Whoever waits sees that it is late before the answer is there.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    stopped.told.notify_one();
    let failed = (ErrorClass::Dns, "the name servers could not resolve the host name");
    assert_eq!(failure(&sending.await.unwrap()), failed);
}

/// A lookup needs a socket, too: that there is none for it says nothing about the name.
#[tokio::test]
async fn c8_a_lookup_that_finds_no_file_descriptor_is_made_again_and_not_charged() {
    let names = Names::start(|_, _| Says::Addresses(vec![OUTSIDE])).await;
    let ears = Ears::open().await;
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon_asking(data.path(), &names).await;
    endpoint(&daemon, &format!("http://good.example:{}/", ears.port), "a.b").await;
    // Over a connection that is there already.
    let mut publisher = Raw::connect(daemon.address()).await;
    let key = format!("authorization: Bearer {}\r\n", daemon.key.as_ref().unwrap());
    let mut publish = async |kind: &str| {
        publisher
            .send(post("/v1/events", &key, &json!({"type": kind, "data": 1}).to_string()).as_bytes())
            .await;
        assert_eq!(publisher.answer().await.unwrap().status, 202);
    };
    publish("for.nobody").await;
    // What becomes free is of no use either.
    daemon.limit_descriptors(3);
    let asked = names.asked("good.example");
    publish("a.b").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((names.asked("good.example"), ears.heard()), (asked, Vec::new()), "it had a descriptor");
    daemon.limit_descriptors(1_000);
    let ended = |page: &serde_json::Value| page["data"][0]["status"] != "pending";
    let delivery = daemon.until("/deliveries?limit=1", ended).await["data"][0].clone();
    assert_eq!((&delivery["status"], &delivery["attempts"]), (&json!("delivered"), &json!(1)), "{delivery}");
}

/// A hundred lookups that hang hold nothing that another one needs.
#[tokio::test]
async fn c8_lookups_that_hang_delay_nobody_else() {
    let names = Names::start(|name, _| match name {
        "good.example" => Says::Addresses(vec![OUTSIDE]),
        _ => Says::Silence,
    })
    .await;
    let ears = Ears::open().await;
    let courier = courier(open(&[PUBLIC]), dns(&names));
    let mut hanging = tokio::task::JoinSet::new();
    for number in 0..100 {
        let courier = courier.clone();
        hanging.spawn(async move { send(&courier, &format!("http://h{number}.example/")).await });
    }
    until("the last of the lookups that hang", || names.asked("h99.example") > 0).await;
    assert_eq!(send(&courier, &format!("http://good.example:{}/", ears.port)).await.outcome, Ok(200));
    assert_eq!(
        hanging.try_join_next().map(|ended| ended.unwrap().outcome),
        None,
        "none of them had an end yet"
    );
    hanging.shutdown().await;
}

#[tokio::test]
async fn c9_a_connection_that_is_kept_stays_where_it_was_judged_and_the_next_one_is_judged_again() {
    let turned = Arc::new(AtomicUsize::new(0));
    let now = turned.clone();
    let resolver = By(move |_: &str| {
        let address = if now.load(Ordering::SeqCst) == 0 { OUTSIDE } else { INSIDE };
        Ok(vec![address.parse().unwrap()])
    });
    let ears = Ears::open().await;
    let courier = courier(open(&[PUBLIC]), Arc::new(resolver));
    let url = format!("http://a.example:{}/", ears.port);
    assert_eq!(send(&courier, &url).await.outcome, Ok(200));
    turned.store(1, Ordering::SeqCst);
    // Over the connection that is there, to the address that was judged.
    let reply = send(&courier, &url).await;
    assert_eq!((reply.outcome, &reply.body[..]), (Ok(200), OUTSIDE.as_bytes()));
    assert_eq!(ears.heard().len(), 1);
    // Two at once need a second connection, which asks again and is judged.
    let (one, two) = tokio::join!(send(&courier, &url), send(&courier, &url));
    assert_eq!(one.outcome, Ok(200));
    assert_eq!(failure(&two), (ErrorClass::BlockedAddress, BLOCKED));
    assert_eq!(ears.heard(), [OUTSIDE.parse::<IpAddr>().unwrap()]);
}

/// The real daemon, its configuration file and SIGHUP. The receiver sees its connection end.
#[tokio::test]
async fn c10_a_reload_that_closes_a_network_drops_the_connections_into_it() {
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
    // And opened again, over a new connection.
    std::fs::write(&file, config("\"10.0.0.0/8\"")).unwrap();
    hang_up(&daemon);
    let deadline = std::time::Instant::now() + PATIENCE;
    while save(&daemon, &url).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "the network stays closed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(delivered(&daemon, "a").await["status"], "delivered");
    assert!(opened.load(Ordering::SeqCst) > 1, "over a connection that was closed");
}

/// The command in a mount namespace of its own, where this file stands for one in `/etc`.
pub(crate) fn with_file(command: &Command, file: &Path, in_etc: &str) -> Command {
    let mut inside = Command::new("unshare");
    let script = format!("mount --bind \"$0\" {in_etc} && exec \"$@\"");
    inside.args(["--mount", "sh", "-c", &script]).arg(file);
    inside.arg(command.get_program()).args(command.get_args());
    inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    inside
}

#[tokio::test]
async fn c11_the_hosts_file_is_judged_like_any_answer() {
    let data = tempfile::tempdir().unwrap();
    let hosts = data.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost public.example\n127.16.0.1 other.example\n").unwrap();
    let trial = with_file(&Command::new("true"), &hosts, "/etc/hosts");
    if !has("unshare") || !quiet(trial).status().is_ok_and(|status| status.success()) {
        say("SKIPPED: a mount namespace cannot be made here");
        return;
    }
    let names = Names::start(|_, _| Says::Addresses(vec![OUTSIDE])).await;
    let ears = Ears::open().await;
    let store = data.path().join("data");
    let environment: HashMap<_, _> = asking(&names).into_iter().collect();
    let daemon = daemon_asking(&store, &names).await;
    // What the name server says is public.
    endpoint(&daemon, &format!("http://public.example:{}/", ears.port), "a").await;
    endpoint(&daemon, &format!("http://other.example:{}/", ears.port), "b").await;
    let key = daemon.key.clone();
    drop(daemon);
    let mut command = serve(&store, &[]);
    command.envs(&environment).env("BALTO__AUTH__ADMIN_KEY", key.as_ref().unwrap());
    let mut daemon = Daemon::spawn(quiet(with_file(&command, &hosts, "/etc/hosts")));
    daemon.key = key;
    daemon.until_ready().await;
    let refused = save(&daemon, &format!("http://public.example:{}/", ears.port)).await;
    assert_eq!(refused, Err(BLOCKED.to_owned()));
    let delivery = delivered(&daemon, "a").await;
    assert_eq!(delivery["attempts"][0]["errorClass"], "blockedAddress", "{delivery}");
    // The control: the file is read, and asked before the name server is.
    assert_eq!(delivered(&daemon, "b").await["status"], "delivered");
    assert_eq!(ears.heard(), [OUTSIDE.parse::<IpAddr>().unwrap()]);
}
