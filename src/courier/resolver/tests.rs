//! Tests of changing configuration files. Name servers are tested in `tests/delivery/egress`.

use super::*;

/// Waits until a name in the hosts file resolves to this address.
async fn until_listed(resolver: &SystemResolver, name: &str, address: &str) {
    let address: IpAddr = address.parse().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while lookup_hosts_file(&resolver.files().hosts.value, &Name::from_ascii(name).unwrap()) != [address] {
        assert!(Instant::now() < deadline, "{name} does not get {address}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn hosts_file_is_read_again_when_it_changes() {
    let directory = tempfile::tempdir().unwrap();
    let (hosts, resolv) = (directory.path().join("hosts"), directory.path().join("resolv.conf"));
    let resolver = SystemResolver::with_files(&["127.0.0.1:1".parse().unwrap()], &hosts, &resolv).unwrap();
    std::fs::write(&hosts, "10.0.0.1 a.test\n").unwrap();
    until_listed(&resolver, "a.test", "10.0.0.1").await;
    // The file is overwritten with the same length.
    std::fs::write(&hosts, "10.0.0.2 a.test\n").unwrap();
    until_listed(&resolver, "a.test", "10.0.0.2").await;
    // The file is replaced by another one.
    let replacement = directory.path().join("replacement");
    std::fs::write(&replacement, "10.0.0.3 a.test\n").unwrap();
    std::fs::rename(&replacement, &hosts).unwrap();
    until_listed(&resolver, "a.test", "10.0.0.3").await;
    assert_eq!(resolver.lookup("a.test".to_owned()).await.unwrap(), ["10.0.0.3".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn resolv_conf_is_read_once_it_names_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let (hosts, resolv) = (directory.path().join("hosts"), directory.path().join("resolv.conf"));
    let resolver = SystemResolver::with_files(&[], &hosts, &resolv).unwrap();
    let servers = || resolver.files().servers.value.clone();
    let local = servers();
    let changed = async |from: &Arc<NameServers>| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Arc::ptr_eq(&servers(), from) {
            assert!(Instant::now() < deadline, "the file is not read");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        servers()
    };
    std::fs::write(&resolv, "nameserver 127.0.0.155\nnameserver 127.0.0.156\n").unwrap();
    let named = changed(&local).await;
    assert_eq!(named.count(), 2);
    // An empty file is about to be written, so the servers stay.
    std::fs::write(&resolv, "").unwrap();
    std::fs::write(&hosts, "10.0.0.1 a.test\n").unwrap();
    until_listed(&resolver, "a.test", "10.0.0.1").await;
    assert!(Arc::ptr_eq(&servers(), &named));
    std::fs::write(&resolv, "nameserver 127.0.0.157\n").unwrap();
    assert_eq!(changed(&named).await.count(), 1);
}

#[tokio::test]
async fn configured_servers_ignore_resolv_conf() {
    let directory = tempfile::tempdir().unwrap();
    let (hosts, resolv) = (directory.path().join("hosts"), directory.path().join("resolv.conf"));
    let resolver = SystemResolver::with_files(&["127.0.0.1:1".parse().unwrap()], &hosts, &resolv).unwrap();
    let before = resolver.files().servers.value.clone();
    std::fs::write(&resolv, "nameserver 127.0.0.155\n").unwrap();
    std::fs::write(&hosts, "10.0.0.1 a.test\n").unwrap();
    until_listed(&resolver, "a.test", "10.0.0.1").await;
    assert!(Arc::ptr_eq(&resolver.files().servers.value, &before));
}

/// The log output of `run`.
fn logged(run: impl FnOnce()) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    let writer = Arc::new(file.reopen().unwrap());
    let subscriber = tracing_subscriber::fmt().with_writer(writer).with_ansi(false).finish();
    tracing::subscriber::with_default(subscriber, run);
    std::fs::read_to_string(file.path()).unwrap()
}

#[test]
fn missing_resolv_conf_is_logged_and_missing_hosts_file_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let (hosts, resolv) = (directory.path().join("hosts"), directory.path().join("resolv.conf"));
    let configured = ["127.0.0.1:1".parse().unwrap()];
    let start =
        |servers: &[SocketAddr]| logged(|| drop(SystemResolver::with_files(servers, &hosts, &resolv)));
    assert_eq!(start(&configured), "");
    let log = start(&[]);
    assert_eq!(log.lines().count(), 1, "{log}");
    for part in ["no name server known, asking 127.0.0.1", "egress.nameservers", "resolv.conf"] {
        assert!(log.contains(part), "{log}");
    }
    std::fs::write(&resolv, "nameserver 127.0.0.155\n").unwrap();
    std::fs::write(&hosts, "10.0.0.1 a.test\n").unwrap();
    assert_eq!(start(&[]), "");
}

#[test]
fn changed_and_removed_files_are_logged_once() {
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    std::fs::write(&hosts, "10.0.0.1 a.test\n").unwrap();
    let (mut watched, _) = WatchedFile::read(&hosts, parse_hosts, Arc::default());
    let mut refresh = || logged(|| watched = watched.refreshed(&hosts, parse_hosts));
    assert_eq!(refresh(), "");
    std::fs::write(&hosts, "10.0.0.22 a.test\n").unwrap();
    assert!(refresh().contains("file changed, new contents in use"));
    std::fs::remove_file(&hosts).unwrap();
    assert!(refresh().contains("file removed, previous contents stay in use"));
    assert_eq!(refresh(), "");
}
