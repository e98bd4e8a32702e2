//! Templates of request bodies, in the language of Jinja.
//!
//! Owns compilation, rendering and their bounds. Tenants write templates, so a template is hostile:
//! it reads only its event, cannot include another one, and has a limit of work, memory and output.
//! The engine's fuel counts instructions, bytes and visited items. [`grammar`] excludes what fuel
//! does not count. Pure: no I/O, clocks or randomness.

mod grammar;

use std::fmt::{self, Write as _};
use std::io;

use bytes::Bytes;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior};
use serde::de::IgnoredAny;

use crate::domain::Event;
use crate::domain::media::DataKind;
use crate::limits;

/// The variables of a template.
const VARIABLES: [&str; 8] =
    ["id", "type", "timestamp", "version", "tenant", "stream", "streamVersion", "data"];
const NAME: &str = "body";

/// Why a template does not compile or render. Can quote the template and the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateError {
    /// From 1; `None` for an error of the whole body.
    pub line: Option<usize>,
    pub detail: String,
}

impl TemplateError {
    fn whole(detail: impl Into<String>) -> Self {
        Self { line: None, detail: detail.into() }
    }
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.detail),
            None => f.write_str(&self.detail),
        }
    }
}

impl From<Error> for TemplateError {
    fn from(error: Error) -> Self {
        let detail = match (error.kind(), error.detail()) {
            (ErrorKind::OutOfFuel, _) => "the template does too much work for one event".to_owned(),
            (ErrorKind::WriteFailure, _) => too_large(),
            (kind, Some(detail)) => format!("{kind}: {detail}"),
            (kind, None) => kind.to_string(),
        };
        Self { line: error.line(), detail }
    }
}

fn too_large() -> String {
    format!("the body has more than {} bytes", limits::RENDERED_BYTES_MAX)
}

/// A compiled template.
#[derive(Debug)]
pub struct BodyTemplate {
    environment: Environment<'static>,
    is_json: bool,
}

impl BodyTemplate {
    /// Compiles a template for bodies of this media type. In a JSON body, each printed value is
    /// written as JSON.
    ///
    /// # Errors
    /// The first error, with its line.
    pub fn compile(source: &str, media: &str) -> Result<Self, TemplateError> {
        if source.len() > limits::BODY_TEMPLATE_BYTES_MAX {
            return Err(TemplateError::whole(format!("at most {} bytes", limits::BODY_TEMPLATE_BYTES_MAX)));
        }
        grammar::check(source, NAME)?;
        let is_json = DataKind::of(media) == DataKind::Json;
        let mut environment = Environment::new();
        environment.set_debug(false);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(limits::RENDERING_FUEL));
        environment
            .set_auto_escape_callback(move |_| if is_json { AutoEscape::Json } else { AutoEscape::None });
        environment.set_formatter(print);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, source.to_owned())?;
        let unknown = environment.get_template(NAME)?.undeclared_variables(false);
        let mut unknown: Vec<_> =
            unknown.into_iter().filter(|name| !VARIABLES.contains(&name.as_str())).collect();
        unknown.sort();
        if let Some(name) = unknown.first() {
            let known = VARIABLES.join("`, `");
            return Err(TemplateError::whole(format!(
                "unknown variable `{name}`; the variables are `{known}`"
            )));
        }
        Ok(Self { environment, is_json })
    }

    /// The body for an event.
    ///
    /// # Errors
    /// When the template fails for this event, or its output is too large or not JSON.
    pub fn render(&self, event: &Event) -> Result<Bytes, TemplateError> {
        let variables = variables(event)?;
        let mut body = LimitedText(String::new());
        self.environment.get_template(NAME)?.render_captured_to(variables, &mut body)?;
        if self.is_json {
            serde_json::from_str::<IgnoredAny>(&body.0)
                .map_err(|error| TemplateError::whole(format!("the rendered body is not JSON: {error}")))?;
        }
        Ok(body.0.into())
    }
}

fn variables(event: &Event) -> Result<Value, TemplateError> {
    let data = if event.data.is_empty() { b"null" } else { &event.data[..] };
    let data: Value = serde_json::from_slice(data)
        .map_err(|error| TemplateError::whole(format!("the data cannot be read: {error}")))?;
    let stream = event.stream.as_ref();
    let values = [
        Value::from(event.id.as_str()),
        Value::from(event.event_type.as_str()),
        Value::from(event.timestamp.rfc3339().as_str()),
        Value::from(event.version.as_str()),
        Value::from(event.tenant.as_str()),
        Value::from(stream.map(|(name, _)| name.as_str())),
        Value::from(stream.map(|(_, version)| *version)),
        data,
    ];
    Ok(Value::from_pairs(VARIABLES.into_iter().zip(values)))
}

/// A text that rejects more than [`limits::RENDERED_BYTES_MAX`] bytes.
struct LimitedText(String);

impl fmt::Write for LimitedText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > limits::RENDERED_BYTES_MAX {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

impl io::Write for LimitedText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = std::str::from_utf8(bytes).map_err(io::Error::other)?;
        self.write_str(text).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The JSON of a value. The engine's own conversion has no limit.
fn json_text(value: &Value) -> Result<String, Error> {
    let mut text = LimitedText(String::new());
    serde_json::to_writer(&mut text, value).map_err(|error| {
        let is_too_large = error.is_io();
        let kind = if is_too_large { ErrorKind::WriteFailure } else { ErrorKind::BadSerialization };
        Error::new(kind, error.to_string())
    })?;
    Ok(text.0)
}

fn to_json(value: &Value) -> Result<Value, Error> {
    json_text(value).map(Value::from_safe_string)
}

fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let text = match value.as_str() {
        Some(text) if value.is_safe() || *state.auto_escape() == AutoEscape::None => text.to_owned(),
        _ if *state.auto_escape() == AutoEscape::Json => json_text(value)?,
        _ => {
            let mut text = LimitedText(String::new());
            write!(text, "{value}").map_err(|_| Error::new(ErrorKind::WriteFailure, too_large()))?;
            text.0
        }
    };
    out.write_str(&text).map_err(Error::from)
}

#[cfg(test)]
mod tests;
