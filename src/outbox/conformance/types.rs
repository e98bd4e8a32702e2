//! Random registrations of event types.

use super::Store;
use super::work::Work;
use crate::domain::{Compatibility, EventType, EventVersion, Position, TypeDefinition, TypeVersion};
use crate::outbox::unit::{Command, ProposedType};

/// The rules of some types.
const RULES: &str = r#"[{"op":"copy","from":"/data","path":"/state"}]"#;

impl<S: Store> Work<S> {
    /// A registration, a change or a deletion of an event type.
    pub(super) fn event_type(&mut self) -> Command {
        let name = self.random.choice(["order.paid", "user.new", "order.lost"]).expect("three");
        let name: EventType = name.parse().expect("a legal type");
        if self.percent(30) {
            return Command::DeleteType { name, at: self.now };
        }
        let current = self.oracle.types.get(&name).map_or(Position(0), |known| known.revision);
        let deprecated = self.percent(50);
        let version = TypeVersion {
            version: EventVersion::default(),
            schema: "true".into(),
            deprecated,
            sunset: None,
            examples: Vec::new(),
        };
        let definition = TypeDefinition {
            name,
            description: "".into(),
            compatibility: Compatibility::default(),
            transitive: self.percent(50),
            versions: vec![version],
            migrations: Vec::new(),
            state: deprecated.then(|| RULES.into()),
            created_at: self.now,
            updated_at: self.now,
            revision: if self.percent(15) { current.next() } else { current },
        };
        Command::PutType(Box::new(ProposedType { definition, replaced: Vec::new(), as_of: Position(0) }))
    }
}
