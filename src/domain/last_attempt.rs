//! The last attempt of a delivery, as its row keeps it for lists.
//!
//! Has no text from the receiver or a template, which may repeat the content of an event that is
//! erased later.

use super::{Attempt, ErrorClass, Network};
use crate::limits;

/// Separates the target of a redirect, which the receiver chose, from the text before it.
const REDIRECT_TARGET: &str = " (to ";

/// The text of a failed template, whose own text may quote the event.
const TEMPLATE_TEXT: &str = "the body template cannot be rendered";

/// Result of a delivery's last attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastAttempt {
    pub status: Option<u16>,
    /// `None` after a success, and without an attempt.
    pub failure: Option<LastFailure>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFailure {
    pub class: ErrorClass,
    /// Network of the receiver.
    pub network: Network,
    /// At most [`limits::LAST_ERROR_BYTES_MAX`] bytes.
    pub text: Box<str>,
}

impl LastAttempt {
    #[must_use]
    pub fn of(attempt: &Attempt) -> Self {
        let failure = attempt.error.as_ref().map(|(class, text)| {
            let text = match (class, attempt.status) {
                (ErrorClass::Template, _) => TEMPLATE_TEXT,
                (_, Some(_)) => text.split_once(REDIRECT_TARGET).map_or(&**text, |(before, _)| before),
                (_, None) => text,
            };
            let text = super::text::truncated(text, limits::LAST_ERROR_BYTES_MAX).into();
            LastFailure { class: *class, network: attempt.network, text }
        });
        Self { status: attempt.status, failure }
    }

    /// The result in an erased event: the same as of [`Attempt::erased`].
    #[must_use]
    pub fn erased(&self) -> Self {
        let failure = self.failure.clone().map(|failure| {
            let text = match failure.class {
                ErrorClass::Template => TEMPLATE_TEXT.into(),
                _ => erased_text(self.status).into(),
            };
            LastFailure { text, ..failure }
        });
        Self { status: self.status, failure }
    }
}

/// The error text of a status that is not 2xx.
#[must_use]
pub fn status_text(status: u16, location: Option<&str>) -> String {
    match (status, location) {
        (300..400, Some(target)) => {
            format!("status {status}: redirects are not followed{REDIRECT_TARGET}{target})")
        }
        _ => format!("status {status}"),
    }
}

/// The error text of an attempt whose event was erased.
pub(super) fn erased_text(status: Option<u16>) -> String {
    status.map_or_else(|| "erased".to_owned(), |status| status_text(status, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(class: ErrorClass, status: Option<u16>, text: &str) -> Attempt {
        Attempt { status, error: Some((class, text.into())), ..Attempt::for_tests() }
    }

    fn text(attempt: &Attempt) -> Box<str> {
        LastAttempt::of(attempt).failure.unwrap().text
    }

    #[test]
    fn last_attempt_has_no_text_that_repeats_content() {
        let target = "http://a.example/canary (to canary";
        let redirect = failed(ErrorClass::Status, Some(302), &status_text(302, Some(target)));
        assert!(redirect.error.as_ref().unwrap().1.contains("canary"));
        assert_eq!(&*text(&redirect), "status 302: redirects are not followed");
        assert_eq!(&*text(&failed(ErrorClass::Status, Some(500), &status_text(500, None))), "status 500");
        let template = failed(ErrorClass::Template, None, "line 1: no filter for canary");
        assert_eq!(&*text(&template), TEMPLATE_TEXT);
        let success = Attempt { status: Some(204), error: None, ..Attempt::for_tests() };
        assert_eq!(LastAttempt::of(&success), LastAttempt { status: Some(204), failure: None });
    }

    #[test]
    fn long_error_text_is_cut_at_a_character() {
        let long = format!("x{}", "é".repeat(limits::LAST_ERROR_BYTES_MAX));
        let cut = text(&failed(ErrorClass::Tls, None, &long));
        assert_eq!(cut.len(), limits::LAST_ERROR_BYTES_MAX - 1);
        assert!(long.starts_with(&*cut));
    }

    #[test]
    fn erased_record_and_erased_row_are_the_same() {
        let redirect = status_text(302, Some("/canary"));
        for (class, status, text) in [
            (ErrorClass::Status, Some(302), redirect.as_str()),
            (ErrorClass::Status, Some(500), "status 500"),
            (ErrorClass::Timeout, None, "no reply within 5 s"),
            (ErrorClass::Template, None, "line 1: no filter"),
            (ErrorClass::Tls, Some(200), "not from a courier"),
        ] {
            let attempt = failed(class, status, text);
            let erased = LastAttempt::of(&attempt).erased();
            assert_eq!(erased, LastAttempt::of(&attempt.erased()), "{class:?} {status:?}");
            assert_eq!(erased, erased.erased(), "{class:?} {status:?}");
        }
    }
}
