//! Documentation: reference pages equal the code, examples run, links are valid.
//!
//! `BALTO_WRITE_DOCS=1 cargo test --test house docs` writes the reference pages.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::judges::{install, root, run};
use crate::support::{has_program, say};
use balto::api::http::problem::Problem;
use balto::config::{Change, KEYS};
use balto::domain::delivery::{DeliveryChange, transition};
use balto::domain::{DeadReason, DeliveryState, ErrorClass, Next, Timestamp, Trigger};
use balto::lanes::WaitReason;
use balto::metrics::Metrics;
use clap::CommandFactory as _;
use serde_json::Value;

const GENERATED: &str = "<!-- Generated: BALTO_WRITE_DOCS=1 cargo test --test house docs -->\n";

/// Compares a generated page with its file, or writes it.
fn page(name: &str, text: &str) {
    let file = root().join("docs/reference").join(name);
    let text = format!("{GENERATED}{text}");
    if std::env::var_os("BALTO_WRITE_DOCS").is_some() {
        fs::write(&file, &text).unwrap();
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    assert!(found == text, "docs/reference/{name} is stale: BALTO_WRITE_DOCS=1 cargo test --test house docs");
}

/// A table cell: one line, with the cell separator escaped.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

#[test]
fn configuration_reference_equals_the_shipped_file() {
    let file = fs::read_to_string(root().join("config/balto.toml")).unwrap();
    let mut out = String::from(
        "# Configuration reference\n\nGenerated from `config/balto.toml`. [Configuration](../operating/configuration.md) \
         explains files, environment and reload.\n",
    );
    let (mut comment, mut section, mut documented) = (Vec::new(), String::new(), 0);
    for line in file.lines() {
        let active = line.strip_prefix("#= ");
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
            write!(out, "\n## `[{section}]`\n").unwrap();
            let about = comment.join(" ");
            if !about.is_empty() {
                write!(out, "\n{about}\n").unwrap();
            }
            out.push_str("\n| key | meaning | default | reload |\n|---|---|---|---|\n");
            comment.clear();
        } else if let Some((name, default)) =
            active.unwrap_or(line).split_once(" = ").filter(|_| active.is_some() || !line.starts_with('#'))
        {
            let key = KEYS.iter().find(|key| key.name == format!("{section}.{name}")).expect(name);
            let default = if active.is_some() { String::new() } else { format!("`{}`", cell(default)) };
            let reload = if key.change == Change::Reload { "yes" } else { "" };
            let about = cell(&comment.join(" ").replace(" (reload)", ""));
            writeln!(out, "| `{name}` | {about} | {default} | {reload} |").unwrap();
            documented += 1;
            comment.clear();
        } else if let Some(text) = line.strip_prefix('#') {
            comment.push(text.trim().to_owned());
        } else {
            comment.clear();
        }
    }
    assert_eq!(documented, KEYS.len());
    page("configuration.md", &out);
}

/// A metric as its exposition describes it.
#[derive(Default)]
struct Described {
    name: String,
    help: String,
    kind: String,
    labels: Vec<String>,
}

#[test]
fn metrics_reference_equals_the_registry() {
    let exposition = String::from_utf8(Metrics::new().encode()).unwrap();
    let mut found: Vec<Described> = Vec::new();
    for line in exposition.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            found.push(Described { name: name.to_owned(), help: help.to_owned(), ..Described::default() });
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            found.last_mut().unwrap().kind = rest.split_once(' ').unwrap().1.to_owned();
        } else if let Some((_, labels)) = line.split_once('{') {
            for label in labels.split("\",").filter_map(|label| label.split_once("=\"")) {
                let last = found.last_mut().unwrap();
                if label.0 != "le" && !last.labels.contains(&label.0.to_owned()) {
                    last.labels.push(label.0.to_owned());
                }
            }
        }
    }
    let mut out = String::from(
        "# Metrics reference\n\nGenerated from the registry. [Monitoring](../operating/monitoring.md) says what to watch.\n\n\
         | metric | type | labels | meaning |\n|---|---|---|---|\n",
    );
    for one in found.iter().filter(|one| one.name.starts_with("balto_")) {
        let labels: Vec<_> = one.labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(out, "| `{}` | {} | {} | {} |", one.name, one.kind, labels.join(", "), cell(&one.help))
            .unwrap();
    }
    out.push_str(
        "\nMetrics with the prefix `process_` describe the process, as in every Prometheus client.\n",
    );
    page("metrics.md", &out);
}

