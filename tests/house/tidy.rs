//! Rules of the source tree that no compiler checks: layers, clocks, documentation, lint
//! exceptions.

use std::fs;
use std::path::{Path, PathBuf};

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all() -> Vec<(String, String)> {
    let mut found = Vec::new();
    sources(&root().join("src"), &mut found);
    assert!(found.len() > 40, "the sources are elsewhere");
    let name = |path: &Path| path.strip_prefix(root().join("src")).unwrap().display().to_string();
    found.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

/// A module's tests, in a file or in a directory beside it; the conformance suite of the outbox.
fn is_test(name: &str) -> bool {
    name.ends_with("tests.rs") || name.contains("/tests/") || name.contains("/conformance/")
}

#[test]
fn every_file_opens_with_a_module_comment() {
    for (name, text) in all() {
        assert!(text.starts_with("//!"), "src/{name} does not open with //!");
    }
}

/// Callers name what they know about their data, so that several outboxes can follow.
#[test]
fn outbox_is_reached_by_the_home_of_the_data() {
    let with_field: Vec<_> =
        all().into_iter().filter(|(_, text)| text.contains("shared.outbox")).map(|(name, _)| name).collect();
    assert_eq!(with_field, ["context/home.rs"]);
    for (name, text) in all() {
        assert!(!text.contains(".outbox()"), "src/{name} reaches an outbox without a home");
    }
}

/// A layer and its permitted imports.
const LAYERS: [(&str, &[&str]); 27] = [
    ("limits", &[]),
    ("nearest", &[]),
    ("panics", &[]),
    ("quantity", &[]),
    ("codec", &[]),
    ("unique_json", &[]),
    ("domain", &["limits"]),
    ("projections", &["limits", "codec", "domain"]),
    ("rules", &["limits", "codec", "domain", "projections"]),
    ("lanes", &["limits", "domain"]),
    ("schemas", &["limits", "domain", "unique_json"]),
    ("templates", &["limits", "domain"]),
    ("filters", &["limits", "domain"]),
    ("vault", &["domain"]),
    ("metrics", &["domain", "lanes"]),
    ("config", &["limits", "nearest", "domain", "rules"]),
    ("storage", &["limits", "panics", "codec", "domain", "projections"]),
    (
        "outbox",
        &["limits", "panics", "codec", "domain", "filters", "projections", "rules", "schemas", "storage"],
    ),
    ("maintenance", &["limits", "panics", "domain", "filters", "projections", "outbox", "storage"]),
    ("courier", &["limits", "panics", "domain"]),
    (
        "context",
        &[
            "limits",
            "panics",
            "domain",
            "rules",
            "lanes",
            "projections",
            "metrics",
            "storage",
            "outbox",
            "courier",
            "templates",
            "vault",
        ],
    ),
    (
        "service",
        &[
            "limits",
            "domain",
            "filters",
            "rules",
            "lanes",
            "projections",
            "schemas",
            "storage",
            "outbox",
            "maintenance",
            "courier",
            "templates",
            "vault",
            "context",
        ],
    ),
    (
        "delivery",
        &[
            "limits",
            "panics",
            "domain",
            "rules",
            "lanes",
            "projections",
            "metrics",
            "outbox",
            "maintenance",
            "courier",
            "vault",
            "context",
            "service",
        ],
    ),
    ("sources", &["limits", "panics", "domain", "outbox", "courier", "context", "service"]),
    (
        "api",
        &["limits", "nearest", "panics", "unique_json", "domain", "filters", "rules", "context", "service"],
    ),
    (
        "daemon",
        &[
            "limits",
            "panics",
            "quantity",
            "domain",
            "rules",
            "context",
            "service",
            "delivery",
            "sources",
            "api",
            "config",
            "metrics",
            "storage",
            "outbox",
            "maintenance",
            "courier",
            "vault",
        ],
    ),
    ("cli", &["limits", "nearest", "quantity", "domain", "rules", "config", "courier", "daemon"]),
];

#[test]
fn imports_point_down_only() {
    for (name, text) in all().into_iter().filter(|(name, _)| !is_test(name)) {
        let layer = name.split(['/', '.']).next().unwrap();
        let Some((_, allowed)) = LAYERS.iter().find(|(known, _)| *known == layer) else { continue };
        for (number, line) in text.lines().enumerate() {
            for rest in line.split("crate::").skip(1) {
                let used: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                let known = LAYERS.iter().any(|(known, _)| *known == used);
                let legal = !known
                    || used == layer
                    || allowed.contains(&used.as_str())
                    || line.trim().starts_with("//");
                assert!(legal, "src/{name}:{} imports {used}", number + 1);
            }
        }
    }
}

#[test]
fn clocks_and_randomness_are_read_at_the_edges_only() {
    for (name, text) in all().into_iter().filter(|(name, _)| !is_test(name)) {
        let layer = name.split(['/', '.']).next().unwrap();
        let pure = ["limits", "codec", "domain", "rules", "lanes", "projections"].contains(&layer);
        let code = text.split("#[cfg(test)]").next().unwrap();
        let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for forbidden in ["SystemTime::now", "Instant::now", "getrandom", "async fn", "std::fs", "serde"] {
            assert!(!pure || !code.contains(forbidden), "src/{name} uses {forbidden}");
        }
    }
}

#[test]
fn sled_is_opened_and_written_in_one_file() {
    for (name, text) in all() {
        for forbidden in ["sled::Config", "sled::Db", "sled::Batch", "sled::Tree", "sled::open"] {
            let contained = name.starts_with("storage/state/row_store") || !text.contains(forbidden);
            assert!(contained, "src/{name} uses {forbidden}");
        }
    }
}

#[test]
fn every_metric_is_documented() {
    let page = fs::read_to_string(root().join("docs/reference/metrics.md")).unwrap();
    let source = fs::read_to_string(root().join("src/metrics.rs")).unwrap();
    let names: Vec<_> = source.split('"').filter(|text| text.starts_with("balto_")).collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        assert!(page.contains(name), "docs/reference/metrics.md does not mention {name}");
    }
}

