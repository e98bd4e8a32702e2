//! The endpoints of an event, by topic patterns with RabbitMQ's semantics.
//!
//! Exact patterns are in a map, patterns with wildcards in automata ([`automaton`]), per tenant and
//! first word. An event type of w words takes at most w times the blocks of two automata, beside
//! its matches. [`limits::PATTERN_STATES_MAX`] bounds the automata of new endpoints, so the worst
//! event takes less than a millisecond. Equal patterns of several endpoints count once.

mod automaton;

use std::collections::{BTreeSet, HashMap};

use crate::domain::{Endpoint, EndpointNumber, EventType, IdMap, Pattern, Tenant};
use crate::limits;
use crate::rules::patterns::{canonical_list, is_wildcard};
use automaton::Automaton;

/// Whether an endpoint with these patterns wants events of this type. Without patterns it wants
/// all. [`Matcher`] must agree with this definition.
#[must_use]
pub fn want(patterns: &[Pattern], event_type: &EventType) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern_matches(pattern, event_type))
}

/// `*` is exactly one word, `#` zero or more.
#[must_use]
pub fn pattern_matches(pattern: &Pattern, event_type: &EventType) -> bool {
    pattern_matches_text(pattern, event_type.as_str())
}

/// As [`pattern_matches`], for the text of an event type.
#[must_use]
pub fn pattern_matches_text(pattern: &Pattern, event_type: &str) -> bool {
    pattern.matches(event_type)
}

/// Work of one match, in blocks of pattern states. Tests bound it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MatchCost {
    pub steps: usize,
}

/// Some patterns, compiled: it matches many types at a bounded cost each.
#[derive(Debug, Default)]
struct PatternIndex {
    unfiltered: BTreeSet<EndpointNumber>,
    exact: HashMap<Box<str>, BTreeSet<EndpointNumber>>,
    /// Patterns with wildcards, by their first word; `None`: they begin with a wildcard.
    automata: HashMap<Option<Box<str>>, Automaton>,
    /// Canonical patterns of each endpoint, for its removal.
    patterns: IdMap<EndpointNumber, Vec<Pattern>>,
}

/// Index of the endpoints of all tenants by patterns. The commit thread updates it, and requests
/// read it.
#[derive(Debug, Default)]
pub struct Matcher {
    tenants: IdMap<Tenant, PatternIndex>,
    /// Of queues that take the events of all tenants but the reserved one.
    every: PatternIndex,
    /// Number of changes. A match is valid as long as it stays the same.
    revision: u64,
}

impl Matcher {
    /// Adds an endpoint that is not in the index.
    pub fn insert(&mut self, endpoint: &Endpoint) {
        self.revision += 1;
        let index = match endpoint.tenant.is_every() {
            true => &mut self.every,
            false => self.tenants.entry(endpoint.tenant.clone()).or_default(),
        };
        index.insert(endpoint.number, &endpoint.event_types);
    }

    /// Removes an endpoint if it is in the index, and frees the memory of its patterns.
    pub fn remove(&mut self, endpoint: EndpointNumber, tenant: &Tenant) {
        self.revision += 1;
        if tenant.is_every() {
            return self.every.remove(endpoint);
        }
        let Some(index) = self.tenants.get_mut(tenant) else { return };
        index.remove(endpoint);
        if index.patterns.is_empty() {
            self.tenants.remove(tenant);
        }
    }

    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Matching endpoints, ascending, without duplicates.
    #[must_use]
    pub fn targets(&self, tenant: &Tenant, event_type: &EventType) -> Vec<EndpointNumber> {
        self.targets_with_cost(tenant, event_type).0
    }

    /// As [`Self::targets`], with the work that it took.
    #[must_use]
    pub fn targets_with_cost(
        &self,
        tenant: &Tenant,
        event_type: &EventType,
    ) -> (Vec<EndpointNumber>, MatchCost) {
        let mut cost = MatchCost::default();
        let own = self.tenants.get(tenant).map(|index| index.targets(event_type, &mut cost));
        let mut found = own.unwrap_or_default();
        if !self.every.patterns.is_empty() && Tenant::every().takes_from(tenant) {
            found.extend(self.every.targets(event_type, &mut cost));
            found.sort_unstable();
        }
        (found, cost)
    }