/// The help of a command and of all its subcommands.
fn help(command: &mut clap::Command, path: &str, out: &mut String) {
    let title = format!("{path} {}", command.get_name()).trim().to_owned();
    if command.has_subcommands() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        write!(out, "\n## `{title}`\n\n{about}.\n").unwrap();
    } else {
        let text = command.clone().bin_name(&title).render_long_help().to_string();
        let text: Vec<_> = text.trim_end().lines().map(str::trim_end).collect();
        write!(out, "\n### `{title}`\n\n```text\n{}\n```\n", text.join("\n")).unwrap();
    }
    for below in command.get_subcommands_mut().filter(|below| below.get_name() != "help") {
        help(below, &title, out);
    }
}

#[test]
fn command_line_reference_equals_the_parser() {
    let mut out = String::from("# Command line reference\n\nGenerated from the argument parser.\n");
    let mut command = balto::cli::Cli::command().disable_help_subcommand(true);
    command.build();
    help(&mut command, "", &mut out);
    page("command-line.md", &out);
}

/// A short name for a schema.
fn type_of(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    for list in ["anyOf", "oneOf", "allOf"] {
        if let Some(parts) = schema[list].as_array() {
            let mut names: Vec<_> = parts.iter().map(type_of).filter(|name| name != "object").collect();
            names.dedup();
            return names.join(" or ");
        }
    }
    if let Some(words) = schema["enum"].as_array() {
        return words
            .iter()
            .map(|word| format!("`{}`", word.as_str().unwrap_or("null")))
            .collect::<Vec<_>>()
            .join(", ");
    }
    match &schema["type"] {
        Value::String(name) if name == "array" => format!("list of {}", type_of(&schema["items"])),
        Value::String(name) => name.clone(),
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        _ => "any".to_owned(),
    }
}

fn members(schema: &Value, out: &mut String) {
    let required: Vec<_> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let Some(properties) = schema["properties"].as_object() else {
        return writeln!(out, "\n{}", type_of(schema)).unwrap();
    };
    out.push_str("\n| member | type | meaning |\n|---|---|---|\n");
    for (name, property) in properties {
        let mark = if required.contains(&name.as_str()) { ", always" } else { "" };
        let about = property["description"].as_str().unwrap_or_default();
        writeln!(out, "| `{name}` | {}{mark} | {} |", type_of(property), cell(about)).unwrap();
    }
}

fn operation(path: &str, verb: &str, operation: &Value, out: &mut String) {
    let text = |name: &str| operation[name].as_str().unwrap_or_default();
    write!(out, "\n### `{} {path}`\n\n{}. {}\n", verb.to_uppercase(), text("summary"), text("description"))
        .unwrap();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let place = parameter["in"].as_str().unwrap();
        if place != "path" {
            let about = cell(parameter["description"].as_str().unwrap_or_default());
            let name = parameter["name"].as_str().unwrap();
            write!(out, "\n* `{name}` ({place}, {}): {about}", type_of(&parameter["schema"])).unwrap();
        }
    }
    if let Some(content) = operation["requestBody"]["content"].as_object() {
        for (media, body) in content {
            write!(out, "\n* Body `{media}`: {}", type_of(&body["schema"])).unwrap();
        }
    }
    let mut refusals = Vec::new();
    for (status, response) in operation["responses"].as_object().unwrap() {
        let schema = &response["content"]["application/json"]["schema"];
        if status.starts_with('2') {
            let media = response["content"].as_object().and_then(|content| content.keys().next());
            let body = match (schema.is_null(), media) {
                (false, _) => type_of(schema),
                (true, Some(media)) => format!("`{media}`"),
                (true, None) => "no body".to_owned(),
            };
            write!(out, "\n* Answer {status}: {body}").unwrap();
        } else {
            refusals.push(status.clone());
        }
    }
    write!(out, "\n* Errors: {}\n", refusals.join(", ")).unwrap();
}

