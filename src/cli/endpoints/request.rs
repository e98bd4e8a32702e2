//! The options of an endpoint's request: signature, method, body and authorization.

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::{non_empty, set, text_of, word};
use crate::cli::selection::SelectionOptions;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Signature {
    Standard,
    Svix,
    Stripe,
    Github,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "UPPER")]
enum Method {
    Post,
    Put,
    Patch,
    Get,
}

/// Options of the requests, and of the events that they are about.
#[derive(Debug, Default, Args)]
pub(super) struct RequestOptions {
    /// Signature schemes.
    #[arg(long, value_name = "SCHEME,...", value_delimiter = ',')]
    signature: Vec<Signature>,
    /// Method of requests.
    #[arg(long, ignore_case = true)]
    method: Option<Method>,
    /// Content type of requests; an empty value restores the default.
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// Template of the body, or @FILE with it; an empty value restores the format's body.
    #[arg(long, value_name = "TEMPLATE", value_parser = text_or_file)]
    body_template: Option<String>,
    /// User name and password for HTTP Basic; `none` removes the authorization.
    #[arg(long, value_name = "USER:PASSWORD", value_parser = basic)]
    basic: Option<BasicAuth>,
    #[command(flatten)]
    selection: SelectionOptions,
}

impl RequestOptions {
    pub(super) fn add_to(&self, members: &mut Map<String, Value>) {
        set(members, "signature", self.signature());
        set(members, "request", self.request());
        set(members, "auth", self.basic.as_ref().map(BasicAuth::member));
        self.selection.add_to(members);
    }

    fn signature(&self) -> Option<Value> {
        match &self.signature[..] {
            [] => None,
            [only] => Some(word(only)),
            several => Some(several.iter().map(word).collect()),
        }
    }

    fn request(&self) -> Option<Value> {
        let or_null = |text: &String| if text.is_empty() { Value::Null } else { Value::from(text.as_str()) };
        let mut members = Map::new();
        set(&mut members, "method", self.method.as_ref().map(word));
        set(&mut members, "contentType", self.content_type.as_ref().map(or_null));
        set(&mut members, "body", self.body_template.as_ref().map(or_null));
        non_empty(members)
    }
}

/// Credentials of HTTP Basic, or `none` to remove them.
#[derive(Clone)]
enum BasicAuth {
    None,
    Credentials { username: String, password: String },
}

impl std::fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BasicAuth(..)")
    }
}

impl BasicAuth {
    fn member(&self) -> Value {
        match self {
            Self::None => Value::Null,
            Self::Credentials { username, password } => {
                json!({"basic": {"username": username, "password": password}})
            }
        }
    }
}

fn basic(text: &str) -> Result<BasicAuth, String> {
    match text.split_once(':') {
        _ if text == "none" => Ok(BasicAuth::None),
        Some((username, password)) => {
            Ok(BasicAuth::Credentials { username: username.to_owned(), password: password.to_owned() })
        }
        // The text may be a password.
        None => Err("not a user name and a password: write USER:PASSWORD, or none".to_owned()),
    }
}

/// The argument, or the text of the file after `@`.
fn text_or_file(text: &str) -> Result<String, String> {
    text.strip_prefix('@').map_or_else(|| Ok(text.to_owned()), text_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_split_at_the_first_colon() {
        let member = |text| basic(text).unwrap().member();
        assert_eq!(member("u:p:q"), json!({"basic": {"username": "u", "password": "p:q"}}));
        assert_eq!(member("none"), Value::Null);
        let error = basic("hunter2").unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn request_options_become_members() {
        let options = RequestOptions {
            signature: vec![Signature::Standard, Signature::Svix],
            method: Some(Method::Put),
            content_type: Some(String::new()),
            body_template: Some("{{ id }}".to_owned()),
            basic: None,
            selection: SelectionOptions::default(),
        };
        let mut members = Map::new();
        options.add_to(&mut members);
        let expected = json!({"signature": ["standard", "svix"],
            "request": {"method": "PUT", "contentType": null, "body": "{{ id }}"}});
        assert_eq!(Value::Object(members), expected);
        let missing = std::env::temp_dir().join("no-such-template");
        assert!(text_or_file(&format!("@{}", missing.display())).is_err());
        assert_eq!(text_or_file("{{ id }}").as_deref(), Ok("{{ id }}"));
    }
}
