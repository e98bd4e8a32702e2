//! The configuration's promises.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

const FILE: &str = "balto.toml";

fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::parse(Some((Path::new(FILE), text)), env, Overrides::default())
}

fn refusal(text: &str) -> String {
    load(text, &[]).expect_err(text).to_string()
}

#[test]
fn shipped_file_has_every_key_and_equals_the_defaults() {
    let text = include_str!("../../config/balto.toml");
    assert_eq!(load(text, &[]).expect("the shipped file is legal"), Config::default());
    let active: String =
        text.lines().map(|line| line.strip_prefix("#= ").unwrap_or(line).to_owned() + "\n").collect();
    let table = DeTable::parse(&active).expect("it is TOML with every key active");
    for key in KEYS {
        let (section, name) = key.name.split_once('.').expect("a key has a section");
        let DeValue::Table(entries) = table.get_ref().get(section).expect(section).get_ref() else {
            panic!("{section}")
        };
        assert!(entries.get(name).is_some(), "config/balto.toml lacks {}", key.name);
    }
}

#[test]
fn every_key_changes_its_field_and_has_a_variable() {
    let samples: &[(&str, &str)] = &[
        ("kind", "embedded"),
        ("admin_key", "a-key-of-16-letters"),
        ("path", "/x"),
        ("key", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        ("key_file", "/x"),
        ("admin_key_file", "/x"),
        ("api_listen", "[::1]:0"),
        ("ops_listen", "0.0.0.0:1"),
        ("tls_certificate_file", "/x"),
        ("tls_key_file", "/x"),
        ("public_url", "https://webhooks.example.com/balto/"),
        ("origin", "Webhooks.example.com"),
        ("retry_max_interval", "7h"),
        ("max_connections", "17"),
        ("max_streams", "17"),
        ("max_body_bytes", "1GiB"),
        ("max_connections_per_address", "17"),
        ("unlimited_networks", "10.0.0.0/8"),
        ("min_body_rate", "0B"),
        ("reserve_bytes", "0B"),
        ("max_event_bytes", "1MiB"),
        ("admission_bytes", "1GiB"),
        ("admission_events", "1001"),
        ("refused_statuses", "400, 413"),
        ("multiplier", "2"),
        ("jitter", "0"),
        ("allow_http", "true"),
        ("allow_networks", "10.0.0.0/8,::1"),
        ("deny_networks", "10.0.0.1"),
        ("allow_ports", "443,8000-8999"),
        ("host_max_in_flight", "0"),
        ("address_max_in_flight", "7"),
        ("required", "true"),
        ("ca_file", "/x"),
        ("proxy", "http://u:p@proxy.example:3128"),
        ("nameservers", "10.0.0.53, [fd00::53]:5353"),
        ("events", "forever"),
        ("stream_events", "1d"),
        ("dead_letters", "1d"),
        ("retention", "1d"),
        ("format", "json"),
        ("level", "info,balto=debug"),
        ("endpoints", "7"),
        ("pattern_bytes", "off"),
        ("wildcard_parts", "3"),
        ("header_bytes", "1KiB"),
        ("keys", "0"),
        ("consumers", "0"),
        ("pending_deliveries", "off"),
        ("stored_bytes", "1GiB"),
        ("events_per_second", "7"),
        ("bytes_per_second", "2MiB"),
        ("connections_per_key", "7"),
        ("reads_per_key", "7"),
        ("max_in_flight", "7"),
        ("endpoint_max_in_flight", "7"),
        ("breaker_failures", "7"),
        ("max_attempts", "7"),
        ("connect_timeout", "14s"),
        ("disable_after", "7s"),
        ("max_age", "7s"),
        ("max_interval", "7s"),
    ];
    // Two keys that are set together.
    let pair =
        ["TLS_CERTIFICATE_FILE", "TLS_KEY_FILE"].map(|name| (format!("BALTO__SERVER__{name}"), "/base"));
    let pair = pair.each_ref().map(|(name, value)| (name.as_str(), *value));
    let base = load("", &pair).expect("a pair");
    for key in KEYS {
        let name = key.name.split_once('.').expect("a key has a section").1;
        let sample = samples.iter().find(|(sample, _)| *sample == name).map_or("6s", |(_, value)| value);
        let variable = key.variable();
        let config = load("", &[&pair[..], &[(&variable, sample)]].concat()).expect(key.name);
        assert_eq!((key.same)(&config, &base), name == "kind", "{} took no value", key.name);
        let others = KEYS.iter().filter(|other| other.name != key.name);
        assert!(others.into_iter().all(|other| (other.same)(&config, &base)), "{}", key.name);
    }
}

#[test]
fn errors_name_file_line_key_and_reason() {
    for (text, expected) in [
        (
            "\n[delivery]\ntimeout = \"0s\"",
            "balto.toml:3: delivery.timeout: must be between 100ms and 1m, got \"0s\"",
        ),
        (
            "[delivery]\ntimeout = 15",
            "balto.toml:2: delivery.timeout: must be a duration such as \"15s\", got 15",
        ),
        (
            "[delivery]\ntimeuot = \"15s\"",
            "balto.toml:2: delivery.timeuot: is not a known key; did you mean delivery.timeout?",
        ),
        (
            "[server]\nadmin_key = \"k\"",
            "balto.toml:2: server.admin_key: is not a known key; did you mean auth.admin_key?",
        ),
        ("[zoo]\nx = 1", "balto.toml:1: zoo: is not a known section"),
        ("[retry]\nzoo = 1", "balto.toml:2: retry.zoo: is not a known key"),
        ("[serve]\nx = 1", "balto.toml:1: serve: is not a known section; did you mean server?"),
        (
            "[quotas]\nevents_per_second = 0",
            "balto.toml:2: quotas.events_per_second: must be a whole number between 1 and 1000000, got 0; or \"off\"",
        ),
        (
            "[quotas]\nbytes_per_second = \"1KiB\"",
            "balto.toml:2: quotas.bytes_per_second: must be between 1MiB and 10GiB, got \"1KiB\"; or \"off\"",
        ),
        ("server = 1", "balto.toml:1: server: is a section; write [server] on a line of its own"),
        (
            "[egress]\nallow_http = \"true\"",
            "balto.toml:2: egress.allow_http: must be true or false, got \"true\"",
        ),
        (
            "[egress]\nallow_networks = [\"10.0.0.0/33\"]",
            "balto.toml:2: egress.allow_networks: must be a list of networks such as \"10.0.0.0/8\", got \"10.0.0.0/33\" in it",
        ),
        (
            "[retry]\njitter = 1.5",
            "balto.toml:2: retry.jitter: must be a number between 0.0 and 1.0, got 1.5",
        ),
        (
            "[ingest]\nmax_event_bytes = \"2MiB\"",
            "balto.toml:2: ingest.max_event_bytes: must be between 64B and 1MiB, got \"2MiB\"",
        ),
        (
            "[retry]\ninitial = \"10s\"\nmax_interval = \"5s\"",
            "balto.toml:2: retry.initial: must not be longer than retry.max_interval",
        ),
    ] {
        assert_eq!(refusal(text), expected);
    }
    assert!(refusal("[server]\napi_listen = ").starts_with("balto.toml:2: "));
    assert!(refusal("[log]\nlevel = \"info\"\nlevel = \"warn\"").starts_with("balto.toml:3: "));
    assert_eq!(
        load("", &[("BALTO__DELIVERY__MAX_IN_FLIGHT", "0")]).expect_err("zero").to_string(),
        "BALTO__DELIVERY__MAX_IN_FLIGHT: delivery.max_in_flight: must be a whole number between 1 and 65536, got 0"
    );
    assert!(load("", &[("BALTO__DELIVERY__NONE", "0")]).is_err());
    let missing = Config::load(Some(Path::new("/none/x.toml")), std::iter::empty(), Overrides::default());
    assert!(missing.expect_err("missing").to_string().starts_with("/none/x.toml: cannot be read"));
}

#[test]
fn errors_are_reported_together_in_the_order_of_their_places() {
    let text = "[retry]\njitter = 7.0\n\n[nope]\nx = 1\n[delivery]\ntimeout = 15\nmax_in_flight = 0\n[log]\nlevel = \"info\"";
    let env = [("BALTO__LOG__FORMAT", "xml"), ("BALTO__EGRESS__ALLOW_HTTP", "yes")];
    let errors = load(text, &env).expect_err("wrong all over");
    let places: Vec<_> = errors.0.iter().map(|error| error.key.as_deref().unwrap_or_default()).collect();
    let expected = [
        "retry.jitter",
        "nope",
        "delivery.timeout",
        "delivery.max_in_flight",
        "egress.allow_http",
        "log.format",
    ];
    assert_eq!(places, expected, "{errors}");
    assert_eq!(errors.to_string().lines().count(), expected.len());
    let relations = "[auth]\nadmin_key = \"a-key-of-16-letters\"\nadmin_key_file = \"b\"\n[retry]\ninitial = \"10s\"\nmax_interval = \"5s\"";
    assert_eq!(load(relations, &[]).expect_err("two").0.len(), 2);
}

#[test]
fn syntax_errors_name_line_and_column() {
    let errors = load("[log]\nlevel = info\n[server\nx", &[]).expect_err("no TOML");
    let told = errors.to_string();
    assert!(told.starts_with("balto.toml:2: not TOML at column 9: "), "{told}");
    assert!(told.contains("balto.toml:3: not TOML at column "), "{told}");
    assert!(errors.0.iter().all(|error| error.key.is_none()), "what is mended is not looked at: {told}");
    assert!(refusal("[server]\napi_listen = ").starts_with("balto.toml:2: not TOML at column 14"));
}

#[test]
fn check_reads_the_files_that_keys_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let about = |key: &str, reason: &str| ConfigError {
        origin: Origin::Default,
        key: Some(key.to_owned()),
        reason: reason.to_owned(),
    };
    let check = |text: &str| {
        std::fs::write(path(FILE), text).expect("written");
        let authorities = |path: &Path| Err(format!("no authority is in {}", path.display()));
        let certificate = |server: &Server| match &server.tls_certificate_file {
            Some(path) if path.ends_with("old") => Ok(Some(about("server.tls_certificate_file", "expired"))),
            Some(_) => Err(about("server.tls_key_file", "does not match")),
            None => Ok(None),
        };
        check(&path(FILE), &authorities, &certificate).map_err(|errors| errors.to_string())
    };
    std::fs::write(path("good"), "a-key-of-16-letters\n").expect("written");
    std::fs::write(path("bad"), "two words").expect("written");
    let named = |section: &str, key: &str, name: &str| format!("[{section}]\n{key} = {:?}\n", path(name));
    assert!(check(&named("auth", "admin_key_file", "good")).is_ok());
    let all = [
        named("auth", "admin_key_file", "none"),
        named("secrets", "key_file", "good"),
        named("egress", "ca_file", "."),
    ];
    let told = check(&all.concat()).expect_err("none of them");
    let lines: Vec<_> = told.lines().collect();
    assert!(
        lines[0].contains("balto.toml:2: auth.admin_key_file: ") && lines[0].contains("cannot be read"),
        "{told}"
    );
    assert!(lines[1].contains("balto.toml:4: secrets.key_file: what is in "), "{told}");
    assert!(lines[2].contains("balto.toml:6: egress.ca_file: no authority is in "), "{told}");
    assert_eq!(lines.len(), 3, "{told}");
    std::fs::write(path("short"), "fifteen-letters\n").expect("written");
    let told = check(&named("auth", "admin_key_file", "short")).expect_err("too short");
    assert!(told.contains("16 to 256 visible ASCII characters") && !told.contains("fifteen"), "{told}");
    let told = check(&named("auth", "admin_key_file", "bad")).expect_err("no key");
    assert!(!told.contains("two words"), "{told}");
    let pair = |certificate: &str| {
        named("server", "tls_certificate_file", certificate) + &format!("tls_key_file = {:?}\n", path("key"))
    };
    let warnings = check(&pair("old")).expect("good");
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].to_string().ends_with("balto.toml:2: server.tls_certificate_file: expired"));
    let told = check(&pair("other")).expect_err("not a pair");
    assert!(told.ends_with("balto.toml:3: server.tls_key_file: does not match"), "{told}");
}