#[test]
fn http_reference_equals_the_openapi_document() {
    let document = balto::api::openapi::document();
    let mut out = String::from(
        "# HTTP API reference\n\nGenerated from the OpenAPI document, which `balto openapi` prints and \
         `GET /v1/openapi.json` serves.\n",
    );
    let mut section = String::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (verb, described) in item.as_object().unwrap() {
            let tag = described["tags"][0].as_str().unwrap();
            if tag != section {
                write!(out, "\n## {tag}\n").unwrap();
                tag.clone_into(&mut section);
            }
            operation(path, verb, described, &mut out);
        }
    }
    out.push_str("\n## Objects\n");
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        write!(out, "\n### {name}\n").unwrap();
        if let Some(about) = schema["description"].as_str() {
            write!(out, "\n{}\n", cell(about)).unwrap();
        }
        members(schema, &mut out);
    }
    page("http-api.md", &out);
}

#[test]
fn errors_reference_equals_the_problems() {
    let mut out = String::from(
        "# Errors reference\n\nGenerated from the problems of the API. Every error is `application/problem+json` (RFC 9457) with a \
         stable `code`; `errors` lists each wrong member with its JSON pointer.\n\n\
         | status | code | meaning | repeat |\n|---|---|---|---|\n",
    );
    let mut codes = Vec::new();
    for problem in Problem::examples() {
        let shown = serde_json::to_value(&problem).unwrap();
        let repeat =
            if problem.into_reply().header("retry-after").is_some() { "after `Retry-After`" } else { "" };
        let code = shown["code"].as_str().unwrap().to_owned();
        writeln!(out, "| {} | `{code}` | {} | {repeat} |", shown["status"], shown["title"].as_str().unwrap())
            .unwrap();
        codes.push(code);
    }
    let source = fs::read_to_string(root().join("src/api/http/problem.rs")).unwrap();
    let body = source.split("pub fn code(&self)").nth(1).unwrap().split("\n    }\n").next().unwrap();
    for code in body.split('"').skip(1).step_by(2) {
        assert!(codes.contains(&code.to_owned()), "Problem::examples lacks {code}");
    }
    page("errors.md", &out);
}

fn dead(reason: DeadReason) -> &'static str {
    match reason {
        DeadReason::AttemptsExhausted => "the last attempt of the retry policy failed",
        DeadReason::MaxAge => "the next attempt would be later than `retry.maxAge` allows",
        DeadReason::Gone => "the receiver answered 410",
        DeadReason::Refused => {
            "a status of `delivery.refused_statuses`, or `Webhook-Delivery: abort-message`; or a worker's `nack` with `requeue: false`"
        }
        DeadReason::EndpointDeleted => "an operator deleted the endpoint",
        DeadReason::EndpointDisabled => "the endpoint was disabled at the receiver's request",
        DeadReason::BlockedAddress => "the URL or its address is forbidden by policy",
        DeadReason::Expired => "it was due for longer than its event is kept",
        DeadReason::Unconvertible => {
            "its event cannot be converted to the version that the endpoint pins, or its body template fails for it"
        }
    }
}

fn waiting(reason: WaitReason) -> &'static str {
    match reason {
        WaitReason::NotDue => "the next attempt is in the future",
        WaitReason::Rate => "the endpoint's rate limit holds the lane",
        WaitReason::InFlightLimit => "`maxInFlight` requests are in flight",
        WaitReason::CircuitOpen => "several failures in a row; one probe at a time is sent",
        WaitReason::RetryAfter => "the receiver answered 429 or 503 with `Retry-After`",
        WaitReason::Paused => "an operator paused the endpoint",
        WaitReason::Disabled => "the endpoint is disabled; `disabledReason` says why",
        WaitReason::Ordering => "an earlier delivery of the same order has not ended",
        WaitReason::GlobalLimit => "the limit over all endpoints, or of the host, is reached",
        WaitReason::Handshake => "the receiver has not consented",
        WaitReason::AddressLimit => "the receiver's address has as many requests as it may",
        WaitReason::NoWorker => "no worker asks the queue for messages",
        WaitReason::LeaseLimit => "the queue has `maxLeased` messages under lease",
        WaitReason::StoreFull => "the disk is full, or too many outcomes are not yet committed",
        WaitReason::BrokerBlocked => "the broker is short of memory or disk, and takes no messages",
    }
}

