//! The options that select events by content and labels, and trials of a filter.

use clap::Args;
use serde_json::{Map, Value};

use super::args::{self, TimeArg};

/// Options of an endpoint or a queue.
#[derive(Debug, Default, Args)]
pub(super) struct SelectionOptions {
    /// Only events whose content passes this filter, such as '{"data": {"total": {"$gte": 100}}}';
    /// JSON, or @FILE with it. `none` removes it.
    #[arg(long, value_name = "JSON|@FILE|none", value_parser = json_or_none)]
    filter: Option<Value>,
    /// Only events with one of these labels; an empty value removes the condition.
    #[arg(long, value_name = "LABEL,...", value_delimiter = ',')]
    labels: Option<Vec<String>>,
}

impl SelectionOptions {
    pub(super) fn add_to(&self, members: &mut Map<String, Value>) {
        if let Some(filter) = &self.filter {
            members.insert("filter".to_owned(), filter.clone());
        }
        if let Some(labels) = &self.labels {
            let labels: Vec<_> = labels.iter().filter(|label| !label.is_empty()).cloned().collect();
            members.insert("labels".to_owned(), labels.into());
        }
    }
}

/// A trial of the saved filter, or of another one.
#[derive(Debug, Default, Args)]
pub(super) struct FilterTrialArgs {
    #[command(flatten)]
    selection: SelectionOptions,
    /// An event with its type and data that is not published: JSON, or @FILE with it. Without an
    /// event, the newest stored events are counted.
    #[arg(long, value_name = "JSON|@FILE", value_parser = json, conflicts_with_all = ["event_id", "since", "limit"])]
    event: Option<Value>,
    /// A stored event.
    #[arg(long, value_name = "ID", value_parser = args::id, conflicts_with_all = ["since", "limit"])]
    event_id: Option<String>,
    /// Count events from this time on: RFC 3339, or a duration before now (24h).
    #[arg(long, value_name = "TIME", value_parser = TimeArg::parse)]
    since: Option<TimeArg>,
    /// Stored events to look at, 1 to 1,000 [default: 100].
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

impl FilterTrialArgs {
    pub(super) fn body(&self) -> Value {
        let mut members = Map::new();
        self.selection.add_to(&mut members);
        let since = self.since.as_ref().map(|since| Value::from(since.before(args::now())));
        let others = [
            ("event", self.event.clone()),
            ("eventId", self.event_id.clone().map(Value::from)),
            ("since", since),
            ("limit", self.limit.map(Value::from)),
        ];
        members.extend(others.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        Value::Object(members)
    }
}

fn json(text: &str) -> Result<Value, String> {
    let text = match text.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(|error| error.to_string())?,
        None => text.to_owned(),
    };
    serde_json::from_str(&text).map_err(|error| format!("not JSON: {error}"))
}

fn json_or_none(text: &str) -> Result<Value, String> {
    if text == "none" { Ok(Value::Null) } else { json(text) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Parser)]
    struct TrialCommand {
        #[command(flatten)]
        trial: FilterTrialArgs,
    }

    fn body(arguments: &[&str]) -> Result<Value, clap::Error> {
        let parsed = TrialCommand::try_parse_from([&["trial"], arguments].concat())?;
        Ok(parsed.trial.body())
    }

    #[test]
    fn selection_options_become_members() {
        assert_eq!(body(&[]).unwrap(), json!({}));
        let arguments =
            ["--filter", r#"{"data":{"a":null}}"#, "--labels", "eu,us", "--event", r#"{"type":"a"}"#];
        let expected =
            json!({"filter": {"data": {"a": null}}, "labels": ["eu", "us"], "event": {"type": "a"}});
        assert_eq!(body(&arguments).unwrap(), expected);
        assert_eq!(
            body(&["--filter", "none", "--labels", ""]).unwrap(),
            json!({"filter": null, "labels": []})
        );
        assert_eq!(body(&["--event-id", "evt_1"]).unwrap(), json!({"eventId": "evt_1"}));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("filter.json");
        std::fs::write(&path, r#"{"type":"a"}"#).unwrap();
        let from_file = body(&["--filter", &format!("@{}", path.display()), "--limit", "5"]).unwrap();
        assert_eq!(from_file, json!({"filter": {"type": "a"}, "limit": 5}));
        for wrong in
            [&["--filter", "{"][..], &["--event", "{}", "--limit", "5"], &["--filter", "@nothing-here"]]
        {
            assert!(body(wrong).is_err(), "{wrong:?}");
        }
    }
}
