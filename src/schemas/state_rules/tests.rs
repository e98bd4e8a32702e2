//! Tests of state rules.

use json_patch::Patch;
use serde_json::json;

use super::*;

const EVENT: StateEvent<'_> = StateEvent {
    event_type: "pet.adopted",
    version: "2.0",
    timestamp: "2026-01-01T00:00:00.000Z",
    stream_version: 3,
};

fn rules(operations: &Value) -> StateRules {
    StateRules::parse(&operations.to_string()).unwrap()
}

fn apply(operations: &Value, state: &mut StreamState, data: Value) -> Result<(), String> {
    rules(operations).apply(state, data, &EVENT)
}

/// The size that is kept is that of the value.
fn assert_sized(state: &StreamState) {
    assert_eq!(state.size, measure(&state.value).size, "{}", state.value);
    assert!(state.size.bytes >= state.value.to_string().len(), "{}", state.value);
}

#[test]
fn only_places_of_the_state_are_written() {
    for (operation, members) in [
        (json!({"op": "add", "path": "/state", "value": 1}), &[][..]),
        (json!({"op": "add", "path": "/state/a", "value": 1}), &[]),
        (json!({"op": "add", "path": "", "value": 1}), &["path"]),
        (json!({"op": "add", "path": "/", "value": 1}), &["path"]),
        (json!({"op": "add", "path": "/states", "value": 1}), &["path"]),
        (json!({"op": "add", "path": "/data/state", "value": 1}), &["path"]),
        (json!({"op": "replace", "path": "/event/type", "value": 1}), &["path"]),
        (json!({"op": "replace", "path": "/state/data", "value": 1}), &[]),
        (json!({"op": "remove", "path": "/data"}), &["path"]),
        (json!({"op": "remove", "path": "/state"}), &[]),
        (json!({"op": "copy", "from": "/data", "path": "/state"}), &[]),
        (json!({"op": "copy", "from": "", "path": "/state/all"}), &[]),
        (json!({"op": "copy", "from": "/state", "path": "/data"}), &["path"]),
        (json!({"op": "move", "from": "/data", "path": "/state/a"}), &["from"]),
        (json!({"op": "move", "from": "/state/a", "path": "/data"}), &["path"]),
        (json!({"op": "move", "from": "", "path": ""}), &["path", "from"]),
        (json!({"op": "move", "from": "/state/a", "path": "/state/b"}), &[]),
        (json!({"op": "test", "path": "/data/a", "value": 1}), &[]),
        (json!({"op": "test", "path": "", "value": 1}), &[]),
        (json!({"op": "add", "path": "/elsewhere", "value": 1, "optional": true}), &["path"]),
    ] {
        let fine = json!({"op": "test", "path": "/state", "value": null});
        let found = StateRules::parse(&json!([fine, operation]).to_string()).err().unwrap_or_default();
        let found: Vec<_> = found.into_iter().map(|violation| violation.pointer).collect();
        let expected: Vec<_> = members.iter().map(|member| format!("/1/{member}")).collect();
        assert_eq!(found, expected, "{operation}");
    }
}

#[test]
fn malformed_and_large_rules_are_rejected() {
    let one = json!({"op": "remove", "path": "/state/a"});
    let large = json!([{"op": "add", "path": "/state", "value": "x".repeat(limits::STATE_RULES_BYTES_MAX)}]);
    for (rules, pointer) in [
        (json!({}), ""),
        (json!(vec![one.clone(); limits::PATCH_OPERATIONS_MAX + 1]), ""),
        (large, ""),
        (json!([one, {"op": "jump", "path": "/state"}]), "/1"),
        (json!([{"op": "remove", "path": "/state", "optional": 1}]), "/0/optional"),
    ] {
        let found = StateRules::parse(&rules.to_string()).unwrap_err();
        assert_eq!((found.len(), found[0].pointer.as_str()), (1, pointer), "{found:?}");
    }
}

#[test]
fn rules_see_the_event_and_its_data() {
    let mut state = StreamState::default();
    let copies = json!([
        {"op": "copy", "from": "/event", "path": "/state"},
        {"op": "copy", "from": "/data/a~1b", "path": "/state/c~0d"},
        {"op": "remove", "path": "/state/none", "optional": true},
    ]);
    apply(&copies, &mut state, json!({"a/b": 1})).unwrap();
    let expected = json!({"type": "pet.adopted", "version": "2.0", "timestamp": "2026-01-01T00:00:00.000Z",
        "streamVersion": 3, "c~d": 1});
    assert_eq!(*state.value(), expected);
    assert_sized(&state);
    apply(&json!([{"op": "remove", "path": "/state"}]), &mut state, Value::Null).unwrap();
    assert_eq!(state, StreamState::default());
}

#[test]
fn sizes_are_at_least_those_of_the_json() {
    for value in [
        json!([0, 9, 10, u64::MAX, i64::MIN, -1, 0.1, -1.234_567_890_123_456_7e-308, 1e300]),
        json!({"a\u{0}\"\\\n": [[], {}, null, true, false, "\u{1f}é"]}),
    ] {
        assert_sized(&StreamState::new(value));
    }
    assert_eq!(measure(&json!([-10, 7])).size, Size { bytes: 2 + 3 + 1 + 1 + 1, values: 3 });
}