fn failed(class: ErrorClass) -> &'static str {
    match class {
        ErrorClass::Dns => "the host name could not be resolved",
        ErrorClass::Connect => "no connection could be made",
        ErrorClass::Tls => "the TLS handshake or the certificate failed",
        ErrorClass::Timeout => "the attempt's time ran out",
        ErrorClass::Reset => "the connection ended before the reply",
        ErrorClass::Status => "the status was not 2xx",
        ErrorClass::BlockedAddress => "policy forbids the URL or its address",
        ErrorClass::ResponseTooLarge => "the reply's headers were above their bound",
        ErrorClass::Protocol => "the reply was not HTTP",
        ErrorClass::Request => "the request could not be built from the endpoint",
        ErrorClass::Template => "the endpoint's body template fails for the event",
        ErrorClass::Token => "the token server gave no access token",
        ErrorClass::Unroutable => "no queue of the broker gets the message",
        ErrorClass::Broker => "the broker refused the login, the exchange or the message",
    }
}

#[test]
fn reasons_reference_equals_the_closed_lists() {
    let mut out = String::from("# Reasons reference\n\nGenerated from the code's closed lists of words.\n");
    let mut table = |title: &str, rows: Vec<(&str, &str)>| {
        write!(out, "\n## {title}\n\n| word | meaning |\n|---|---|\n").unwrap();
        for (word, meaning) in rows {
            writeln!(out, "| `{word}` | {meaning} |").unwrap();
        }
    };
    table("Reasons of dead letters", DeadReason::ALL.map(|one| (one.as_str(), dead(one))).to_vec());
    table("Reasons why a lane waits", WaitReason::ALL.map(|one| (one.as_str(), waiting(one))).to_vec());
    table("Error classes of attempts", ErrorClass::ALL.map(|one| (one.as_str(), failed(one))).to_vec());
    page("reasons.md", &out);
}

#[test]
fn state_diagram_equals_the_transitions() {
    use DeliveryChange::{Accepted, Attempted, Cancelled, Died, Purged, Revived};
    let named = [
        ("[*]", None),
        ("pending", Some(DeliveryState::Pending)),
        ("delivered", Some(DeliveryState::Delivered)),
        ("dead", Some(DeliveryState::Dead(DeadReason::Gone))),
        ("cancelled", Some(DeliveryState::Cancelled)),
        ("purged", Some(DeliveryState::Purged)),
    ];
    let name = |state| named.iter().find(|(_, known)| *known == state).unwrap().0;
    let retry = Next::RetryAt(Timestamp::ZERO);
    let attempts = [Next::Delivered, retry, Next::Dead(DeadReason::Gone)].map(Attempted);
    let mut changes = vec![Accepted, Cancelled, Died(DeadReason::Gone), Purged];
    changes.extend(attempts.into_iter().chain(Trigger::ALL.map(Revived)));
    let mut arrows = BTreeSet::new();
    for (from, state) in named {
        for change in &changes {
            let to = transition(state, *change);
            arrows.extend(to.map(|to| format!("{from} --> {}", name(Some(to)))));
        }
    }
    let page = fs::read_to_string(root().join("docs/concepts.md")).unwrap();
    let drawn =
        page.lines().filter_map(|line| line.trim().split_once(": ")).map(|(arrow, _)| arrow.to_owned());
    let drawn: BTreeSet<_> = drawn.filter(|arrow| arrow.contains(" --> ")).collect();
    assert_eq!(drawn, arrows);
}

/// Every handwritten page, with its path from the root.
fn pages() -> Vec<(PathBuf, String)> {
    fn below(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                below(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    below(&root().join("docs"), &mut found);
    for name in ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"] {
        found.push(root().join(name));
    }
    found.sort();
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(&path).unwrap())).collect()
}

/// The anchor of a heading.
fn anchor(heading: &str) -> String {
    let kept = |c: char| c.is_alphanumeric() || c == '-' || c == '_' || c == ' ';
    heading.trim().to_lowercase().chars().filter(|c| kept(*c)).collect::<String>().replace(' ', "-")
}

#[test]
fn links_between_pages_are_valid() {
    let mut seen = 0;
    for (path, text) in pages() {
        for target in
            text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
        {
            if target.starts_with("http") || target.contains(['`', ' ']) {
                continue;
            }
            seen += 1;
            let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(file.exists(), "{}: {target} does not exist", path.display());
            if !fragment.is_empty() {
                let linked = fs::read_to_string(&file).unwrap();
                let mut headings = linked.lines().filter(|line| line.starts_with('#'));
                let found = headings.any(|line| anchor(line.trim_start_matches('#')) == fragment);
                assert!(found, "{}: no heading for {target}", path.display());
            }
        }
    }
    assert!(seen > 20, "only {seen} links were found");
}

