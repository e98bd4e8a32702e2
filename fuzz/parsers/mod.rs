//! Every parser of external bytes, as a function that must return for any input: shared by
//! `tests/faults/fuzz.rs` (seeded mutations, in every test run) and `fuzz/` (guided by coverage).
//!
//! A target panics when a promise is broken: a panic in the parser, an invalid result, or a value
//! that does not survive a round trip.

mod files;
mod requests;
mod rows;

use std::path::Path;

use balto::api::text;
use balto::api::v1::lists;
use balto::api::v1::lists::List;
use balto::config::{AdminKey, Config, Overrides, PortRange, SecretsKey, units};
use balto::domain::{
    DeliveryId, EndpointId, EventId, EventType, KeyId, Pattern, Position, Sealed, SignaturePreset,
    StreamName, Tenant, Timestamp,
};
use balto::projections::reads::Cursor;
use balto::rules::matching::pattern_matches;
use balto::rules::signature;
use balto::rules::signature::SigningKey;
use balto::rules::verdict::parse_retry_after;
use balto::vault::{SealContext, Vault};

/// A target's name, its function, and its seeds.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&[u8]),
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
}

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "texts", run: texts, seeds: text_seeds },
    Target { name: "patterns", run: patterns, seeds: pattern_seeds },
    Target { name: "configuration", run: configuration, seeds: configuration_seeds },
    Target { name: "requests", run: requests::requests, seeds: requests::request_seeds },
    Target { name: "records", run: files::records, seeds: files::record_seeds },
    Target { name: "journals", run: files::journals, seeds: files::journal_seeds },
    Target { name: "backups", run: files::backups, seeds: files::backup_seeds },
    Target { name: "rows", run: rows::rows, seeds: rows::row_seeds },
    Target { name: "secrets", run: secrets, seeds: secret_seeds },
];

/// Tokens of the parsed languages, which mutations alone would take long to find.
pub(crate) const WORDS: &[&str] = &[
    "\"type\"",
    "\"data\"",
    "\"id\"",
    "\"tenant\"",
    "\"stream\"",
    "\"expectedVersion\"",
    "\"deliverAt\"",
    "\"events\"",
    "\"retry\"",
    "\"schedule\"",
    "\"eventTypes\"",
    "\"rateLimit\"",
    "\"secret\"",
    "null",
    "true",
    "\\ud800",
    "\\u0000",
    "1e309",
    "-0",
    "18446744073709551616",
    "9223372036854775807",
    "{}",
    "[]",
    "[[[[",
    "\u{feff}",
    "\u{202e}",
    "\u{0}",
    "whsec_",
    "whsk_",
    "250ms",
    "3650d",
    "72h",
    "2026-03-13T10:35:00.000Z",
    "9999-12-31T23:59:59.999Z",
    "1969-12-31T23:59:59Z",
    "*",
    "#",
    "a.#.b",
    "evt_01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "dlv_00000000000000010000000001",
    "ep_",
    "Sun, 06 Nov 1994 08:49:37 GMT",
    "= true",
    "[server]",
    "\n",
    "\t",
    "\r\n",
    "%00",
    "%ff",
    "&cursor=",
    "&limit=250",
    "idempotency-key:",
    "ce-id:",
    "ce-source:",
    "ce-type:",
    "ce-specversion:1.0",
    "content-length:",
    "end 0 0",
    "c 0 0",
];

/// Consumes the result: the parser only has to return.
fn consume<T>(_: T) {}