    /// Checks whether the tenant may have these patterns, in place of those of `replaced`.
    ///
    /// # Errors
    /// When too many states would begin with the same word; see [`limits::PATTERN_STATES_MAX`].
    pub fn check_room(
        &self,
        tenant: &Tenant,
        patterns: &[Pattern],
        replaced: Option<EndpointNumber>,
    ) -> Result<(), NoRoomForPatterns> {
        let none = PatternIndex::default();
        let of_tenant = || self.tenants.get(tenant).unwrap_or(&none);
        let index = if tenant.is_every() { &self.every } else { of_tenant() };
        let own = replaced.and_then(|endpoint| index.patterns.get(&endpoint));
        let is_own = |pattern: &Pattern| own.is_some_and(|own| own.contains(pattern));
        let mut added: HashMap<Option<&str>, usize> = HashMap::new();
        for pattern in patterns.iter().filter(|pattern| !is_exact(pattern) && !is_own(pattern)) {
            let first = first_word(pattern);
            let automaton = index.automata.get(&first.map(Box::from));
            if !automaton.is_some_and(|automaton| automaton.contains(pattern)) {
                *added.entry(first).or_default() += automaton::states_of(pattern);
            }
        }
        for (first, added) in added {
            let present = index.automata.get(&first.map(Box::from)).map_or(0, Automaton::states);
            if present + added > limits::PATTERN_STATES_MAX {
                let first = first.unwrap_or("a wildcard").into();
                return Err(NoRoomForPatterns { first, present, added });
            }
        }
        Ok(())
    }

    /// States of patterns in memory, and words of exact patterns.
    #[cfg(test)]
    pub(crate) fn size(&self) -> (usize, usize) {
        let states = |index: &PatternIndex| -> usize {
            index.automata.values().map(Automaton::allocated_states).sum()
        };
        let exact = |index: &PatternIndex| index.exact.len();
        let all = || self.tenants.values().chain([&self.every]);
        (all().map(states).sum(), all().map(exact).sum())
    }
}

/// A tenant's patterns with wildcards are too many.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the tenant's endpoints have patterns with wildcards of {present} parts that begin with {first}, \
     and {added} more exceed the limit of {}; share patterns between endpoints, or delete endpoints",
    limits::PATTERN_STATES_MAX
)]
pub struct NoRoomForPatterns {
    pub first: Box<str>,
    pub present: usize,
    pub added: usize,
}

/// A compiled list of patterns, for many types. Agrees with [`want`].
#[derive(Debug, Default)]
pub struct PatternSelection(PatternIndex);

impl PatternSelection {
    const ONLY: EndpointNumber = EndpointNumber(0);

    #[must_use]
    pub fn new(patterns: &[Pattern]) -> Self {
        let mut index = PatternIndex::default();
        index.insert(Self::ONLY, patterns);
        Self(index)
    }

    #[must_use]
    pub fn wants(&self, event_type: &EventType) -> bool {
        !self.0.targets(event_type, &mut MatchCost::default()).is_empty()
    }
}

impl PatternIndex {
    fn insert(&mut self, endpoint: EndpointNumber, patterns: &[Pattern]) {
        let patterns = canonical_list(patterns);
        if patterns.is_empty() {
            self.unfiltered.insert(endpoint);
        }
        for pattern in &patterns {
            if is_exact(pattern) {
                self.exact.entry(pattern.as_str().into()).or_default().insert(endpoint);
            } else {
                let first = first_word(pattern).map(Box::from);
                self.automata.entry(first).or_default().insert(pattern, endpoint);
            }
        }
        self.patterns.insert(endpoint, patterns);
    }

