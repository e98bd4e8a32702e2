//! The conditions of lists and jobs on the last attempt and the ids of deliveries.

use super::closed_list::closed_list;
use super::{ClosedList, ErrorClass, EventId, LastAttempt, Network, Position};

closed_list! {
    /// The reader of a response. Tenants must not see replies from the operator's network.
    pub enum Audience {
        /// A key without a tenant.
        Operator = 1 => "operator",
        Tenant = 2 => "tenant",
    }
}

/// An error class as responses show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShownClass {
    Class(ErrorClass),
    /// Any class without a reply. The class would describe the operator's network.
    NoReply,
}

/// The word and the code of [`ShownClass::NoReply`].
const NO_REPLY: (&str, u8) = ("noReply", 0);

impl ClosedList for ShownClass {
    const WORDS: &'static [&'static str] = &{
        let mut words = [NO_REPLY.0; ErrorClass::ALL.len() + 1];
        let mut index = 0;
        while index < ErrorClass::ALL.len() {
            words[index] = ErrorClass::WORDS[index];
            index += 1;
        }
        words
    };
}

impl ShownClass {
    /// The class of a failure, as this audience sees it. A tenant cannot distinguish closed, open
    /// and TLS ports of the operator's network. A failed lookup was of a name that it knows.
    #[must_use]
    pub fn of(class: ErrorClass, network: Network, status: Option<u16>, audience: Audience) -> Self {
        match (audience, class, network, status) {
            (Audience::Tenant, ErrorClass::Dns, ..) => Self::Class(class),
            (Audience::Tenant, _, Network::Internal, None) => Self::NoReply,
            _ => Self::Class(class),
        }
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Class(class) => class.as_str(),
            Self::NoReply => NO_REPLY.0,
        }
    }

    /// The value with this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        if word == NO_REPLY.0 { Some(Self::NoReply) } else { ErrorClass::from_word(word).map(Self::Class) }
    }

    /// The code on disk.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Class(class) => class.code(),
            Self::NoReply => NO_REPLY.1,
        }
    }

    /// The value with this [`Self::code`].
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        if code == NO_REPLY.1 { Some(Self::NoReply) } else { ErrorClass::from_code(code).map(Self::Class) }
    }
}

/// A condition on the last attempt of a delivery, with a status, a class or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastAttemptFilter {
    pub status: Option<u16>,
    pub class: Option<ShownClass>,
    /// The class is as this audience sees it.
    pub audience: Audience,
}

impl LastAttemptFilter {
    /// `None` without a status and a class.
    #[must_use]
    pub fn new(status: Option<u16>, class: Option<ShownClass>, audience: Audience) -> Option<Self> {
        (status.is_some() || class.is_some()).then_some(Self { status, class, audience })
    }

    #[must_use]
    pub fn wants(&self, last: &LastAttempt) -> bool {
        let shown = || {
            let failure = last.failure.as_ref()?;
            Some(ShownClass::of(failure.class, failure.network, last.status, self.audience))
        };
        self.status.is_none_or(|status| last.status == Some(status))
            && self.class.is_none_or(|class| shown() == Some(class))
    }
}

/// Conditions that need more than the index row of a delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliverySearch {
    pub last_attempt: Option<LastAttemptFilter>,
    /// An id of a delivery, an event or an endpoint, or the start of a generated id.
    pub id_start: Option<EventId>,
}

/// The meaning of an id or of the start of one, once it was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdMeaning {
    /// The id of the event at this position.
    Event(Position),
    /// The start of ids of events from the first to the second position.
    Events(Position, Position),
    /// The start of ids of deliveries.
    Deliveries,
    /// The start of ids of endpoints.
    Endpoints,
    /// Nothing has such an id.
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::LastFailure;

    #[test]
    fn shown_classes_have_words_and_codes() {
        let all = ErrorClass::ALL.map(ShownClass::Class).into_iter().chain([ShownClass::NoReply]);
        for (class, word) in all.zip(ShownClass::WORDS) {
            assert_eq!((class.as_str(), ShownClass::from_word(word)), (*word, Some(class)));
            assert_eq!(ShownClass::from_code(class.code()), Some(class));
        }
        assert_eq!((ShownClass::NoReply.code(), ShownClass::from_code(99)), (0, None));
        assert_eq!(Audience::ALL.map(Audience::code), [1, 2]);
    }

    #[test]
    fn tenant_searches_by_what_it_sees() {
        let failed = |class, network, status| LastAttempt {
            status,
            failure: Some(LastFailure { class, network, text: "".into() }),
        };
        let (refused, dns) = (
            failed(ErrorClass::Connect, Network::Internal, None),
            failed(ErrorClass::Dns, Network::Internal, None),
        );
        let answered = failed(ErrorClass::Status, Network::Internal, Some(500));
        let wants = |class, audience, last: &LastAttempt| {
            LastAttemptFilter::new(None, Some(class), audience).unwrap().wants(last)
        };
        let connect = ShownClass::Class(ErrorClass::Connect);
        let rows = [
            (connect, Audience::Operator, &refused, true),
            (connect, Audience::Tenant, &refused, false),
            (ShownClass::NoReply, Audience::Tenant, &refused, true),
            (ShownClass::NoReply, Audience::Operator, &refused, false),
            (ShownClass::NoReply, Audience::Tenant, &dns, false),
            (ShownClass::Class(ErrorClass::Dns), Audience::Tenant, &dns, true),
            (ShownClass::Class(ErrorClass::Status), Audience::Tenant, &answered, true),
            (connect, Audience::Operator, &LastAttempt::default(), false),
        ];
        for (class, audience, last, expected) in rows {
            assert_eq!(wants(class, audience, last), expected, "{class:?} {audience:?} {last:?}");
        }
        let both =
            LastAttemptFilter::new(Some(500), Some(ShownClass::Class(ErrorClass::Status)), Audience::Tenant);
        assert!(both.unwrap().wants(&answered) && !both.unwrap().wants(&refused));
        assert_eq!(LastAttemptFilter::new(None, None, Audience::Tenant), None);
    }
}
