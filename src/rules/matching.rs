//! The endpoints of an event, by topic patterns with RabbitMQ's semantics.
//!
//! Exact patterns are in a map, patterns with wildcards in a trie of words, per tenant. The cost of
//! matching depends on the event's words and the matches, not on the number of endpoints.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::domain::{Endpoint, EndpointNumber, EventType, Pattern, Tenant};

/// Whether an endpoint with these patterns wants events of this type. Without patterns it wants
/// all. [`Matcher`] must agree with this definition.
#[must_use]
pub fn want(patterns: &[Pattern], event_type: &EventType) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern_matches(pattern, event_type))
}

/// `*` is exactly one word, `#` zero or more.
#[must_use]
pub fn pattern_matches(pattern: &Pattern, event_type: &EventType) -> bool {
    let words: Vec<&str> = event_type.as_str().split('.').collect();
    // For each number of leading words: whether the parts of the pattern so far match them.
    let mut reachable = vec![false; words.len() + 1];
    reachable[0] = true;
    for part in pattern.as_str().split('.') {
        let mut next = vec![false; words.len() + 1];
        let mut any_before = false;
        for at in 0..=words.len() {
            any_before |= reachable[at];
            next[at] = match part {
                "#" => any_before,
                "*" => at > 0 && reachable[at - 1],
                word => at > 0 && reachable[at - 1] && words[at - 1] == word,
            };
        }
        reachable = next;
    }
    reachable[words.len()]
}

/// A node of the trie; children are indexes into the tenant's nodes.
#[derive(Debug, Default)]
struct Node {
    words: HashMap<Box<str>, usize>,
    /// `*`
    any_word: Option<usize>,
    /// `#`
    any_words: Option<usize>,
    /// Endpoints whose pattern ends here.
    endpoints: BTreeSet<EndpointNumber>,
}

#[derive(Debug)]
struct TenantIndex {
    unfiltered: BTreeSet<EndpointNumber>,
    exact: HashMap<Box<str>, BTreeSet<EndpointNumber>>,
    nodes: Vec<Node>,
    /// Patterns of each endpoint, for its removal.
    patterns: HashMap<EndpointNumber, Vec<Pattern>>,
}

impl Default for TenantIndex {
    fn default() -> Self {
        Self {
            unfiltered: BTreeSet::new(),
            exact: HashMap::new(),
            nodes: vec![Node::default()],
            patterns: HashMap::new(),
        }
    }
}

/// Index of the endpoints of all tenants by patterns. The commit thread owns and updates it.
#[derive(Debug, Default)]
pub struct Matcher {
    tenants: HashMap<Tenant, TenantIndex>,
}

impl Matcher {
    /// Adds an endpoint that is not in the index.
    pub fn insert(&mut self, endpoint: &Endpoint) {
        let index = self.tenants.entry(endpoint.tenant.clone()).or_default();
        index.patterns.insert(endpoint.number, endpoint.event_types.clone());
        if endpoint.event_types.is_empty() {
            index.unfiltered.insert(endpoint.number);
        }
        for pattern in &endpoint.event_types {
            if is_exact(pattern) {
                index.exact.entry(pattern.as_str().into()).or_default().insert(endpoint.number);
            } else {
                let node = index.find_or_insert(pattern);
                index.nodes[node].endpoints.insert(endpoint.number);
            }
        }
    }

    /// Removes an endpoint if it is in the index.
    pub fn remove(&mut self, endpoint: EndpointNumber, tenant: &Tenant) {
        let Some(index) = self.tenants.get_mut(tenant) else { return };
        index.unfiltered.remove(&endpoint);
        for pattern in index.patterns.remove(&endpoint).unwrap_or_default() {
            if !is_exact(&pattern) {
                let node = index.find_or_insert(&pattern);
                index.nodes[node].endpoints.remove(&endpoint);
            } else if let Some(endpoints) = index.exact.get_mut(pattern.as_str()) {
                endpoints.remove(&endpoint);
                if endpoints.is_empty() {
                    index.exact.remove(pattern.as_str());
                }
            }
        }
        if index.patterns.is_empty() {
            // Empty trie nodes are removed with the tenant's last endpoint.
            self.tenants.remove(tenant);
        }
    }

    /// Matching endpoints, ascending, without duplicates.
    #[must_use]
    pub fn targets(&self, tenant: &Tenant, event_type: &EventType) -> Vec<EndpointNumber> {
        let Some(index) = self.tenants.get(tenant) else { return Vec::new() };
        let mut found: Vec<EndpointNumber> = index.unfiltered.iter().copied().collect();
        found.extend(index.exact.get(event_type.as_str()).into_iter().flatten());
        if index.nodes.len() > 1 {
            let words: Vec<&str> = event_type.as_str().split('.').collect();
            index.collect_matches(&words, &mut found);
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

impl TenantIndex {
    /// Node of a pattern; inserted if missing.
    fn find_or_insert(&mut self, pattern: &Pattern) -> usize {
        let mut at = 0;
        for part in pattern.as_str().split('.') {
            let next = self.nodes.len();
            let node = &mut self.nodes[at];
            at = match part {
                "*" => *node.any_word.get_or_insert(next),
                "#" => *node.any_words.get_or_insert(next),
                word => *node.words.entry(word.into()).or_insert(next),
            };
            if at == next {
                self.nodes.push(Node::default());
            }
        }
        at
    }

    /// Visits each pair of node and word at most once, so that many `#` stay cheap.
    fn collect_matches(&self, words: &[&str], found: &mut Vec<EndpointNumber>) {
        let mut seen = HashSet::new();
        let mut open = vec![(0, 0, false)];
        while let Some((at, word, in_many)) = open.pop() {
            if !seen.insert((at, word)) {
                continue;
            }
            let node = &self.nodes[at];
            if word == words.len() {
                found.extend(&node.endpoints);
            }
            open.extend(node.any_words.map(|next| (next, word, true)));
            if let Some(text) = words.get(word) {
                open.extend(node.words.get(*text).map(|next| (*next, word + 1, false)));
                open.extend(node.any_word.map(|next| (next, word + 1, false)));
                if in_many {
                    open.push((at, word + 1, true));
                }
            }
        }
    }
}

fn is_exact(pattern: &Pattern) -> bool {
    pattern.as_str().split('.').all(|part| part != "*" && part != "#")
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
            let mut model: HashMap<u32, Endpoint> = HashMap::new();
            for step in 0..60 {
                let number = 1 + random(12) as u32;
                if let Some(old) = model.remove(&number) {
                    matcher.remove(old.number, &old.tenant);
                }
                if random(4) > 0 {
                    let tenant = ["a", "b"][random(2)];
                    let patterns: Vec<String> = (0..random(3))
                        .map(|_| {
                            let parts: Vec<_> =
                                (0..=random(4)).map(|_| ["x", "y", "*", "#"][random(4)]).collect();
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

    #[test]
    fn many_hashes_match_in_linear_time() {
        let mut matcher = Matcher::default();
        let pattern = vec!["#"; 100].join(".") + ".end";
        matcher.insert(&endpoint(1, "a", &[pattern]));
        let event_type: EventType = vec!["w"; 100].join(".").parse().unwrap();
        assert!(matcher.targets(&"a".parse().unwrap(), &event_type).is_empty());
    }
}
