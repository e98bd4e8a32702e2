//! The wishes of endpoints about events: the patterns of types ([`Matcher`]), labels and filters.
//!
//! The types of an event are matched under the lock of this index. Labels and filters follow
//! outside of it, in steps, on a copy of the conditions: [`Candidates::start`]. Equal filters of a
//! tenant are applied once, and the data is parsed once, if an endpoint with a filter is a
//! candidate.

use std::collections::HashMap;
use std::sync::Arc;

use crate::domain::{Endpoint, EndpointNumber, EventSelection, EventType, IdMap, Label, Tenant};
use crate::failpoints::{self, Mutation};
use crate::filters::{CompiledFilter, EventContent, EventFacts, parse_stored};
use crate::limits;
use crate::rules::matching::{MatchCost, Matcher};

/// The filter of one or several endpoints of a tenant.
#[derive(Debug)]
struct SharedFilter {
    /// Never used again.
    number: u64,
    /// `None`: an unreadable filter. It matches nothing.
    compiled: Option<CompiledFilter>,
}

/// The conditions of one endpoint on content and labels.
#[derive(Clone, Debug)]
struct ContentConditions {
    labels: Arc<[Label]>,
    filter: Option<Arc<SharedFilter>>,
}

#[derive(Debug, Default)]
struct TenantConditions {
    endpoints: IdMap<EndpointNumber, ContentConditions>,
    /// By text, with the number of endpoints.
    filters: HashMap<Box<str>, (Arc<SharedFilter>, usize)>,
}

impl TenantConditions {
    fn comparisons(&self) -> usize {
        self.filters.values().map(|(filter, _)| filter.comparisons()).sum()
    }
}

impl SharedFilter {
    fn comparisons(&self) -> usize {
        self.compiled.as_ref().map_or(0, CompiledFilter::comparisons)
    }
}

/// Results of filters for one event, by number.
pub type Verdicts = IdMap<u64, bool>;

/// Index of the endpoints of all tenants. The commit thread updates it, and requests read it.
#[derive(Debug, Default)]
pub struct Subscriptions {
    matcher: Matcher,
    conditions: IdMap<Tenant, TenantConditions>,
    /// Of the endpoints and queues of all tenants.
    every: TenantConditions,
    last_filter: u64,
}

/// A tenant's filters have too many comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the filters of the tenant's endpoints have {present} conditions and list values, and {added} more exceed \
     the limit of {}; use equal filters, or labels",
    limits::TENANT_COMPARISONS_MAX
)]
pub struct NoRoomForFilter {
    pub present: usize,
    pub added: usize,
}

impl Subscriptions {
    #[must_use]
    pub fn matcher(&self) -> &Matcher {
        &self.matcher
    }

    /// Adds an endpoint that is not in the index.
    pub fn insert(&mut self, endpoint: &Endpoint) {
        self.matcher.insert(endpoint);
        let EventSelection { filter, labels } = &endpoint.selection;
        if endpoint.selection.is_everything() {
            return;
        }
        let of_tenant = match endpoint.tenant.is_every() {
            true => &mut self.every,
            false => self.conditions.entry(endpoint.tenant.clone()).or_default(),
        };
        let filter = filter.as_ref().map(|text| {
            let (shared, users) = of_tenant.filters.entry(text.clone()).or_insert_with(|| {
                self.last_filter += 1;
                let compiled = parse_stored(text);
                if compiled.is_none() {
                    tracing::error!(endpoint = %endpoint.id, "stored filter is unreadable, no event matches");
                }
                (Arc::new(SharedFilter { number: self.last_filter, compiled }), 0)
            });
            *users += 1;
            shared.clone()
        });
        let conditions = ContentConditions { labels: labels.as_slice().into(), filter };
        of_tenant.endpoints.insert(endpoint.number, conditions);
    }

