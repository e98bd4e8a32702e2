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

use crate::context::Context;
use crate::domain::{
    DeadReason, DeliveryId, DeliveryKey, DisabledReason, Endpoint, EndpointId, EndpointNumber, Event, Tenant,
};
use crate::lanes::Turn;
use crate::outbox::draft::EventDraft;
use crate::service::events::Events;

/// Publishes events of the reserved tenant.
#[derive(Clone, Copy)]
pub struct SystemEvents<'a>(pub &'a Context);

impl SystemEvents<'_> {
    /// A receiver's lane turned.
    pub(crate) async fn tell_turn(self, number: EndpointNumber, turn: Turn) {
        let endpoint = self.0.outbox().endpoint(number);
        let Some(endpoint) = endpoint.filter(|endpoint| !is_operators(&endpoint.tenant)) else { return };
        let event_type = match turn {
            Turn::Failing => "balto.endpoint.failing",
            Turn::Recovered => "balto.endpoint.recovered",
        };
        let data = json!({"endpointId": endpoint.id.as_str(), "tenant": endpoint.tenant.as_str()});
        self.tell_operator(event_type, &[data]).await;
    }

    pub(crate) async fn tell_disabled(self, endpoint: &Endpoint, reason: DisabledReason) {
        let data = json!({
            "endpointId": endpoint.id.as_str(), "tenant": endpoint.tenant.as_str(), "reason": reason.as_str(),
        });
        self.tell_operator("balto.endpoint.disabled", &[data]).await;
    }

    /// What is said of a delivery that was given up, or `None` when nothing is. `event` is `None` when it cannot be read any
    /// more.
    pub(crate) fn death(
        self,
        delivery: DeliveryKey,
        event: Option<&Event>,
        reason: DeadReason,
    ) -> Option<Value> {
        let number = delivery.endpoint;
        let (id, tenant) = self
            .0
            .outbox()
            .registry(|registry| (registry.id_of(number).cloned(), registry.tenant_of(number).cloned()));
        // Of an endpoint that is long gone the event says whose it was.
        let tenant = tenant.or_else(|| event.map(|event| event.tenant.clone()))?;
        (!is_operators(&tenant)).then(|| {
            json!({
                "deliveryId": DeliveryId(delivery).to_string(), "endpointId": id.as_ref().map(EndpointId::as_str),
                "eventId": event.map(|event| event.id.as_str()),
                "eventType": event.map(|event| event.event_type.as_str()),
                "tenant": tenant.as_str(), "reason": reason.as_str(),
            })
        })
    }

    /// One event for each, all in one commit: whoever gives up many does it in bounded steps.
    pub(crate) async fn tell_dead(self, deaths: &[Value]) {
        self.tell_operator("balto.delivery.dead", deaths).await;
    }

    /// Whether anybody could want operator events.
    pub(crate) fn has_operator(self) -> bool {
        self.0
            .outbox()
            .registry(|registry| registry.endpoints().any(|endpoint| is_operators(&endpoint.tenant)))
    }

    async fn tell_operator(self, event_type: &str, all: &[Value]) {
        if all.is_empty() || !self.has_operator() {
            return;
        }
        let draft = |data: &Value| {
            EventDraft::new(
                Tenant::OPERATOR.parse().expect("a legal tenant"),
                event_type.parse().expect("operator event types are ours"),
                data.to_string().into(),
            )
        };
        let published = Events(self.0).publish_batch(all.iter().map(draft).collect(), None).await;
        let errors = published.map_or_else(
            |error| vec![error],
            |published| published.results.into_iter().filter_map(Result::err).collect(),
        );
        for error in errors {
            tracing::warn!(%error, "operator events could not be published");
        }
    }
}

fn is_operators(tenant: &Tenant) -> bool {
    tenant.as_str() == Tenant::OPERATOR
}
