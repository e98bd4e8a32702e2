//! Query parameters, pages and cursors.
//!
//! A cursor is opaque to clients: base64url of a version byte, a list byte and a sort key.

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use url::form_urlencoded;

mod params;

pub use params::*;

use crate::api::http::heavy_work::off_thread;
use crate::api::http::problem::{Errors, FieldError, Problem};
use crate::api::http::response::Json;
use crate::api::text;
use crate::domain::{
    Audience, DeadReason, DeliverySearch, EndpointNumber, EndpointOwner, EventId, EventType, InvalidName,
    LastAttemptFilter, Pattern, Position, ShownClass, Tenant, Timestamp,
};
use crate::limits;
use crate::nearest::nearest;
use crate::rules::patterns::{canonical, check_pattern};
use crate::service::types::{Cursor, Filter, Page};

/// Layout version of a cursor. With another version a cursor is rejected, not misread.
const CURSOR_VERSION: u8 = 1;

/// The list of a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    Events = 1,
    Endpoints = 2,
    Deliveries = 3,
    DeadLetters = 4,
    Keys = 5,
    Tenants = 6,
    Streams = 7,
    Consumers = 8,
    Queues = 20,
    Leases = 21,
    Sources = 22,
    EventTypes = 12,
    Jobs = 30,
    Audit = 31,
    Lanes = 32,
    Projections = 33,
}

/// A query parameter as the route table declares it.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    pub name: &'static str,
    pub about: &'static str,
    pub kind: Kind,
}

/// The type of a query parameter.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Pattern and maximum length in bytes.
    Text(&'static str, usize),
    Time,
    Position,
    Limit,
    /// A whole number from 1 to a maximum, and its default.
    Count(usize, usize),
    /// Text that may be empty, of a maximum length in bytes.
    Any(usize),
    /// A duration of at most [`limits::WAIT_MAX`].
    Wait,
    Word(&'static [&'static str]),
}

/// Checks the member `tenant` of a body: a tenant, or `*`, as in [`Query::owner`].
pub fn check_owner(given: Option<&str>, errors: &mut Errors) -> Option<Tenant> {
    let owner = given.and_then(|tenant| errors.check("/tenant", tenant.parse()));
    owner.map(|EndpointOwner(owner)| owner)
}

/// The query parameters of one request.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pairs: Vec<(&'static str, String)>,
}

/// Detail for a part of a URL that is not [`is_well_encoded`].
pub const BAD_ENCODING: &str = "must be percent-encoded UTF-8: a `%` and two hexadecimal digits per byte";

