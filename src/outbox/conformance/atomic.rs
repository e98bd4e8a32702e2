//! Random atomic units: checks of streams, and events that are committed together.

use super::Store;
use super::work::Work;
use crate::domain::Expected;
use crate::outbox::unit::Command;

impl<S: Store> Work<S> {
    /// Most units append to few streams, so that expected versions are often right.
    pub(super) fn atomic(&mut self) -> Vec<Command> {
        let key = self.percent(40).then(|| self.request_key());
        let mut unit = vec![Command::Atomic(key.clone())];
        for _ in 0..self.random.u32(0..2) {
            let (tenant, stream) = (self.tenant_name(), format!("stream-{}", self.random.u32(0..4)));
            let version = self.random.u64(1..9);
            let words = [Expected::Any, Expected::Exists, Expected::NoStream, Expected::Version(version)];
            let expected = self.random.choice(words).expect("four");
            unit.push(Command::Check {
                tenant: tenant.parse().expect("a legal tenant"),
                stream: stream.parse().expect("a legal stream"),
                expected,
            });
        }
        let is_append = self.percent(60);
        for index in 0..self.random.u32(1..6) {
            let mut draft = self.post();
            draft.idempotency = key.clone().filter(|_| index == 0);
            if is_append {
                draft.tenant = "default".parse().expect("a legal tenant");
                draft.stream = Some("stream-0".parse().expect("a legal stream"));
                draft.expected = if self.percent(90) { Expected::Any } else { Expected::Exists };
            }
            unit.push(Command::Publish(Box::new(draft)));
        }
        unit
    }

    fn tenant_name(&mut self) -> &'static str {
        self.random.choice(["default", "default", "other"]).expect("three")
    }
}
