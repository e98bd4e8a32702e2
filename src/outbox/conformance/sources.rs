//! Random sources.

use super::Store;
use super::work::Work;
use crate::domain::{
    Dedup, OnInvalid, Position, Sealed, Source, SourceFormat, SourceName, SourceQueueType, SourceStatus,
    SourceTenant, Tenant,
};
use crate::outbox::unit::Command;

impl<S: Store> Work<S> {
    /// A source, a change or a deletion of one.
    pub(super) fn source(&mut self) -> Command {
        let name = self.random.choice(["shop", "stock"]).expect("two");
        let name: SourceName = name.parse().expect("a legal name");
        if self.percent(30) {
            return Command::DeleteSource { name, at: self.now };
        }
        let known = self.oracle.sources().into_iter().find(|known| known.name == name);
        let current = known.map_or(Position(0), |known| known.revision);
        Command::PutSource(Box::new(Source {
            name,
            url: "amqps://rabbit.example:5671/%2F".into(),
            username: "balto".into(),
            password: Sealed::Plain((*b"secret").into()),
            queue: "events".into(),
            queue_type: SourceQueueType::default(),
            exchange: None,
            bindings: Vec::new(),
            declares: self.percent(50),
            prefetch: 1,
            tenant: SourceTenant::Fixed(Tenant::DEFAULT.parse().expect("a legal tenant")),
            format: SourceFormat::default(),
            stream_header: None,
            ordering_key_header: None,
            on_invalid: OnInvalid::default(),
            dedup: Dedup::default(),
            status: if self.percent(50) { SourceStatus::Active } else { SourceStatus::Paused },
            created_at: self.now,
            updated_at: self.now,
            revision: if self.percent(15) { current.next() } else { current },
        }))
    }
}