impl Query {
    /// # Errors
    /// 422 that names each unknown, duplicate or overlong parameter.
    pub fn parse(raw: Option<&str>, allowed: &'static [Param]) -> Result<Self, Problem> {
        let mut query = Self::default();
        let mut errors = Vec::new();
        let raw = raw.unwrap_or_default();
        for pair in raw.split('&').filter(|pair| !is_well_encoded(pair)) {
            let name = pair.split('=').next().unwrap_or_default().to_owned();
            errors.push(FieldError::parameter(name, BAD_ENCODING));
        }
        for (name, value) in form_urlencoded::parse(raw.as_bytes()) {
            match allowed.iter().find(|param| param.name == name) {
                None => {
                    let near = nearest(&name, allowed.iter().map(|param| param.name));
                    let near = near.map(|known| format!("; did you mean `{known}`?")).unwrap_or_default();
                    let detail = format!("unknown parameter `{name}`{near}");
                    errors.push(FieldError::parameter(name.clone(), detail));
                }
                Some(param) if query.text(param.name).is_some() => {
                    errors.push(FieldError::parameter(param.name, "duplicate parameter"));
                }
                Some(param) => match param.kind {
                    Kind::Text(_, most) | Kind::Any(most) if value.len() > most => {
                        errors.push(FieldError::parameter(param.name, format!("at most {most} bytes")));
                    }
                    _ => query.pairs.push((param.name, value.into_owned())),
                },
            }
        }
        if errors.is_empty() { Ok(query) } else { Err(Problem::Validation(errors)) }
    }

    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(one, _)| *one == name).map(|(_, value)| value.as_str())
    }

    /// A parameter that parses from text.
    ///
    /// # Errors
    /// 422 that names the parameter.
    pub fn get<T: std::str::FromStr<Err: std::fmt::Display>>(
        &self,
        name: &str,
    ) -> Result<Option<T>, Problem> {
        let Some(value) = self.text(name) else { return Ok(None) };
        value.parse().map(Some).map_err(|error: T::Err| Problem::parameter(name, error.to_string()))
    }

    /// # Errors
    /// 422 that names the parameter.
    pub fn time(&self, name: &str) -> Result<Option<Timestamp>, Problem> {
        let Some(value) = self.text(name) else { return Ok(None) };
        text::parse_bound(&restore_plus(value)).map(Some).map_err(|error| Problem::parameter(name, error))
    }

    /// One of these words.
    ///
    /// # Errors
    /// 422 that lists them.
    pub fn word(&self, name: &str, words: &'static [&'static str]) -> Result<Option<&'static str>, Problem> {
        let Some(value) = self.text(name) else { return Ok(None) };
        match words.iter().find(|word| **word == value) {
            Some(word) => Ok(Some(word)),
            None => Err(Problem::parameter(name, format!("must be one of {}", words.join(", ")))),
        }
    }

    /// `tenant`: a tenant, or `*`, the owner of what belongs to all tenants.
    ///
    /// # Errors
    /// 422 for anything else.
    pub fn owner(&self) -> Result<Option<Tenant>, Problem> {
        Ok(self.get::<EndpointOwner>("tenant")?.map(|EndpointOwner(owner)| owner))
    }

    /// A position: below 2^63.
    ///
    /// # Errors
    /// 422 that names the parameter.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Problem> {
        let Some(value) = self.text(name) else { return Ok(None) };
        let number = value.parse::<u64>().ok().filter(|number| *number < 1 << 63);
        number.map(Some).ok_or_else(|| Problem::parameter(name, "must be a whole number".to_owned()))
    }

    /// How long to wait; zero without the parameter.
    ///
    /// # Errors
    /// 422 for a value that is not a duration of at most [`limits::WAIT_MAX`].
    pub fn wait(&self) -> Result<Duration, Problem> {
        let Some(value) = self.text("wait") else { return Ok(Duration::ZERO) };
        match text::parse_duration(value) {
            Ok(wait) if wait <= limits::WAIT_MAX => Ok(wait),
            Ok(_) => Err(Problem::parameter(
                "wait",
                format!("at most {}", text::format_duration(limits::WAIT_MAX)),
            )),
            Err(reason) => Err(Problem::parameter("wait", reason)),
        }
    }

    /// Items per page: 1 to [`limits::PAGE_ITEMS_MAX`].
    ///
    /// # Errors
    /// 422 for any other value.
    pub fn limit(&self) -> Result<usize, Problem> {
        self.count("limit", limits::PAGE_ITEMS_MAX, limits::PAGE_ITEMS_DEFAULT)
    }

    /// Events per page of the feed: 1 to [`limits::FEED_PAGE_ITEMS_MAX`].
    ///
    /// # Errors
    /// 422 for any other value.
    pub fn feed_limit(&self) -> Result<usize, Problem> {
        self.count("limit", limits::FEED_PAGE_ITEMS_MAX, limits::FEED_PAGE_ITEMS_DEFAULT)
    }

    pub(in crate::api) fn count(&self, name: &str, most: usize, usual: usize) -> Result<usize, Problem> {
        let Some(value) = self.text(name) else { return Ok(usual) };
        match value.parse::<usize>() {
            Ok(count) if (1..=most).contains(&count) => Ok(count),
            _ => Err(Problem::parameter(name, format!("must be a whole number from 1 to {most}"))),
        }
    }

    /// # Errors
    /// 422 for a cursor that is not of this list.
    pub fn cursor(&self, list: List) -> Result<Option<Cursor>, Problem> {
        let Some(value) = self.text("cursor") else { return Ok(None) };
        let key = decode(list, value)?;
        match <[u8; 20]>::try_from(key.as_slice()) {
            Ok(key) => Ok(Some(cursor_from_key(key))),
            Err(_) => Err(bad_cursor()),
        }
    }

    /// The `Link` header of the next page, with the filters of this one.
    #[must_use]
    pub fn next_link(&self, path: &str, next: &str) -> String {
        self.link(path, ("cursor", next), &[])
    }

    /// As [`Self::next_link`], with the cursor as this parameter, and without some others.
    #[must_use]
    pub fn link(&self, path: &str, (cursor, next): (&str, &str), without: &[&str]) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let is_kept = |name: &str| name != cursor && !without.contains(&name);
        for (name, value) in self.pairs.iter().filter(|(name, _)| is_kept(name)) {
            query.append_pair(name, value);
        }
        query.append_pair(cursor, next);
        format!("<{path}?{}>; rel=\"next\"", query.finish())
    }
}

