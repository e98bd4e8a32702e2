//! Typed request bodies: the argument type of a handler is its declaration in the table of
//! operations.

use std::marker::PhantomData;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::body;
use super::problem::Problem;
use super::unique::Patch;
use crate::api::Call;
use crate::api::routes::{BodySpec, Limit, Need, SchemaOf, schema};

const JSON: &[&str] = &["application/json"];
const MERGE_PATCH: &[&str] = &["application/merge-patch+json", "application/json"];

/// The body of a request, as an operation takes it.
pub trait RequestBody: Sized {
    const SPEC: BodySpec;

    /// # Errors
    /// 400 or 422 with pointers into the body.
    fn read(call: &Call) -> Result<Self, Problem>;
}

const fn json(need: Need, schema: SchemaOf) -> BodySpec {
    BodySpec { need, limit: Limit::Request, media: JSON, schema }
}

/// A body that the operation requires.
pub struct Required<T>(pub T);

impl<T: DeserializeOwned + JsonSchema> RequestBody for Required<T> {
    const SPEC: BodySpec = json(Need::Required, schema::<T>);

    fn read(call: &Call) -> Result<Self, Problem> {
        body::parse(&call.body).map(Self)
    }
}

/// A body that may be empty.
pub struct Optional<T>(pub T);

impl<T: DeserializeOwned + Default + JsonSchema> RequestBody for Optional<T> {
    const SPEC: BodySpec = json(Need::Optional, schema::<T>);

    fn read(call: &Call) -> Result<Self, Problem> {
        body::parse_or_default(&call.body).map(Self)
    }
}

/// No body, or `{}`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

impl RequestBody for Nothing {
    const SPEC: BodySpec = json(Need::Nothing, schema::<Self>);

    fn read(call: &Call) -> Result<Self, Problem> {
        if call.body.is_empty() { Ok(Self {}) } else { body::parse(&call.body) }
    }
}

/// A merge patch (RFC 7396) of a resource whose input is `T`.
pub struct MergePatch<T> {
    pub patch: Value,
    input: PhantomData<fn() -> T>,
}

impl<T: JsonSchema> RequestBody for MergePatch<T> {
    const SPEC: BodySpec = BodySpec { media: MERGE_PATCH, ..json(Need::Required, schema::<T>) };

    fn read(call: &Call) -> Result<Self, Problem> {
        let Patch(patch) = body::parse_any(&call.body)?;
        if !patch.is_object() {
            return Err(Problem::invalid("", "must be an object: a merge patch"));
        }
        Ok(Self { patch, input: PhantomData })
    }
}
