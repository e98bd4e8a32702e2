//! Audit: compares the kept rows with rows that were folded from the journal.
//!
//! Owns the tolerated differences. Kept rows may lack entries that expired without a record
//! ([`Terms`]). Folded rows may lack records that retention removed from the journal. Memory is
//! bounded: a batch of rows, the expiring requests of one hour (32 bytes each), and four sums per
//! tenant.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;

mod describe;

use describe::{HOUR_TENANT_AT, describe, difference};

use super::failing::Failing;
use super::pages::{self, EventEntry};
use super::retention::{Cutoffs, Expiry};
use super::rows::{Key, after_prefix, endpoint_at, u64_at};
use super::states::{PageStates, StateEntry};
use super::tenant_hours::TenantHour;
use super::{Rows, acts, counters, idempotency, pending, stats, streams, tenant_pages, type_usage, usage};
use crate::domain::{Horizon, IdMap, Position, Timestamp};

/// Rows per batch.
const ROWS_PER_READ: usize = 512;

/// Tolerated differences.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// Events that expired by these cutoffs may be missing.
    pub cutoffs: Cutoffs,
    /// No event beyond it may be missing.
    pub horizon: Horizon,
    /// Requests that expired until then may be missing.
    pub expired_until: Timestamp,
    /// Audit entries of acts before it may be missing.
    pub acts_from: Timestamp,
    /// Retention has removed records from the journal.
    pub gaps: bool,
}

/// Compares all rows of projections and reports each difference. Returns the number of kept rows.
pub fn audit(
    kept: &dyn Rows,
    folded: &dyn Rows,
    terms: &Terms,
    differs: &mut dyn FnMut(String),
    examined: &mut dyn FnMut(u64),
) -> u64 {
    let stored = BTreeMap::new();
    let mut audit = Audit { kept, folded, terms, differs, examined, rows: 0, stored, pages: BTreeMap::new() };
    audit.compare_pending();
    audit.compare_queues();
    audit.compare_exactly(b'G');
    audit.compare_exactly(b'P');
    audit.compare_exactly(b'X');
    audit.compare_exactly(b'x');
    audit.compare_exactly(b'o');
    audit.compare_exactly(b'R');
    audit.compare_exactly(b'Q');
    audit.compare_exactly(b'j');
    audit.compare_acts();
    audit.compare_acts_of_tenants();
    audit.compare_pages();
    audit.compare_tenant_pages();
    audit.compare_rows_of_events(b'F');
    audit.compare_rows_of_events(b'M');
    audit.compare_erasures();
    audit.compare_streams();
    audit.compare_requests();
    audit.compare_expiries();
    audit.compare_counters();
    audit.compare_statistics();
    audit.compare_tenant_hours();
    audit.compare_usage();
    audit.compare_type_usage();
    audit.rows
}

struct Audit<'a> {
    kept: &'a dyn Rows,
    folded: &'a dyn Rows,
    terms: &'a Terms,
    differs: &'a mut dyn FnMut(String),
    examined: &'a mut dyn FnMut(u64),
    rows: u64,
    /// Number and bytes of the kept events, by tenant.
    stored: BTreeMap<Box<str>, (u64, u64)>,
    /// By tenant, the number of pages with kept events, and of those that the index lists.
    pages: BTreeMap<Box<str>, (u64, u64)>,
}