/// Restores the unencoded `+` of an offset, which decodes as a space.
fn restore_plus(time: &str) -> Cow<'_, str> {
    match time.rsplit_once(' ') {
        Some((moment, offset)) if offset.len() == "00:00".len() => Cow::Owned(format!("{moment}+{offset}")),
        _ => Cow::Borrowed(time),
    }
}

/// 422 for a cursor that is not of the list.
#[must_use]
pub fn bad_cursor() -> Problem {
    Problem::parameter("cursor", "not a cursor of this list; start without one")
}

fn cursor_from_key(key: [u8; 20]) -> Cursor {
    let number =
        |from: usize| key[from..from + 8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let endpoint = key[8..12].iter().fold(0, |number, byte| number << 8 | u32::from(*byte));
    Cursor { position: Position(number(0)), endpoint: EndpointNumber(endpoint), event: Position(number(12)) }
}

/// Encodes a cursor with this sort key.
#[must_use]
pub fn encode(list: List, key: &[u8]) -> String {
    let mut bytes = vec![CURSOR_VERSION, list as u8];
    bytes.extend_from_slice(key);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A cursor whose sort key is a name.
///
/// # Errors
/// 422 for a cursor that is not of this list.
pub fn decode_name<T: std::str::FromStr>(list: List, text: &str) -> Result<T, Problem> {
    decode_text(list, text)?.parse().map_err(|_| bad_cursor())
}

/// A cursor whose sort key is text.
///
/// # Errors
/// 422 for a cursor that is not of this list.
pub fn decode_text(list: List, text: &str) -> Result<String, Problem> {
    String::from_utf8(decode(list, text)?).map_err(|_| bad_cursor())
}

/// # Errors
/// 422 for a cursor that is not of this list.
pub fn decode(list: List, text: &str) -> Result<Vec<u8>, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad_cursor())?;
    match bytes.as_slice() {
        [CURSOR_VERSION, tag, key @ ..] if *tag == list as u8 => Ok(key.to_vec()),
        _ => Err(bad_cursor()),
    }
}

#[must_use]
pub fn cursor_text(list: List, cursor: Cursor) -> String {
    let mut key = cursor.position.0.to_be_bytes().to_vec();
    key.extend_from_slice(&cursor.endpoint.0.to_be_bytes());
    key.extend_from_slice(&cursor.event.0.to_be_bytes());
    encode(list, &key)
}

/// The body of a list.
#[derive(Serialize, schemars::JsonSchema)]
pub struct ListBody<T> {
    /// In the order that the operation names, otherwise newest first.
    pub data: Vec<T>,
    /// The `cursor` of the next page; null on the last page.
    pub next: Option<String>,
}

/// The response with a page; `data` are the bodies of its items.
pub fn page_reply<T: Serialize>(
    path: &str,
    query: &Query,
    list: List,
    page: &Page<impl Sized>,
    data: Vec<T>,
) -> Json<ListBody<T>> {
    let next = page.next.map(|cursor| cursor_text(list, cursor));
    let reply = list_reply(path, query, data, next);
    reply.with_header("balto-position", &page.as_of.to_string())
}

pub fn list_reply<T: Serialize>(
    path: &str,
    query: &Query,
    data: Vec<T>,
    next: Option<String>,
) -> Json<ListBody<T>> {
    let link = next.as_deref().map(|next| query.next_link(path, next));
    let is_long = data.len() >= limits::HEAVY_PAGE_ITEMS;
    let body = ListBody { data, next };
    let reply = if is_long { off_thread(|| Json::new(&body)) } else { Json::new(&body) };
    match link {
        Some(link) => reply.with_header("link", &link),
        None => reply,
    }
}