fn lines(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

// ---- small texts -------------------------------------------------------------------

const LISTS: [List; 5] = [List::Events, List::Endpoints, List::Deliveries, List::DeadLetters, List::Keys];

fn text_seeds() -> Vec<Vec<u8>> {
    let cursor = lists::cursor_text(List::Deliveries, Cursor::at(Position(7)));
    let mut seeds = lines(&[
        "15s",
        "250ms",
        "3650d",
        "99999999999999999999d",
        "256KiB",
        "64MiB",
        "443",
        "8000-8999",
        "a.b-c._d",
        "acme",
        "2026-03-13T10:35:00.000Z",
        "2026-03-13T11:35:00.1239+01:00",
        "9999-12-31T23:59:59.999Z",
        "120",
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "evt_01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "ep_01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "dlv_000000000000054c00000001",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    ]);
    seeds.push(cursor.into_bytes());
    seeds
}

/// Every parser of a short text. An accepted text survives a round trip.
fn texts(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(duration) = text::parse_duration(text) {
        assert_eq!(text::parse_duration(&text::format_duration(duration)), Ok(duration), "{text}");
    }
    if let Ok(time) = text::parse_time(text) {
        assert_eq!(text::parse_time(time.rfc3339().as_str()), Ok(time), "{text}");
    }
    if let Some(duration) = units::parse_duration(text) {
        assert_eq!(units::parse_duration(&units::format_duration(duration)), Some(duration), "{text}");
    }
    if let Some(size) = units::parse_size(text) {
        assert_eq!(units::parse_size(&units::format_size(size)), Some(size), "{text}");
    }
    for list in LISTS {
        if let Ok(place) = lists::decode(list, text) {
            assert_eq!(lists::encode(list, &place), text);
        }
    }
    if let Ok(id) = text.parse::<DeliveryId>() {
        assert_eq!(id.to_string().parse::<DeliveryId>().expect("a shown id parses").0, id.0, "{text}");
    }
    if let Ok(name) = text.parse::<EventId>() {
        assert_eq!(name.as_str(), text);
    }
    let legal = text.parse::<EventType>().is_ok();
    assert!(!legal || text.parse::<Pattern>().is_ok(), "{text} is a type but not a pattern");
    consume((
        text.parse::<EndpointId>(),
        text.parse::<KeyId>(),
        text.parse::<Tenant>(),
        text.parse::<StreamName>(),
    ));
    consume((PortRange::parse(text), AdminKey::parse(text), SecretsKey::parse(text)));
    if let Some(wait) = parse_retry_after(text, Timestamp::from_millis(784_111_777_000)) {
        assert!(wait <= balto::limits::RETRY_AFTER_MAX, "{text} holds a lane for {wait:?}");
    }
}

// ---- patterns ----------------------------------------------------------------------

fn pattern_seeds() -> Vec<Vec<u8>> {
    lines(&[
        "order.*\norder.paid",
        "#\na.b.c",
        "a.#.b\na.b",
        "*.*.#\na.b.c.d",
        "#.#.#.#.#.#.#.x\na.a.a.a.a.a.a.a.a",
        "a\nb",
    ])
}

/// The definition of pattern matching, without optimisations.
fn matches(pattern: &[&str], words: &[&str]) -> bool {
    // Row by row: whether the first `i` words of the pattern match the first `j` words.
    let mut row: Vec<bool> = (0..=words.len()).map(|count| count == 0).collect();
    for part in pattern {
        let before = row.clone();
        for count in 0..=words.len() {
            row[count] = match *part {
                "#" => before[count] || (count > 0 && row[count - 1]),
                _ if count == 0 => false,
                "*" => before[count - 1],
                word => before[count - 1] && words[count - 1] == word,
            };
        }
    }
    row[words.len()]
}

fn patterns(bytes: &[u8]) {
    let Some((pattern, kind)) = std::str::from_utf8(bytes).ok().and_then(|text| text.split_once('\n')) else {
        return;
    };
    let (Ok(parsed), Ok(event_type)) = (pattern.parse::<Pattern>(), kind.parse::<EventType>()) else {
        return;
    };
    let wanted = matches(&pattern.split('.').collect::<Vec<_>>(), &kind.split('.').collect::<Vec<_>>());
    assert_eq!(pattern_matches(&parsed, &event_type), wanted, "{pattern} and {kind}");
}

// ---- configuration -----------------------------------------------------------------

fn configuration_seeds() -> Vec<Vec<u8>> {
    let shipped = include_str!("../../config/balto.toml");
    let active: String =
        shipped.lines().map(|line| line.strip_prefix("#= ").unwrap_or(line).to_owned() + "\n").collect();
    lines(&[
        shipped,
        &active.replace("admin_key_file", "#").replace("key_file", "#"),
        "[delivery]\ntimeout = \"15s\"\0DELIVERY__TIMEOUT=1m\0EGRESS__ALLOW_PORTS=443,8000-8999",
        "[retry]\njitter = 0.2\nmultiplier = inf\n[egress]\nallow_networks = [\"10.0.0.0/8\", \"::1\"]",
        "server = { api_listen = \"[::1]:1\" }\0LOG__LEVEL=info,balto=debug",
        "\0LOG__LEVEL=\u{e9}=debug",
        "a.b.c = 1979-05-27T07:32:00Z\n[[x]]\n",
    ])
}

/// A file, then variables, separated by NUL.
fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let variables = parts.filter_map(|part| part.split_once('='));
    let env = variables.map(|(name, value)| (format!("BALTO__{name}"), value.to_owned()));
    match Config::parse(Some((Path::new("f"), file)), env, Overrides::default()) {
        Ok(config) => {
            // An accepted configuration satisfies the assumptions of all other parts.
            assert!(config.retry.initial <= config.retry.max_interval && config.retry.multiplier >= 1.0);
            assert!((0.0..=1.0).contains(&config.retry.jitter));
            assert_eq!(config.clone().keep_until_restart(&config), Vec::<&str>::new());
            let shown = format!("{config:?}");
            let secret = config.auth.admin_key.as_ref().map(|key| format!("\"{}\"", key.expose()));
            assert!(
                secret.is_none_or(|secret| secret.len() < 12 || !shown.contains(&secret)),
                "a key is shown"
            );
        }
        Err(errors) => {
            assert!(
                !errors.0.is_empty() && errors.0.iter().all(|error| !error.reason.is_empty()),
                "{errors}"
            );
        }
    }
}

