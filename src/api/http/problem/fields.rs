//! Validation errors of a well-formed request, with their locations.

use std::borrow::Cow;

use serde::{Serialize, ser::SerializeMap};

use super::Problem;

/// Location of an error. A parameter or header has a `pointer` and a member with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorLocation {
    /// A JSON pointer (RFC 6901) into the body.
    Pointer(String),
    /// A query parameter.
    Parameter(String),
    /// A request header.
    Header(Cow<'static, str>),
}

/// One validation error of a well-formed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    pub location: ErrorLocation,
    pub detail: String,
}

impl FieldError {
    pub fn at(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { location: ErrorLocation::Pointer(pointer.into()), detail: detail.into() }
    }

    pub fn parameter(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { location: ErrorLocation::Parameter(name.into()), detail: detail.into() }
    }

    pub fn header(name: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self { location: ErrorLocation::Header(name.into()), detail: detail.into() }
    }
}

impl Serialize for FieldError {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match &self.location {
            ErrorLocation::Pointer(pointer) => map.serialize_entry("pointer", pointer)?,
            ErrorLocation::Parameter(name) => {
                map.serialize_entry("pointer", &pointer("", name))?;
                map.serialize_entry("parameter", name)?;
            }
            ErrorLocation::Header(name) => {
                map.serialize_entry("pointer", &pointer("", name))?;
                map.serialize_entry("header", name)?;
            }
        }
        map.serialize_entry("detail", &self.detail)?;
        map.end()
    }
}

/// Collects all validation errors of a request.
#[derive(Debug, Default)]
pub struct Errors(pub Vec<FieldError>);

impl Errors {
    pub fn push(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        self.0.push(FieldError::at(pointer, detail));
    }

    /// Returns the value, or records the error and returns `None`.
    pub fn check<T, E: std::fmt::Display>(&mut self, pointer: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.push(pointer, error.to_string())).ok()
    }

    /// Adds the errors of a part of the body, whose pointer is `parent`.
    pub fn extend_below(&mut self, parent: &str, errors: Vec<FieldError>) {
        self.0.extend(errors.into_iter().map(|error| match error.location {
            ErrorLocation::Pointer(below) => FieldError::at(format!("{parent}{below}"), error.detail),
            _ => error,
        }));
    }

    pub fn finish(self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err(Problem::Validation(self.0)) }
    }
}

/// Appends a member name to a JSON pointer.
#[must_use]
pub fn pointer(parent: &str, member: &str) -> String {
    format!("{parent}/{}", member.replace('~', "~0").replace('/', "~1"))
}