#[test]
fn tls_certificate_and_key_are_set_together() {
    for (one, other) in [("tls_certificate_file", "tls_key_file"), ("tls_key_file", "tls_certificate_file")] {
        let told = refusal(&format!("[server]\n{one} = \"a.pem\""));
        let expected = format!("balto.toml:2: server.{one}: must be set together with server.{other}");
        assert_eq!(told, expected);
    }
    assert!(load("[server]\ntls_key_file = \"a\"\ntls_certificate_file = \"b\"", &[]).is_ok());
}

#[test]
fn dev_listens_beyond_loopback_only_with_its_flag() {
    let dev = |text: &str, dev_listen_anywhere| {
        let flags = Overrides { dev: true, dev_listen_anywhere, ..Overrides::default() };
        Config::parse(Some((Path::new(FILE), text)), std::iter::empty(), flags)
    };
    for (key, address, is_local) in [
        ("api_listen", "127.0.0.1:8400", true),
        ("api_listen", "127.8.8.8:8400", true),
        ("api_listen", "[::1]:8400", true),
        ("api_listen", "0.0.0.0:8400", false),
        ("api_listen", "[::]:8400", false),
        ("api_listen", "192.168.1.5:8400", false),
        ("api_listen", "[::ffff:127.0.0.1]:8400", false),
        ("ops_listen", "127.0.0.1:8402", true),
        ("ops_listen", "0.0.0.0:8401", false),
    ] {
        let text = format!("[server]\n{key} = \"{address}\"");
        let told = dev(&text, false).map_err(|errors| errors.to_string());
        assert_eq!(told.is_ok(), is_local, "{address}: {told:?}");
        if let Err(told) = told {
            assert!(told.starts_with(&format!("balto.toml:2: server.{key}: {address} is not")), "{told}");
            assert!(told.contains("--dev-listen-anywhere"), "{told}");
        }
        assert!(dev(&text, true).is_ok(), "{address}");
        assert!(load(&text, &[]).is_ok(), "{address} without --dev");
    }
}