impl Audit<'_> {
    fn report(&mut self, difference: String) {
        (self.differs)(difference);
    }

    fn count_rows(&mut self, rows: u64) {
        self.rows += rows;
        (self.examined)(self.rows);
    }

    /// Compares rows without tolerance.
    fn compare_exactly(&mut self, tag: u8) {
        self.for_each_row(tag, |audit, key, kept, folded| {
            if kept != folded {
                audit.report(difference(&describe(key), kept.is_some(), folded.is_some()));
            }
        });
    }

    fn for_each_row(
        &mut self,
        tag: u8,
        mut compare: impl FnMut(&mut Self, &[u8], Option<&[u8]>, Option<&[u8]>),
    ) {
        let (kept, folded) = (self.kept, self.folded);
        for (key, one, other) in (Pairs { kept: Side::new(kept, tag), folded: Side::new(folded, tag) }) {
            self.count_rows(u64::from(one.is_some()));
            if key_bytes(tag).is_none_or(|bytes| key.len() == bytes) {
                compare(self, &key, one.as_deref(), other.as_deref());
            } else {
                self.report(format!("a row of kind {} has a key of {} bytes", char::from(tag), key.len()));
            }
        }
    }

    /// Compares sendable deliveries. If retention may have removed the first delivery of a queue,
    /// another one is first in the folded rows. So only the kept queue is checked.
    fn compare_pending(&mut self) {
        self.for_each_row(b'D', |audit, key, kept, folded| {
            let is_ordered = |value: &[u8]| pending::is_ordered(value);
            if audit.terms.gaps && kept.or(folded).is_some_and(is_ordered) {
                if kept.is_some() && !pending::is_in_its_queue(audit.kept, key) {
                    audit.report(format!("{} is not in its queue", describe(key)));
                }
            } else if kept != folded {
                audit.report(difference(&describe(key), kept.is_some(), folded.is_some()));
            }
        });
    }

    fn compare_queues(&mut self) {
        if !self.terms.gaps {
            return self.compare_exactly(b'W');
        }
        let mut queue: Option<(Vec<u8>, u64)> = None;
        self.for_each_row(b'W', |audit, key, kept, folded| {
            if kept.is_some() != folded.is_some() {
                audit.report(difference(&describe(key), kept.is_some(), folded.is_some()));
            }
            if let Some(value) = kept {
                let sendable = u64::from(pending::is_sendable(audit.kept, key, value));
                match &mut queue {
                    Some((name, count)) if name[..] == key[..13] => *count += sendable,
                    other => {
                        let before = other.replace((key[..13].to_vec(), sendable));
                        audit.check_sendable(before.as_ref());
                    }
                }
            }
        });
        self.check_sendable(queue.as_ref());
    }

    fn check_sendable(&mut self, queue: Option<&(Vec<u8>, u64)>) {
        if let Some((key, sendable)) = queue.filter(|(_, sendable)| *sendable != 1) {
            let endpoint = endpoint_at(key, 1).0;
            self.report(format!(
                "a queue of endpoint {endpoint} has {sendable} sendable deliveries, expected one"
            ));
        }
    }

    fn compare_pages(&mut self) {
        let mut next = Some(0);
        while let Some(from) = next {
            let (kept, folded) =
                (pages::page_at_or_above(self.kept, from), pages::page_at_or_above(self.folded, from));
            let Some(page) = kept.into_iter().chain(folded).min() else { break };
            self.compare_page(page);
            next = page.checked_add(1);
        }
    }

    fn compare_page(&mut self, page: u64) {
        let (kept, folded) = (pages::events(self.kept, page), pages::events(self.folded, page));
        let states = PageStates::new(self.kept, page);
        let folded_states = PageStates::new(self.folded, page);
        self.count_rows((kept.len() + states.listed().len()) as u64);
        let known: IdMap<Position, &EventEntry> = kept.iter().map(|event| (event.position, event)).collect();
        let expected: IdMap<Position, &EventEntry> =
            folded.iter().map(|event| (event.position, event)).collect();
        for event in &kept {
            let (events, bytes) = self.stored.entry(event.tenant.clone()).or_default();
            *events += 1;
            *bytes += event.bytes;
            match expected.get(&event.position) {
                Some(other) if *other == event => self.compare_deliveries(event, &states, &folded_states),
                Some(_) => self.report(format!("event {} differs from the journal", event.position)),
                None => self.report(format!("event {} is not in the journal", event.position)),
            }
        }
        let tenants: BTreeSet<&str> = kept.iter().map(|event| &*event.tenant).collect();
        for tenant in tenants {
            self.pages.entry(tenant.into()).or_default().0 += 1;
            if !tenant_pages::lists(self.kept, tenant, page) {
                self.report(format!(
                    "the index of tenant {tenant} lacks a page, with events from {}",
                    pages::first_position(page)
                ));
            }
        }
        for event in folded.iter().filter(|event| !known.contains_key(&event.position)) {
            let expiry = Expiry { cutoffs: self.terms.cutoffs, horizon: self.terms.horizon };
            if !expiry.includes(event, &folded_states) {
                self.report(format!("event {} is missing", event.position));
            }
        }
        let orphans: BTreeSet<_> =
            states.listed().keys().map(|key| key.event).filter(|event| !known.contains_key(event)).collect();
        for event in orphans {
            self.report(format!("event {event} is missing, but has deliveries"));
        }
    }

    /// Compares the index of pages with the kept events, which [`Self::compare_pages`] has compared
    /// with the journal and looked up in the index. So an index with as many pages has no others.
    fn compare_tenant_pages(&mut self) {
        self.for_each_row(b't', |audit, key, kept, _| match kept.map(|kept| tenant_pages::read(key, kept)) {
            Some(Some((tenant, pages))) => audit.pages.entry(tenant.into()).or_default().1 += pages,
            Some(None) => audit.report(format!("{} is malformed", describe(key))),
            None => {}
        });
        for (tenant, (pages, listed)) in std::mem::take(&mut self.pages) {
            if pages != listed {
                self.report(format!(
                    "the index of tenant {tenant} lists {listed} pages, its events are on {pages}"
                ));
            }
        }
    }

    fn compare_deliveries(&mut self, event: &EventEntry, kept: &PageStates<'_>, folded: &PageStates<'_>) {
        let (kept, folded) = (kept.deliveries(event), folded.deliveries(event));
        let endpoints: BTreeSet<_> = kept.keys().chain(folded.keys()).collect();
        for endpoint in endpoints {
            let of = |side: &BTreeMap<_, Option<StateEntry>>| side.get(endpoint).cloned().flatten();
            let (one, other) = (of(&kept), of(&folded));
            if one != other {
                let state = |entry: &Option<StateEntry>| {
                    entry.as_ref().map_or("pending", |entry| entry.state.as_str())
                };
                let (state, meant) = (state(&one), state(&other));
                self.report(format!(
                    "the delivery of event {} for endpoint {} is {state}, the journal gives {meant}{}",
                    event.position,
                    endpoint.0,
                    if state == meant { ", with other attempts or at another time" } else { "" },
                ));
            }
        }
    }

    /// Compares the rows of wide events, but not those that retention deleted with their events.
    fn compare_rows_of_events(&mut self, tag: u8) {
        let mut known: Option<(Position, bool)> = None;
        self.for_each_row(tag, |audit, key, kept, folded| {
            let event = Position(u64_at(key, 1));
            if known.is_none_or(|(of, _)| of != event) {
                known = Some((event, pages::event(audit.kept, event).is_some()));
            }
            let is_kept = known.is_some_and(|(_, is_kept)| is_kept);
            if kept != folded && (kept.is_some() || is_kept) {
                audit.report(difference(&describe(key), kept.is_some(), folded.is_some()));
            }
        });
    }

    /// Compares pending erasures. A kept row may outlive the content for a moment. The journal may
    /// have an erasure whose event is gone.
    fn compare_erasures(&mut self) {
        self.for_each_row(b'H', |audit, key, kept, folded| {
            let event = Position(u64_at(key, 1));
            match (kept, folded) {
                (None, Some(_)) if pages::event(audit.folded, event).is_some() => audit.report(format!(
                    "the erasure of event {event} is complete, but the journal still has its content"
                )),
                (Some(kept), Some(folded)) if kept != folded => {
                    audit.report(format!("the erasure of event {event} differs from the journal"));
                }
                _ => {}
            }
        });
    }

    /// Compares audit entries. Retention may have removed the kept one.
    fn compare_acts(&mut self) {
        self.for_each_row(b'a', |audit, key, kept, folded| {
            let has_expired =
                kept.is_none() && folded.and_then(acts::time).is_some_and(|at| at < audit.terms.acts_from);
            if kept != folded && !has_expired {
                audit.report(difference(&describe(key), kept.is_some(), folded.is_some()));
            }
        });
    }

    /// Compares the index of audit entries by tenant. As [`Self::compare_acts`].
    fn compare_acts_of_tenants(&mut self) {
        self.for_each_row(b'u', |audit, key, kept, folded| {
            let at = acts::named(key).and_then(|position| acts::time_of(audit.folded, position));
            let has_expired = kept.is_none() && at.is_some_and(|at| at < audit.terms.acts_from);
            if kept != folded && !has_expired {
                audit.report(difference(&describe(key), kept.is_some(), folded.is_some()));
            }
        });
    }

    fn compare_streams(&mut self) {
        let gaps = self.terms.gaps;
        self.for_each_row(b'S', |audit, key, kept, folded| {
            let rows = (audit.kept, audit.folded);
            let agree = kept.zip(folded).is_some_and(|pair| streams::heads_agree(rows, key, pair, gaps));
            if !agree {
                audit.report(difference(&describe(key), kept.is_some(), folded.is_some()));
            }
        });
        self.for_each_row(b'V', |audit, key, kept, folded| {
            if !streams::blocks_agree(audit.kept, key, kept, folded) {
                audit.report(difference(&describe(key), kept.is_some(), folded.is_some()));
            }
        });
    }

    fn compare_requests(&mut self) {
        self.for_each_row(b'I', |audit, key, kept, folded| {
            let known = (kept.and_then(idempotency::decode), folded.and_then(idempotency::decode));
            let is_equal = match known {
                (Some(kept), Some(folded)) => kept == folded,
                // Expired, or a chosen id that was deleted with its event.
                (None, Some(folded)) if kept.is_none() => match folded.expires_at {
                    Some(at) => at <= audit.terms.expired_until,
                    None => pages::event(audit.kept, folded.position).is_none(),
                },
                _ => false,
            };
            if !is_equal {
                let position = known.0.or(known.1).map_or(Position(0), |known| known.position);
                let row = format!("the answered request of record {position}");
                audit.report(difference(&row, kept.is_some(), folded.is_some()));
            }
            // `compare_expiries` checks the later ones.
            let expires_at = known.0.and_then(|known| known.expires_at);
            let overdue = expires_at
                .filter(|at| idempotency::hour_of(*at) < idempotency::hour_of(audit.terms.expired_until));
            if overdue.is_some_and(|at| !idempotency::has_expiry(audit.kept, &key[1..], at)) {
                audit.report("an answered request has no expiry row".to_owned());
            }
        });
    }

    /// Compares the expiries of requests, hour by hour.
    fn compare_expiries(&mut self) {
        let mut hours = Hours { kept: Vec::new(), folded: Vec::new(), hour: 0 };
        self.for_each_row(b'J', |audit, key, kept, folded| {
            let hour = u64_at(key, 1);
            if hour != hours.hour {
                hours.compare(audit);
                hours.hour = hour;
            }
            hours.kept.extend(scopes(kept));
            hours.folded.extend(scopes(folded));
        });
        hours.compare(self);
    }

    fn compare_counters(&mut self) {
        let gaps = self.terms.gaps;
        self.for_each_row(b'L', |audit, key, kept, folded| {
            let lane = |value: Option<&[u8]>| value.map(counters::decode).unwrap_or_default();
            let (kept, mut folded) = (lane(kept), lane(folded));
            // Retention may have removed failures.
            if gaps && is_part_of(folded.failing, kept.failing) {
                folded.failing = kept.failing;
            }
            if kept != folded {
                let endpoint = endpoint_at(key, 1).0;
                audit.report(format!(
                    "counters of endpoint {endpoint} are {kept:?}, the journal gives {folded:?}"
                ));
            }
        });
    }

    fn compare_statistics(&mut self) {
        let Terms { gaps, cutoffs, .. } = *self.terms;
        self.for_each_row(b'T', |audit, key, kept, folded| {
            let hour = |value: Option<&[u8]>| value.map(stats::Hour::decode).unwrap_or_default();
            let forgotten = kept.is_none()
                && cutoffs.events.is_some_and(|cutoff| u64_at(key, 5) < stats::hour_of(cutoff));
            let (one, other) = (hour(kept), hour(folded));
            if !forgotten && one != other && !(gaps && one.covers(&other)) {
                audit.report(difference(&describe(key), kept.is_some(), folded.is_some()));
            }
        });
    }

    fn compare_tenant_hours(&mut self) {
        let Terms { gaps, cutoffs, .. } = *self.terms;
        self.for_each_row(b'B', |audit, key, kept, folded| {
            if key.len() <= HOUR_TENANT_AT {
                return audit.report(format!("an hour of a tenant has a key of {} bytes", key.len()));
            }
            let decode = |value: Option<&[u8]>| value.map(TenantHour::decode).unwrap_or_default();
            let is_over = cutoffs.events.is_some_and(|cutoff| u64_at(key, 1) < stats::hour_of(cutoff));
            let (one, other) = (decode(kept), decode(folded));
            let is_forgotten = kept.is_none() && is_over;
            if !is_forgotten && one != other && !(gaps && one.covers(&other)) {
                audit.report(difference(&describe(key), kept.is_some(), folded.is_some()));
            }
        });
    }

    /// Retention may have removed events from the journal, which still count.
    fn compare_type_usage(&mut self) {
        let gaps = self.terms.gaps;
        self.for_each_row(b'y', |audit, key, kept, folded| {
            let decode = |value: Option<&[u8]>| value.map(type_usage::TypeUsage::decode).unwrap_or_default();
            let (one, other) = (decode(kept), decode(folded));
            if one != other && !(gaps && one.covers(&other)) {
                audit.report(difference(&describe(key), kept.is_some(), folded.is_some()));
            }
        });
    }

    /// Compares usage. Events expire without a record, so their counts are compared with the kept
    /// events, which [`Self::compare_pages`] has compared with the journal.
    fn compare_usage(&mut self) {
        self.for_each_row(b'U', |audit, key, kept, folded| {
            let decode = |value: Option<&[u8]>| value.map(usage::decode).unwrap_or_default();
            let (kept, folded) = (decode(kept), decode(folded));
            let name = String::from_utf8_lossy(&key[1..]);
            let (events, bytes) = audit.stored.remove(&*name).unwrap_or_default();
            let expected = usage::Usage { events, bytes, ..folded };
            if kept != expected {
                audit.report(format!(
                    "usage of tenant {name} is {kept:?}, the journal and the stored events give {expected:?}"
                ));
            }
        });
        for tenant in std::mem::take(&mut self.stored).into_keys() {
            self.report(format!("usage of tenant {tenant} is missing"));
        }
    }
}

