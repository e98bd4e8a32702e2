//! Operator events: what the daemon itself has to tell, as events of the reserved tenant.

use super::Engine;
use super::types::EventDraft;
use crate::domain::{EventType, EventVersion, Expected, Tenant};

impl Engine {
    /// Publishes an operator event when some endpoint of the reserved tenant could want it. `data` is a JSON value.
    pub(super) async fn tell_operator(&self, event_type: &str, data: String) {
        let tenant: Tenant = Tenant::OPERATOR.parse().expect("a legal tenant");
        let wanted = self
            .outbox()
            .directory(|directory| directory.endpoints().any(|endpoint| endpoint.tenant == tenant));
        if !wanted {
            return;
        }
        let event_type: EventType = event_type.parse().expect("operator event types are ours");
        let version: EventVersion = "1.0".parse().expect("a legal version");
        let draft = EventDraft {
            id: None,
            tenant,
            event_type,
            version,
            timestamp: None,
            stream: None,
            expected: Expected::Any,
            ordering_key: None,
            deliver_at: None,
            metadata: None,
            attributes: Vec::new(),
            data: data.into(),
            idempotency: None,
            fingerprint: [0; 16],
            only: None,
        };
        if let Err(error) = self.publish(draft).await {
            tracing::warn!(%error, "an operator event could not be published");
        }
    }
}