    fn remove(&mut self, endpoint: EndpointNumber) {
        self.unfiltered.remove(&endpoint);
        for pattern in self.patterns.remove(&endpoint).unwrap_or_default() {
            if !is_exact(&pattern) {
                let first = first_word(&pattern).map(Box::from);
                if let Some(automaton) = self.automata.get_mut(&first) {
                    automaton.remove(&pattern, endpoint);
                    if automaton.is_empty() {
                        self.automata.remove(&first);
                    }
                }
            } else if let Some(endpoints) = self.exact.get_mut(pattern.as_str()) {
                endpoints.remove(&endpoint);
                if endpoints.is_empty() {
                    self.exact.remove(pattern.as_str());
                }
            }
        }
    }

    fn targets(&self, event_type: &EventType, cost: &mut MatchCost) -> Vec<EndpointNumber> {
        let mut found: Vec<EndpointNumber> = self.unfiltered.iter().copied().collect();
        found.extend(self.exact.get(event_type.as_str()).into_iter().flatten());
        if !self.automata.is_empty() {
            let words: Vec<&str> = event_type.as_str().split('.').collect();
            for first in [None, words.first().map(|word| Box::from(*word))] {
                if let Some(automaton) = self.automata.get(&first) {
                    automaton.collect(&words, cost, &mut found);
                }
            }
        }
        sort_unique(&mut found);
        found
    }
}

/// Endpoints may have many patterns that match, so a long list is sorted through a bitmap where
/// their numbers are dense: this costs one step per entry.
fn sort_unique(found: &mut Vec<EndpointNumber>) {
    const LONG: usize = 4_096;
    const SPARSE: usize = 64;
    let bounds = found.iter().min().zip(found.iter().max()).map(|(min, max)| (min.0, max.0));
    match bounds {
        Some((min, max)) if found.len() >= LONG && ((max - min) as usize) < found.len() * SPARSE => {
            let mut bits = vec![0_u64; (max - min) as usize / 64 + 1];
            for number in found.drain(..) {
                let at = (number.0 - min) as usize;
                bits[at / 64] |= 1 << (at % 64);
            }
            for (block, mut bits) in (0..).zip(bits) {
                while bits != 0 {
                    found.push(EndpointNumber(min + block * 64 + bits.trailing_zeros()));
                    bits &= bits - 1;
                }
            }
        }
        _ => {
            found.sort_unstable();
            found.dedup();
        }
    }
}

fn is_exact(pattern: &Pattern) -> bool {
    !pattern.as_str().split('.').any(is_wildcard)
}

