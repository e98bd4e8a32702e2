//! Atomic requests: appends to one stream, and batches over several. Repetitions of earlier
//! requests must get the earlier answer. Reads of streams.

use serde_json::json;

use super::posts::hash;
use super::*;
use crate::outbox::draft::PublishError;
use crate::service::Streams;
use crate::service::atomic::{AtomicError, AtomicRequest, StreamCheck};
use crate::service::streams::{Direction, ReadStart, StreamRead, StreamReadError};

/// A request, and the positions of its events if it was accepted.
#[derive(Clone, Debug)]
pub(in crate::simulation) struct Append {
    request: AtomicRequest,
    accepted: Option<Vec<Position>>,
}

/// The number, index and count of an event of an atomic request.
pub(in crate::simulation) fn part_of(data: &[u8]) -> Option<(u64, u64, u64)> {
    let value: serde_json::Value = serde_json::from_slice(data).ok()?;
    let number = |name: &str| value[name].as_u64();
    Some((number("append")?, number("index")?, number("of")?))
}

fn draw(inner: &mut Inner) -> AtomicRequest {
    let tenant = tenant(inner);
    let number = inner.appends.len() as u64 + 1;
    let count = inner.chance.within(1, 4);
    let head = |inner: &Inner, stream: &str| {
        inner.model.streams.get(&(tenant.to_string(), stream.to_owned())).copied().unwrap_or(0)
    };
    let expected = |inner: &mut Inner, head: u64| match inner.chance.within(0, 9) {
        0 => Expected::NoStream,
        1 | 2 => Expected::Exists,
        3..7 if head > 0 => Expected::Version(head),
        _ => Expected::Any,
    };
    let lifetime = seconds(4, inner.plan.keep.map_or(120, |keep| keep.as_secs()), &mut inner.chance);
    let key = inner.chance.percent(40).then(|| Idempotency {
        scope: hash(&format!("append {number}")),
        fingerprint: hash(&format!("append body {number}")),
        expires_at: Some(wall().plus(lifetime)),
    });
    let has_ids = inner.chance.percent(40);
    let one_stream = inner.chance.percent(50);
    let mut drafts = Vec::new();
    for index in 0..count {
        let stream = format!("order-{}", if one_stream { 1 } else { inner.chance.within(1, 3) });
        let known = head(inner, &stream);
        let expected = if one_stream && index > 0 { Expected::Any } else { expected(inner, known) };
        let data = json!({"append": number, "index": index, "of": count}).to_string();
        let event_type = inner.chance.pick(&["order.paid", "order.sent", "user.new"]).parse();
        drafts.push(EventDraft {
            id: has_ids.then(|| format!("append-{number}-{index}").parse().expect("a legal id")),
            stream: Some(stream.parse().expect("a legal stream")),
            expected,
            idempotency: key.clone().map(|key| match index {
                0 => key,
                _ => Idempotency { scope: hash(&format!("append {number} {index}")), ..key },
            }),
            fingerprint: hash(&data),
            ..EventDraft::new(tenant.clone(), event_type.expect("a legal type"), data.into())
        });
    }
    let mut checks = Vec::new();
    if inner.chance.percent(30) {
        let stream = format!("order-{}", inner.chance.within(1, 4));
        let known = head(inner, &stream);
        let expected = expected(inner, known);
        let stream = stream.parse().expect("a legal stream");
        checks.push(StreamCheck { tenant, stream, expected });
    }
    AtomicRequest { key, checks, drafts }
}

/// A new request, or an earlier one again.
fn choose(inner: &mut Inner) -> (usize, AtomicRequest) {
    if !inner.appends.is_empty() && inner.chance.percent(30) {
        let number = inner.chance.within(0, inner.appends.len() as u64 - 1) as usize;
        return (number, inner.appends[number].request.clone());
    }
    let request = draw(inner);
    inner.appends.push(Append { request: request.clone(), accepted: None });
    (inner.appends.len() - 1, request)
}