// ---- secrets -----------------------------------------------------------------------

const PRESETS: [SignaturePreset; 3] =
    [SignaturePreset::Standard, SignaturePreset::Stripe, SignaturePreset::Github];

fn secret_seeds() -> Vec<Vec<u8>> {
    let mut seeds = lines(&[
        "whsec_wxRESeK8Anx6dxdg2gY7mrQuXLZPoCuy",
        "whsk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "whpk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "plain text of a preset",
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE= v1a,AAAA v2,x",
    ]);
    let Sealed::Encrypted(sealed) = vault().seal(b"secret", SealContext::StoredResponse(&[1; 16]), [2; 24])
    else {
        return seeds;
    };
    seeds.push(sealed.to_vec());
    seeds
}

fn vault() -> Vault {
    Vault::new([&[9; 32]])
}

fn secrets(bytes: &[u8]) {
    let opened = vault().open(&Sealed::Encrypted(bytes.into()), SealContext::StoredResponse(&[1; 16]));
    assert!(opened.is_err() || opened.is_ok_and(|plain| plain == b"secret"), "what was never sealed opens");
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for preset in PRESETS {
        let Ok(key) = SigningKey::parse(text, preset) else { continue };
        assert!(!format!("{key:?}").contains(text), "a key is shown");
        let again = SigningKey::parse(&key.text(), preset).expect("the shown secret parses");
        assert_eq!(again.text(), key.text());
        assert_eq!(again.sign("m", 1, b"{}"), key.sign("m", 1, b"{}"));
    }
    let at = Timestamp::from_millis(1_614_265_330_000);
    assert!(!signature::verify(b"the secret is unknown", "msg", "1614265330", b"{}", text, at));
    consume(signature::verify(b"key", "msg", text, b"{}", "v1,AAAA", at));
}
