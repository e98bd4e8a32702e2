//! Parses request bodies: media type and JSON. [`super::arriving_body`] reads them.
//!
//! Malformed JSON is a 400. JSON of the wrong form is a 422 with a pointer for each error.

use std::fmt;
use std::marker::PhantomData;

use axum::http::{HeaderMap, header};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;

use crate::api::http::problem::{FieldError, Problem, pointer};
use crate::limits;
use crate::nearest::nearest;

/// The request's media type. Ignores parameters other than `charset` (RFC 8259, section 11).
///
/// # Errors
/// 415 for a type that is not `accepted`, a charset other than UTF-8, or without a type. 400 for
/// several different ones.
pub fn media_type(headers: &HeaderMap, accepted: &'static [&'static str]) -> Result<&'static str, Problem> {
    let problem = || Problem::UnsupportedMediaType { accepted };
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let first = values.next().ok_or_else(problem)?;
    if values.any(|other| other != first) {
        return Err(Problem::Malformed("Content-Type: headers of different types".to_owned()));
    }
    let value = first.to_str().map_err(|_| problem())?;
    let mut parts = value.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    let found = accepted.iter().find(|one| one.eq_ignore_ascii_case(media)).ok_or_else(problem)?;
    let other_charset = parts.filter_map(|part| part.split_once('=')).any(|(name, value)| {
        name.trim().eq_ignore_ascii_case("charset")
            && !value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
    });
    if other_charset { Err(problem()) } else { Ok(found) }
}

/// # Errors
/// 400 unless the body is UTF-8.
pub fn text(body: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(body)
        .map_err(|error| Problem::Malformed(format!("invalid UTF-8 at byte {}", error.valid_up_to())))
}

/// Accepts only a JSON object. A derived struct would also accept an array of its members.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Members(PhantomData))
    }
}

/// Deserializes a member that is an object, absent or null.
///
/// # Errors
/// For any other value.
pub fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Option::<Object<T>>::deserialize(deserializer).map(|object| object.map(|Object(value)| value))
}

/// Parses any JSON value.
///
/// # Errors
/// 400 for malformed JSON; 422 with a pointer for JSON that is not a `T`.
pub fn parse_any<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    let text = text(body)?;
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(error) => Err(explain::<T>(text, &error)),
    }
}

/// Parses a JSON object.
///
/// # Errors
/// As [`parse_any`].
pub fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    parse_any(body).map(|Object(value)| value)
}

/// Parses an optional body; an absent one is `T`'s default.
///
/// # Errors
/// As [`parse`].
pub fn parse_or_default<'a, T: Deserialize<'a> + Default>(body: &'a [u8]) -> Result<T, Problem> {
    if body.is_empty() { Ok(T::default()) } else { parse(body) }
}

/// Parses an invalid body again, to find the location of the error.
fn explain<'a, T: Deserialize<'a>>(text: &'a str, error: &serde_json::Error) -> Problem {
    if text.trim().is_empty() {
        return Problem::Malformed("the body is empty; expected JSON".to_owned());
    }
    match error.classify() {
        Category::Syntax | Category::Eof | Category::Io => Problem::Malformed(format!(
            "not JSON: {} at line {} column {}",
            error_text(error),
            error.line(),
            error.column()
        )),
        Category::Data => {
            // A syntax error after the wrong member takes precedence.
            if let Err(syntax) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
                return Problem::Malformed(format!(
                    "not JSON: {} at line {} column {}",
                    error_text(&syntax),
                    syntax.line(),
                    syntax.column()
                ));
            }
            let mut deserializer = serde_json::Deserializer::from_str(text);
            let traced: Result<T, _> = serde_path_to_error::deserialize(&mut deserializer);
            match traced {
                Ok(_) => Problem::Validation(vec![FieldError::at("", error_text(error))]),
                Err(traced) => {
                    let location = path_pointer(traced.path());
                    Problem::Validation(vec![field_error(location, error_text(traced.inner()))])
                }
            }
        }
    }
}

