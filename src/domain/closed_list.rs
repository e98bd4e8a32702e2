//! Closed lists: enums without data that have a word per variant and, if stored, a code.
//!
//! A variant cannot be missing from the list. A duplicate word or code does not compile.

/// A value of a closed list.
pub trait ClosedList: Copy + 'static {
    /// The words in the order of the variants.
    const WORDS: &'static [&'static str];
}

/// Declares an enum without data: `Variant => "word"`, or `Variant = code => "word"` if it is
/// stored. A code is never reused for another variant.
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
            /// The code on disk.
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
            /// All values in the order of the declaration.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            /// The word in the API and in metric labels.
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

            /// Index in [`Self::ALL`], for arrays in memory. Never stored.
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
    use crate::domain::{DeadReason, EndpointStatusName, ErrorClass, Role, Trigger};

    #[test]
    fn words_and_indexes_match_the_declaration() {
        fn agree<T: ClosedList + PartialEq + std::fmt::Debug>(
            all: &[T],
            word: fn(T) -> &'static str,
            from: fn(&str) -> Option<T>,
            index: fn(T) -> usize,
        ) {
            assert_eq!(all.iter().copied().map(word).collect::<Vec<_>>(), T::WORDS);
            for (expected, value) in all.iter().copied().enumerate() {
                assert_eq!((from(word(value)), index(value)), (Some(value), expected));
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
        assert_eq!(DeadReason::ALL.map(DeadReason::code), [1, 2, 3, 4, 5, 6, 7, 8, 10]);
        assert_eq!(ErrorClass::ALL.map(ErrorClass::code), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        assert_eq!(Trigger::ALL.map(Trigger::code), [1, 2, 3, 4, 5]);
        assert_eq!(Role::ALL.map(Role::code), [1, 2, 3, 4]);
        for code in 0..=u8::MAX {
            let read = DeadReason::from_code(code);
            assert_eq!(read.is_some(), (1..=8).contains(&code) || code == 10, "{code}");
            assert!(read.is_none_or(|reason| reason.code() == code), "{code}");
        }
    }
}
