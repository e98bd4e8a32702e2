//! The lines that `balto listen` prints.

use serde_json::json;

use super::{Forwarded, Receiver, Report, Signed};
use crate::cli::args;
use crate::cli::output::{clean, colour, harmless, line_async, note_async};

/// Columns before the second line of a report: those of the time.
const INDENT: &str = "              ";

fn paint(text: String, code: &str, coloured: bool) -> String {
    if coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text }
}

fn painted_status(status: u16, coloured: bool) -> String {
    let code = if (200..300).contains(&status) { "32" } else { "31" };
    paint(status.to_string(), code, coloured)
}

/// A report as text. A relayed request has a second line.
pub(super) fn sentence(report: &Report, coloured: bool) -> String {
    let shown = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), clean);
    let signature_colour = match report.signed {
        Signed::Ok => "32",
        Signed::Bad(_) => "31",
        Signed::Unchecked => "33",
    };
    let head = format!(
        "attempt {}  {}  {}  signature {}",
        shown(&report.attempt),
        shown(&report.event_type),
        shown(&report.id),
        paint(report.signed.to_string(), signature_colour, coloured),
    );
    let (time, status) = (args::time_of_day(report.at), painted_status(report.status, coloured));
    let Some(forwarded) = &report.forwarded else {
        return format!("{time}  {head}  answered {status}");
    };
    let received = format!("{} {}", clean(&report.method), clean(&report.target));
    format!("{time}  {received}  {head}\n{INDENT}{}", relayed(report, forwarded, coloured))
}

fn relayed(report: &Report, forwarded: &Forwarded, coloured: bool) -> String {
    let took = forwarded.took.as_millis();
    let outcome = match &forwarded.outcome {
        Ok(status) => format!("answered {} in {took} ms", painted_status(*status, coloured)),
        Err(cause) => format!(
            "{} after {took} ms: {}; answered {}",
            paint("failed".to_owned(), "31", coloured),
            clean(cause),
            painted_status(report.status, coloured)
        ),
    };
    format!("-> {} {}  {outcome}", clean(&report.method), clean(&forwarded.url))
}

/// A report as JSON.
fn record(report: &Report) -> String {
    let mut record = json!({"at": report.at.rfc3339().as_str(), "method": report.method, "path": report.target,
        "attempt": report.attempt, "type": report.event_type, "id": report.id,
        "signature": report.signed.to_string(), "status": report.status,
        "body": String::from_utf8_lossy(&report.body)});
    if let Some(forwarded) = &report.forwarded {
        record["forward"] = json!({"url": forwarded.url, "status": forwarded.outcome.as_ref().ok(),
            "error": forwarded.outcome.as_ref().err(), "milliseconds": forwarded.took.as_millis(),
            "body": String::from_utf8_lossy(&forwarded.body)});
    }
    record.to_string()
}

pub(super) async fn print_reports(
    receiver: &mut Receiver,
    with_body: bool,
    as_json: bool,
) -> anyhow::Result<()> {
    note_async(format!("Listening on http://{}/ (Ctrl-C stops)", receiver.address())).await;
    let coloured = colour();
    while let Some(report) = receiver.next().await {
        let mut text = if as_json { harmless(&record(&report)) } else { sentence(&report, coloured) };
        if with_body && !as_json {
            text.push_str(&format!("\n  {}", clean(&String::from_utf8_lossy(&report.body))));
            if let Some(forwarded) = report.forwarded.as_ref().filter(|answer| !answer.body.is_empty()) {
                text.push_str(&format!("\n  <- {}", clean(&String::from_utf8_lossy(&forwarded.body))));
            }
        }
        line_async(text).await?;
    }
    Ok(())
}
