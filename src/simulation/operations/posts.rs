//! Posts of events, and checks of their responses.

use super::*;

pub(super) fn hash(text: &str) -> [u8; 16] {
    // FNV-1a.
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut chance = Chance::new(text.bytes().fold(0xcbf2_9ce4_8422_2325, fold));
    let (high, low) = (chance.next(), chance.next());
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}

pub(in crate::simulation) struct Post {
    pub(in crate::simulation) draft: EventDraft,
    /// Number of the idempotency key.
    key: Option<u64>,
    /// Stream version when the post was drawn.
    head: u64,
}

pub(in crate::simulation) fn draw_post(inner: &mut Inner) -> Post {
    let stream_name = format!("order-{}", inner.chance.within(1, 2));
    let tenant = tenant(inner);
    let chance = &mut inner.chance;
    let key = chance.percent(40).then(|| chance.within(1, 8));
    let chosen = chance.percent(15).then(|| chance.within(1, 6));
    // Most repeated requests have the same body.
    let body = match (key, chosen) {
        (Some(number), _) | (None, Some(number)) if chance.percent(85) => number,
        _ => chance.within(100, 10_000),
    };
    let stream = chance.percent(35).then(|| stream_name.clone());
    let event_type = *chance.pick(&["order.paid", "order.sent", "user.new"]);
    let head = inner.model.streams.get(&(tenant.to_string(), stream_name)).copied().unwrap_or(0);
    let expected = match inner.chance.within(0, 5) {
        0 => Expected::NoStream,
        1 | 2 => Expected::Version(head.max(1)),
        3 => Expected::Exists,
        _ => Expected::Any,
    };
    let chance = &mut inner.chance;
    let deliver_at = chance.percent(15).then(|| wall().plus(seconds(0, 20, chance)));
    // A key never outlives its event.
    let lifetime = seconds(4, inner.plan.keep.map_or(120, |keep| keep.as_secs()), chance);
    let fingerprint = hash(&format!("body {body}"));
    let idempotency = key.map(|key| Idempotency {
        scope: hash(&format!("{tenant} key {key}")),
        fingerprint,
        expires_at: Some(wall().plus(lifetime)),
    });
    let events = &inner.model.oracle.events;
    let earlier = chance.percent(3).then(|| chance.within(0, events.len() as u64) as usize);
    let earlier = earlier.and_then(|number| events.values().nth(number)).map(|event| event.id.clone());
    let chosen = chosen.map(|number| format!("chosen-{number}").parse().expect("a legal id"));
    let event_type = event_type.parse().expect("a legal type");
    let data = format!("{{\"body\":{body},\"more\":\"{}\"}}", "x".repeat(chance.within(0, 60) as usize));
    let draft = EventDraft {
        id: earlier.or(chosen),
        expected: if stream.is_some() { expected } else { Expected::Any },
        stream: stream.map(|stream| stream.parse().expect("a legal stream")),
        ordering_key: chance.percent(30).then(|| chance.pick(&["a", "b"]).parse().expect("a legal key")),
        deliver_at,
        labels: samples::labels(body),
        idempotency,
        fingerprint,
        ..EventDraft::new(tenant, event_type, data.into())
    };
    Post { draft, key, head }
}

pub(super) async fn publish(context: &Context, world: &World) {
    let post = world.with(draw_post);
    register_request(world, &post);
    let result = Events(context).publish(post.draft.clone()).await;
    check_post(world, &post, &result);
    // An accepted event is readable at once.
    if let Ok(accepted) = result
        && world.is_alive()
        && world.chance(|chance| chance.percent(20))
    {
        match Events(context).get(&ALL_TENANTS, &accepted.event.tenant, &accepted.event.id).await {
            Ok(Some(_)) => world.count("eventsRead"),
            Ok(None) if world.with(|inner| inner.model.may_be_removed(accepted.position)) => {}
            Ok(None) => world.record_violation(format!("accepted event {} is not found", accepted.event.id)),
            Err(error) => check_refusal(world, "read", &error),
        }
    }
}

pub(super) async fn publish_batch(context: &Context, world: &World) {
    let most = if world.plan().crowded { 16 } else { 6 };
    let count = world.chance(|chance| chance.within(1, most));
    let posts: Vec<_> = (0..count).map(|_| world.with(draw_post)).collect();
    for post in &posts {
        register_request(world, post);
    }
    let drafts = posts.iter().map(|post| post.draft.clone()).collect();
    // Equal bodies in the same order make equal requests.
    let bodies: String = posts.iter().map(|post| format!("{:?} ", post.draft.fingerprint)).collect();
    let request = world.chance(|chance| chance.percent(50)).then(|| Idempotency {
        scope: hash(&format!("batch {}", posts.len())),
        fingerprint: hash(&bodies),
        expires_at: Some(wall().plus(Duration::from_secs(3))),
    });
    match Events(context).publish_batch(drafts, request).await {
        Ok(published) => {
            for (post, result) in posts.iter().zip(&published.results) {
                check_post(world, post, result);
            }
        }
        Err(PublishError::IdempotencyMismatch) => world.count("otherBatches"),
        Err(error) => {
            for post in &posts {
                check_post(world, post, &Err(error.clone()));
            }
        }
    }
}

fn request_key(post: &Post) -> Option<u64> {
    let tenant = match post.draft.tenant.as_str() {
        Tenant::DEFAULT => 0,
        "other" => 1,
        _ => 2,
    };
    post.key.map(|key| key * 3 + tenant)
}

