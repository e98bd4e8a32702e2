//! JSON values without duplicate members.
//!
//! serde keeps the last of several members of an object. A proxy that inspects requests, or a
//! receiver of the data, may use the first one instead.

use std::fmt;

use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value};

/// Any JSON value without duplicate members at any depth.
pub(crate) struct Unique(pub(crate) Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor { exempt: None }).map(Self)
    }
}

/// Reads a value. The member `exempt` of the outer object may have duplicate members.
///
/// # Errors
/// For a duplicate member elsewhere.
pub(crate) fn value_except<'de, D: Deserializer<'de>>(
    deserializer: D,
    exempt: &'static str,
) -> Result<Value, D::Error> {
    deserializer.deserialize_any(UniqueVisitor { exempt: Some(exempt) })
}

/// Uses serde's message for structs. The API derives the pointer from it.
pub(crate) fn duplicate_field<E: Error>(name: &str) -> E {
    E::custom(format_args!("duplicate field `{name}`"))
}

struct UniqueVisitor {
    exempt: Option<&'static str>,
}

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Unique(item)) = list.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if members.contains_key(&name) {
                return Err(duplicate_field(&name));
            }
            let value = if self.exempt == Some(name.as_str()) {
                map.next_value()?
            } else {
                let Unique(value) = map.next_value()?;
                value
            };
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}
