//! Texts `${...}` in a file: environment variables, and values that TOML cannot hold.
//!
//! `${NAME}` is an environment variable, `${null}` is null and `${18446744073709551615}` is a
//! number. A text that begins with `$${` and ends with `}` loses its first `$`, so an export can
//! hold every text.

use serde_json::{Map, Number, Value};

/// The language of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileLanguage {
    Toml,
    Json,
}

/// Replaces each placeholder by its value. Secrets can so stay out of files.
///
/// # Errors
/// The name of a variable that is not set.
pub(super) fn resolve(value: &mut Value, variable: &dyn Fn(&str) -> Option<String>) -> Result<(), String> {
    match value {
        Value::String(text) => {
            if let Some(name) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
                let resolved = literal(name).or_else(|| variable(name).map(Value::String));
                let missing =
                    || format!("the variable {name} is not set; write $${{{name}}} for the text itself");
                *value = resolved.ok_or_else(missing)?;
            } else if is_placeholder(text) {
                text.remove(0);
            }
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| resolve(item, variable)),
        Value::Object(members) => members.values_mut().try_for_each(|member| resolve(member, variable)),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

/// The value that [`resolve`] makes the given one of, for a file in a language.
pub(super) fn escaped(value: &Value, language: FileLanguage) -> Value {
    match value {
        Value::String(text) if is_placeholder(text) => Value::from(format!("${text}")),
        Value::Null if language == FileLanguage::Toml => Value::from("${null}"),
        // TOML has signed 64-bit integers.
        Value::Number(number)
            if language == FileLanguage::Toml && number.is_u64() && number.as_i64().is_none() =>
        {
            Value::from(format!("${{{number}}}"))
        }
        Value::Array(items) => items.iter().map(|item| escaped(item, language)).collect(),
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| (name.clone(), escaped(value, language)));
            Value::Object(members.collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

/// Null or a number. Neither is the name of a variable.
fn literal(name: &str) -> Option<Value> {
    if name == "null" {
        return Some(Value::Null);
    }
    let is_number = name.starts_with(|first: char| first.is_ascii_digit() || first == '-');
    is_number.then(|| name.parse::<Number>().ok())?.map(Value::Number)
}

/// Whether the text is a placeholder, escaped or not.
fn is_placeholder(text: &str) -> bool {
    let rest = text.trim_start_matches('$');
    rest.len() < text.len() && rest.starts_with('{') && rest.ends_with('}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn variable(name: &str) -> Option<String> {
        (name == "NAME").then(|| "${null}".to_owned())
    }

    #[test]
    fn placeholder_is_a_variable_null_or_a_number() {
        for (text, expected) in [
            // The value of a variable stays as it is.
            ("${NAME}", json!("${null}")),
            ("${null}", Value::Null),
            ("${18446744073709551615}", json!(u64::MAX)),
            ("${-1.5}", json!(-1.5)),
            ("$${NAME}", json!("${NAME}")),
            ("$$${NAME}", json!("$${NAME}")),
            ("a ${NAME}", json!("a ${NAME}")),
            ("${NAME} b", json!("${NAME} b")),
            ("$$", json!("$$")),
        ] {
            let mut value = json!({"a": [text]});
            resolve(&mut value, &variable).unwrap();
            assert_eq!(value["a"][0], expected, "{text}");
        }
        let error = resolve(&mut json!("${NO}"), &variable).unwrap_err();
        assert_eq!(error, "the variable NO is not set; write $${NO} for the text itself");
        assert!(resolve(&mut json!("${5a}"), &variable).is_err());
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[$]{0,3}[{]?(null|[0-9]{1,2}|[A-Z}]{0,2})[}]?".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[$]{0,1}[{]?[a-z]{0,2}[}]?", inner, 0..3)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn escaped_value_resolves_to_itself(value in any_value()) {
            for language in [FileLanguage::Toml, FileLanguage::Json] {
                let mut resolved = escaped(&value, language);
                resolve(&mut resolved, &|name| panic!("{name} is read from the environment")).unwrap();
                prop_assert_eq!(&resolved, &value);
            }
        }
    }
}
