//! Plain language and sizes of all Rust sources.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::tidy::{root, sources};

/// Directories with Rust sources.
const DIRECTORIES: [&str; 5] = ["src", "tests", "benches", "examples", "fuzz"];

/// Functions that are still longer than [`FUNCTION_LINES_MAX`]. The list must only become shorter.
const LONG_FUNCTIONS: [&str; 3] = [
    "src/lanes/tests/lives.rs: random_lanes_never_wait_while_slots_are_free",
    "src/lanes/tests/lives.rs: random_lane_sends_each_delivery_once_at_a_time",
    "src/metrics.rs: new",
];

/// Words and phrases of convoluted prose.
const BANNED: [&str; 26] = [
    "nobody",
    "anybody",
    "whoever",
    "whatever",
    "anew",
    "in vain",
    "in words",
    "without a word",
    "of its own",
    "of their own",
    "stand",
    "stands",
    "said",
    "seldom",
    "is no",
    "are no",
    "meanwhile",
    "so that nothing",
    "hears",
    "heard",
    "hear of",
    "is told",
    "are told",
    "makes good",
    "befalls",
    "had better",
];

/// Openings of sentences that name a thing by a relative clause.
const OPENINGS: [&str; 9] =
    ["What", "Whoever", "Who", "Whose", "Whichever", "However much", "Those that", "That which", "As so"];

/// Starts of test names that name a thing by a relative clause.
const NAME_STARTS: [&str; 3] = ["what_", "who_", "whoever_"];

const COMMENT_COLUMNS_MAX: usize = 100;
const NAME_MAX: usize = 60;
const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 80;

/// Each Rust file below [`DIRECTORIES`], with its lines.
fn rust_files() -> Vec<(String, Vec<String>)> {
    let mut paths = Vec::new();
    for directory in DIRECTORIES {
        let path = root().join(directory);
        if path.is_dir() { sources(&path, &mut paths) } else { paths.push(path) }
    }
    assert!(paths.len() > 300, "the sources are elsewhere");
    let name = |path: &Path| path.strip_prefix(root()).unwrap().display().to_string();
    let lines = |path: &PathBuf| fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect();
    paths.iter().map(|path| (name(path), lines(path))).collect()
}

/// Fails with a line for each offence that `check` finds in a line.
fn check_lines(check: impl Fn(&str) -> Option<String>) {
    let mut offences = Vec::new();
    for (name, lines) in rust_files() {
        for (number, line) in lines.iter().enumerate() {
            offences.extend(check(line).map(|offence| format!("{name}:{}: {offence}", number + 1)));
        }
    }
    assert!(offences.is_empty(), "{} offences\n{}", offences.len(), offences.join("\n"));
}

/// The text of a line that is a comment.
fn comment(line: &str) -> Option<&str> {
    let text = line.trim_start().strip_prefix("//")?;
    Some(text.trim_start_matches(['/', '!']).trim())
}

fn banned_word(text: &str) -> Option<&'static str> {
    let words: String =
        text.chars().map(|c| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { ' ' }).collect();
    let words = format!(" {} ", words.split_whitespace().collect::<Vec<_>>().join(" "));
    BANNED.into_iter().find(|phrase| words.contains(&format!(" {phrase} ")))
}

fn banned_opening(text: &str) -> Option<&'static str> {
    if text.ends_with('?') {
        return None;
    }
    let mut sentences = text.split(". ").flat_map(|part| part.split("! ")).flat_map(|part| part.split("? "));
    let opens = |sentence: &str, opening: &str| {
        let rest = sentence.strip_prefix(opening);
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
    };
    sentences.find_map(|sentence| OPENINGS.into_iter().find(|opening| opens(sentence, opening)))
}

/// The name of the function that begins in this line.
fn function(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    while let Some(after) = ["pub(crate) ", "pub(super) ", "pub ", "const ", "async ", "unsafe "]
        .into_iter()
        .find_map(|qualifier| rest.strip_prefix(qualifier))
    {
        rest = after;
    }
    rest.strip_prefix("fn ")?.split(['(', '<']).next()
}

/// The name of the type that this line declares as public.
fn public_type(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) "))?;
    let kinds = ["struct ", "enum ", "trait ", "type "];
    let rest = kinds.into_iter().find_map(|kind| rest.strip_prefix(kind))?;
    rest.split(|c: char| !c.is_alphanumeric()).next()
}

#[test]
fn comments_are_in_plain_language() {
    check_lines(|line| {
        let text = comment(line)?;
        let word = banned_word(text).map(|word| format!("word `{word}`: {text}"));
        word.or_else(|| banned_opening(text).map(|opening| format!("opening `{opening}`: {text}")))
    });
}

#[test]
fn comments_have_at_most_100_columns() {
    check_lines(|line| {
        let text = comment(line)?;
        let is_free = text.starts_with('|') || text.contains("http");
        (line.chars().count() > COMMENT_COLUMNS_MAX && !is_free).then(|| text.to_owned())
    });
}

#[test]
fn function_names_are_short_and_name_their_subject() {
    check_lines(|line| {
        let name = function(line)?;
        let is_riddle = NAME_STARTS.iter().any(|start| name.starts_with(start));
        (name.len() > NAME_MAX || is_riddle).then(|| format!("{} characters: {name}", name.len()))
    });
}

/// Only types of `src`: each test binary is a crate. The lanes and the outbox both have outcomes.
#[test]
fn public_type_names_are_unique_in_the_crate() {
    let mut places = BTreeMap::<String, Vec<String>>::new();
    for (file, lines) in rust_files().iter().filter(|(file, _)| file.starts_with("src/")) {
        for name in lines.iter().filter_map(|line| public_type(line)) {
            places.entry(name.to_owned()).or_default().push(file.clone());
        }
    }
    places.retain(|_, files| files.len() > 1);
    assert!(places.is_empty(), "{places:#?}");
}

#[test]
fn files_have_at_most_600_lines() {
    let files = rust_files().into_iter().map(|(name, lines)| (name, lines.len()));
    let long: Vec<_> = files.filter(|(_, lines)| *lines > FILE_LINES_MAX).collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn functions_have_at_most_80_lines() {
    let mut long = Vec::new();
    for (file, lines) in rust_files() {
        for (start, line) in lines.iter().enumerate() {
            // A declaration without a body ends with a semicolon.
            let Some(name) = function(line).filter(|_| !line.ends_with(['}', ';'])) else { continue };
            let indent: String = line.chars().take_while(|c| *c == ' ').collect();
            let ends = |line: &String| {
                let line = line.strip_prefix(&indent).unwrap_or_default();
                line == "}" || line == "};" || (line.starts_with(')') && line.ends_with(';'))
            };
            let length = lines[start..].iter().take_while(|line| !ends(line)).count() + 1;
            if length > FUNCTION_LINES_MAX {
                long.push(format!("{file}: {name}"));
            }
        }
    }
    assert_eq!(long, LONG_FUNCTIONS);
}

#[test]
fn checks_find_each_kind_of_offence() {
    assert_eq!(comment("    /// A text. "), Some("A text."));
    assert_eq!(comment("let x = 1; // a text"), None);
    assert_eq!(banned_word("It is told twice."), Some("is told"));
    assert_eq!(banned_word("Standard texts, understanding."), None);
    assert_eq!(banned_opening("A text. What was sent."), Some("What"));
    assert_eq!(banned_opening("Whether it was sent."), None);
    assert_eq!(banned_opening("What was sent?"), None);
    assert_eq!(function("    pub(crate) async fn name<T>(x: T) {"), Some("name"));
    assert_eq!(public_type("pub struct Name<T>(T);"), Some("Name"));
}