    /// Removes an endpoint if it is in the index.
    pub fn remove(&mut self, endpoint: &Endpoint) {
        self.matcher.remove(endpoint.number, &endpoint.tenant);
        let of_tenant = match endpoint.tenant.is_every() {
            true => Some(&mut self.every),
            false => self.conditions.get_mut(&endpoint.tenant),
        };
        let Some(of_tenant) = of_tenant else { return };
        if of_tenant.endpoints.remove(&endpoint.number).is_none() {
            return;
        }
        if let Some(text) = &endpoint.selection.filter
            && let Some((_, users)) = of_tenant.filters.get_mut(text)
        {
            *users -= 1;
            if *users == 0 {
                of_tenant.filters.remove(text);
            }
        }
        if of_tenant.endpoints.is_empty() {
            self.conditions.remove(&endpoint.tenant);
        }
    }

    /// The endpoints that want this type, with the work that it took.
    #[must_use]
    pub fn candidates(&self, tenant: &Tenant, event_type: &EventType) -> (Candidates, MatchCost) {
        let (endpoints, cost) = self.matcher.targets_with_cost(tenant, event_type);
        let of_tenant = self.conditions.get(tenant);
        let conditions = (of_tenant.is_some() || !self.every.endpoints.is_empty()).then(|| {
            let own = |endpoint| of_tenant.and_then(|own| own.endpoints.get(endpoint));
            let conditions = |endpoint| own(endpoint).or_else(|| self.every.endpoints.get(endpoint)).cloned();
            endpoints.iter().map(conditions).collect::<Vec<_>>()
        });
        let conditions = conditions.filter(|all| all.iter().any(Option::is_some));
        (Candidates { revision: self.matcher.revision(), endpoints, conditions }, cost)
    }

    /// Checks whether the tenant may have this filter, in place of that of `replaced`.
    ///
    /// # Errors
    /// When the tenant's filters would have more than [`limits::TENANT_COMPARISONS_MAX`]
    /// comparisons.
    pub fn check_filter_room(
        &self,
        tenant: &Tenant,
        text: &str,
        filter: &CompiledFilter,
        replaced: Option<&Endpoint>,
    ) -> Result<(), NoRoomForFilter> {
        let of_tenant = if tenant.is_every() { Some(&self.every) } else { self.conditions.get(tenant) };
        let Some(of_tenant) = of_tenant else { return Ok(()) };
        if of_tenant.filters.contains_key(text) {
            return Ok(());
        }
        let own = replaced.and_then(|endpoint| of_tenant.filters.get(endpoint.selection.filter.as_ref()?));
        let freed = own.filter(|(_, users)| *users == 1).map_or(0, |(filter, _)| filter.comparisons());
        let (present, added) = (of_tenant.comparisons() - freed, filter.comparisons());
        if present + added > limits::TENANT_COMPARISONS_MAX {
            return Err(NoRoomForFilter { present, added });
        }
        Ok(())
    }
}

/// The endpoints that want the type of an event.
#[derive(Debug)]
pub struct Candidates {
    /// Of the index.
    pub revision: u64,
    endpoints: Vec<EndpointNumber>,
    /// Of each endpoint; absent if none has conditions.
    conditions: Option<Vec<Option<ContentConditions>>>,
}

impl Candidates {
    /// Number of endpoints.
    #[must_use]
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// Whether the targets depend on the type alone.
    #[must_use]
    pub fn is_by_type(&self) -> bool {
        self.conditions.is_none()
    }

    /// Whether a filter needs the parsed data or metadata.
    fn read_json(&self) -> bool {
        let conditions = self.conditions.iter().flatten().flatten();
        let mut filters = conditions.filter_map(|one| one.filter.as_ref()?.compiled.as_ref());
        filters.any(|filter| filter.reads_json())
    }

    /// Begins to select by labels and content. `known`: results for the same event.
    #[must_use]
    pub fn start(self, known: Verdicts) -> ContentMatch {
        ContentMatch { candidates: self, next: 0, targets: Vec::new(), verdicts: known, content: None }
    }

    /// The selected endpoints, ascending.
    #[must_use]
    pub fn select(self, facts: EventFacts<'_>, known: Verdicts) -> Vec<EndpointNumber> {
        let mut selecting = self.start(known);
        while !selecting.advance(facts, usize::MAX) {}
        selecting.finish().targets
    }
}