/// As [`parse`], for a parsed JSON value.
///
/// # Errors
/// 422 with a pointer.
pub fn parse_value<T: for<'de> Deserialize<'de>>(value: serde_json::Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value).map_err(|traced| {
        let location = path_pointer(traced.path());
        Problem::Validation(vec![field_error(location, error_text(traced.inner()))])
    })
}

/// Checks the nesting depth. `json` must be valid JSON.
///
/// # Errors
/// A description, above [`limits::JSON_DEPTH_MAX`].
pub fn check_depth(json: &str) -> Result<(), String> {
    // Fast path for most events: too few brackets to exceed the limit.
    if json.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count() <= limits::JSON_DEPTH_MAX {
        return Ok(());
    }
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    if deepest <= limits::JSON_DEPTH_MAX {
        return Ok(());
    }
    Err(format!("nested {deepest} levels deep; at most {}", limits::JSON_DEPTH_MAX))
}

/// serde's message without line and column, and without names of Rust types. It can quote a value
/// of the body, so its length is bounded.
fn error_text(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.rfind(" at line ").map_or(text.as_str(), |end| &text[..end]);
    let text = &with_suggestion(text);
    let end = text.char_indices().map(|(at, _)| at).nth(limits::ERROR_BYTES_MAX);
    let text = end.map_or_else(|| text.clone(), |end| format!("{}..", &text[..end]));
    text.replace("expected u64", "expected a non-negative integer")
        .replace("expected f64", "expected a number")
}

/// Adds the nearest of the expected names to serde's message about an unknown one.
fn with_suggestion(text: &str) -> String {
    let suggested = text.strip_prefix("unknown field `").and_then(|rest| {
        let (name, expected) = rest.rsplit_once("`, expected ")?;
        let known = nearest(name, expected.split('`').skip(1).step_by(2))?;
        Some(format!("unknown field `{name}`; did you mean `{known}`? Expected {expected}"))
    });
    suggested.unwrap_or_else(|| text.to_owned())
}

fn path_pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut location = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => location = pointer(&location, &index.to_string()),
            Segment::Map { key } => location = pointer(&location, key),
            Segment::Enum { variant } => location = pointer(&location, variant),
            Segment::Unknown => {}
        }
    }
    location
}