#[test]
fn readme_is_short_and_pages_keep_their_width() {
    for (path, text) in pages() {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        if name == "README.md" {
            assert!(text.lines().count() <= 150, "README.md has {} lines", text.lines().count());
        }
        // Tables of tests and generated texts are as wide as their rows.
        if text.starts_with(GENERATED) || name == "docs/proof.md" {
            continue;
        }
        // A table row cannot be wrapped.
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with('|')) {
            assert!(line.chars().count() <= 100, "{name}:{}: over 100 columns", number + 1);
        }
    }
}

/// Programs of `examples/verify`, with the interpreter of each.
const VERIFIERS: [(&str, &str, &[&str]); 6] = [
    ("verify.py", "python3", &[]),
    ("verify.mjs", "node", &[]),
    ("verify.go", "go", &["run"]),
    ("verify.rb", "ruby", &[]),
    ("Verify.java", "java", &[]),
    ("verify.php", "php", &[]),
];

#[test]
fn every_snippet_is_part_of_a_program_that_runs() {
    let folder = root().join("examples/verify");
    let mut programs: Vec<_> = VERIFIERS.iter().map(|(name, ..)| *name).collect();
    programs.push("verify.rs");
    let programs: Vec<_> =
        programs.iter().map(|name| fs::read_to_string(folder.join(name)).unwrap()).collect();
    // A contract test runs it.
    let account = fs::read_to_string(root().join("examples/streams/account.py")).unwrap();
    // So does another one with these.
    let petstore = fs::read_dir(root().join("examples/petstore")).unwrap();
    let petstore = petstore.map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
    let programs = [programs, vec![account], petstore.collect()].concat();
    let mut seen = 0;
    for page in ["README.md", "docs/receiving.md", "docs/streams.md", "docs/petstore.md"] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        for snippet in text.split("```").skip(1).step_by(2) {
            let (language, code) = snippet.split_once('\n').unwrap();
            if ["js", "python", "go", "ruby", "java", "php", "rust"].contains(&language) {
                seen += 1;
                assert!(programs.iter().any(|program| program.contains(code)), "{page}: {code}");
            }
        }
    }
    assert!(seen >= 15, "only {seen} snippets were found");
}

/// The reference library signs the body. The end of the secret shows that it is decoded as base64.
#[test]
fn verifiers_accept_a_signed_body_and_refuse_a_changed_one() {
    install();
    let secret = "whsec_wxRESeK8Anx6dxdg2gY7mrQuXLZPoCuy";
    let body = r#"{"type":"order.paid","data":{"note":"grün"}}"#;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let webhook = standardwebhooks::Webhook::new(secret).unwrap();
    let sign = |time: u64| webhook.sign("evt_1", i64::try_from(time).unwrap(), body.as_bytes()).unwrap();
    let both = format!("v1,AAAA {}", sign(now));
    let cases = [
        ("signed", now, sign(now), body, true),
        ("signed twice, as during a rotation", now, both, body, true),
        ("with another body", now, sign(now), r#"{"type":"order.paid","data":{}}"#, false),
        ("signed for another time", now, sign(now - 1), body, false),
        ("ten minutes old", now - 600, sign(now - 600), body, false),
    ];
    let mut ran = 0;
    for (name, interpreter, arguments) in VERIFIERS {
        let installed = root().join("target/judges").join(interpreter);
        let program = if installed.exists() { installed } else { PathBuf::from(interpreter) };
        if !has_program(program.to_str().unwrap()) {
            say(&format!("SKIPPED: {name}: the machine has no {interpreter}"));
            continue;
        }
        ran += 1;
        for (story, time, header, body, good) in &cases {
            let mut command = Command::new(&program);
            command.args(arguments).arg(root().join("examples/verify").join(name));
            command.args([secret, "evt_1", &time.to_string(), header]);
            let (accepted, words) = run(&mut command, body);
            assert_eq!(accepted, *good, "{name}: a body {story}: {words}");
        }
    }
    assert!(ran >= 2, "Python and Node come with the judges");
}