#[test]
fn failing_rules_leave_the_state_as_it_was() {
    let whole = json!({"z": 1, "list": [1, 2, {"a": 1}], "a": {"b": [3]}, "m": "text"});
    let fails = json!({"op": "test", "path": "/state/m", "value": "other"});
    for writes in [
        json!([{"op": "remove", "path": "/state/z"}, {"op": "remove", "path": "/state/list/0"}]),
        json!([{"op": "move", "from": "/state/list/2", "path": "/state/list/0"}, {"op": "remove", "path": "/state/list/0/a"}]),
        json!([{"op": "add", "path": "/state/list/-", "value": 9}, {"op": "replace", "path": "/state/list", "value": 0}]),
        json!([{"op": "move", "from": "/state/a/b", "path": "/state/z"}, {"op": "add", "path": "/state/new", "value": []}]),
        json!([{"op": "copy", "from": "/data", "path": "/state"}, {"op": "add", "path": "/state/x", "value": 1}]),
        json!([{"op": "remove", "path": "/state"}, {"op": "add", "path": "/state", "value": 1}]),
        json!([{"op": "move", "from": "/state/a", "path": "/state/none/a"}]),
    ] {
        let mut writes = writes.as_array().unwrap().clone();
        writes.push(fails.clone());
        let mut state = StreamState::new(whole.clone());
        assert!(apply(&json!(writes), &mut state, json!({})).is_err(), "{writes:?}");
        // The order of members is the same, too.
        assert_eq!(state.value().to_string(), whole.to_string(), "{writes:?}");
        assert_sized(&state);
    }
}

#[test]
fn growth_by_copies_is_bounded() {
    let copy = |from: &str, path: &str| json!({"op": "copy", "from": from, "path": path});
    // Each operation doubles the state.
    let doubling: Vec<_> = (0..50).map(|number| copy("/state", &format!("/state/{number}"))).collect();
    let mut state = StreamState::new(json!({"text": "x".repeat(1_000)}));
    let before = state.clone();
    let error = apply(&json!(doubling), &mut state, Value::Null).unwrap_err();
    assert!(error.contains("1048576 bytes"), "{error}");
    assert_eq!(state, before);
    // The state stays small, and the work does not.
    let again = vec![copy("/data", "/state"); limits::PATCH_OPERATIONS_MAX];
    let error = apply(&json!(again), &mut state, json!("x".repeat(500_000))).unwrap_err();
    assert!(error.contains("for one event"), "{error}");
    // Each event adds a level.
    let deeper = rules(&json!([copy("/state", "/state/in")]));
    let events = (0..1_000).take_while(|_| deeper.apply(&mut state, Value::Null, &EVENT).is_ok()).count();
    assert!((50..limits::STATE_DEPTH_MAX).contains(&events), "{events}");
    assert_sized(&state);
    assert!(crate::schemas::json::read(state.value().to_string().as_bytes()).is_ok());
    // Many small values.
    let many = json!(vec![0; limits::STATE_VALUES_MAX]);
    assert!(apply(&json!([copy("/data", "/state")]), &mut state, many).is_err());
    let fewer = json!(vec![0; limits::STATE_VALUES_MAX - 1]);
    assert!(apply(&json!([copy("/data", "/state")]), &mut state, fewer).is_ok());
    assert!(apply(&json!([copy("/data", "/state/-")]), &mut state, json!(1)).is_err());
    assert_sized(&state);
}

/// A random operation of a random place, often of one that does not exist.
fn random_operation(random: &mut fastrand::Rng) -> Value {
    let place = |random: &mut fastrand::Rng| {
        let mut place = "/state".to_owned();
        for _ in 0..random.usize(0..3) {
            place.push('/');
            place.push_str(["a", "b", "x~1y", "0", "1", "-"][random.usize(0..6)]);
        }
        place
    };
    let value = [json!(1), json!({"a": [1]}), json!([]), json!("\u{1}\"text"), json!({"b": {}})]
        [random.usize(0..5)]
    .clone();
    let (path, from) = (place(random), place(random));
    let foreign = ["/data", "/data/a", "/event/type", ""][random.usize(0..4)];
    match random.usize(0..8) {
        0 | 1 => json!({"op": "add", "path": path, "value": value}),
        2 => json!({"op": "remove", "path": path}),
        3 => json!({"op": "replace", "path": path, "value": value}),
        4 => json!({"op": "move", "from": from, "path": path}),
        5 => json!({"op": "copy", "from": from, "path": path}),
        6 => json!({"op": "copy", "from": foreign, "path": path}),
        _ => json!({"op": "test", "path": path, "value": value}),
    }
}

/// The crate `json-patch` applies the same operations to the same document.
#[test]
fn random_events_fold_as_the_reference_does() {
    let mut random = fastrand::Rng::with_seed(7);
    let (mut applied, mut failed) = (0, 0);
    for _ in 0..300 {
        let mut state = StreamState::default();
        for number in 0..30 {
            let data = json!({"a": number, "b": [number, {"c": null}]});
            let operations: Vec<_> = (0..random.usize(1..4)).map(|_| random_operation(&mut random)).collect();
            let patch: Patch = serde_json::from_value(json!(operations)).unwrap();
            let mut document = json!({"state": state.value(), "data": data, "event": EVENT.value()});
            // Its `patch` panics when it takes some moves back.
            let expected = json_patch::patch_unsafe(&mut document, &patch);
            let before = state.value().to_string();
            let found = apply(&json!(operations), &mut state, data);
            assert_sized(&state);
            if expected.is_ok() {
                match found {
                    Ok(()) => {
                        applied += 1;
                        assert_eq!(*state.value(), document["state"], "{operations:?}");
                    }
                    Err(error) => assert!(error.contains("the state would be"), "{operations:?}"),
                }
            } else {
                failed += 1;
                assert!(found.is_err(), "{operations:?}");
                assert_eq!(state.value().to_string(), before, "{operations:?}");
            }
        }
    }
    assert!(applied > 1_000 && failed > 1_000, "{applied} {failed}");
}
