//! Whether kept rows are what the journal says: they stand beside rows that were folded from it anew.
//!
//! Owns: what may differ, and why. Rows that were kept may lack what was forgotten without a record ([`Terms`]); rows that
//! were folded anew may lack what retention has taken from the journal. Everything else is a difference, said in words.
//! Looks at a bounded number of rows at a time; of requests that expire, at those of an hour (32 bytes each).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::ControlFlow;

use super::failing::Failing;
use super::pages::{self, EventEntry, StateEntry};
use super::retention::{self, Cutoffs};
use super::rows::{Key, after_prefix, endpoint_at, u64_at};
use super::{Rows, counters, idempotency, pending, stats, streams};
use crate::domain::{DeliveryKey, EndpointNumber, Position, Timestamp};

/// Rows that are read at once.
const ROWS_PER_READ: usize = 512;

/// What may differ.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// Events that were over by these may be forgotten.
    pub cutoffs: Cutoffs,
    /// Requests that expired until then may be forgotten.
    pub expired_until: Timestamp,
    /// Retention has taken records from the journal.
    pub gaps: bool,
}

/// Compares all rows of projections; tells each difference. Gives how many kept rows there are.
pub fn audit(
    kept: &dyn Rows,
    folded: &dyn Rows,
    terms: &Terms,
    differs: &mut dyn FnMut(String),
    looked_at: &mut dyn FnMut(u64),
) -> u64 {
    let mut audit = Audit { kept, folded, terms, differs, looked_at, rows: 0 };
    audit.pending();
    audit.queues();
    audit.exact(b'P');
    audit.exact(b'X');
    audit.exact(b'R');
    audit.pages();
    audit.streams();
    audit.requests();
    audit.expiries();
    audit.counters();
    audit.statistics();
    audit.rows
}

struct Audit<'a> {
    kept: &'a dyn Rows,
    folded: &'a dyn Rows,
    terms: &'a Terms,
    differs: &'a mut dyn FnMut(String),
    looked_at: &'a mut dyn FnMut(u64),
    rows: u64,
}

