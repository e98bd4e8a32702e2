//! Name servers that are slow, broken or old, and configuration files that change.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use balto::courier::{Resolver as _, SystemResolver};
use serde_json::json;
use tokio::net::{TcpListener, UdpSocket};

use super::fixture::{DnsAnswer, EchoReceiver, KEY, NameServer, delivered, until};
use super::names::with_file;
use crate::support::{Daemon, has_program, quiet, say, serve};

const FOUR: &str = "127.16.0.1";
const SIX: &str = "2001:db8::1";

/// A silent name server is abandoned after this time, including the second try.
const SILENT: Duration = Duration::from_secs(4);

fn addresses(list: &[&'static str]) -> DnsAnswer {
    DnsAnswer::Addresses(list.to_vec())
}

fn parsed(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

async fn lookup(servers: &[&NameServer], name: &str) -> std::io::Result<Vec<IpAddr>> {
    let servers: Vec<_> = servers.iter().map(|names| names.address).collect();
    SystemResolver::new(&servers).unwrap().lookup(name.to_owned()).await
}

#[tokio::test]
async fn silence_about_one_family_does_not_delay_the_other() {
    for silent_six in [true, false] {
        let names = NameServer::answering(move |question| match question.is_for_six() == silent_six {
            true => DnsAnswer::Silence,
            false => addresses(&[FOUR, SIX]),
        })
        .await;
        let started = Instant::now();
        let found = lookup(&[&names], "a.example").await.unwrap();
        assert_eq!(found, parsed(&[if silent_six { FOUR } else { SIX }]));
        assert!(started.elapsed() < SILENT, "the silent family was waited for: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn failure_of_one_family_is_ignored_if_the_other_answers() {
    for code in [1, 2, 3, 4, 5] {
        let names = NameServer::answering(move |question| match question.is_for_six() {
            true => DnsAnswer::Code(code),
            false => DnsAnswer::Late(100, Box::new(addresses(&[FOUR]))),
        })
        .await;
        assert_eq!(lookup(&[&names], "a.example").await.unwrap(), parsed(&[FOUR]), "code {code}");
    }
}

/// An empty family decides nothing before the other one answers.
#[tokio::test]
async fn slow_family_is_awaited_when_the_other_is_empty() {
    let names = NameServer::answering(|question| match question.is_for_six() {
        true => DnsAnswer::Nothing,
        false => DnsAnswer::Late(1_000, Box::new(addresses(&[FOUR]))),
    })
    .await;
    assert_eq!(lookup(&[&names], "a.example").await.unwrap(), parsed(&[FOUR]));
}

#[tokio::test]
async fn servers_without_edns_are_understood() {
    for refusal in [DnsAnswer::Code(1), DnsAnswer::Code(4), DnsAnswer::Noise, DnsAnswer::Silence] {
        let dns_answer = refusal.clone();
        let names = NameServer::answering(move |question| match question.has_edns {
            true => dns_answer.clone(),
            false => addresses(&[FOUR]),
        })
        .await;
        assert_eq!(lookup(&[&names], "a.example").await.unwrap(), parsed(&[FOUR]), "{refusal:?}");
    }
}

#[tokio::test]
async fn next_server_is_asked_when_the_first_fails() {
    let second = NameServer::answering(|_| addresses(&[FOUR])).await;
    for failure in [
        DnsAnswer::Code(1),
        DnsAnswer::Code(2),
        DnsAnswer::Code(4),
        DnsAnswer::Code(5),
        DnsAnswer::Silence,
        DnsAnswer::Noise,
    ] {
        let dns_answer = failure.clone();
        let first = NameServer::answering(move |_| dns_answer.clone()).await;
        let found = lookup(&[&first, &second], "a.example").await.unwrap();
        assert_eq!(found, parsed(&[FOUR]), "{failure:?}");
        assert_eq!(lookup(&[&second, &first], "a.example").await.unwrap(), parsed(&[FOUR]), "{failure:?}");
    }
    // After NXDOMAIN from the first server, the second one gets no query.
    let first = NameServer::answering(|_| DnsAnswer::NoSuchName).await;
    assert_eq!(lookup(&[&first, &second], "b.example").await.unwrap(), parsed(&[]));
}

#[tokio::test]
async fn truncated_answer_is_fetched_over_tcp() {
    let many: Vec<&'static str> = vec![FOUR; 40];
    let names = NameServer::answering(move |question| match question.is_for_six() {
        true => DnsAnswer::Nothing,
        false => DnsAnswer::Truncated(many.clone()),
    })
    .await;
    let found = lookup(&[&names], "a.example").await.unwrap();
    assert_eq!(found.len(), 40, "{found:?}");
}

#[tokio::test]
async fn silence_of_all_servers_ends_as_a_timeout() {
    let names = NameServer::answering(|_| DnsAnswer::Silence).await;
    let failed = lookup(&[&names, &names], "a.example").await.unwrap_err();
    assert_eq!(failed.kind(), std::io::ErrorKind::TimedOut);
}

/// As on a machine whose network starts after the daemon.
#[tokio::test]
async fn changes_of_resolv_conf_and_hosts_take_effect() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("file");
    std::fs::write(&file, "").unwrap();
    let server = "127.0.0.155:53";
    let bound = (UdpSocket::bind(server).await, TcpListener::bind(server).await);
    let trial = with_file(&Command::new("true"), &file, "/etc/resolv.conf");
    let may_mount = has_program("unshare") && quiet(trial).status().is_ok_and(|status| status.success());
    let ((Ok(udp), Ok(tcp)), true) = (bound, may_mount) else {
        say("SKIPPED: port 53 cannot be bound, or a mount namespace cannot be made here");
        return;
    };
    let names = NameServer::on(udp, tcp, |question| match question.name.as_str() {
        "hook.example.com" => addresses(&["127.0.0.1"]),
        _ => DnsAnswer::NoSuchName,
    });
    let echo = EchoReceiver::open().await;
    for (in_etc, change, host) in [
        ("/etc/resolv.conf", "nameserver 127.0.0.155\n", "hook.example.com"),
        ("/etc/hosts", "127.0.0.1 other.example.com\n", "other.example.com"),
    ] {
        std::fs::write(&file, "").unwrap();
        let mut command = serve(&data.path().join(host), &["--dev"]);
        command.env("BALTO__AUTH__ADMIN_KEY", KEY);
        if in_etc == "/etc/hosts" {
            command.env("BALTO__EGRESS__NAMESERVERS", server);
        }
        let mut daemon = Daemon::spawn(quiet(with_file(&command, &file, in_etc)));
        daemon.key = Some(KEY.to_owned());
        daemon.until_ready().await;
        let body = json!({"url": format!("http://{host}:{}/", echo.port), "eventTypes": ["a"],
            "retry": {"schedule": vec!["1s"; 90]}});
        daemon.post("/endpoints", &body.to_string()).await;
        let failing = async {
            let failed = |page: &serde_json::Value| page["data"][0]["attemptCount"].as_u64() > Some(0);
            daemon.until("/deliveries?limit=1", failed).await;
            std::fs::write(&file, change).unwrap();
        };
        let (delivery, ()) = tokio::join!(delivered(&daemon, "a"), failing);
        assert_eq!(delivery["status"], "delivered", "{in_etc}: {delivery}");
        assert_eq!(delivery["attempts"][0]["errorClass"], "dns", "{in_etc}: {delivery}");
    }
    until("the name server", || names.asked("hook.example.com") > 0).await;
}
