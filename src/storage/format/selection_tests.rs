//! Golden bytes of labels and filters.

use super::{decode, encode};
use crate::domain::{Endpoint, Event, EventSelection, Record};
use crate::rules::tests::{endpoint, event};

pub(super) fn sample_selection() -> EventSelection {
    let filter = Some(r#"{"data":{"a":1}}"#.into());
    EventSelection { filter, labels: vec!["eu".parse().unwrap(), "us".parse().unwrap()] }
}

pub(super) fn labelled_event(event: Event) -> Event {
    Event { labels: sample_selection().labels, ..event }
}

fn hex(record: &Record) -> String {
    let mut bytes = Vec::new();
    encode(record, &mut bytes);
    assert_eq!(decode(&bytes).as_ref(), Ok(record));
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As in `golden.txt`: these bytes never change.
#[test]
fn golden_bytes_of_labels_and_a_filter() {
    let plain = hex(&Record::EventAccepted(event().into()));
    let labelled = hex(&Record::EventAccepted(labelled_event(event()).into()));
    assert_eq!(labelled, format!("0103{}0202657502{}", &plain[4..], "7573"));
    let selective = Endpoint { selection: sample_selection(), ..endpoint(1, "a", &[]) };
    let filter = "1611107b2264617461223a7b2261223a317d7d";
    let golden = format!("02{filter}1707020265750275{}", "73");
    let bytes = hex(&Record::EndpointPut(selective.into()));
    assert!(bytes.ends_with(&golden), "{bytes}");
    // A layout without labels has none, and a layout with labels has one or more.
    let none = format!("0103{}00", &plain[4..]);
    let bytes: Vec<u8> =
        (0..none.len()).step_by(2).map(|at| u8::from_str_radix(&none[at..at + 2], 16).unwrap()).collect();
    assert!(decode(&bytes).is_err());
}
