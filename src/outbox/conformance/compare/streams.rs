//! Comparison of streams and of the feed.

use super::*;
use crate::domain::StreamName;
use crate::projections::streams::Head;
use crate::rules::feed::{FeedFilter, FeedStreams};

/// Compares the feed with filters of each kind.
pub(super) fn feeds(oracle: &Oracle, found: &dyn ReadModel, moment: Moment) -> Result<(), String> {
    for filter in feed_filters(oracle) {
        feed(oracle, found, &filter, moment.limit)?;
    }
    Ok(())
}

/// One filter of the feed of each kind, and a combination.
fn feed_filters(oracle: &Oracle) -> Vec<FeedFilter> {
    let mut all = vec![FeedFilter::default()];
    let stream = oracle.streams.keys().next().map(|(_, stream)| stream.clone());
    let event = oracle.events.values().next();
    let tenant = event.map(|event| event.tenant.clone());
    let exact = event.map(|event| event.event_type.as_str().parse().expect("a type is a pattern"));
    all.push(FeedFilter { tenant: tenant.clone(), ..FeedFilter::default() });
    all.push(FeedFilter { types: exact.into_iter().collect(), ..FeedFilter::default() });
    let streams = FeedStreams::Prefix("".into());
    all.push(FeedFilter { types: vec!["*".parse().expect("a pattern")], tenant, streams });
    all.extend(stream.map(|name| FeedFilter { streams: FeedStreams::One(name), ..FeedFilter::default() }));
    all
}

/// Compares the events of a feed, read in steps.
fn feed(oracle: &Oracle, found: &dyn ReadModel, filter: &FeedFilter, limit: usize) -> Result<(), String> {
    for until in [oracle.last, Position(oracle.last.0 / 2)] {
        let expected = oracle.feed(filter, Position(0), until, usize::MAX).events;
        let (mut read, mut after) = (Vec::new(), Position(0));
        while after < until {
            let step = found.feed(filter, after, until, limit);
            let ends_at = step.events.last().is_none_or(|last| *last <= step.looked_at);
            if step.looked_at <= after || step.events.len() > limit || !ends_at {
                return Err(format!("a look after {after} up to {until} found {step:?}"));
            }
            read.extend(step.events);
            after = step.looked_at;
        }
        same(&format!("the feed {filter:?} up to {until}"), &expected, &read)?;
    }
    Ok(())
}

pub(super) fn streams(oracle: &Oracle, found: &dyn ReadModel, moment: Moment) -> Result<(), String> {
    // Retention may remove a stream's first event, never its last.
    let same_head = |what: &str, expected: Option<Head>, head: Option<Head>| {
        let is_later = |head: &Head, expected: &Head| moment.rebuilt && head.first_at >= expected.first_at;
        let head = head.map(|head| match expected {
            Some(expected) if is_later(&head, &expected) => Head { first_at: expected.first_at, ..head },
            _ => head,
        });
        same(what, &expected, &head)
    };
    let streams = oracle.streams.keys().enumerate();
    for (_, (tenant, stream)) in streams.filter(|(number, _)| moment.picks(*number as u64)) {
        let what = format!("stream {stream} of {tenant}");
        same_head(&what, oracle.stream(tenant, stream), found.stream(tenant, stream))?;
        let last = oracle.streams[&(tenant.clone(), stream.clone())].version;
        for versions in [1..=u64::MAX, 1..=1, 2..=7, last / 2..=last, last..=last + 9, last + 1..=last + 2] {
            let expected = oracle.stream_positions(tenant, stream, versions.clone());
            let positions = found.stream_positions(tenant, stream, versions.clone());
            same(&format!("versions {versions:?} of {what}"), &expected, &positions)?;
        }
        let times = oracle.events.values().step_by(5).map(|event| event.accepted_at);
        for until in times.chain([moment.now.plus(Duration::from_secs(1)), Timestamp::ZERO]) {
            let expected = oracle.stream_version_before(tenant, stream, until);
            let version = found.stream_version_before(tenant, stream, until);
            same(&format!("the version of {what} before {until:?}"), &expected, &version)?;
        }
    }
    let tenants: BTreeSet<&Tenant> = oracle.streams.keys().map(|(tenant, _)| tenant).collect();
    for tenant in tenants {
        for prefix in ["", "s", "stream-1", "order-", "zz"] {
            let expected = oracle.streams(tenant, prefix, None, usize::MAX);
            let mut all: Vec<(StreamName, Head)> = Vec::new();
            loop {
                let after = all.last().map(|(stream, _)| stream.clone());
                let page = found.streams(tenant, prefix, after.as_ref(), moment.limit);
                if page.is_empty() {
                    break;
                }
                all.extend(page);
            }
            same("the number of streams", &expected.len(), &all.len())?;
            for ((name, expected), (found_name, head)) in expected.into_iter().zip(all) {
                same("a name of a stream", &name, &found_name)?;
                same_head(&format!("stream {name} of {tenant} in a list"), Some(expected), Some(head))?;
            }
        }
    }
    let never = "never".parse::<StreamName>().expect("a legal name");
    let default: Tenant = Tenant::DEFAULT.parse().expect("legal");
    same("a stream that never was", &None, &found.stream(&default, &never))?;
    same("its positions", &Vec::new(), &found.stream_positions(&default, &never, 1..=9))
}