#[test]
fn unreadable_log_level_is_refused() {
    for level in
        ["", "info,\u{fffd}", "\u{e9}=debug", "balto=\u{fffd}debug", "info,a\u{fffd}b=\u{fffd}=\u{fffd}"]
    {
        let refused = refusal(&format!("[log]\nlevel = \"{level}\""));
        assert!(refused.starts_with("balto.toml:2: log.level: must be error, warn"), "{level}: {refused}");
    }
}

#[test]
fn numbers_accept_every_notation_of_toml() {
    let text = "[delivery]\nmax_in_flight = 2_048\nrefused_statuses = [0x190]\n[egress]\nallow_ports = [443, \"8000-8999\"]";
    let config = load(text, &[]).expect("legal");
    assert_eq!((config.delivery.max_in_flight, config.delivery.refused_statuses), (2_048, vec![400]));
    let ports = config.egress.allow_ports;
    let allowed = |port| ports.iter().any(|range| range.contains(port));
    assert!(allowed(443) && allowed(8500) && !allowed(80) && !allowed(9000));
    let dotted = "delivery.timeout = \"2s\"\nretry = { initial = \"1s\" }";
    let config = load(dotted, &[]).expect("legal");
    assert_eq!(
        (config.delivery.timeout, config.retry.initial),
        (Duration::from_secs(2), Duration::from_secs(1))
    );
}