/// Requests of one expiry hour that were read so far.
struct Hours {
    kept: Vec<[u8; 16]>,
    folded: Vec<[u8; 16]>,
    hour: u64,
}

fn scopes(row: Option<&[u8]>) -> impl Iterator<Item = [u8; 16]> + '_ {
    row.unwrap_or_default().chunks(16).map(|chunk| {
        let mut scope = [0; 16];
        scope[..chunk.len()].copy_from_slice(chunk);
        scope
    })
}

impl Hours {
    fn compare(&mut self, audit: &mut Audit<'_>) {
        for list in [&mut self.kept, &mut self.folded] {
            list.sort_unstable();
            list.dedup();
        }
        let has_all =
            |of: &[[u8; 16]], list: &[[u8; 16]]| of.iter().all(|scope| list.binary_search(scope).is_ok());
        let may_be_gone = self.hour < idempotency::hour_of(audit.terms.expired_until);
        let may_be_more = audit.terms.gaps;
        let (missing, more) = (!has_all(&self.folded, &self.kept), !has_all(&self.kept, &self.folded));
        if (missing && !may_be_gone) || (more && !may_be_more) {
            let hour = self.hour;
            audit.report(format!("the expiries of hour {hour} since 1970 differ from the journal"));
        }
        self.kept.clear();
        self.folded.clear();
    }
}

