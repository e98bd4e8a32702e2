//! `balto endpoints test`: sends a test event.

use clap::Args;
use serde_json::{Map, Value};

use super::endpoints::EndpointName;
use super::output::Session;

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    #[command(flatten)]
    id: EndpointName,
    /// Send the example of this registered type.
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// The version of the example [default: the newest one with an example].
    #[arg(long, value_name = "VERSION", requires = "event_type")]
    version: Option<String>,
}

impl TestArgs {
    fn body(&self) -> String {
        let members = [("type", &self.event_type), ("version", &self.version)];
        let given = members.into_iter().filter_map(|(name, text)| {
            let text = text.clone()?;
            Some((name.to_owned(), Value::from(text)))
        });
        Value::Object(given.collect::<Map<_, _>>()).to_string()
    }

    pub(crate) async fn run(&self, session: &Session) -> anyhow::Result<()> {
        let id = &self.id.id;
        let answer = session.client.post(&["v1", "endpoints", id, "test"], Some(self.body())).await?;
        session.done(&answer, &format!("{id} receives a test event."))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{pin, pin_change, pins};

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        test: TestArgs,
    }

    #[test]
    fn only_given_members_are_sent() {
        let parse = |words: &[&str]| {
            let words = ["test", "ep_1"].iter().chain(words);
            Line::try_parse_from(words).map(|line| line.test.body())
        };
        assert_eq!(parse(&[]).unwrap(), "{}");
        let body = parse(&["--type", "pet.adopted", "--version", "1.0"]).unwrap();
        assert_eq!(body, r#"{"type":"pet.adopted","version":"1.0"}"#);
        assert!(parse(&["--version", "1.0"]).is_err());
    }

    #[test]
    fn pin_is_a_type_and_a_version() {
        for bad in ["", "pet.adopted", ":1.0", "pet.adopted:"] {
            assert!(pin(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "pet.adopted", ":", ":1.0", "pet.adopted::"] {
            assert!(pin_change(bad).is_err(), "{bad:?}");
        }
        assert_eq!(pins(&[pin_change("pet.lost:").unwrap()]), serde_json::json!({"pet.lost": null}));
        let pinned = [pin("pet.adopted:1.0").unwrap(), pin("order.paid:latest").unwrap()];
        assert_eq!(pins(&pinned), serde_json::json!({"pet.adopted": "1.0", "order.paid": "latest"}));
    }
}
