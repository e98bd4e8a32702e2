//! Closed lists of words: one declaration gives the variants, their words, the list of all and,
//! where a value goes to disk, its code.
//!
//! A variant cannot be missing from the list, and a word or a code that is there twice does not
//! compile.

/// A value out of a closed list, each with a word.
pub trait ClosedList: Copy + 'static {
    /// In the order of the variants.
    const WORDS: &'static [&'static str];
}

/// Declares an enum without data: `Variant => "word"`, or `Variant = code => "word"` when it is
/// stored. A code is never used again for another variant.
macro_rules! closed_list {
    (
        $(#[$attribute:meta])*
        pub enum $name:ident {
            $($(#[$about:meta])* $variant:ident = $code:literal => $word:literal,)+
        }
    ) => {
        $crate::domain::closed_list::closed_list! {
            $(#[$attribute])*
            pub enum $name {
                $($(#[$about])* $variant => $word,)+
            }
        }

        impl $name {
            /// The byte that stands for it on disk.
            #[must_use]
            pub const fn code(self) -> u8 {
                match self {
                    $(Self::$variant => $code,)+
                }
            }

            /// The value with this [`Self::code`].
            #[must_use]
            #[deny(unreachable_patterns)]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
    (
        $(#[$attribute:meta])*
        pub enum $name:ident {
            $($(#[$about:meta])* $variant:ident => $word:literal,)+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$about])* $variant,)+
        }

        impl $name {
            /// In the order of the declaration.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            /// The word for it in the API and in metric labels.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// The value with this word.
            #[must_use]
            #[deny(unreachable_patterns)]
            pub fn from_word(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// Its place in [`Self::ALL`]: for arrays in memory, never for disk.
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }

        impl $crate::domain::closed_list::ClosedList for $name {
            const WORDS: &'static [&'static str] = &[$($word),+];
        }
    };
}
pub(crate) use closed_list;

#[cfg(test)]
mod tests {
    use super::ClosedList;
    use crate::domain::{DeadReason, EndpointStatusName, ErrorClass, Trigger};

    #[test]
    fn closed_list_gives_words_places_and_codes() {
        fn agree<T: ClosedList + PartialEq + std::fmt::Debug>(
            all: &[T],
            word: fn(T) -> &'static str,
            from: fn(&str) -> Option<T>,
            index: fn(T) -> usize,
        ) {
            assert_eq!(all.iter().copied().map(word).collect::<Vec<_>>(), T::WORDS);
            for (place, value) in all.iter().copied().enumerate() {
                assert_eq!((from(word(value)), index(value)), (Some(value), place));
            }
            assert_eq!(from("other"), None);
        }
        agree(
            &EndpointStatusName::ALL,
            EndpointStatusName::as_str,
            EndpointStatusName::from_word,
            EndpointStatusName::index,
        );
        agree(&DeadReason::ALL, DeadReason::as_str, DeadReason::from_word, DeadReason::index);
        agree(&Trigger::ALL, Trigger::as_str, Trigger::from_word, Trigger::index);
    }

    #[test]
    fn stored_codes_of_closed_lists_never_change() {
        assert_eq!(DeadReason::ALL.map(DeadReason::code), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(ErrorClass::ALL.map(ErrorClass::code), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(Trigger::ALL.map(Trigger::code), [1, 2, 3, 4, 5]);
        for code in 0..=u8::MAX {
            let read = DeadReason::from_code(code);
            assert_eq!(read.is_some(), (1..=8).contains(&code), "{code}");
            assert!(read.is_none_or(|reason| reason.code() == code), "{code}");
        }
    }
}