#[test]
fn default_adapts_to_the_other_value_of_its_pair() {
    let config = load("[retry]\nmax_interval = \"1s\"\n[delivery]\ntimeout = \"1s\"", &[]).expect("legal");
    assert_eq!(config.retry.initial, Duration::from_secs(1));
    let config = load("[retry]\ninitial = \"12h\"", &[]).expect("legal");
    assert_eq!(config.retry.max_interval, 12 * HOUR);
}

#[test]
fn environment_overrides_file_and_flags_override_both() {
    let text = "[store]\npath = \"/file\"\n[log]\nlevel = \"warn\"";
    let env = || [("BALTO__STORE__PATH", "/env"), ("BALTO_URL", "http://x"), ("HOME", "/")];
    let config = load(text, &env()).expect("legal");
    assert_eq!((config.store.path.as_path(), config.log.level.as_str()), (Path::new("/env"), "warn"));
    let flags = Overrides { data_dir: Some("/flag".into()), dev: true, ..Overrides::default() };
    let env = env().into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::parse(Some((Path::new(FILE), text)), env, flags).expect("legal");
    assert_eq!(config.store.path, Path::new("/flag"));
}

#[test]
fn dev_allows_http_and_loopback_and_stores_data_locally() {
    let flags = Overrides { dev: true, ..Overrides::default() };
    let config = Config::parse(None, std::iter::empty(), flags).expect("legal");
    assert!(config.dev && config.egress.allow_http && config.egress.allow_ports.is_empty());
    for address in ["127.0.0.1", "127.9.9.9", "::1"] {
        let address: IpAddr = address.parse().expect("an address");
        assert!(config.egress.allow_networks.iter().any(|network| network.contains(&address)), "{address}");
    }
    assert_eq!(config.store.path, Path::new("./balto-data"));
    assert_eq!(config.handshake.origin.as_ref().map(ToString::to_string).as_deref(), Some("localhost"));
    assert_eq!(config.public_url().as_deref(), Some("http://127.0.0.1:8400"));
}