/// The selection of an event's targets, in steps.
#[derive(Debug)]
pub struct ContentMatch {
    candidates: Candidates,
    next: usize,
    targets: Vec<EndpointNumber>,
    verdicts: Verdicts,
    content: Option<EventContent>,
}

/// A finished selection.
#[derive(Debug)]
pub struct Selected {
    pub revision: u64,
    /// Ascending.
    pub targets: Vec<EndpointNumber>,
    /// `None`: the targets depend on the type alone.
    pub verdicts: Option<Verdicts>,
}

impl ContentMatch {
    /// Works about this many steps. Returns whether the selection is complete. All calls must be
    /// about the same event.
    pub fn advance(&mut self, facts: EventFacts<'_>, steps_max: usize) -> bool {
        let mut steps = 0;
        while let Some(endpoint) = self.candidates.endpoints.get(self.next) {
            if steps >= steps_max {
                return false;
            }
            let conditions = self.candidates.conditions.as_ref().and_then(|all| all[self.next].as_ref());
            steps += 1;
            let (content, verdicts) = (&mut self.content, &mut self.verdicts);
            let reads_json = || self.candidates.read_json();
            if conditions.is_none_or(|one| one.admit((facts, &reads_json), content, verdicts, &mut steps)) {
                self.targets.push(*endpoint);
            }
            self.next += 1;
        }
        true
    }

    #[must_use]
    pub fn finish(self) -> Selected {
        let is_by_type = self.candidates.is_by_type();
        Selected {
            revision: self.candidates.revision,
            targets: self.targets,
            verdicts: (!is_by_type).then_some(self.verdicts),
        }
    }
}

impl ContentConditions {
    fn admit(
        &self,
        (facts, reads_json): (EventFacts<'_>, &dyn Fn() -> bool),
        content: &mut Option<EventContent>,
        verdicts: &mut Verdicts,
        steps: &mut usize,
    ) -> bool {
        let has_label = self.labels.is_empty()
            || self.labels.iter().any(|label| facts.labels.contains(label))
            || failpoints::is_active(Mutation::AdmitUnlabelled) && facts.labels.is_empty();
        let Some(filter) = self.filter.as_ref().filter(|_| has_label) else { return has_label };
        let Some(compiled) = &filter.compiled else { return false };
        *verdicts.entry(filter.number).or_insert_with(|| {
            let content = content.get_or_insert_with(|| {
                let reads_json = reads_json();
                *steps += if reads_json { facts.data.len() / DATA_BYTES_PER_STEP } else { 0 };
                EventContent::new(&facts, reads_json)
            });
            compiled.matches(content, steps)
        })
    }
}

/// Parsed bytes that take as long as a step.
const DATA_BYTES_PER_STEP: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filters::samples::{self, SAMPLES};
    use crate::rules::tests::endpoint;

    fn facts<'a>(data: &'a [u8], labels: &'a [Label]) -> EventFacts<'a> {
        EventFacts { event_type: "order.paid", version: "1.0", data, labels, ..EventFacts::default() }
    }

    #[test]
    fn index_agrees_with_plain_code_under_changes() {
        let tenant: Tenant = "a".parse().unwrap();
        let event_type: EventType = "order.paid".parse().unwrap();
        for seed in 1..100_u64 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut index = Subscriptions::default();
            let mut model: IdMap<u32, Endpoint> = IdMap::default();
            for step in 0..60 {
                let number = random.u32(1..9);
                if let Some(old) = model.remove(&number) {
                    index.remove(&old);
                }
                if random.u8(0..4) > 0 {
                    let patterns = if random.bool() { vec![] } else { vec!["user.#".to_owned()] };
                    let selection = samples::selection(random.u64(..));
                    let made = Endpoint { selection, ..endpoint(number, "a", &patterns) };
                    index.insert(&made);
                    model.insert(number, made);
                }
                let labels = samples::labels(random.u64(..));
                let data =
                    format!(r#"{{"body":{},"more":"{}"}}"#, random.u8(..), "x".repeat(random.usize(0..4)));
                let wanted = |one: &&Endpoint| {
                    one.event_types.is_empty()
                        && samples::wants(&one.selection, &event_type, &labels, data.as_bytes())
                };
                let mut expected: Vec<_> = model.values().filter(wanted).map(|one| one.number).collect();
                expected.sort_unstable();
                let (candidates, _) = index.candidates(&tenant, &event_type);
                let mut selecting = candidates.start(Verdicts::default());
                while !selecting.advance(facts(data.as_bytes(), &labels), 1) {}
                assert_eq!(selecting.finish().targets, expected, "seed {seed} step {step} {data}");
            }
            for endpoint in model.into_values() {
                index.remove(&endpoint);
            }
            assert!(index.conditions.is_empty(), "nothing stays in memory");
        }
    }