#[test]
fn lint_exceptions_have_a_reason() {
    for (name, text) in all() {
        for (number, line) in text.lines().enumerate() {
            let bare = line.trim_start().starts_with("#[allow(") && !line.contains("reason");
            assert!(!bare, "src/{name}:{}: {line}", number + 1);
        }
    }
}

#[test]
fn every_injected_bug_has_a_test_and_a_row() {
    let failpoints = fs::read_to_string(root().join("src/failpoints.rs")).unwrap();
    let listed = failpoints.split("enum Mutation {").nth(1).unwrap().split("\n}").next().unwrap();
    let bugs: Vec<_> = listed.lines().filter_map(|line| line.trim().strip_suffix(',')).collect();
    assert!(bugs.len() >= 10, "{bugs:?}");
    let (tests, code): (Vec<_>, Vec<_>) = all().into_iter().partition(|(name, _)| is_test(name));
    for bug in &bugs {
        let named = |files: &[(String, String)], ends: &[&str]| {
            let names: Vec<_> = ends.iter().map(|end| format!("Mutation::{bug}{end}")).collect();
            files.iter().any(|(_, text)| names.iter().any(|name| text.contains(name)))
        };
        assert!(named(&code, &[")"]), "{bug} is not in the code");
        assert!(named(&tests, &[")", ","]), "no test names {bug}");
    }
    let proof = fs::read_to_string(root().join("docs/proof.md")).unwrap();
    let table = proof.split("| bug | caught by |").nth(1).unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|')).count();
    assert_eq!(rows, bugs.len(), "docs/proof.md lists another number of bugs");
}

/// The modules below a directory: path and text.
fn modules(directory: &str) -> Vec<(String, String)> {
    let (below, mut files) = (root().join(directory), Vec::new());
    sources(&below, &mut files);
    let module = |file: PathBuf| {
        let path = file.strip_prefix(&below).unwrap().with_extension("").display().to_string();
        (path.trim_end_matches("/mod").replace('/', "::"), fs::read_to_string(&file).unwrap())
    };
    files.into_iter().map(module).collect()
}

/// The paths of all functions below `tests/`, as `binary::module::function`.
fn paths_of_tests() -> Vec<String> {
    let mut paths = Vec::new();
    for (module, text) in modules("tests") {
        let functions = text.split("\nfn ").chain(text.split("\nasync fn ")).skip(1);
        paths.extend(functions.filter_map(|rest| Some(format!("{module}::{}", rest.split_once('(')?.0))));
    }
    paths
}