#[test]
fn public_url_is_a_base_url_and_needs_https() {
    let base = |url: &str| {
        load(&format!("[server]\npublic_url = \"{url}\""), &[])
            .map(|config| config.server.public_url.unwrap())
    };
    for (url, kept) in [
        ("https://a.example", "https://a.example"),
        ("https://a.example/", "https://a.example"),
        ("HTTPS://A.example:8443/balto/", "https://a.example:8443/balto"),
    ] {
        assert_eq!(base(url).as_deref(), Ok(kept));
    }
    for url in [
        "",
        "a.example",
        "/x",
        "ftp://a.example",
        "https://u:p@a.example",
        "https://a.example/?x",
        "https://a.example/#x",
    ] {
        assert!(base(url).is_err_and(|error| error.to_string().contains("must be a URL such as")), "{url}");
    }
    let plain = base("http://a.example").expect_err("plain");
    assert_eq!(plain.to_string(), "balto.toml:2: server.public_url: must be https without --dev");
    for origin in ["", "a b", "https://a.example", "a.example.", "*"] {
        assert!(
            refusal(&format!("[handshake]\norigin = \"{origin}\"")).contains("must be a DNS name"),
            "{origin}"
        );
    }
    let config =
        load("[handshake]\norigin = \"Events.Example\"\nretry_initial = \"12h\"", &[]).expect("legal");
    assert_eq!(config.handshake.origin.map(|origin| origin.to_string()).as_deref(), Some("events.example"));
    assert_eq!(config.handshake.retry_max_interval, 12 * HOUR, "a default gives way");
    let wrong = refusal("[handshake]\nretry_initial = \"2m\"\nretry_max_interval = \"1m\"");
    assert_eq!(
        wrong,
        "balto.toml:2: handshake.retry_initial: must not be longer than handshake.retry_max_interval"
    );
}

#[test]
fn admin_key_is_never_shown() {
    let config = load("[auth]\nadmin_key = \"hunter2-at-the-old-mill\"", &[]).expect("legal");
    assert!(!format!("{config:?}").contains("hunter2"));
    assert_eq!(config.admin_key().expect("set").expect("set").expose(), "hunter2-at-the-old-mill");
    assert!(!refusal("[auth]\nadmin_key = \"hunter2 hunter2 hunter2\"").contains("hunter2"));
    assert!(
        refusal("[auth]\nadmin_key = \"hunter2-at-the-old-mill\"\nadmin_key_file = \"b\"")
            .contains("must not be set beside")
    );
}