/// The first word of a pattern; `None` if it begins with a wildcard.
fn first_word(pattern: &Pattern) -> Option<&str> {
    pattern.as_str().split('.').next().filter(|part| !is_wildcard(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::tests::endpoint;

    fn matches(pattern: &str, event_type: &str) -> bool {
        pattern_matches(&pattern.parse().unwrap(), &event_type.parse().unwrap())
    }

    #[test]
    fn patterns_follow_rabbitmq() {
        let table = [
            ("*.orange.*", "quick.orange.rabbit", true),
            ("*.orange.*", "lazy.orange.elephant", true),
            ("*.orange.*", "orange", false),
            ("*.orange.*", "quick.orange.new.rabbit", false),
            ("lazy.#", "lazy", true),
            ("lazy.#", "lazy.orange.new.rabbit", true),
            ("regions.na.cities.*", "regions.na.cities", false),
            ("audit.events.#", "audit.events", true),
            ("audit.events.#", "audit.events.users.signup", true),
            ("audit.events.#", "audit.users", false),
            ("#", "anything.at.all", true),
            ("#.error", "error", true),
            ("a.#.b", "a.b", true),
            ("a.#.b", "a.x.y.b", true),
            ("a.#.b", "a.x.y.c", false),
            ("#.#", "a", true),
            ("order.paid", "order.paid", true),
            ("order.paid", "order.paid.late", false),
        ];
        for (pattern, event_type, expected) in table {
            assert_eq!(matches(pattern, event_type), expected, "{pattern} {event_type}");
        }
    }

    #[test]
    fn subscription_of_all_tenants_takes_all_but_operator_events() {
        let mut matcher = Matcher::default();
        let every = Endpoint { tenant: Tenant::every(), ..endpoint(2, "acme", &["order.#".to_owned()]) };
        for endpoint in [&every, &endpoint(1, "acme", &[]), &endpoint(3, "acme", &[])] {
            matcher.insert(endpoint);
        }
        let targets = |tenant: &str, event_type: &str| {
            let found = matcher.targets(&tenant.parse().unwrap(), &event_type.parse().unwrap());
            found.into_iter().map(|number| number.0).collect::<Vec<_>>()
        };
        assert_eq!(targets("acme", "order.paid"), [1, 2, 3]);
        assert_eq!(targets("other", "order.paid"), [2]);
        assert_eq!(targets("other", "user.new"), [0; 0]);
        assert_eq!(targets(Tenant::OPERATOR, "order.paid"), [0; 0]);
        matcher.remove(EndpointNumber(2), &Tenant::every());
        assert_eq!(matcher.size(), (0, 0));
        assert!("*".parse::<Tenant>().is_err(), "no tenant has this name");
    }

    #[test]
    fn index_agrees_with_the_definition() {
        for seed in 1..300_u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut random = move |below: usize| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state % below as u64) as usize
            };
            let mut matcher = Matcher::default();
            let mut model: IdMap<u32, Endpoint> = IdMap::default();
            for step in 0..60 {
                let number = 1 + random(12) as u32;
                if let Some(old) = model.remove(&number) {
                    matcher.remove(old.number, &old.tenant);
                }
                if random(4) > 0 {
                    let tenant = ["a", "b"][random(2)];
                    let patterns: Vec<String> = (0..random(3))
                        .map(|_| {
                            let longest = if random(20) == 0 { 90 } else { 4 };
                            let parts: Vec<_> =
                                (0..=random(longest)).map(|_| ["x", "y", "*", "#"][random(4)]).collect();
                            parts.join(".")
                        })
                        .collect();
                    let made = endpoint(number, tenant, &patterns);
                    matcher.insert(&made);
                    model.insert(number, made);
                }
                let words: Vec<_> = (0..=random(5)).map(|_| ["x", "y", "z"][random(3)]).collect();
                let event_type: EventType = words.join(".").parse().unwrap();
                let tenant: Tenant = ["a", "b"][random(2)].parse().unwrap();
                let mut expected: Vec<_> = model
                    .values()
                    .filter(|endpoint| endpoint.tenant == tenant)
                    .filter(|endpoint| want(&endpoint.event_types, &event_type))
                    .map(|endpoint| endpoint.number)
                    .collect();
                expected.sort_unstable();
                assert_eq!(
                    matcher.targets(&tenant, &event_type),
                    expected,
                    "seed {seed} step {step} {event_type}"
                );
            }
        }
    }

    /// Patterns of one tenant that fill an automaton to its limit, and that all stay active.
    fn costly_patterns(limit: usize) -> Vec<String> {
        let mut patterns = Vec::new();
        let mut states = 0;
        for number in 0.. {
            let pattern = format!("#.a.*.a.*.a.*.x{number}");
            states += 9;
            if states > limit {
                return patterns;
            }
            patterns.push(pattern);
        }
        unreachable!()
    }

    #[test]
    fn match_cost_is_bounded_by_words_and_states() {
        let mut matcher = Matcher::default();
        let patterns = costly_patterns(limits::PATTERN_STATES_MAX);
        for (number, some) in (1..).zip(patterns.chunks(64)) {
            let event_types: Vec<Pattern> = some.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(matcher.check_room(&"a".parse().unwrap(), &event_types, None), Ok(()));
            matcher.insert(&endpoint(number, "a", some));
        }
        let event_type: EventType = vec!["a"; 128].join(".").parse().unwrap();
        let (found, cost) = matcher.targets_with_cost(&"a".parse().unwrap(), &event_type);
        assert!(found.is_empty());
        // Each shard has at most one block that is not full.
        let blocks = limits::PATTERN_STATES_MAX / 64 + limits::PATTERN_STATES_MAX / 4_000 + 1;
        assert!(cost.steps <= 128 * blocks, "{} of {}", cost.steps, 128 * blocks);
        assert!(cost.steps >= 128 * 900, "the patterns stay active: {}", cost.steps);
        // One more pattern does not fit, an equal one does, and one with another first word does.
        let check = |text: &str| matcher.check_room(&"a".parse().unwrap(), &[text.parse().unwrap()], None);
        let error = check("#.one.more.pattern.b.c.d.e.f").unwrap_err();
        assert!(error.to_string().contains("begin with a wildcard"), "{error}");
        assert_eq!(check("#.a.*.a.*.a.*.x7"), Ok(()));
        assert_eq!(check("w.#.one.more.pattern.b.c.d.e.f"), Ok(()));
        assert_eq!(matcher.check_room(&"b".parse().unwrap(), &[], None), Ok(()));
    }

    /// Endpoints of earlier versions may have such patterns.
    #[test]
    fn many_hashes_cost_one_pattern() {
        let mut matcher = Matcher::default();
        let pattern = vec!["#"; 100].join(".") + ".end";
        matcher.insert(&endpoint(1, "a", &[pattern]));
        let event_type: EventType = vec!["w"; 100].join(".").parse().unwrap();
        let (found, cost) = matcher.targets_with_cost(&"a".parse().unwrap(), &event_type);
        assert!(found.is_empty());
        assert_eq!(cost.steps, 100, "one block per word");
    }

    #[test]
    fn replaced_patterns_leave_no_memory() {
        let mut matcher = Matcher::default();
        let tenant: Tenant = "a".parse().unwrap();
        matcher.insert(&endpoint(1, "a", &["keep.*".to_owned(), "keep".to_owned()]));
        let before = matcher.size();
        let mut most = 0;
        for round in 0..120 {
            let word = vec!["w"; 20].join(".");
            let patterns: Vec<_> = (0..256).map(|n| format!("p{}.{n}.{word}.*.r{round}", n % 3)).collect();
            matcher.remove(EndpointNumber(2), &tenant);
            matcher.insert(&endpoint(2, "a", &patterns));
            most = most.max(matcher.size().0);
        }
        assert!(most <= 3 * 256 * 25, "{most} states for the patterns of one endpoint");
        matcher.remove(EndpointNumber(2), &tenant);
        matcher.insert(&endpoint(2, "a", &["a".to_owned()]));
        assert_eq!(matcher.size(), (before.0, before.1 + 1));
        matcher.remove(EndpointNumber(2), &tenant);
        assert_eq!(matcher.size(), before);
    }

    #[test]
    fn long_match_lists_are_sorted_and_unique() {
        for stride in [1, 3, 1_000] {
            let mut found: Vec<_> =
                (0..9_000).map(|n| EndpointNumber(7 + (n * 37 % 5_000) * stride)).collect();
            let expected: BTreeSet<_> = found.iter().copied().collect();
            sort_unique(&mut found);
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "stride {stride}");
        }
    }

    #[test]
    fn selection_agrees_with_the_definition() {
        let lists: [&[&str]; 4] = [&[], &["a.*"], &["a", "#.b"], &["#.#", "c"]];
        for list in lists {
            let patterns: Vec<Pattern> = list.iter().map(|text| text.parse().unwrap()).collect();
            let selection = PatternSelection::new(&patterns);
            for text in ["a", "a.b", "b", "x.y.b", "c.d"] {
                let event_type: EventType = text.parse().unwrap();
                assert_eq!(selection.wants(&event_type), want(&patterns, &event_type), "{list:?} {text}");
            }
        }
    }
}