fn register_request(world: &World, post: &Post) {
    if let Some(key) = request_key(post) {
        world.with(|inner| {
            let fresh = Posted { answered: None, expires_at: None };
            inner.posted.entry(key).or_insert(fresh);
        });
    }
}

fn check_post(world: &World, post: &Post, result: &Result<AcceptedEvent, PublishError>) {
    if !world.is_alive() {
        return;
    }
    let violation = match result {
        Ok(accepted) => world.with(|inner| {
            let what = if accepted.duplicate { "duplicate" } else { "accepted" };
            inner.count(what);
            inner.note(format_args!("publish: {what} {} at {}", accepted.event.id, accepted.position));
            check_accepted(inner, post, accepted)
        }),
        Err(PublishError::Rejected { rejection, repeated }) => world.with(|inner| {
            inner.count(if *repeated { "rejectedAgain" } else { "rejected" });
            inner.note(format_args!("publish: {rejection:?}, repeated: {repeated}"));
            check_rejected(inner, post, *rejection, *repeated)
        }),
        Err(PublishError::IdempotencyMismatch) => {
            world.count("mismatches");
            world.note(format_args!("publish: mismatch of {:?}", post.key));
            post.key.is_none().then(|| "idempotency mismatch of an event without a key".to_owned())
        }
        Err(PublishError::QuotaExceeded(exceeded)) => {
            world.count("quotaRefused");
            world.note(format_args!("publish: {exceeded}"));
            None
        }
        Err(PublishError::TooManyTargets) => Some("too many targets for a single event".to_owned()),
        Err(PublishError::Refused(refusal)) => Some(format!("an event was refused: {refusal:?}")),
        Err(PublishError::Store(error)) => return check_refusal(world, "publish", error),
    };
    if let Some(violation) = violation {
        world.record_violation(violation);
    }
}

fn check_accepted(inner: &mut Inner, post: &Post, accepted: &AcceptedEvent) -> Option<String> {
    let id: EventId = accepted.event.id.clone();
    let durable = inner.model.oracle.events.get(&accepted.position);
    let Some(durable) = durable.filter(|event| event.id == id).cloned() else {
        return Some(format!("{id}: response before the commit was durable"));
    };
    let is_erased = durable.erased_at.is_some();
    if !accepted.duplicate && !is_erased && durable.data != post.draft.data {
        return Some(format!("{id} was stored with other data"));
    }
    let now = if accepted.duplicate { wall() } else { durable.accepted_at };
    let scope = post.draft.idempotency.as_ref().map(|idempotency| idempotency.scope);
    // A duplicate that was found by its id alone, or whose key has expired, proves nothing.
    let is_own =
        |known: &&Idempotency| Some(known.scope) == scope && known.expires_at.is_some_and(|at| at > now);
    let own = durable.idempotency.iter().find(is_own)?.clone();
    check_response(inner, post, id.to_string(), own.expires_at, now)
}

/// Checks that a key that has not expired gets its original response.
fn check_response(
    inner: &mut Inner,
    post: &Post,
    answer: String,
    expires_at: Option<Timestamp>,
    now: Timestamp,
) -> Option<String> {
    let posted = request_key(post).and_then(|key| inner.posted.get_mut(&key))?;
    let valid = posted.expires_at.is_some_and(|at| at > now);
    if let Some(before) = posted.answered.clone().filter(|before| valid && *before != answer) {
        return Some(format!("two responses for one idempotency key: {before} and {answer}"));
    }
    *posted = Posted { answered: Some(answer), expires_at };
    None
}

/// Checks a rejection against its durable record, or without a key against stream and ids.
fn check_rejected(inner: &mut Inner, post: &Post, rejection: Rejection, repeated: bool) -> Option<String> {
    if !repeated {
        let wrong = match rejection {
            Rejection::VersionConflict { actual, .. } => check_conflict(inner, post, actual.unwrap_or(0)),
            Rejection::PartialDuplicate => Some("partial duplicate of a single event".to_owned()),
            Rejection::IdTaken => {
                post.draft.id.is_none().then(|| "id conflict of an event without a chosen id".to_owned())
            }
        };
        if wrong.is_some() {
            return wrong;
        }
    }
    let Some(key) = &post.draft.idempotency else {
        return repeated.then(|| "repeated rejection of an event without a key".to_owned());
    };
    let own = inner.model.records.iter().rev().find_map(|(_, record)| match record {
        Record::EventRejected { idempotency, rejection, .. } if idempotency.scope == key.scope => {
            Some((idempotency.expires_at, *rejection))
        }
        _ => None,
    });
    match own {
        // A key that expired while its request waited proves nothing.
        Some((expires_at, _)) if expires_at.is_some_and(|at| at <= wall()) => None,
        Some((expires_at, durable)) if durable == rejection => {
            check_response(inner, post, format!("{rejection:?}"), expires_at, wall())
        }
        _ => Some(format!("{rejection:?}: response before the commit was durable")),
    }
}

/// Checks that the stream had this version at some time between request and response.
fn check_conflict(inner: &Inner, post: &Post, actual: u64) -> Option<String> {
    let stream = post.draft.stream.as_ref()?;
    let name = (post.draft.tenant.to_string(), stream.to_string());
    let head = inner.model.streams.get(&name).copied().unwrap_or(0);
    let possible = (post.head..=head).contains(&actual);
    let conflicts = match post.draft.expected {
        Expected::Any => false,
        Expected::NoStream => actual != 0,
        Expected::Exists => actual == 0,
        Expected::Version(version) => actual != version,
    };
    (!possible || !conflicts)
        .then(|| format!("conflict at version {actual}, but {stream} went from {} to {head}", post.head))
}