/// The response to a filter by a resource that does not exist.
#[must_use]
pub fn empty_reply<T: Serialize>() -> Json<ListBody<T>> {
    Json::new(&ListBody { data: Vec::new(), next: None })
}

pub(in crate::api) const fn param(name: &'static str, about: &'static str, kind: Kind) -> Param {
    Param { name, about, kind }
}

pub const UNTIL_BEFORE_SINCE: &str = "must not be before `since`";

#[must_use]
pub fn parse_reason(word: &str) -> Option<DeadReason> {
    DeadReason::from_word(word)
}

/// Whether each `%` of a part of a URL begins an escape (RFC 3986, section 2.1), and the result is
/// UTF-8.
#[must_use]
pub fn is_well_encoded(text: &str) -> bool {
    let is_escape = |after: &str| {
        after.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    text.split('%').skip(1).all(is_escape) && percent_decode_str(text).decode_utf8().is_ok()
}

/// Checks an HTTP status to search for.
///
/// # Errors
/// The detail.
pub fn check_status_code(status: u64) -> Result<u16, &'static str> {
    let known = u16::try_from(status).ok().filter(|status| (100..=599).contains(status));
    known.ok_or("must be a whole number from 100 to 599")
}

/// A text that may be an id or the start of one.
///
/// # Errors
/// When no id has such characters or such a length.
pub fn parse_id_start(text: &str) -> Result<EventId, InvalidName> {
    text.parse().map_err(|error: InvalidName| InvalidName { what: "id", ..error })
}

/// The common filters of events, deliveries and dead letters.
pub struct Common {
    pub tenant: Option<Tenant>,
    pub event_type: Option<EventType>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

impl Query {
    /// # Errors
    /// 422 that names the parameter.
    pub fn common_filters(&self) -> Result<Common, Problem> {
        let (since, until) = self.window()?;
        Ok(Common { tenant: self.get("tenant")?, event_type: self.get("type")?, since, until })
    }

    /// The filters that deliveries and dead letters share.
    ///
    /// # Errors
    /// 422 that names the parameter.
    pub fn delivery_filters(&self, tenant: Option<Tenant>) -> Result<Filter, Problem> {
        let (since, until) = self.window()?;
        let types: Option<Pattern> = self.get("type")?;
        if let Some(error) = types.as_ref().and_then(|pattern| check_pattern(&canonical(pattern)).err()) {
            return Err(Problem::parameter("type", error.to_string()));
        }
        Ok(Filter { tenant, types, since, until, ..Filter::default() })
    }

    /// Parses `statusCode`, `errorClass` and `q`. The class is as this audience sees it.
    ///
    /// # Errors
    /// 422 for another number or word, or for a text that starts no id.
    pub fn delivery_search(&self, audience: Audience) -> Result<DeliverySearch, Problem> {
        let of_length = |text: &str| text.parse::<u64>().ok().filter(|_| text.len() == 3);
        let status = self.text("statusCode").map(|text| check_status_code(of_length(text).unwrap_or(0)));
        let status = status.transpose().map_err(|detail| Problem::parameter("statusCode", detail))?;
        let class = self.word("errorClass", ERROR_CLASSES)?.and_then(ShownClass::from_word);
        let id_start = self.text("q").map(parse_id_start).transpose();
        let id_start = id_start.map_err(|error| Problem::parameter("q", error.to_string()))?;
        Ok(DeliverySearch { last_attempt: LastAttemptFilter::new(status, class, audience), id_start })
    }

