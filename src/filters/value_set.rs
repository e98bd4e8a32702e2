//! The values of `$in` and `$nin`. Texts, numbers, booleans and null are found in one step, however
//! many there are; arrays and objects are compared one by one.

use std::collections::HashSet;

use serde_json::{Number, Value};

use super::evaluate::{integer, is_equal};

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ValueSet {
    has_null: bool,
    has_true: bool,
    has_false: bool,
    texts: HashSet<Box<str>>,
    /// Length of the longest text. A longer one of an event is not hashed.
    text_bytes_max: usize,
    numbers: NumberSet,
    compound: Vec<Value>,
    /// Number of values, with repeated ones.
    count: usize,
}

/// Numbers by equality: integers of 64 bits are exact, and a double equals what rounds to it.
#[derive(Clone, Debug, Default, PartialEq)]
struct NumberSet {
    integers: HashSet<i128>,
    /// The integers as doubles.
    rounded: HashSet<u64>,
    doubles: HashSet<u64>,
}

/// Equal doubles have equal bits: zero has one sign.
fn bits(number: &Number) -> Option<u64> {
    let number = number.as_f64()?;
    Some(if number == 0.0 { 0 } else { number.to_bits() })
}

impl NumberSet {
    fn insert(&mut self, number: &Number) {
        match integer(number) {
            Some(integer) => {
                self.integers.insert(integer);
                self.rounded.extend(bits(number));
            }
            None => self.doubles.extend(bits(number)),
        }
    }

    fn contains(&self, number: &Number) -> bool {
        let among =
            |set: &HashSet<u64>| !set.is_empty() && bits(number).is_some_and(|bits| set.contains(&bits));
        among(&self.doubles)
            || match integer(number) {
                Some(integer) => self.integers.contains(&integer),
                None => among(&self.rounded),
            }
    }
}

impl FromIterator<Value> for ValueSet {
    fn from_iter<T: IntoIterator<Item = Value>>(values: T) -> Self {
        let mut set = Self::default();
        for value in values {
            set.count += 1;
            match value {
                Value::Null => set.has_null = true,
                Value::Bool(true) => set.has_true = true,
                Value::Bool(false) => set.has_false = true,
                Value::String(text) => {
                    set.text_bytes_max = set.text_bytes_max.max(text.len());
                    set.texts.insert(text.into());
                }
                Value::Number(number) => set.numbers.insert(&number),
                Value::Array(_) | Value::Object(_) => set.compound.push(value),
            }
        }
        set
    }
}

impl ValueSet {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Comparisons that [`Self::contains`] makes.
    pub(super) fn comparisons(&self) -> usize {
        1 + self.compound.len()
    }

    /// Whether one of the values equals this one. A missing member equals null.
    pub(super) fn contains(&self, value: Option<&Value>) -> bool {
        match value {
            None | Some(Value::Null) => self.has_null,
            Some(Value::Bool(true)) => self.has_true,
            Some(Value::Bool(false)) => self.has_false,
            Some(Value::String(text)) => {
                text.len() <= self.text_bytes_max && self.texts.contains(text.as_str())
            }
            Some(Value::Number(number)) => self.numbers.contains(number),
            Some(Value::Array(_) | Value::Object(_)) => {
                self.compound.iter().any(|wanted| is_equal(value, wanted))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(random: &mut fastrand::Rng) -> Value {
        let large = 1_i64 << 53;
        match random.u32(0..9) {
            0 => Value::Null,
            1 => json!(random.bool()),
            2 => json!(["", "a", "b", "1"][random.usize(0..4)]),
            3 => json!(random.i64(-2..3)),
            4 => json!(random.i64(-2..3) as f64),
            5 => json!(large + random.i64(-2..3)),
            6 => json!((large + random.i64(-2..3)) as f64),
            7 => json!([0.0, -0.0, 0.5, 1e300, u64::MAX as f64][random.usize(0..5)]),
            _ => [json!([]), json!([1]), json!({}), json!({"a": 1}), json!(u64::MAX), json!(i64::MIN)]
                [random.usize(0..6)]
            .clone(),
        }
    }

    proptest::proptest! {
        /// A set has the values that are equal to one of its values.
        #[test]
        fn set_and_list_have_the_same_values(seed: u64) {
            let mut random = fastrand::Rng::with_seed(seed);
            let values: Vec<Value> = (0..random.usize(1..12)).map(|_| sample(&mut random)).collect();
            let set: ValueSet = values.iter().cloned().collect();
            proptest::prop_assert_eq!(set.len(), values.len());
            proptest::prop_assert_eq!(set.contains(None), values.contains(&Value::Null));
            for _ in 0..20 {
                let value = sample(&mut random);
                let expected = values.iter().any(|wanted| is_equal(Some(&value), wanted));
                proptest::prop_assert_eq!(set.contains(Some(&value)), expected, "{} in {:?}", value, values);
            }
        }
    }
}
