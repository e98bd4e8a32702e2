//! Operator events: what the daemon itself has to tell, as events of the reserved tenant.
//!
//! | type | says |
//! |---|---|
//! | `balto.endpoint.failing` | an endpoint has failed so often in a row that it only gets probes |
//! | `balto.endpoint.disabled` | nothing is sent to an endpoint any more, and why |
//! | `balto.endpoint.recovered` | an endpoint that failed, or was disabled, has taken a delivery again |
//! | `balto.delivery.dead` | a delivery was given up, and why |
//!
//! Nothing is told of the reserved tenant's own deliveries and their failures: what is told would be the next to fail.

use serde_json::{Value, json};

use super::Engine;
use super::types::EventDraft;
use crate::domain::{
    DeadReason, DeliveryId, DeliveryKey, DisabledReason, Endpoint, EndpointNumber, Event, Expected, Tenant,
};
use crate::lanes::Turn;
use crate::rules::append::Judged;

impl Engine {
    /// A receiver's lane turned.
    pub(super) async fn tell_turn(&self, number: EndpointNumber, turn: Turn) {
        let endpoint = self.outbox().directory(|directory| directory.endpoint(number).cloned());
        let Some(endpoint) = endpoint.filter(|endpoint| !is_operators(&endpoint.tenant)) else { return };
        let event_type = match turn {
            Turn::Failing => "balto.endpoint.failing",
            Turn::Recovered => "balto.endpoint.recovered",
        };
        let data = json!({"endpointId": endpoint.id.as_str(), "tenant": endpoint.tenant.as_str()});
        self.tell_operator(event_type, &data).await;
    }

    pub(super) async fn tell_disabled(&self, endpoint: &Endpoint, reason: DisabledReason) {
        let data = json!({
            "endpointId": endpoint.id.as_str(), "tenant": endpoint.tenant.as_str(), "reason": reason.as_str(),
        });
        self.tell_operator("balto.endpoint.disabled", &data).await;
    }

    /// `event` is `None` when it cannot be read any more.
    pub(super) async fn tell_dead(
        &self,
        endpoint: &Endpoint,
        delivery: DeliveryKey,
        event: Option<&Event>,
        reason: DeadReason,
    ) {
        if is_operators(&endpoint.tenant) {
            return;
        }
        let data = json!({
            "deliveryId": DeliveryId(delivery).to_string(), "endpointId": endpoint.id.as_str(),
            "eventId": event.map(|event| event.id.as_str()), "eventType": event.map(|event| event.event_type.as_str()),
            "tenant": endpoint.tenant.as_str(), "reason": reason.as_str(),
        });
        self.tell_operator("balto.delivery.dead", &data).await;
    }

    /// Whether anybody could want operator events.
    pub(super) fn has_operator(&self) -> bool {
        self.outbox()
            .directory(|directory| directory.endpoints().any(|endpoint| is_operators(&endpoint.tenant)))
    }

    async fn tell_operator(&self, event_type: &str, data: &Value) {
        if !self.has_operator() {
            return;
        }
        let draft = EventDraft {
            id: None,
            tenant: Tenant::OPERATOR.parse().expect("a legal tenant"),
            event_type: event_type.parse().expect("operator event types are ours"),
            version: "1.0".parse().expect("a legal version"),
            timestamp: None,
            stream: None,
            expected: Expected::Any,
            ordering_key: None,
            deliver_at: None,
            metadata: None,
            attributes: Vec::new(),
            data: data.to_string().into(),
            idempotency: None,
            fingerprint: [0; 16],
            only: None,
            namesake: Judged::Fresh,
        };
        if let Err(error) = self.publish(draft).await {
            tracing::warn!(%error, "an operator event could not be published");
        }
    }
}

fn is_operators(tenant: &Tenant) -> bool {
    tenant.as_str() == Tenant::OPERATOR
}
