//! Content filters, judged by sift, which applies MongoDB's operators to documents.
//!
//! The two agree where both define a meaning. Not compared: a missing member behind an array, which
//! sift finds behind every array; arrays in arrays, which sift flattens; null in objects that are
//! compared as a whole; `$exists` behind arrays. For `$startsWith` and `$endsWith`, sift applies
//! `$regex`.

use std::process::Command;

use balto::filters::{EventContent, EventFacts, parse};
use serde_json::{Map, Value, json};

use crate::support::judges::{install, root, run};

const QUERIES: usize = 2_000;
const DOCUMENTS_PER_QUERY: usize = 5;

struct Generator {
    random: fastrand::Rng,
    /// Arrays and whole objects, or else nulls and `$exists`.
    has_arrays: bool,
}

impl Generator {
    fn percent(&mut self, percent: u32) -> bool {
        self.random.u32(0..100) < percent
    }

    fn name(&mut self) -> &'static str {
        self.random.choice(["a", "b", "c"]).unwrap()
    }

    fn scalar(&mut self) -> Value {
        match self.random.u32(0..if self.has_arrays { 5 } else { 6 }) {
            0 => json!(self.random.bool()),
            1 | 2 => json!(self.random.i32(-3..4)),
            3 => json!(f64::from(self.random.i32(-6..7)) / 2.0),
            4 => json!(self.random.choice(["", "a", "ab", "abc", "b", "2"]).unwrap()),
            _ => Value::Null,
        }
    }

    fn object(&mut self, depth: u32) -> Value {
        let members = (0..self.random.usize(0..4)).map(|_| (self.name().to_owned(), self.value(depth)));
        Value::Object(members.collect())
    }

    fn value(&mut self, depth: u32) -> Value {
        match self.random.u32(0..10) {
            0..4 if depth > 0 => self.object(depth - 1),
            4..7 if depth > 0 && self.has_arrays => {
                let is_of_objects = self.random.bool();
                let item = |generator: &mut Self| {
                    if is_of_objects { generator.object(depth - 1) } else { generator.scalar() }
                };
                (0..self.random.usize(0..4)).map(|_| item(self)).collect()
            }
            _ => self.scalar(),
        }
    }

    fn path(&mut self) -> String {
        let names: Vec<_> = (0..self.random.usize(1..4)).map(|_| self.name()).collect();
        format!("data.{}", names.join("."))
    }

    /// A condition on a value: for Balto, and for sift.
    fn test(&mut self, depth: u32) -> (Value, Value) {
        let same = |value: Value| (value.clone(), value);
        match self.random.u32(0..if depth > 0 { 16 } else { 14 }) {
            0 | 1 => same(self.scalar()),
            2 if self.has_arrays => same(json!({"$eq": self.value(1)})),
            2 | 3 => same(json!({"$ne": self.scalar()})),
            4 | 5 => {
                let values: Vec<_> = (0..self.random.usize(1..4)).map(|_| self.scalar()).collect();
                let name = if self.random.bool() { "$in" } else { "$nin" };
                same(json!({ name: values }))
            }
            6 if !self.has_arrays => same(json!({"$exists": self.random.bool()})),
            6..11 => {
                let name = self.random.choice(["$gt", "$gte", "$lt", "$lte"]).unwrap();
                let is_comparable = |value: &Value| value.is_number() || value.is_string();
                let bound = std::iter::repeat_with(|| self.scalar()).find(is_comparable).unwrap();
                same(json!({ name: bound }))
            }
            11..14 => {
                let part = self.random.choice(["a", "ab", "b", "c", "2"]).unwrap();
                if self.random.bool() {
                    (json!({ "$startsWith": part }), json!({"$regex": format!("^{part}")}))
                } else {
                    (json!({ "$endsWith": part }), json!({"$regex": format!("{part}$")}))
                }
            }
            _ => {
                let (ours, theirs) = self.test(depth - 1);
                let theirs = if theirs.is_object() { theirs } else { json!({ "$eq": theirs }) };
                (json!({ "$not": ours }), json!({ "$not": theirs }))
            }
        }
    }

    fn query(&mut self, depth: u32) -> (Value, Value) {
        if depth > 0 && self.percent(40) {
            let parts: Vec<_> = (0..self.random.usize(1..4)).map(|_| self.query(depth - 1)).collect();
            let (ours, theirs): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
            return match self.random.u32(0..3) {
                0 => (json!({ "$and": ours }), json!({ "$and": theirs })),
                1 => (json!({ "$or": ours }), json!({ "$or": theirs })),
                _ => (json!({"$not": ours[0]}), json!({"$nor": [theirs[0]]})),
            };
        }
        let (mut ours, mut theirs) = (Map::new(), Map::new());
        for _ in 0..self.random.usize(1..3) {
            let (path, (our_test, their_test)) = (self.path(), self.test(1));
            // In Balto, an object without operators is a nested filter.
            if self.percent(30) && !ours.contains_key("data") {
                let nested =
                    path["data.".len()..].rsplit('.').fold(our_test, |inner, name| json!({ name: inner }));
                ours.insert("data".to_owned(), nested);
                theirs.insert("$and".to_owned(), json!([{ path: their_test }]));
            } else if !ours.contains_key(&path) {
                ours.insert(path.clone(), our_test);
                theirs.insert(path, their_test);
            }
        }
        (ours.into(), theirs.into())
    }
}

#[test]
fn filters_agree_with_sift_on_10_000_documents() {
    install();
    let seed = fastrand::u64(..);
    let mut generator = Generator { random: fastrand::Rng::with_seed(seed), has_arrays: false };
    let (mut input, mut cases) = (String::new(), Vec::new());
    for number in 0..QUERIES {
        generator.has_arrays = number % 2 == 0;
        let (ours, theirs) = generator.query(2);
        let documents: Vec<_> =
            (0..DOCUMENTS_PER_QUERY).map(|_| json!({"data": generator.object(3)})).collect();
        input += &format!("{}\n", json!({"query": theirs, "documents": documents}));
        cases.push((ours, documents));
    }
    let judge = root().join("tests/judges/filters.mjs");
    let (good, output) = run(Command::new(root().join("target/judges/node")).arg(judge), &input);
    assert!(good, "{output}");
    let verdicts: Vec<&str> = output.lines().collect();
    assert_eq!(verdicts.len(), QUERIES, "{output}");
    let (mut accepted, mut compared) = (0, 0);
    for (((filter, documents), verdicts), theirs) in cases.iter().zip(verdicts).zip(input.lines()) {
        let parsed = parse(filter).unwrap_or_else(|error| panic!("seed {seed}: {filter}: {error:?}"));
        for (document, verdict) in documents.iter().zip(verdicts.chars()) {
            let data = document["data"].to_string();
            let facts = EventFacts { data: data.as_bytes(), ..EventFacts::default() };
            let matched = parsed.matches(&EventContent::new(&facts, true), &mut 0);
            assert_eq!(matched, verdict == '1', "seed {seed}: {filter} {document}\n{theirs}");
            accepted += usize::from(matched);
            compared += 1;
        }
    }
    assert_eq!(compared, QUERIES * DOCUMENTS_PER_QUERY);
    assert!((compared / 5..compared * 4 / 5).contains(&accepted), "{accepted} of {compared} match");
}
