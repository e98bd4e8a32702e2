//! Options of an endpoint that name and describe it, and members that have no option.

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::request::text_or_file;
use super::{set, word};

/// The status that a creation or a change may set.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum WantedStatus {
    Active,
    Paused,
}

#[derive(Debug, Default, Args)]
pub(super) struct IdentityOptions {
    /// Your name of the endpoint, unique in the tenant; commands accept it in place of the id. An
    /// empty value removes it.
    #[arg(long, value_name = "NAME")]
    uid: Option<String>,
    /// Whether deliveries are sent.
    #[arg(long)]
    status: Option<WantedStatus>,
    /// A JSON object of your own, or @FILE with it.
    #[arg(long, value_name = "JSON|@FILE", value_parser = object)]
    metadata: Option<Map<String, Value>>,
    /// Further members as the API has them: a JSON object, or @FILE with it. For example
    /// '{"auth": {"oauth2": {...}}}'.
    #[arg(long, value_name = "JSON|@FILE", value_parser = object)]
    members: Option<Map<String, Value>>,
}

impl IdentityOptions {
    /// The members that have no option.
    pub(super) fn further(&self) -> Map<String, Value> {
        self.members.clone().unwrap_or_default()
    }

    pub(super) fn add_to(&self, members: &mut Map<String, Value>) {
        let or_null = |text: &String| if text.is_empty() { Value::Null } else { Value::from(text.as_str()) };
        set(members, "uid", self.uid.as_ref().map(or_null));
        set(members, "status", self.status.as_ref().map(word));
        set(members, "metadata", self.metadata.clone());
    }
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(&text_or_file(text)?) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(other) => Err(format!("`{other}` is not a JSON object")),
        Err(error) => Err(format!("not JSON: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn identity_options_become_members() {
        let options = IdentityOptions {
            uid: Some(String::new()),
            status: Some(WantedStatus::Paused),
            metadata: Some(object(r#"{"team": "crm"}"#).unwrap()),
            members: Some(object(r#"{"labels": ["a"]}"#).unwrap()),
        };
        let mut members = Map::new();
        options.add_to(&mut members);
        let expected = json!({"status": "paused", "uid": null, "metadata": {"team": "crm"}});
        assert_eq!(Value::Object(members), expected);
        assert_eq!(Value::Object(options.further()), json!({"labels": ["a"]}));
        assert!(object("[1]").unwrap_err().contains("not a JSON object"));
        assert!(object("{").unwrap_err().contains("not JSON"));
    }
}
