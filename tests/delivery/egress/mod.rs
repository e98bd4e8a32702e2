//! The attack table, row by row: which URLs can be saved, which addresses are connected to, and
//! which errors an operator reads.
//!
//! Each row of tables A to G has its id in the name of a test or of a case, with the expected
//! result. [`ROWS`] lists them all; a row that is tested only in part gives the reason there. Rows
//! of table F (replies) are in `receivers`.

mod abuse;
mod addresses;
mod certificates;
mod connections;
mod dns;
mod fixture;
mod headers;
mod names;
mod proxies;
mod random;
mod reuse;
mod tls;

use crate::support::say;

/// Test coverage of a row.
enum Coverage {
    Tested,
    /// Tested except for a part, with the reason.
    Partial(&'static str),
}

const ROWS: &[(&str, Coverage)] = &[
    ("A1", Coverage::Tested),
    ("A2", Coverage::Tested),
    ("A3", Coverage::Tested),
    ("A4", Coverage::Tested),
    ("A5", Coverage::Tested),
    ("A6", Coverage::Tested),
    ("A7", Coverage::Tested),
    ("A8", Coverage::Tested),
    ("A9", Coverage::Tested),
    ("A10", Coverage::Tested),
    ("A11", Coverage::Tested),
    ("A12", Coverage::Tested),
    ("A13", Coverage::Tested),
    ("A14", Coverage::Tested),
    ("A15", Coverage::Tested),
    ("A16", Coverage::Tested),
    ("A17", Coverage::Tested),
    ("A18", Coverage::Tested),
    ("A19", Coverage::Tested),
    ("B1", Coverage::Tested),
    ("B2", Coverage::Partial("no test contacts public hosts: a test proxy records the connections instead")),
    ("B3", Coverage::Tested),
    ("B4", Coverage::Tested),
    ("B5", Coverage::Tested),
    ("B6", Coverage::Tested),
    ("B7", Coverage::Tested),
    ("B8", Coverage::Tested),
    ("B9", Coverage::Tested),
    ("B10", Coverage::Tested),
    ("B11", Coverage::Tested),
    ("B12", Coverage::Tested),
    ("B13", Coverage::Tested),
    ("B14", Coverage::Tested),
    ("B15", Coverage::Tested),
    ("B16", Coverage::Tested),
    ("B17", Coverage::Tested),
    ("B18", Coverage::Tested),
    ("B19", Coverage::Tested),
    ("C1", Coverage::Tested),
    ("C2", Coverage::Partial("the public names may change: a test name server has their current answers")),
    ("C3", Coverage::Tested),
    ("C4", Coverage::Tested),
    ("C5", Coverage::Tested),
    ("C6", Coverage::Tested),
    ("C7", Coverage::Tested),
    ("C8", Coverage::Tested),
    ("C9", Coverage::Tested),
    ("C10", Coverage::Tested),
    ("C11", Coverage::Tested),
    (
        "D1",
        Coverage::Partial(
            "revocation is not checked (reason in src/courier/tls.rs), so a revoked intermediate is accepted",
        ),
    ),
    ("D2", Coverage::Tested),
    ("D3", Coverage::Tested),
    ("D4", Coverage::Tested),
    ("D5", Coverage::Tested),
    ("D6", Coverage::Tested),
    ("D7", Coverage::Tested),
    ("D8", Coverage::Tested),
    ("D9", Coverage::Tested),
    ("E1", Coverage::Tested),
    ("E2", Coverage::Tested),
    ("E3", Coverage::Tested),
    ("E4", Coverage::Tested),
    ("E5", Coverage::Tested),
    ("E6", Coverage::Tested),
    ("E7", Coverage::Tested),
    ("G1", Coverage::Tested),
    ("G2", Coverage::Tested),
    ("G3", Coverage::Tested),
    (
        "G4",
        Coverage::Partial(
            "no times are asserted: the other receivers get their events while the slow ones answer nothing",
        ),
    ),
    (
        "G5",
        Coverage::Partial("only admins create endpoints, without a rate limit; their test sends are limited"),
    ),
    ("G6", Coverage::Tested),
];

/// The rows in the prefix of a test's name: `d1_d3_certificates_..` covers D1 and D3.
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

/// Every row is the name of a case or the prefix of a test's name.
#[test]
fn every_row_of_the_tables_has_a_test() {
    let sources = [
        include_str!("abuse.rs"),
        include_str!("addresses.rs"),
        include_str!("connections.rs"),
        include_str!("headers.rs"),
        include_str!("names.rs"),
        include_str!("proxies.rs"),
    ];
    let mut parts = 0;
    for (row, coverage) in ROWS {
        let case = format!("(\"{row}\", ");
        let is_named = |source: &&str| {
            let without_breaks: String =
                source.split_whitespace().collect::<Vec<_>>().join(" ").replace("( ", "(");
            without_breaks.contains(&case) || rows_of_tests(source).any(|named| named == *row)
        };
        let found = sources.iter().any(is_named);
        assert!(found, "row {row} has no case and no test");
        if let Coverage::Partial(why) = coverage {
            parts += 1;
            say(&format!("{row}: partial: {why}"));
        }
    }
    let count = |table: &str| ROWS.iter().filter(|(row, _)| row.starts_with(table)).count();
    assert_eq!(["A", "B", "C", "D", "E", "G"].map(count), [19, 19, 11, 9, 7, 6], "rows by table");
    say(&format!("{} rows, {parts} of them tested in part", ROWS.len()));
}