    /// Parses `since` and `until`. The window may be empty.
    ///
    /// # Errors
    /// 422 for a malformed time, or if `until` is before `since`.
    pub fn window(&self) -> Result<(Option<Timestamp>, Option<Timestamp>), Problem> {
        let (since, until) = (self.time("since")?, self.time("until")?);
        if until.is_some() && since > until {
            return Err(Problem::parameter("until", UNTIL_BEFORE_SINCE));
        }
        Ok((since, until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: Cursor =
        Cursor { position: Position(0x0102_0304_0506), endpoint: EndpointNumber(7), event: Position(9) };

    fn with_cursor(text: &str) -> Query {
        Query { pairs: vec![("cursor", text.to_owned())] }
    }

    #[test]
    fn escapes_are_two_digits_each_and_utf8() {
        for good in ["", "a=b+c", "%41", "%C3%A9", "a%2Fb=%e2%82%ac", "100%25"] {
            assert!(is_well_encoded(good), "{good}");
        }
        for bad in ["%", "a%", "a%2", "a%2z", "%%41", "% 41", "%+1", "%C3", "%FF", "a=%c3&b=%a9"] {
            assert!(!is_well_encoded(bad), "{bad}");
        }
    }

    #[test]
    fn cursor_round_trips() {
        let text = cursor_text(List::Deliveries, EXAMPLE);
        assert_eq!(with_cursor(&text).cursor(List::Deliveries), Ok(Some(EXAMPLE)));
    }

    #[test]
    fn modified_cursor_is_rejected() {
        let text = cursor_text(List::Deliveries, EXAMPLE);
        assert_eq!(with_cursor(&text).cursor(List::Events).unwrap_err().status(), 422);
        for bad in
            ["", "x", "!!!", &text[..text.len() - 2], &format!("{text}AA"), &format!("{text}="), &text[4..]]
        {
            assert_eq!(with_cursor(bad).cursor(List::Deliveries).unwrap_err().status(), 422, "{bad:?}");
        }
        let newer = URL_SAFE_NO_PAD.encode([2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(with_cursor(&newer).cursor(List::Deliveries).is_err());
    }

    #[test]
    fn unknown_duplicate_and_overlong_parameters_are_named() {
        let query = format!("limit=5&limti=1&limit=6&tenant={}", "x".repeat(1_000));
        let problem = Query::parse(Some(&query), EVENTS).unwrap_err();
        let Problem::Validation(errors) = problem else { panic!("{problem:?}") };
        let details: Vec<_> = errors.iter().map(|error| &*error.detail).collect();
        let near = "unknown parameter `limti`; did you mean `limit`?";
        assert_eq!(
            details,
            [near, "duplicate parameter", &format!("at most {} bytes", limits::NAME_BYTES_MAX)]
        );
    }

    #[test]
    fn limit_outside_its_bounds_is_rejected() {
        for bad in ["0", "251", "-1", "x", "1.0", ""] {
            let query = Query { pairs: vec![("limit", bad.to_owned())] };
            assert!(query.limit().is_err(), "{bad:?} was accepted");
        }
        assert_eq!(Query::default().limit(), Ok(50));
    }

    #[test]
    fn unencoded_plus_of_an_offset_is_accepted() {
        let time = |raw: &str| Query::parse(Some(&format!("since={raw}")), EVENTS).unwrap().time("since");
        let encoded = time("2026-03-13T10:35:00%2B02:00").unwrap();
        assert_eq!(encoded.unwrap().rfc3339().as_str(), "2026-03-13T08:35:00.000Z");
        for raw in [
            "2026-03-13T10:35:00+02:00",
            "2026-03-13T10:35:00.000+02:00",
            "2026-03-13T10:35:00%2002:00",
            "2026-03-13%2010:35:00+02:00",
            "2026-03-13T03:35:00-05:00",
        ] {
            assert_eq!(time(raw), Ok(encoded), "{raw}");
        }
        for raw in [
            "2026-03-13T10:35:00+02:00+02:00",
            "2026-03-13T10:35:00++02:00",
            "2026-03-13T10:35:00+25:00",
            "2026-03-13T10:35:00+0200",
            "2026-03-13+10:35",
            "+02:00",
            "+",
        ] {
            assert!(time(raw).is_err(), "{raw} was accepted");
        }
        let query = Query::parse(Some("since=2026-03-13T10:35:00+02:00"), EVENTS).unwrap();
        let link = query.next_link("/v1/events", "x");
        let next = link.split(['?', '>']).nth(1).unwrap();
        assert_eq!(Query::parse(Some(next), EVENTS).unwrap().time("since"), Ok(encoded), "{link}");
    }

    #[test]
    fn next_page_keeps_the_filters() {
        let query = Query::parse(Some("stream=a%26b&cursor=old&limit=2"), EVENTS).unwrap();
        assert_eq!(
            query.next_link("/v1/events", "new"),
            "</v1/events?stream=a%26b&limit=2&cursor=new>; rel=\"next\""
        );
    }
}
