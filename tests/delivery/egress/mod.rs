//! The attack table, row by row: what may be saved, what may be sent to, and what an operator reads about it.
//!
//! Each row of tables A to G has its id in the name of a test or of a case, with its expected outcome beside it. [`ROWS`]
//! names them all; a row, or a part of one, that is not tested says why there. Rows of table F (replies) are in
//! `receivers`.

mod abuse;
mod addresses;
mod certificates;
mod connections;
mod dns;
mod headers;
mod names;
mod random;
mod reuse;
mod tls;
mod world;

use crate::support::say;

/// Where a row stands.
enum Row {
    Tested,
    /// Tested, but for a part of it, for this reason.
    But(&'static str),
}

const ROWS: &[(&str, Row)] = &[
    ("A1", Row::Tested),
    ("A2", Row::Tested),
    ("A3", Row::Tested),
    ("A4", Row::Tested),
    ("A5", Row::Tested),
    ("A6", Row::Tested),
    ("A7", Row::Tested),
    ("A8", Row::Tested),
    ("A9", Row::Tested),
    ("A10", Row::Tested),
    ("A11", Row::Tested),
    ("A12", Row::Tested),
    ("A13", Row::Tested),
    ("A14", Row::Tested),
    ("A15", Row::Tested),
    ("A16", Row::Tested),
    ("A17", Row::Tested),
    ("A18", Row::Tested),
    ("A19", Row::Tested),
    ("B1", Row::Tested),
    (
        "B2",
        Row::But(
            "nothing is sent to strangers: that they may be sent to is seen at a proxy, which is asked for them",
        ),
    ),
    ("B3", Row::Tested),
    ("B4", Row::Tested),
    ("B5", Row::Tested),
    ("B6", Row::Tested),
    ("B7", Row::Tested),
    ("B8", Row::Tested),
    ("B9", Row::Tested),
    ("B10", Row::Tested),
    ("B11", Row::Tested),
    ("B12", Row::Tested),
    ("B13", Row::Tested),
    ("B14", Row::Tested),
    ("B15", Row::Tested),
    ("B16", Row::Tested),
    ("B17", Row::Tested),
    ("B18", Row::Tested),
    ("B19", Row::Tested),
    ("C1", Row::Tested),
    (
        "C2",
        Row::But(
            "those public names may change what they say: a name server under test says what they say today",
        ),
    ),
    ("C3", Row::Tested),
    ("C4", Row::Tested),
    ("C5", Row::Tested),
    ("C6", Row::Tested),
    ("C7", Row::Tested),
    ("C8", Row::Tested),
    ("C9", Row::Tested),
    ("C10", Row::Tested),
    ("C11", Row::Tested),
    (
        "D1",
        Row::But(
            "revocation is not looked up (src/courier/tls.rs says why), so a revoked intermediate is accepted",
        ),
    ),
    ("D2", Row::Tested),
    ("D3", Row::Tested),
    ("D4", Row::Tested),
    ("D5", Row::Tested),
    ("D6", Row::Tested),
    ("D7", Row::Tested),
    ("D8", Row::Tested),
    ("D9", Row::Tested),
    ("E1", Row::Tested),
    ("E2", Row::Tested),
    ("E3", Row::Tested),
    ("E4", Row::Tested),
    ("E5", Row::Tested),
    ("E6", Row::Tested),
    ("E7", Row::Tested),
    ("G1", Row::Tested),
    ("G2", Row::Tested),
    ("G3", Row::Tested),
    (
        "G4",
        Row::But("no time is asserted: the others are delivered while the slow ones have no answer at all"),
    ),
    ("G5", Row::But("creations are not rate limited: they are an administrator's; what they send is")),
    ("G6", Row::Tested),
];

/// The rows that stand before a test's name: `d1_d3_certificates_..` is of D1 and D3.
fn rows_of_tests(source: &str) -> impl Iterator<Item = String> {
    let names = source.split("async fn ").skip(1);
    names.flat_map(|name| {
        let is_row = |part: &&str| {
            part.len() > 1
                && part.starts_with(|c: char| c.is_ascii_lowercase())
                && part[1..].parse::<u8>().is_ok()
        };
        name.split('_').take_while(is_row).map(str::to_ascii_uppercase)
    })
}

/// Every row is the name of a case, or stands before the name of a test.
#[test]
fn every_row_of_the_tables_has_its_test() {
    let sources = [
        include_str!("abuse.rs"),
        include_str!("addresses.rs"),
        include_str!("connections.rs"),
        include_str!("headers.rs"),
        include_str!("names.rs"),
    ];
    let mut parts = 0;
    for (row, standing) in ROWS {
        let case = format!("(\"{row}\", ");
        let is_named = |source: &&str| {
            let without_breaks: String =
                source.split_whitespace().collect::<Vec<_>>().join(" ").replace("( ", "(");
            without_breaks.contains(&case) || rows_of_tests(source).any(|named| named == *row)
        };
        let found = sources.iter().any(is_named);
        assert!(found, "no case and no test is named {row}");
        if let Row::But(why) = standing {
            parts += 1;
            say(&format!("{row}: in part. {why}"));
        }
    }
    let count = |table: &str| ROWS.iter().filter(|(row, _)| row.starts_with(table)).count();
    assert_eq!(["A", "B", "C", "D", "E", "G"].map(count), [19, 19, 11, 9, 7, 6], "rows by table");
    say(&format!("{} rows, {parts} of them in part", ROWS.len()));
}