impl Audit<'_> {
    fn say(&mut self, what: String) {
        (self.differs)(what);
    }

    fn saw(&mut self, rows: u64) {
        self.rows += rows;
        (self.looked_at)(self.rows);
    }

    /// Every row of this tag is the same in both.
    fn exact(&mut self, tag: u8) {
        self.each(tag, |audit, key, kept, folded| {
            if kept != folded {
                audit.say(difference(&describe(key), kept.is_some(), folded.is_some()));
            }
        });
    }

    fn each(&mut self, tag: u8, mut look: impl FnMut(&mut Self, &[u8], Option<&[u8]>, Option<&[u8]>)) {
        let (kept, folded) = (self.kept, self.folded);
        for (key, one, other) in (Pairs { kept: Side::new(kept, tag), folded: Side::new(folded, tag) }) {
            self.saw(u64::from(one.is_some()));
            if key_bytes(tag).is_none_or(|bytes| key.len() == bytes) {
                look(self, &key, one.as_deref(), other.as_deref());
            } else {
                self.say(format!("a row of kind {} has a key of {} bytes", char::from(tag), key.len()));
            }
        }
    }

    /// What lanes may send. When what stood first in a queue is not in the journal any more, another may be first in the
    /// rows that were folded anew: then the queues are looked at for themselves.
    fn pending(&mut self) {
        self.each(b'D', |audit, key, kept, folded| {
            let is_ordered = |value: &[u8]| pending::is_ordered(value);
            if audit.terms.gaps && kept.or(folded).is_some_and(is_ordered) {
                if kept.is_some() && !pending::has_queue(audit.kept, key) {
                    audit.say(format!("{} stands in no queue", describe(key)));
                }
            } else if kept != folded {
                audit.say(difference(&describe(key), kept.is_some(), folded.is_some()));
            }
        });
    }

    fn queues(&mut self) {
        if !self.terms.gaps {
            return self.exact(b'W');
        }
        let mut queue: Option<(Vec<u8>, u64)> = None;
        self.each(b'W', |audit, key, kept, folded| {
            if kept.is_some() != folded.is_some() {
                audit.say(difference(&describe(key), kept.is_some(), folded.is_some()));
            }
            if let Some(value) = kept {
                let firsts = u64::from(pending::is_first(audit.kept, key, value));
                match &mut queue {
                    Some((name, count)) if name[..] == key[..13] => *count += firsts,
                    other => {
                        let before = other.replace((key[..13].to_vec(), firsts));
                        audit.one_first(before.as_ref());
                    }
                }
            }
        });
        self.one_first(queue.as_ref());
    }

    fn one_first(&mut self, queue: Option<&(Vec<u8>, u64)>) {
        if let Some((key, firsts)) = queue.filter(|(_, firsts)| *firsts != 1) {
            let endpoint = endpoint_at(key, 1).0;
            self.say(format!(
                "a queue of endpoint {endpoint} has {firsts} deliveries that may be sent, not one"
            ));
        }
    }

    fn pages(&mut self) {
        let mut next = Some(0);
        while let Some(from) = next {
            let (kept, folded) =
                (pages::page_at_or_above(self.kept, from), pages::page_at_or_above(self.folded, from));
            let Some(page) = kept.into_iter().chain(folded).min() else { break };
            self.page(page);
            next = page.checked_add(1);
        }
    }

    fn page(&mut self, page: u64) {
        let (kept, folded) = (pages::events(self.kept, page), pages::events(self.folded, page));
        let (states, folded_states) = (pages::states(self.kept, page), pages::states(self.folded, page));
        self.saw((kept.len() + states.len()) as u64);
        for pair in kept.windows(2).filter(|pair| pair[0].position >= pair[1].position) {
            self.say(format!("event {} is listed twice, or out of order", pair[1].position));
        }
        let known: HashMap<Position, &EventEntry> =
            kept.iter().map(|event| (event.position, event)).collect();
        let meant: HashMap<Position, &EventEntry> =
            folded.iter().map(|event| (event.position, event)).collect();
        for event in &kept {
            match meant.get(&event.position) {
                Some(other) if *other == event => self.deliveries(event, &states, &folded_states),
                Some(_) => self.say(format!("event {} is listed as something else", event.position)),
                None => self.say(format!("event {} is not in the journal", event.position)),
            }
        }
        for event in folded.iter().filter(|event| !known.contains_key(&event.position)) {
            if !retention::is_over(event, &folded_states, self.terms.cutoffs) {
                self.say(format!("event {} is missing", event.position));
            }
        }
        let strays: BTreeSet<_> =
            states.keys().map(|key| key.event).filter(|event| !known.contains_key(event)).collect();
        for event in strays {
            self.say(format!("event {event} is missing, and deliveries of it are there"));
        }
    }

    fn deliveries(
        &mut self,
        event: &EventEntry,
        kept: &HashMap<DeliveryKey, StateEntry>,
        folded: &HashMap<DeliveryKey, StateEntry>,
    ) {
        let of_event = |states: &HashMap<DeliveryKey, StateEntry>| -> BTreeSet<EndpointNumber> {
            states.keys().filter(|key| key.event == event.position).map(|key| key.endpoint).collect()
        };
        for endpoint in of_event(kept).union(&of_event(folded)) {
            let key = DeliveryKey { event: event.position, endpoint: *endpoint };
            let (one, other) = (kept.get(&key), folded.get(&key));
            if one != other {
                let state =
                    |entry: Option<&StateEntry>| entry.map_or("pending", |entry| entry.state.as_str());
                self.say(format!(
                    "the delivery of event {} for endpoint {} is {}, and the journal says {}{}",
                    event.position,
                    endpoint.0,
                    state(one),
                    state(other),
                    if state(one) == state(other) { ", of other attempts or at another time" } else { "" },
                ));
            }
        }
    }

    fn streams(&mut self) {
        let gaps = self.terms.gaps;
        self.each(b'S', |audit, key, kept, folded| {
            let heads = (kept.and_then(streams::decode), folded.and_then(streams::decode));
            let is_meant = match heads {
                // Its first event may have been taken.
                (Some(kept), Some(folded)) if gaps => {
                    kept.first_at <= folded.first_at
                        && streams::Head { first_at: folded.first_at, ..kept } == folded
                }
                (kept, folded) => kept.is_some() && kept == folded,
            };
            if !is_meant {
                audit.say(difference(&describe(key), kept.is_some(), folded.is_some()));
            }
        });
    }

    fn requests(&mut self) {
        self.each(b'I', |audit, key, kept, folded| {
            let known = (kept.and_then(idempotency::decode), folded.and_then(idempotency::decode));
            let is_meant = match known {
                (Some(kept), Some(folded)) => kept == folded,
                // Expired, or a chosen id that went with its event.
                (None, Some(folded)) if kept.is_none() => match folded.expires_at {
                    Some(at) => at <= audit.terms.expired_until,
                    None => pages::event(audit.kept, folded.position).is_none(),
                },
                _ => false,
            };
            if !is_meant {
                let position = known.0.or(known.1).map_or(Position(0), |known| known.position);
                let what = format!("a request that was answered with record {position}");
                audit.say(difference(&what, kept.is_some(), folded.is_some()));
            }
            // Of later ones it is seen below.
            let expires_at = known.0.and_then(|known| known.expires_at);
            let overdue = expires_at
                .filter(|at| idempotency::hour_of(*at) < idempotency::hour_of(audit.terms.expired_until));
            if overdue.is_some_and(|at| !idempotency::is_to_expire(audit.kept, &key[1..], at)) {
                audit.say("a request that was answered would be remembered for ever".to_owned());
            }
        });
    }

    /// When requests will be forgotten, by the hour.
    fn expiries(&mut self) {
        let mut hours = Hours { kept: Vec::new(), folded: Vec::new(), hour: 0 };
        self.each(b'J', |audit, key, kept, folded| {
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

    fn counters(&mut self) {
        let gaps = self.terms.gaps;
        self.each(b'L', |audit, key, kept, folded| {
            let lane = |value: Option<&[u8]>| value.map(counters::decode).unwrap_or_default();
            let (kept, mut folded) = (lane(kept), lane(folded));
            // Failures that retention took are failures no more.
            if gaps && is_less_of(folded.failing, kept.failing) {
                folded.failing = kept.failing;
            }
            if kept != folded {
                let endpoint = endpoint_at(key, 1).0;
                audit.say(format!("endpoint {endpoint} counts {kept:?}, and the journal says {folded:?}"));
            }
        });
    }

    fn statistics(&mut self) {
        let Terms { gaps, cutoffs, .. } = *self.terms;
        self.each(b'T', |audit, key, kept, folded| {
            let hour = |value: Option<&[u8]>| value.map(stats::Hour::decode).unwrap_or_default();
            let forgotten = kept.is_none()
                && cutoffs.events.is_some_and(|cutoff| u64_at(key, 5) < stats::hour_of(cutoff));
            let (one, other) = (hour(kept), hour(folded));
            if !forgotten && one != other && !(gaps && one.covers(&other)) {
                audit.say(difference(&describe(key), kept.is_some(), folded.is_some()));
            }
        });
    }
}

/// The requests that expire within an hour, as far as they were read.
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
            audit.say(format!("what expires in hour {hour} since 1970 is not what the journal says"));
        }
        self.kept.clear();
        self.folded.clear();
    }
}

