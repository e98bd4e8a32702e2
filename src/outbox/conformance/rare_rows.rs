//! Rows that the random work has rarely or never: leases, blocks of a stream, pending erasures.

use std::time::Duration;

use super::Store;
use crate::domain::{
    DeliveryKey, Endpoint, EndpointTransport, QueueTarget, Record, TakenFrom, TakenMessage, Tenant,
};
use crate::outbox::draft::EventDraft;
use crate::outbox::unit::{Command, Outcome};
use crate::rules::tests::endpoint;

const TENANT: &str = "workers";

/// Adds a queue with the events of a stream. A worker takes the first message, and the event of the
/// last one is erased.
pub(super) fn add_rare_rows(store: &mut impl Store) {
    let tenant: Tenant = TENANT.parse().expect("a legal tenant");
    let name = "work".parse().expect("a legal name");
    let target = QueueTarget { name, lease_max: Duration::from_secs(60) };
    let transport = EndpointTransport::Queue(target);
    let queue = Endpoint { transport, ..endpoint(0, TENANT, &["work.todo".to_owned()]) };
    let mut made = store.submit(vec![vec![Command::PutEndpoint(Box::new(queue))]]);
    let Some(Outcome::Endpoint(queue)) = made.pop().and_then(|mut outcomes| outcomes.pop()) else {
        panic!("the queue was not made");
    };
    let message = |_| {
        let draft = EventDraft::new(tenant.clone(), "work.todo".parse().expect("a legal type"), "{}".into());
        let stream = Some("work".parse().expect("a legal stream"));
        Command::Publish(Box::new(EventDraft { stream, ..draft }))
    };
    store.submit(vec![(0..6).map(message).collect()]);
    let (mut due, number) = (Vec::new(), queue.number);
    let find = store.ask(&mut |found| {
        due = found.sendable(number, None, 6).0;
        Ok(())
    });
    find.expect("the state answers");
    let (Some((first, _)), Some((last, _))) = (due.first(), due.last()) else {
        panic!("no message is due");
    };
    let messages = vec![TakenMessage { event: first.event, from: TakenFrom::Due(first.due) }];
    let (at, until) = (first.due, first.due.plus(Duration::from_secs(30)));
    let deliveries = vec![DeliveryKey { event: last.event, endpoint: number }];
    let records = [
        Record::MessagesLeased { queue: number, messages, until, at, worker: None },
        Record::EventErased { event: last.event, tenant, at, reason: "asked for".into() },
        Record::DeliveriesCancelled { deliveries, at },
    ];
    store.submit(vec![records.into_iter().map(Command::Record).collect()]);
}