/// The warnings about weak keys of a configuration.
fn weak_keys(text: &str) -> Vec<String> {
    let config = load(text, &[]).expect("legal");
    config.weak_keys().expect("no file is read").iter().map(ToString::to_string).collect()
}

#[test]
fn guessable_admin_key_is_accepted_with_a_warning() {
    for weak in [
        "change-me-change-me",
        "change-me-to-32-random-characters",
        "my-super-secret-key",
        "0123456789abcdef",
        "aaaaaaaaaaaaaaaaaaaaaaaa",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    ] {
        let warnings = weak_keys(&format!("[auth]\nadmin_key = {weak:?}"));
        assert_eq!(warnings.len(), 1, "{weak}");
        assert!(warnings[0].starts_with("auth.admin_key: can be guessed"), "{warnings:?}");
        assert!(
            warnings[0].contains("`openssl rand -hex 32`") && !warnings[0].contains(weak),
            "{warnings:?}"
        );
    }
    // Outputs of `openssl rand -hex 32` and of the first start.
    for good in
        ["5f2ac3b6f0b94d71c7d5f94b4c4e3c8f0a7f9b14c7a30f2be6f58f4fd2b0c91d", "balto_x3qCk0bT8bZr7c3Ww1Sx0aVd"]
    {
        assert!(weak_keys(&format!("[auth]\nadmin_key = {good:?}")).is_empty(), "{good}");
    }
}

#[test]
fn guessable_secrets_key_is_accepted_with_a_warning() {
    let warnings = |keys: &str| weak_keys(&format!("[secrets]\nkey = {keys}"));
    let zeros = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let random = "rOH+zwxMxMBXWYhfhv1LBVyNeT7aEsGVs1kbyz0jXN4=";
    let told = warnings(&format!("{zeros:?}"));
    assert!(told[0].starts_with("secrets.key: can be guessed") && !told[0].contains("AAAA"), "{told:?}");
    // Only the first key encrypts.
    assert_eq!(warnings(&format!("[{zeros:?}, {random:?}]")).len(), 1);
    assert!(warnings(&format!("[{random:?}, {zeros:?}]")).is_empty());
    assert!(warnings(&format!("{random:?}")).is_empty());
}

#[test]
fn check_reports_weak_keys_with_their_lines() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("balto.toml");
    std::fs::write(&path, "[auth]\n\nadmin_key = \"aaaaaaaaaaaaaaaaaaaaaaaa\"\n").expect("written");
    let warnings = check(&path, &|_| Ok(()), &|_| Ok(None)).expect("good");
    assert!(warnings[0].to_string().contains("balto.toml:3: auth.admin_key: can be guessed"), "{warnings:?}");
}

#[test]
fn admin_key_is_read_from_its_file_without_the_line_break() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "from-a-credential\n").expect("written");
    let mut config = Config::default();
    assert_eq!(config.admin_key().expect("none is set"), None);
    config.auth.admin_key_file = Some(file.path().to_owned());
    assert_eq!(config.admin_key().expect("read").expect("set").expose(), "from-a-credential");
    std::fs::write(file.path(), "").expect("written");
    assert!(config.admin_key().is_err());
}