    #[test]
    fn known_results_are_used_and_data_is_not_parsed_without_need() {
        let mut index = Subscriptions::default();
        let selection = |filter: Option<&str>, labels: &[&str]| EventSelection {
            filter: filter.map(Box::from),
            labels: labels.iter().map(|label| label.parse().unwrap()).collect(),
        };
        let text = SAMPLES[0].text;
        for (number, selection) in [
            (1, selection(Some(text), &["eu"])),
            (2, selection(None, &["eu"])),
            (3, selection(Some("junk"), &[])),
        ] {
            index.insert(&Endpoint { selection, ..endpoint(number, "a", &[]) });
        }
        let (tenant, event_type) = ("a".parse().unwrap(), "order.paid".parse().unwrap());
        let candidates = || index.candidates(&tenant, &event_type).0;
        let mut selecting = candidates().start(Verdicts::default());
        assert!(selecting.advance(facts(b"1", &[]), usize::MAX));
        assert!(selecting.content.is_none(), "the labels decide");
        assert_eq!(selecting.finish().targets, [], "an unreadable filter matches nothing");
        let eu = ["eu".parse().unwrap()];
        assert_eq!(
            candidates().select(facts(br#"{"body":5}"#, &eu), Verdicts::default()),
            [EndpointNumber(2)]
        );
        let known = Verdicts::from_iter([(1, true)]);
        let targets = candidates().select(facts(br#"{"body":5}"#, &eu), known);
        assert_eq!(targets, [EndpointNumber(1), EndpointNumber(2)]);
        let other = candidates();
        assert!(!other.is_by_type());
        assert!(index.candidates(&"b".parse().unwrap(), &event_type).0.is_by_type());
    }

    #[test]
    fn comparisons_of_a_tenant_are_bounded() {
        let mut index = Subscriptions::default();
        let text = |number: usize| {
            let values: Vec<String> = (0..250).map(|value| format!("{}", number * 250 + value)).collect();
            format!(r#"{{"data":{{"a":{{"$in":[{}]}}}}}}"#, values.join(","))
        };
        let with = |number: usize| {
            let selection = EventSelection { filter: Some(text(number).into()), labels: Vec::new() };
            Endpoint { selection, ..endpoint(number as u32, "a", &[]) }
        };
        let check = |index: &Subscriptions, number: usize, replaced: Option<&Endpoint>| {
            let filter = parse_stored(&text(number)).unwrap();
            index.check_filter_room(&"a".parse().unwrap(), &text(number), &filter, replaced)
        };
        let fit = limits::TENANT_COMPARISONS_MAX / 250;
        for number in 0..fit {
            assert_eq!(check(&index, number, None), Ok(()));
            index.insert(&with(number));
        }
        let full = NoRoomForFilter { present: limits::TENANT_COMPARISONS_MAX, added: 250 };
        assert_eq!(check(&index, fit, None), Err(full));
        assert_eq!(check(&index, 0, None), Ok(()), "an equal filter is shared");
        assert_eq!(check(&index, fit, Some(&with(3))), Ok(()), "it replaces another one");
        index.insert(&Endpoint { number: EndpointNumber(999), ..with(3) });
        assert_eq!(check(&index, fit, Some(&with(3))), Err(full), "another endpoint still has it");
        index.remove(&with(5));
        assert_eq!(check(&index, fit, None), Ok(()));
    }
}