/// The pointer of a missing, unknown or duplicate member names the member, not its parent.
fn field_error(location: String, detail: String) -> FieldError {
    let named = ["missing field `", "unknown field `", "duplicate field `"]
        .iter()
        .find_map(|start| detail.strip_prefix(start))
        .and_then(|rest| rest.split('`').next());
    match named {
        Some(member) if location.rsplit('/').next() != pointer("", member).strip_prefix('/') => {
            FieldError::at(pointer(&location, member), detail)
        }
        _ => FieldError::at(location, detail),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::api::http::problem::ErrorLocation;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Outer {
        name: String,
        #[serde(default, deserialize_with = "object")]
        inner: Option<Inner>,
        list: Option<Vec<u32>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Inner {
        count: u32,
    }

    #[test]
    fn body_that_is_not_json_is_malformed() {
        for body in [
            &b""[..],
            b"  ",
            b"{",
            b"{\"name\":",
            b"{\"name\": \"a\"} x",
            b"nope",
            b"\xff\xfe",
            b"{\"zzz\":1,}",
        ] {
            let problem = parse::<Outer>(body).unwrap_err();
            assert_eq!(problem.status(), 400, "{body:?} gave {problem:?}");
        }
    }

    #[test]
    fn errors_have_a_pointer_to_the_member() {
        for (body, expected) in [
            (r#"{}"#, "/name"),
            (r#"{"name": 1}"#, "/name"),
            (r#"{"name": "a", "zzz": 1}"#, "/zzz"),
            (r#"{"name": "a", "name": "b"}"#, "/name"),
            (r#"{"name": "a", "inner": {"count": "x"}}"#, "/inner/count"),
            (r#"{"name": "a", "inner": {}}"#, "/inner/count"),
            (r#"{"name": "a", "inner": {"count": 1, "odd/member": 2}}"#, "/inner/odd~1member"),
            (r#"{"name": "a", "list": [1, -1]}"#, "/list/1"),
            (r#"[]"#, ""),
            (r#""text""#, ""),
        ] {
            match parse::<Outer>(body.as_bytes()).unwrap_err() {
                Problem::Validation(errors) => {
                    assert_eq!(
                        errors[0].location,
                        ErrorLocation::Pointer(expected.to_owned()),
                        "{body}: {errors:?}"
                    );
                    assert!(!errors[0].detail.contains("line"), "{errors:?}");
                }
                other => panic!("{body} gave {other:?}"),
            }
        }
    }

    #[test]
    fn unknown_member_gets_the_nearest_name() {
        let detail = |body: &str| match parse::<Outer>(body.as_bytes()).unwrap_err() {
            Problem::Validation(errors) => errors[0].detail.clone(),
            other => panic!("{body} gave {other:?}"),
        };
        let expected = "Expected one of `name`, `inner`, `list`";
        let told = detail(r#"{"nmae": "a"}"#);
        assert_eq!(told, format!("unknown field `nmae`; did you mean `name`? {expected}"));
        let told = detail(r#"{"a`, expected `lst": "a"}"#);
        assert!(!told.contains("did you mean"), "{told}");
        assert!(detail(r#"{"name": "a", "inner": {"cuont": 1}}"#).contains("did you mean `count`?"));
        assert!(!detail(r#"{"zzz": 1}"#).contains("did you mean"));
    }

    #[test]
    fn only_accepted_media_types_pass() {
        let headers = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
            headers
        };
        const ACCEPTED: &[&str] = &["application/json"];
        for good in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/json;charset=\"utf-8\"",
            "application/json; version=1; q=\"a\"",
            "application/json;",
        ] {
            assert_eq!(media_type(&headers(good), ACCEPTED), Ok("application/json"), "{good}");
        }
        let mut several = headers("application/json");
        several.append(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        assert_eq!(media_type(&several, ACCEPTED), Ok("application/json"), "the same again");
        several.append(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        assert!(matches!(media_type(&several, ACCEPTED), Err(Problem::Malformed(_))));
        for bad in
            ["text/plain", "application/jsonx", "application/json; charset=latin1", "", "multipart/form-data"]
        {
            assert_eq!(media_type(&headers(bad), ACCEPTED).unwrap_err().status(), 415, "{bad}");
        }
        assert_eq!(media_type(&HeaderMap::new(), ACCEPTED).unwrap_err().status(), 415);
    }

    #[test]
    fn array_of_members_is_not_an_object() {
        for (body, location) in [
            (r#"["a", null, null]"#, ""),
            (r#"{"name": "a", "inner": [1]}"#, "/inner"),
            (r#"{"name": "a", "inner": "x"}"#, "/inner"),
        ] {
            let Problem::Validation(errors) = parse::<Outer>(body.as_bytes()).unwrap_err() else {
                panic!("{body} was not invalid")
            };
            assert_eq!(errors[0].location, ErrorLocation::Pointer(location.to_owned()), "{body}: {errors:?}");
            assert!(errors[0].detail.ends_with("expected an object"), "{errors:?}");
        }
        assert!(parse::<Outer>(br#"{"name": "a", "inner": null}"#).is_ok());
    }

    #[test]
    fn depth_counts_nesting_and_ignores_brackets_in_strings() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(check_depth(&nested(limits::JSON_DEPTH_MAX)), Ok(()));
        assert!(check_depth(&nested(limits::JSON_DEPTH_MAX + 1)).is_err());
        assert!(check_depth(&nested(100_000)).is_err());
        let wide = format!("[{}]", vec!["{\"a\":[]}"; 1_000].join(","));
        let text = format!(r#"{{"\\":"\"{}","a\\\"{{":"\\"}}"#, "[{".repeat(1_000));
        serde_json::from_str::<serde_json::Value>(&text).expect("it is JSON");
        for shallow in ["null", "\"\"", &wide, &text] {
            assert_eq!(check_depth(shallow), Ok(()), "{shallow}");
        }
    }
}
