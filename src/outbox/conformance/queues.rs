//! Queues, which the random work does not have.

use std::time::Duration;

use super::Store;
use crate::domain::{Endpoint, EndpointTransport, QueueTarget, Record, TakenFrom, TakenMessage};
use crate::outbox::draft::EventDraft;
use crate::outbox::unit::{Command, Outcome};
use crate::rules::tests::endpoint;

/// Adds a queue with two messages, of which a worker takes the first.
pub(super) fn lease_message(store: &mut impl Store) {
    let name = "work".parse().expect("a legal name");
    let target = QueueTarget { name, lease_max: Duration::from_secs(60) };
    let transport = EndpointTransport::Queue(target);
    let queue = Endpoint { transport, ..endpoint(0, "workers", &["work.todo".to_owned()]) };
    let message = || {
        let tenant = "workers".parse().expect("a legal tenant");
        let kind = "work.todo".parse().expect("a legal type");
        Command::Publish(Box::new(EventDraft::new(tenant, kind, "{}".into())))
    };
    let mut made = store.submit(vec![vec![Command::PutEndpoint(Box::new(queue))]]);
    let Some(Outcome::Endpoint(queue)) = made.pop().and_then(|mut outcomes| outcomes.pop()) else {
        panic!("the queue was not made");
    };
    store.submit(vec![vec![message(), message()]]);
    let (mut first, number) = (None, queue.number);
    let find = store.ask(&mut |found| {
        first = found.sendable(number, None, 1).0.pop();
        Ok(())
    });
    find.expect("the state answers");
    let (key, _) = first.expect("a message is due");
    let messages = vec![TakenMessage { event: key.event, from: TakenFrom::Due(key.due) }];
    let until = key.due.plus(Duration::from_secs(30));
    let lease = Record::MessagesLeased { queue: number, messages, until, at: key.due, worker: None };
    store.submit(vec![vec![Command::Record(lease)]]);
}