/// Pages that name tests as evidence.
const EVIDENCE: [&str; 3] =
    ["docs/proof.md", "docs/internals/hostile-receivers.md", "docs/internals/egress-attacks.md"];

/// The names are `module::test` and `cargo test --test binary filter`.
#[test]
fn tests_named_in_the_proof_exist() {
    let proof: String = EVIDENCE.iter().map(|page| fs::read_to_string(root().join(page)).unwrap()).collect();
    let paths = paths_of_tests();
    let mut seen = 0;
    for text in proof.split('`').skip(1).step_by(2) {
        let words: Vec<_> = text.split(' ').skip_while(|word| *word != "--test").skip(1).collect();
        let found = match (text.split_once("::"), words.as_slice()) {
            (_, [binary, filter @ ..]) => {
                let filter = filter.first().filter(|filter| !filter.starts_with('-')).unwrap_or(&"");
                let within = paths.iter().filter_map(|path| path.strip_prefix(&format!("{binary}::")));
                within.filter(|path| path.contains(filter)).count() > 0
            }
            (Some((module, _)), []) => {
                let is_in = |path: &&String| format!("::{path}").contains(&format!("::{module}::"));
                let mut module = paths.iter().filter(is_in).peekable();
                // Other names are modules of the crate.
                if module.peek().is_none() {
                    continue;
                }
                module.any(|path| format!("::{path}").contains(&format!("::{text}")))
            }
            _ => continue,
        };
        seen += 1;
        assert!(found, "{EVIDENCE:?} name the unknown {text}");
    }
    assert!(seen > 20, "{EVIDENCE:?} name only {seen} tests");
}

/// The paths of all tests of the library, as `module::test`. A test in the `mod tests` of a file
/// has `tests` in its path.
fn library_tests() -> Vec<String> {
    let mut paths = Vec::new();
    for (module, text) in modules("src") {
        let (mut inner, mut is_test) = ("", false);
        for line in text.lines() {
            if line.starts_with("mod tests {") {
                inner = "::tests";
            }
            is_test |= ["#[test]", "#[tokio::test"].iter().any(|start| line.trim_start().starts_with(start));
            let name = line.trim_start().trim_start_matches("async ").strip_prefix("fn ");
            if let Some(name) = name.filter(|_| is_test) {
                paths.push(format!("{module}{inner}::{}", name.split('(').next().unwrap()));
                is_test = false;
            }
        }
    }
    paths
}

#[test]
fn filters_of_library_tests_in_the_docs_match_a_test() {
    let mut pages = vec![root().join("CONTRIBUTING.md")];
    for directory in ["docs", "docs/internals"] {
        pages.extend(fs::read_dir(root().join(directory)).unwrap().map(|entry| entry.unwrap().path()));
    }
    let tests = library_tests();
    let mut seen = 0;
    for page in pages.iter().filter(|page| page.extension().is_some_and(|extension| extension == "md")) {
        let text = fs::read_to_string(page).unwrap();
        for command in text.split("cargo test --lib").skip(1) {
            let words = command.split(['`', '\n', '|']).next().unwrap().split(' ');
            for filter in words.filter(|word| !word.is_empty() && !word.starts_with('-')) {
                seen += 1;
                let found = tests.iter().any(|test| test.contains(filter));
                assert!(found, "{}: no library test matches {filter}", page.display());
            }
        }
    }
    assert!(seen > 30, "the docs name only {seen} filters");
}

/// Each binary links the whole crate: a minute and a hundred megabytes.
#[test]
fn integration_tests_are_few_binaries() {
    let below = root().join("tests");
    let mut entries = Vec::new();
    for entry in fs::read_dir(below).unwrap().map(|entry| entry.unwrap().path()) {
        let is_file = entry.extension().is_some_and(|extension| extension == "rs");
        assert!(!is_file, "{} is another binary: move it into a directory", entry.display());
        entries.extend(entry.join("main.rs").is_file().then_some(entry));
    }
    assert!((1..=6).contains(&entries.len()), "{entries:?}");
}