/// Whether `part` may be `whole` without some of its attempts.
fn is_part_of(part: Option<Failing>, whole: Option<Failing>) -> bool {
    part.is_none_or(|part| whole.is_some_and(|whole| part.since >= whole.since))
}

/// Key length of a tag, if it is fixed.
fn key_bytes(tag: u8) -> Option<usize> {
    match tag {
        b'D' | b'W' | b'X' | b'x' => Some(21),
        b'G' | b'P' | b'T' | b'M' => Some(13),
        b'F' | b'H' | b'j' | b'a' => Some(9),
        b'I' | b'J' => Some(17),
        b'L' | b'R' => Some(5),
        _ => None,
    }
}

/// Rows of one tag on one side, read in batches.
struct Side<'a> {
    rows: &'a dyn Rows,
    from: Vec<u8>,
    to: Vec<u8>,
    read: VecDeque<(Vec<u8>, Vec<u8>)>,
    ended: bool,
}

impl<'a> Side<'a> {
    fn new(rows: &'a dyn Rows, tag: u8) -> Self {
        let from = Key::new(tag).0;
        let to = after_prefix(&from);
        Self { rows, from, to, read: VecDeque::new(), ended: false }
    }

    fn peek(&mut self) -> Option<&(Vec<u8>, Vec<u8>)> {
        if self.read.is_empty() && !self.ended {
            let read = &mut self.read;
            self.rows.scan(&self.from, &self.to, &mut |key, value| {
                read.push_back((key.to_vec(), value.to_vec()));
                if read.len() < ROWS_PER_READ { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            self.ended = self.read.len() < ROWS_PER_READ;
            if let Some((last, _)) = self.read.back() {
                self.from = [&last[..], &[0]].concat();
            }
        }
        self.read.front()
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        self.read.pop_front().map(|(_, value)| value)
    }
}

/// Rows of both sides in key order, with the value of each.
struct Pairs<'a> {
    kept: Side<'a>,
    folded: Side<'a>,
}

impl Iterator for Pairs<'_> {
    type Item = (Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>);

    fn next(&mut self) -> Option<Self::Item> {
        let one = self.kept.peek().map(|(key, _)| key.clone());
        let other = self.folded.peek().map(|(key, _)| key.clone());
        let key = match (&one, &other) {
            (Some(one), Some(other)) => one.min(other).clone(),
            (Some(key), None) | (None, Some(key)) => key.clone(),
            (None, None) => return None,
        };
        let kept = if one.as_ref() == Some(&key) { self.kept.take() } else { None };
        let folded = if other.as_ref() == Some(&key) { self.folded.take() } else { None };
        Some((key, kept, folded))
    }
}