#[test]
fn secrets_key_is_32_bytes_of_base64_and_never_shown() {
    let good = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I=";
    let config = load(&format!("[secrets]\nkey = \"{good}\""), &[]).expect("legal");
    assert!(!format!("{config:?}").contains("c2Vj"));
    assert_eq!(config.secrets_keys().expect("set")[0].expose(), b"secret-secret-secret-secret-secr");
    for bad in ["", "c2VjcmV0", &good[1..], "hunter2", &format!("{good} "), &good.replace('=', "")] {
        let refused = refusal(&format!("[secrets]\nkey = \"{bad}\""));
        assert!(refused.contains("as `openssl rand -base64 32` prints it"), "{bad}: {refused}");
        assert!(!refused.contains("c2Vj") && !refused.contains("hunter2"), "{refused}");
    }
    let both = refusal(&format!("[secrets]\nkey = \"{good}\"\nkey_file = \"b\""));
    assert!(both.contains("must not be set beside"), "{both}");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), format!("{good}\n")).expect("written");
    let mut config = Config::default();
    assert_eq!(config.secrets_keys().expect("none is set"), []);
    config.secrets.key_file = Some(file.path().to_owned());
    assert_eq!(config.secrets_keys().expect("read").len(), 1);
    std::fs::write(file.path(), "short").expect("written");
    assert!(config.secrets_keys().is_err());
}

#[test]
fn secrets_keys_are_read_from_file_environment_and_key_file() {
    let (new, old) =
        ("bmV3LW5ldy1uZXctbmV3LW5ldy1uZXctbmV3LW5ldy0=", "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I=");
    let bytes = |config: &Config| -> Vec<_> {
        config.secrets_keys().expect("legal").iter().map(|key| *key.expose()).collect()
    };
    let expected = [*b"new-new-new-new-new-new-new-new-", *b"secret-secret-secret-secret-secr"];
    let listed = load(&format!("[secrets]\nkey = [\"{new}\", \"{old}\"]"), &[]).expect("legal");
    assert_eq!(bytes(&listed), expected);
    let variable = format!("{new}, {old}");
    assert_eq!(bytes(&load("", &[("BALTO__SECRETS__KEY", &variable)]).expect("legal")), expected);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mut config = Config::default();
    config.secrets.key_file = Some(file.path().to_owned());
    for text in [format!("{new}\n{old}\n"), format!("{new}\r\n\r\n{old}")] {
        std::fs::write(file.path(), text).expect("written");
        assert_eq!(bytes(&config), expected);
    }
    for bad in ["", "\n", &format!("{new}\nshort\n"), &format!("{new} {old}"), &format!("{new}\n").repeat(17)]
    {
        std::fs::write(file.path(), bad).expect("written");
        assert!(config.secrets_keys().is_err(), "{bad}");
    }
    for bad in ["[]", "[\"short\"]", &format!("[\"{new}\", 1]"), &format!("\"{new},{old}\"")] {
        let refused = refusal(&format!("[secrets]\nkey = {bad}"));
        assert!(
            refused.contains("as `openssl rand -base64 32` prints it") && !refused.contains("bmV3"),
            "{refused}"
        );
    }
}

#[test]
fn reload_keeps_the_keys_that_need_a_restart() {
    let running = Config::default();
    let mut same = running.clone();
    assert_eq!(same.keep_until_restart(&running), Vec::<&str>::new());
    let mut new = load("[egress]\nallow_http = true\n[retry]\njitter = 0.1", &[]).expect("legal");
    let mut changed = new.clone();
    changed.server.api_listen.set_port(1);
    changed.log.level = "debug".to_owned();
    assert_eq!(changed.keep_until_restart(&running), ["server.api_listen", "log.level"]);
    assert_eq!(new.keep_until_restart(&running), Vec::<&str>::new());
    assert!(KEYS.iter().all(|key| (key.same)(&changed, &new)));
    changed.dev = true;
    let kept = format!("http://{}", running.server.api_listen);
    assert_eq!(changed.public_url(), Some(kept), "the listener that others reach");
    assert!(changed.egress.allow_http && changed.retry.jitter != running.retry.jitter);
}

#[test]
fn long_list_of_syntax_errors_ends_with_a_count() {
    let errors = load(&"=\n".repeat(4_000), &[]).expect_err("garbage").to_string();
    let lines: Vec<_> = errors.lines().collect();
    assert_eq!(lines.len(), loading::SYNTAX_ERRORS_MAX + 1, "{errors}");
    assert!(
        lines[0].contains(":1: ") && lines[loading::SYNTAX_ERRORS_MAX].contains("more places"),
        "{errors}"
    );
}
