//! Random registrations of event types.

use super::Store;
use super::work::Work;
use crate::domain::{
    Compatibility, EventType, EventVersion, Position, Timestamp, TypeDefinition, TypeVersion,
};
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
        let definition = TypeDefinition {
            transitive: self.percent(50),
            revision: if self.percent(15) { current.next() } else { current },
            ..open_type(name, deprecated, deprecated.then_some(RULES), self.now)
        };
        Command::PutType(Box::new(ProposedType { definition, replaced: Vec::new(), as_of: Position(0) }))
    }
}

/// A type with one version, whose schema accepts everything.
pub(crate) fn open_type(
    name: EventType,
    deprecated: bool,
    state: Option<&str>,
    at: Timestamp,
) -> TypeDefinition {
    let version = TypeVersion {
        version: EventVersion::default(),
        schema: "true".into(),
        deprecated,
        sunset: None,
        examples: Vec::new(),
    };
    TypeDefinition {
        name,
        description: "".into(),
        compatibility: Compatibility::default(),
        transitive: false,
        versions: vec![version],
        migrations: Vec::new(),
        state: state.map(Into::into),
        created_at: at,
        updated_at: at,
        revision: Position(0),
    }
}
