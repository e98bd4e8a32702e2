//! Typed responses: the result type of a handler is its declaration in the table of operations.

use std::marker::PhantomData;

use schemars::JsonSchema;
use serde::Serialize;

use super::reply::Reply;
use crate::api::routes::{SchemaOf, schema};
use crate::context::responses::{Answer, Remember};
use crate::domain::Idempotency;

/// A response with the status `STATUS` and a JSON body of type `T`. It is serialised when it is
/// made, so a stored response is of the same type.
pub struct Success<const STATUS: u16, T> {
    reply: Reply,
    body: PhantomData<fn() -> T>,
}

pub type Json<T> = Success<200, T>;
pub type Created<T> = Success<201, T>;
pub type Accepted<T> = Success<202, T>;
/// Has no body.
pub type NoContent = Success<204, ()>;

impl<const STATUS: u16, T: Serialize> Success<STATUS, T> {
    pub fn new(body: &T) -> Self {
        Self::from_reply(Reply::json(STATUS, body))
    }
}

impl NoContent {
    #[must_use]
    pub fn empty() -> Self {
        Self::from_reply(Reply::empty())
    }
}

impl<const STATUS: u16, T> Success<STATUS, T> {
    /// The same response, for a body type that borrows: `U` is `T` with the lifetime `'static`,
    /// which a handler can name in its signature.
    #[must_use]
    pub fn without_lifetime<U>(self) -> Success<STATUS, U> {
        Success::from_reply(self.reply)
    }

    /// A stored response, or one that is JSON already.
    #[must_use]
    pub fn from_reply(reply: Reply) -> Self {
        Self { reply, body: PhantomData }
    }

    #[must_use]
    pub fn with_header(self, name: &'static str, value: &str) -> Self {
        Self::from_reply(self.reply.with_header(name, value))
    }

    /// Adds `Location` to a 201.
    #[must_use]
    pub fn created_at(self, location: &str) -> Self {
        if self.reply.status == 201 { self.with_header("location", location) } else { self }
    }

    /// Runs `undo` unless the response is written.
    #[must_use]
    pub fn undo_unless_written(self, undo: impl FnOnce() + Send + 'static) -> Self {
        Self::from_reply(self.reply.undo_unless_written(undo))
    }

    /// Another status than the declared one.
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        Self::from_reply(self.reply.with_status(status))
    }

    #[must_use]
    pub fn answer(&self) -> Answer {
        self.reply.answer()
    }

    /// The response to store under the key of the request; `None` without a key.
    #[must_use]
    pub fn to_stored(&self, idempotency: Option<Idempotency>) -> Option<Remember> {
        self.reply.to_stored(idempotency)
    }
}

/// The holder of the turn of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadTurn {
    /// The request, for its whole time.
    Request,
    /// The handler, while it reads: it also waits.
    Handler,
}

/// The response of an operation.
pub trait OperationResponse {
    const STATUS: u16;
    /// `None` for a response without a body.
    const SCHEMA: Option<SchemaOf>;
    const TURN: ReadTurn = ReadTurn::Request;
    /// Media types beside JSON, by the request's `Accept`.
    const OTHER_MEDIA: &'static [&'static str] = &[];

    fn into_reply(self) -> Reply;
}

impl<const STATUS: u16, T: JsonSchema> OperationResponse for Success<STATUS, T> {
    const STATUS: u16 = STATUS;
    const SCHEMA: Option<SchemaOf> = if STATUS == 204 { None } else { Some(schema::<T>) };

    fn into_reply(self) -> Reply {
        self.reply
    }
}

/// 200 with a text.
pub struct PlainText(Reply);

impl PlainText {
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Reply::bytes(200, text.into()).with_content_type("text/plain; charset=utf-8"))
    }
}

impl OperationResponse for PlainText {
    const STATUS: u16 = 200;
    const SCHEMA: Option<SchemaOf> = None;
    const OTHER_MEDIA: &'static [&'static str] = &["text/plain"];

    fn into_reply(self) -> Reply {
        self.0
    }
}

/// The response of a `PUT`: 201 for a new resource, 200 for a replaced one. Declares 200.
pub enum CreatedOrReplaced<T> {
    Created(Created<T>),
    Replaced(Json<T>),
}

impl<T: JsonSchema> OperationResponse for CreatedOrReplaced<T> {
    const STATUS: u16 = 200;
    const SCHEMA: Option<SchemaOf> = Some(schema::<T>);

    fn into_reply(self) -> Reply {
        match self {
            Self::Created(response) => response.into_reply(),
            Self::Replaced(response) => response.into_reply(),
        }
    }
}