/// Whether one may be the other without some of its attempts.
fn is_less_of(one: Option<Failing>, other: Option<Failing>) -> bool {
    one.is_none_or(|one| other.is_some_and(|other| one.since >= other.since))
}

/// Lengths of the keys that have one.
fn key_bytes(tag: u8) -> Option<usize> {
    match tag {
        b'D' | b'W' | b'X' => Some(21),
        b'P' | b'T' => Some(13),
        b'I' | b'J' => Some(17),
        b'L' | b'R' => Some(5),
        _ => None,
    }
}

fn difference(what: &str, is_kept: bool, is_meant: bool) -> String {
    match (is_kept, is_meant) {
        (true, false) => format!("{what} is there, and not in the journal"),
        (false, true) => format!("{what} is missing"),
        _ => format!("{what} is not what the journal says"),
    }
}

/// A row in words.
fn describe(key: &[u8]) -> String {
    let event = |offset| Position(u64_at(key, offset));
    match key[0] {
        b'D' => format!(
            "the place of event {} in the lane of endpoint {} (due {})",
            event(13),
            endpoint_at(key, 1).0,
            u64_at(key, 5)
        ),
        b'W' => format!("the place of event {} in a queue of endpoint {}", event(13), endpoint_at(key, 1).0),
        b'P' => format!("what is behind event {} for endpoint {}", event(1), endpoint_at(key, 9).0),
        b'X' => format!("the dead letter of event {} for endpoint {}", event(9), endpoint_at(key, 17).0),
        b'S' => format!("the head of stream {}", String::from_utf8_lossy(&key[1..]).replace('\0', " ")),
        b'T' => format!("what endpoint {} did in hour {}", endpoint_at(key, 1).0, u64_at(key, 5)),
        b'R' => format!("what endpoint {} has reserved of its rate", endpoint_at(key, 1).0),
        tag => format!("a row of kind {}", char::from(tag)),
    }
}

/// Rows of one tag from one side, read some at a time.
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

/// Rows of two sides in key order, with the value of each.
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
