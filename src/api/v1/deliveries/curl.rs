//! A request as a curl command for a POSIX shell.
//!
//! Every text from the request is in single quotes, so that the shell reads it as it is. The body
//! comes from `printf`, a builtin, because an argument of a program has at most 128 KiB.

use std::fmt::Write as _;

use crate::service::types::{MASK, RequestView};

/// Headers that curl makes itself.
const OF_CURL: [&str; 2] = ["host", "content-length"];

/// The command, after comments that name the headers without a value.
#[must_use]
pub fn command(title: &str, request: &RequestView) -> String {
    let mut text = format!("# {title}\n");
    for (name, _) in request.headers.iter().filter(|(_, value)| value == MASK) {
        writeln!(text, "# Left out: {name}").expect(INFALLIBLE);
    }
    if !request.body.is_empty() {
        write!(text, "printf %s {} | ", quoted(&String::from_utf8_lossy(&request.body))).expect(INFALLIBLE);
    }
    let method = quoted(&request.method);
    // Without these options curl would read brackets as patterns, and shorten the path.
    write!(text, "curl --include --globoff --path-as-is --request {method} --url {}", quoted(&request.url))
        .expect(INFALLIBLE);
    for (name, value) in &request.headers {
        if value == MASK || OF_CURL.contains(&name.as_str()) {
            continue;
        }
        // For curl, a name with a colon alone removes the header.
        let line = if value.is_empty() { format!("{name};") } else { format!("{name}: {value}") };
        write!(text, " \\\n  --header {}", quoted(&line)).expect(INFALLIBLE);
    }
    if !request.body.is_empty() {
        text.push_str(" \\\n  --data-binary @-");
    }
    text.push('\n');
    text
}

const INFALLIBLE: &str = "writing to a string cannot fail";

/// A word of the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_one_word_of_the_shell() {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let request = RequestView {
            method: "POST".to_owned(),
            url: "http://a.example/it's?a=[1]&b=$(id)".into(),
            headers: vec![
                header("host", "a.example"),
                header("content-length", "9"),
                header("x-a", "`id`"),
                header("x-empty", ""),
                header("webhook-signature", MASK),
            ],
            body: r#"{"a":"'"}"#.into(),
        };
        let expected = r#"# A title
# Left out: webhook-signature
printf %s '{"a":"'\''"}' | curl --include --globoff --path-as-is --request 'POST' --url 'http://a.example/it'\''s?a=[1]&b=$(id)' \
  --header 'x-a: `id`' \
  --header 'x-empty;' \
  --data-binary @-
"#;
        assert_eq!(command("A title", &request), expected);
    }
}
