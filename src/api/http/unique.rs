//! Maps and merge patches without duplicate members; see [`crate::unique_json`].

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::unique_json::{duplicate_field, value_except};

/// A merge patch of an endpoint. Its `metadata` is free JSON and may have duplicate members.
pub(in crate::api) struct Patch(pub(in crate::api) Value);

const METADATA: &str = "metadata";

/// Deserializes a member that is an object of values of one type, absent or null.
///
/// # Errors
/// For any other value, and for a duplicate name.
pub(in crate::api) fn members<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, T>>, D::Error> {
    Option::<Members<T>>::deserialize(deserializer).map(|members| members.map(|Members(members)| members))
}

struct Members<T>(BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Members<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Names<T> {
            type Value = Members<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<T>, A::Error> {
                let mut members = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if members.contains_key(&name) {
                        return Err(duplicate_field(&name));
                    }
                    members.insert(name, map.next_value()?);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Names(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Patch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        value_except(deserializer, METADATA).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::http::body::parse_any;
    use crate::api::http::problem::{FieldError, Problem};

    fn duplicate_pointer(body: &str) -> String {
        match parse_any::<Patch>(body.as_bytes()) {
            Err(Problem::Validation(errors)) => {
                let [error] = &errors[..] else { panic!("{errors:?}") };
                assert!(error.detail.starts_with("duplicate field `"), "{error:?}");
                let FieldError {
                    location: crate::api::http::problem::ErrorLocation::Pointer(pointer), ..
                } = error
                else {
                    panic!("{error:?}")
                };
                pointer.clone()
            }
            Err(other) => panic!("{body}: {other:?}"),
            Ok(Patch(value)) => panic!("{body} was read as {value}"),
        }
    }

    #[test]
    fn duplicate_member_is_an_error_with_its_pointer() {
        assert_eq!(duplicate_pointer(r#"{"url":1,"url":2}"#), "/url");
        assert_eq!(duplicate_pointer(r#"{"url":1,"\u0075rl":1}"#), "/url");
        assert_eq!(duplicate_pointer(r#"{"headers":{"X-A":"1","b":"2","X-A":"1"}}"#), "/headers/X-A");
        assert_eq!(duplicate_pointer(r#"{"retry":{"schedule":["1s"],"schedule":null}}"#), "/retry/schedule");
        assert_eq!(duplicate_pointer(r#"{"a":[0,{"b":{"c":1,"c":1}}]}"#), "/a/1/b/c");
        assert_eq!(duplicate_pointer(r#"{"metadata":{"a":1,"a":2},"metadata":{}}"#), "/metadata");
        assert_eq!(duplicate_pointer(r#"{"retry":{"metadata":{"a":1,"a":2}}}"#), "/retry/metadata/a");
    }

    #[test]
    fn patch_without_duplicates_equals_serde_value() {
        for body in [
            r#"{"url":"x","a":[1,-1,1.5,null,true,{"b":{}}],"metadata":{"deep":[{"x":1,"x":2}]}}"#,
            "[]",
            "7",
            "null",
            r#""text""#,
            "18446744073709551615",
            "-9223372036854775808",
            "1e300",
        ] {
            let expected: Value = serde_json::from_str(body).unwrap();
            let Ok(Patch(value)) = parse_any::<Patch>(body.as_bytes()) else { panic!("{body}") };
            assert_eq!(value, expected, "{body}");
        }
    }
}