pub(super) async fn append(context: &Context, world: &World) {
    let (number, request) = world.with(choose);
    let result = Events(context).publish_atomic(request.clone()).await;
    if !world.is_alive() {
        return;
    }
    let events = match result {
        Ok(events) => events,
        Err(AtomicError { error: PublishError::Store(error), .. }) => {
            return check_refusal(world, "append", &error);
        }
        Err(AtomicError { part, error }) => {
            world.count("appendsRejected");
            world.note(format_args!("append {number}: {error} {part:?}"));
            let violation = world.with(|inner| check_rejected(inner, number, &error));
            return violation.map_or((), |violation| world.record_violation(violation));
        }
    };
    let is_repeated = events.iter().all(|accepted| accepted.duplicate);
    world.count(if is_repeated { "appendsRepeated" } else { "appends" });
    let positions: Vec<_> = events.iter().map(|accepted| accepted.position).collect();
    world.note(format_args!("append {number}: {positions:?}, repeated: {is_repeated}"));
    let violation = world.with(|inner| check_accepted(inner, number, &events));
    if let Some(violation) = violation {
        return world.record_violation(violation);
    }
    if world.chance(|chance| chance.percent(30)) {
        read(context, world, &request.drafts[0]).await;
    }
}

/// Whether a repetition must get the earlier answer.
fn must_repeat(inner: &Inner, append: &Append) -> bool {
    let has_key = append.request.key.as_ref().is_some_and(|key| key.expires_at.is_some_and(|at| at > wall()));
    // Retention frees the ids of deleted events.
    let has_ids = append.request.drafts[0].id.is_some() && inner.plan.keep.is_none();
    !inner.plan.clock_jumps && (has_key || has_ids)
}

fn check_rejected(inner: &Inner, number: usize, error: &PublishError) -> Option<String> {
    let append = &inner.appends[number];
    match &append.accepted {
        Some(positions) if must_repeat(inner, append) => {
            Some(format!("append {number} at {positions:?} was rejected when repeated: {error}"))
        }
        _ => None,
    }
}

fn check_accepted(inner: &mut Inner, number: usize, events: &[AcceptedEvent]) -> Option<String> {
    let append = inner.appends[number].clone();
    let positions: Vec<_> = events.iter().map(|accepted| accepted.position).collect();
    if events.len() != append.request.drafts.len() {
        return Some(format!("append {number} has {} events", events.len()));
    }
    for (index, (accepted, draft)) in events.iter().zip(&append.request.drafts).enumerate() {
        let durable = inner.model.oracle.events.get(&accepted.position);
        let is_same = |event: &std::sync::Arc<crate::domain::Event>| {
            event.id == accepted.event.id && (event.erased_at.is_some() || event.data == draft.data)
        };
        if !durable.is_some_and(is_same) {
            return Some(format!("append {number}: event {index} was answered before it was durable"));
        }
    }
    if positions.windows(2).any(|two| two[1] != two[0].next()) {
        return Some(format!("the events of append {number} are apart: {positions:?}"));
    }
    if let Some(before) = &append.accepted
        && *before != positions
        && must_repeat(inner, &append)
    {
        return Some(format!("append {number} was answered {before:?} and {positions:?}"));
    }
    inner.appends[number].accepted = Some(positions);
    None
}

/// Reads a stream in pages, in a random direction, and compares it with the records.
async fn read(context: &Context, world: &World, draft: &EventDraft) {
    let Some(stream) = &draft.stream else { return };
    let (direction, limit) = world.chance(|chance| {
        let direction = *chance.pick(&[Direction::Forwards, Direction::Backwards]);
        (direction, chance.within(1, 9) as usize)
    });
    let (mut start, mut versions) = (ReadStart::Oldest, Vec::new());
    if direction == Direction::Backwards {
        start = ReadStart::End;
    }
    loop {
        let wanted = StreamRead { start, direction, limit, ..StreamRead::default() };
        let page = match Streams(context).read(&draft.tenant, stream, wanted).await {
            Ok(page) => page,
            // Retention runs beside the read.
            Err(StreamReadError::Gone { .. }) if world.plan().keep.is_some() => return,
            Err(StreamReadError::Unavailable(error)) => return check_refusal(world, "read stream", &error),
            Err(error) => return world.record_violation(format!("stream {stream}: {error}")),
        };
        for entry in page.events {
            let (position, event) = (entry.position, &entry.event);
            let known = world.with(|inner| inner.model.oracle.events.get(&position).cloned());
            if known.as_ref() != Some(event) {
                return world.record_violation(format!("stream {stream} has another event at {position}"));
            }
            versions.extend(event.stream.as_ref().map(|(_, version)| *version));
        }
        match page.next_version {
            Some(version) => start = ReadStart::Version(version),
            None => break,
        }
    }
    let step = if direction == Direction::Forwards { 1 } else { u64::MAX };
    if versions.windows(2).any(|two| two[1] != two[0].wrapping_add(step)) {
        world.record_violation(format!("stream {stream} was read as {versions:?}"));
    }
    world.count("streamsRead");
}
