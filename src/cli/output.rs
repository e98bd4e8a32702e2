//! The output of client commands: tables for lists, `key: value` listings for objects, JSON as
//! received.
//!
//! Owns: standard output. Text from the daemon may come from third parties (a receiver's reply, an
//! event's type), so control characters never reach the terminal. Lists are printed page by page
//! and never held as a whole.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::args::{Paging, QueryArgs};
use super::client::Client;
use super::table::{Table, cut};

/// Time that the end of a command waits for a standard error that takes no text.
const STALLED_STDERR_MAX: Duration = Duration::from_secs(1);

/// A write to standard output failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub(crate) struct OutputError(#[from] io::Error);

impl OutputError {
    /// The reader of the output went away, as `head` does, which is not a failure.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Prints one line.
///
/// # Errors
/// When standard output is closed or full.
pub(crate) fn line(text: &str) -> Result<(), OutputError> {
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

/// As [`line`], on another thread: while the output is not read, a signal still ends the command.
///
/// # Errors
/// As [`line`].
pub(crate) async fn line_async(text: String) -> Result<(), OutputError> {
    let printed = tokio::task::spawn_blocking(move || line(&text)).await;
    printed.unwrap_or_else(|error| Err(io::Error::other(error).into()))
}

/// Prints a message of the argument parser: help and version on standard output, errors on standard
/// error.
///
/// # Errors
/// When standard output is closed or full.
pub(crate) fn parser_message(message: clap::Error) -> Result<(), OutputError> {
    if message.use_stderr() {
        // The exit code reports the failure, also when standard error is closed or stalled.
        write_within_limit(move || drop(message.print()));
        return Ok(());
    }
    Ok(message.print().and_then(|()| io::stdout().flush())?)
}

/// Prints JSON; see [`harmless`].
///
/// # Errors
/// As [`line`].
pub(crate) fn json_line(json: &str) -> Result<(), OutputError> {
    line(&harmless(json))
}

/// The same JSON, with `\u` escapes for characters that move the cursor or reverse the text of a
/// terminal. JSON allows them in strings alone, where the escape means the same.
pub(crate) fn harmless(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            '\r' => out.push(' '),
            c if is_unsafe(c) => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// Whether the output may contain colours: on a terminal, unless NO_COLOR is set
/// (https://no-color.org).
pub(crate) fn colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Text with escapes for control characters: text of third parties can neither move the cursor nor
/// reverse other text.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if is_unsafe(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// Control characters, and characters of Unicode that break lines, change the direction of text or
/// have no width. All of them have at most four hexadecimal digits.
fn is_unsafe(c: char) -> bool {
    let is_invisible = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
    );
    is_invisible || c.is_control()
}

/// A column of a list: its title, and the possible places of its value.
pub(crate) struct Column(pub(crate) &'static str, pub(crate) &'static [&'static str]);

fn cell(row: &Value, column: &Column) -> String {
    let value = column.1.iter().find_map(|pointer| row.pointer(pointer));
    let text = match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => clean(text),
        // A list of texts fits into a cell; of other lists the cell has the length.
        Some(Value::Array(items)) if items.iter().all(Value::is_string) && !items.is_empty() => {
            clean(&items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "))
        }
        Some(Value::Array(items)) => items.len().to_string(),
        Some(other) => clean(&other.to_string()),
    };
    cut(text)
}

/// The members of an object in their original order and spelling.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

fn raw_text(raw: &RawValue) -> String {
    match serde_json::from_str::<Value>(raw.get()) {
        Ok(Value::String(text)) => clean(&text),
        Ok(Value::Null) => "-".to_owned(),
        // Line breaks are between tokens only: JSON has none in strings.
        _ => clean(&raw.get().replace(['\n', '\r', '\t'], " ")),
    }
}

/// A member that is a list of objects, and its columns.
type Shown<'a> = (&'a str, &'a [Column]);

/// `key: value` lines for the plain members of an object, then a table for each list of objects:
/// with the columns of `shown`, else with all members.
fn listing(text: &str, shown: Option<Shown<'_>>) -> anyhow::Result<String> {
    let Members(members) = serde_json::from_str(text).context("the answer is not a JSON object")?;
    let mut lines = Vec::new();
    let mut tables = Vec::new();
    let width = members.iter().map(|(name, _)| name.chars().count() + 1).max().unwrap_or(0);
    for (name, raw) in &members {
        if let Some((_, columns)) = shown.filter(|(wanted, _)| wanted == name) {
            let rows: Vec<Value> = serde_json::from_str(raw.get()).context("the answer has no list")?;
            if !rows.is_empty() {
                tables.push(format!("\n{}:\n{}", clean(name), columned(&rows, columns)));
            }
            continue;
        }
        match serde_json::from_str::<Vec<Members>>(raw.get()) {
            Ok(rows) if !rows.is_empty() => tables.push(format!("\n{}:\n{}", clean(name), subtable(&rows))),
            _ => lines.push(format!("{:<width$} {}", format!("{}:", clean(name)), raw_text(raw))),
        }
    }
    Ok(lines.into_iter().chain(tables).collect::<Vec<_>>().join("\n"))
}

/// Leaves out empty columns.
fn columned(rows: &[Value], columns: &[Column]) -> String {
    let cells: Vec<Vec<String>> =
        columns.iter().map(|column| rows.iter().map(|row| cell(row, column)).collect()).collect();
    let told = |index: &usize| cells[*index].iter().any(|cell| !["", "-"].contains(&cell.as_str()));
    let told: Vec<usize> = (0..columns.len()).filter(told).collect();
    let mut table = Table::new(told.iter().map(|index| columns[*index].0.to_owned()).collect(), colour());
    let rows: Vec<Vec<String>> =
        (0..rows.len()).map(|row| told.iter().map(|column| cells[*column][row].clone()).collect()).collect();
    table.page(&rows).iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn subtable(rows: &[Members]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flat_map(|row| &row.0) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let text_of = |row: &Members, name: &str| {
        row.0
            .iter()
            .find(|(other, _)| other == name)
            .map_or_else(|| "-".to_owned(), |(_, raw)| cut(raw_text(raw)))
    };
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| names.iter().map(|name| text_of(row, name)).collect()).collect();
    let mut table = Table::new(names.iter().map(|name| clean(name)).collect(), colour());
    table.page(&cells).iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

#[derive(serde::Deserialize)]
struct Page {
    data: Vec<Box<RawValue>>,
    #[serde(default)]
    next: Option<String>,
}

/// The connection and the output format of a client command.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) json: bool,
}

impl Session {
    /// Prints an object: as received, or as a listing.
    pub(crate) fn show(&self, answer: &str) -> anyhow::Result<()> {
        self.show_as(answer, None)
    }

    /// As [`Self::show`], with chosen columns for one member.
    pub(crate) fn show_with(&self, answer: &str, shown: Shown<'_>) -> anyhow::Result<()> {
        self.show_as(answer, Some(shown))
    }

    fn show_as(&self, answer: &str, shown: Option<Shown<'_>>) -> anyhow::Result<()> {
        if self.json {
            // A program that parses the output needs JSON also for an answer without a body.
            json_line(if answer.trim().is_empty() { "{}" } else { answer.trim_end() })?;
        } else if !answer.trim().is_empty() {
            line(&listing(answer, shown)?)?;
        }
        Ok(())
    }

    /// Prints the answer, or `words` when it is empty.
    pub(crate) fn done(&self, answer: &str, words: &str) -> anyhow::Result<()> {
        if self.json || !answer.trim().is_empty() { self.show(answer) } else { Ok(line(words)?) }
    }

    /// Prints one page of a list, or all pages.
    pub(crate) async fn list(
        &self,
        segments: &[&str],
        query: QueryArgs,
        paging: &Paging,
        columns: &[Column],
    ) -> anyhow::Result<()> {
        // Full pages need fewer requests.
        let limit = if paging.all { paging.limit.or(Some(250)) } else { paging.limit };
        let query = query.with("limit", limit.map(|limit| limit.to_string()));
        let mut table = Table::new(columns.iter().map(|column| column.0.to_owned()).collect(), colour());
        let mut cursor: Option<String> = None;
        let mut any = false;
        loop {
            let mut page_query = query.0.clone();
            page_query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
            let text = self.client.get(segments, &page_query).await?;
            if self.json && !paging.all {
                return Ok(json_line(text.trim_end())?);
            }
            let page: Page = serde_json::from_str(&text).context("the answer is not a list")?;
            self.print_page(&page, &mut table, columns, any)?;
            any |= !page.data.is_empty();
            cursor = page.next;
            if cursor.is_none() || !paging.all {
                break;
            }
        }
        self.print_end(any, cursor.is_some())
    }

    fn print_page(
        &self,
        page: &Page,
        table: &mut Table,
        columns: &[Column],
        any: bool,
    ) -> anyhow::Result<()> {
        if self.json {
            for (index, row) in page.data.iter().enumerate() {
                json_line(&format!("{}{}", if index == 0 && !any { "{\"data\":[" } else { "," }, row.get()))?;
            }
            return Ok(());
        }
        let mut rows = Vec::with_capacity(page.data.len());
        for raw in &page.data {
            let row: Value = serde_json::from_str(raw.get()).context("a row of the list is not JSON")?;
            rows.push(columns.iter().map(|column| cell(&row, column)).collect());
        }
        if !rows.is_empty() {
            line(&table.page(&rows).join("\n"))?;
        }
        Ok(())
    }

    fn print_end(&self, any: bool, more: bool) -> anyhow::Result<()> {
        match (self.json, any) {
            (true, true) => line("],\"next\":null}")?,
            (true, false) => line("{\"data\":[],\"next\":null}")?,
            (false, true) if more => note("There are more: --all shows them, --limit widens the page."),
            (false, true) => {}
            (false, false) => note("Nothing found."),
        }
        Ok(())
    }
}

/// One line on a terminal that changes as work goes on, and is cleared when this is dropped. Shows
/// nothing elsewhere.
///
/// A thread writes it, so that a stopped terminal delays neither the work nor a signal.
pub(crate) struct ProgressLine(Option<ProgressThread>);

struct ProgressThread {
    texts: SyncSender<String>,
    /// Closed when the thread ends.
    ended: Receiver<()>,
}

impl ProgressLine {
    pub(crate) fn start() -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let (texts, shown) = sync_channel(1);
        let (end, ended) = channel::<()>();
        let spawned = thread::Builder::new().name("balto-progress".to_owned()).spawn(move || {
            write_progress(&shown, io::stderr());
            drop(end);
        });
        Self(spawned.ok().map(|_| ProgressThread { texts, ended }))
    }

    /// Never waits: a terminal that is behind misses this text.
    pub(crate) fn show(&self, text: String) {
        if let Some(thread) = &self.0 {
            thread.texts.try_send(text).ok();
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if let Some(ProgressThread { texts, ended }) = self.0.take() {
            drop(texts);
            ended.recv_timeout(STALLED_STDERR_MAX).ok();
        }
    }
}

fn write_progress(texts: &Receiver<String>, mut terminal: impl Write) {
    let mut width = 0;
    for text in texts {
        write!(terminal, "\r{text:<width$}").ok();
        width = text.chars().count();
    }
    if width > 0 {
        write!(terminal, "\r{:<width$}\r", "").ok();
    }
}

/// Prints a line on standard error.
pub(crate) fn note(text: &str) {
    writeln!(io::stderr(), "{text}").ok();
}

/// As [`note`], on another thread: while it is not read, a signal still ends the command.
pub(crate) async fn note_async(text: String) {
    tokio::task::spawn_blocking(move || note(&text)).await.ok();
}

/// As [`note`], at the end of a command that handles signals: after [`STALLED_STDERR_MAX`] the note
/// is lost.
pub(crate) fn last_note(text: &str) {
    let text = text.to_owned();
    write_within_limit(move || note(&text));
}

fn write_within_limit(write: impl Fn() + Send + Sync + 'static) {
    let write = Arc::new(write);
    let (end, ended) = channel::<()>();
    let spawned = thread::Builder::new().name("balto-last-note".to_owned()).spawn({
        let write = write.clone();
        move || {
            write();
            drop(end);
        }
    });
    match spawned {
        Ok(_) => drop(ended.recv_timeout(STALLED_STDERR_MAX)),
        // The reason for the note may be a lack of threads.
        Err(_) => write(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::fake;
    use crate::cli::table::CELL_CHARACTERS_MAX;

    #[test]
    fn progress_overwrites_its_line_and_clears_it() {
        let (texts, shown) = sync_channel(2);
        for text in ["position 10", "position 9"] {
            texts.send(text.to_owned()).unwrap();
        }
        drop(texts);
        let mut terminal = Vec::new();
        write_progress(&shown, &mut terminal);
        let expected = "\rposition 10\rposition 9 \r          \r";
        assert_eq!(String::from_utf8(terminal).unwrap(), expected);
    }

    #[test]
    fn cell_takes_the_first_place_with_a_value() {
        let row = serde_json::json!({"event": {"type": "a.b"}, "types": ["x", "y"], "attempts": [{}, {}],
            "long": "z".repeat(100), "evil": "\u{1b}[2J"});
        assert_eq!(cell(&row, &Column("T", &["/type", "/event/type"])), "a.b");
        assert_eq!(cell(&row, &Column("T", &["/types"])), "x y");
        assert_eq!(cell(&row, &Column("T", &["/attempts"])), "2");
        assert_eq!(cell(&row, &Column("T", &["/none"])), "-");
        assert_eq!(cell(&row, &Column("T", &["/evil"])), "\\u{1b}[2J");
        assert_eq!(cell(&row, &Column("T", &["/long"])).chars().count(), CELL_CHARACTERS_MAX);
    }

    #[test]
    fn listing_keeps_the_order_and_bytes_of_data() {
        let text = r#"{"type":"order.paid","id":"evt_1","data":{"z":1.0,"a":1e2},"next":null,
            "attempts":[{"number":1,"error":"refused"},{"number":2,"statusCode":200}]}"#;
        let expected = "type:     order.paid\nid:       evt_1\ndata:     {\"z\":1.0,\"a\":1e2}\nnext:     -\n\n\
            attempts:\n  number  error    statusCode\n  1       refused  -\n  2       -        200";
        assert_eq!(listing(text, None).unwrap(), expected);
        let columns = [Column("NUMBER", &["/number"]), Column("REPLY", &["/responseBody"])];
        let chosen = listing(text, Some(("attempts", &columns))).unwrap();
        assert!(chosen.ends_with("attempts:\n  NUMBER\n  1\n  2"), "{chosen}");
        assert!(listing("[1]", None).is_err());
    }

    #[test]
    fn printed_json_is_escaped_and_keeps_its_meaning() {
        let reply: String =
            (0..=0x2100_u32).chain([0xfeff, 0xffff, 0x1f600]).filter_map(char::from_u32).collect();
        let json = serde_json::json!({"responseBody": reply, "n": 1.0}).to_string();
        let printed = harmless(&format!("{json}\r\n"));
        let shown = printed.trim_end();
        assert!(
            !shown
                .chars()
                .any(|c| c.is_control() || "\u{202e}\u{2066}\u{61c}\u{200f}\u{2028}\u{feff}".contains(c))
        );
        assert!(
            shown.contains("\\u009b") && shown.contains("\\u007f") && shown.contains("\\u202e"),
            "{shown}"
        );
        let read: Value = serde_json::from_str(shown).unwrap();
        assert_eq!(read, serde_json::from_str::<Value>(&json).unwrap());
        let plain = "{\n\t\"é\": \"😀\"\n}";
        assert_eq!(harmless(plain), plain);
    }

    #[tokio::test]
    async fn all_pages_are_fetched_by_their_cursors() {
        let answers = vec![
            ("200 OK", r#"{"data":[{"id":"a"}],"next":"c1"}"#.to_owned()),
            ("200 OK", r#"{"data":[{"id":"b"}],"next":null}"#.to_owned()),
        ];
        let (url, task) = fake::serve(answers).await;
        let session = Session { client: Client::new(&url, None).unwrap(), json: false };
        let query = QueryArgs::default().with("tenant", Some("acme"));
        let paging = Paging { limit: None, all: true };
        session.list(&["v1", "events"], query, &paging, &[Column("ID", &["/id"])]).await.unwrap();
        let requests = task.await.unwrap();
        assert!(requests[0].starts_with("GET /v1/events?tenant=acme&limit=250 "), "{}", requests[0]);
        assert!(
            requests[1].starts_with("GET /v1/events?tenant=acme&limit=250&cursor=c1 "),
            "{}",
            requests[1]
        );
    }
}
