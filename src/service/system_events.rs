//! Operator events: reports of the daemon, published as events of the reserved tenant.
//!
//! | type | meaning |
//! |---|---|
//! | `balto.endpoint.failing` | consecutive failures limit the endpoint to probes |
//! | `balto.endpoint.disabled` | deliveries to the endpoint have stopped, with the reason |
//! | `balto.endpoint.recovered` | a failing or disabled endpoint accepted a delivery |
//! | `balto.delivery.dead` | deliveries of an endpoint were given up, with their number and the reason |
//! | `balto.consumer.gone` | retention removed events that a consumer has not processed |
//!
//! The reserved tenant's own failures cause no events: such an event would be the next to fail.

use serde_json::{Value, json};

use crate::context::Context;
use crate::context::home::Home;
use crate::context::signal::FailedAttempt;
use crate::domain::{
    ConsumerKey, DeadReason, DeliveryId, DeliveryKey, DisabledReason, Endpoint, EndpointId, EndpointNumber,
    EndpointUid, Event, Position, Tenant,
};
use crate::lanes::Turn;
use crate::limits;
use crate::outbox::draft::EventDraft;
use crate::service::events::Events;

/// Publishes events of the reserved tenant.
#[derive(Clone, Copy)]
pub struct SystemEvents<'a>(pub &'a Context);

impl SystemEvents<'_> {
    /// Publishes a health transition of an endpoint, with the failure that caused it.
    pub(crate) async fn publish_turn(
        self,
        number: EndpointNumber,
        turn: Turn,
        failure: Option<FailedAttempt>,
    ) {
        let endpoint = self.0.outbox_of(number).endpoint(number);
        let Some(endpoint) = endpoint.filter(|endpoint| !is_reserved(&endpoint.tenant)) else { return };
        let event_type = match turn {
            Turn::Failing => "balto.endpoint.failing",
            Turn::Recovered => "balto.endpoint.recovered",
        };
        let mut data = json!({"endpointId": endpoint.id.as_str(), "tenant": endpoint.tenant.as_str()});
        if turn == Turn::Failing {
            self.describe_failure(&endpoint, failure, &mut data).await;
        }
        self.publish(event_type, &[data]).await;
    }

    /// Adds the receiver, its last failure, the start of the failures and the backlog.
    async fn describe_failure(self, endpoint: &Endpoint, failure: Option<FailedAttempt>, data: &mut Value) {
        let number = endpoint.number;
        // Without an answer of the state, the event has fewer facts.
        let lane = self.0.outbox_of(number).read(move |state| state.lane(number)).await.ok();
        let since = lane.as_ref().and_then(|lane| lane.failing).map(|failing| failing.since);
        let since = since.or_else(|| failure.as_ref().map(|failure| failure.started_at));
        data["uid"] = json!(endpoint.uid.as_ref().map(EndpointUid::as_str));
        data["host"] = json!(endpoint.destination());
        data["lastStatusCode"] = json!(failure.as_ref().and_then(|failure| failure.status));
        data["lastError"] = json!(failure.as_ref().map(|failure| &*failure.error));
        data["since"] = json!(since.map(|at| at.rfc3339().as_str().to_owned()));
        data["pending"] = json!(lane.map(|lane| lane.pending));
    }

    pub(crate) async fn publish_disabled(self, endpoint: &Endpoint, reason: DisabledReason) {
        let data = json!({
            "endpointId": endpoint.id.as_str(), "tenant": endpoint.tenant.as_str(), "reason": reason.as_str(),
        });
        self.publish("balto.endpoint.disabled", &[data]).await;
    }

    /// Event data of deliveries of one endpoint that died together; `None` for the reserved tenant.
    /// Names the `delivery` and its `event`, if still readable, unless there are several.
    pub(crate) fn deaths_data(
        self,
        delivery: DeliveryKey,
        count: u64,
        event: Option<&Event>,
        reason: DeadReason,
    ) -> Option<Value> {
        let number = delivery.endpoint;
        let (id, tenant) = self
            .0
            .outbox_of(number)
            .registry(|registry| (registry.id_of(number).cloned(), registry.tenant_of(number).cloned()));
        // The registry may no longer know the tenant of a deleted endpoint. The event does.
        let tenant = tenant.or_else(|| event.map(|event| event.tenant.clone()))?;
        let event = event.filter(|_| count == 1);
        (!is_reserved(&tenant)).then(|| {
            json!({
                "deliveryId": (count == 1).then(|| DeliveryId(delivery).to_string()),
                "endpointId": id.as_ref().map(EndpointId::as_str),
                "eventId": event.map(|event| event.id.as_str()),
                "eventType": event.map(|event| event.event_type.as_str()),
                "tenant": tenant.as_str(), "reason": reason.as_str(), "count": count,
            })
        })
    }

    pub(crate) async fn publish_dead(self, deaths: &[Value]) {
        self.publish("balto.delivery.dead", deaths).await;
    }

    pub(crate) async fn publish_consumer_gone(self, key: &ConsumerKey, position: Position, oldest: Position) {
        let data = json!({
            "consumer": key.name.as_str(), "tenant": key.tenant.as_ref().map(Tenant::as_str),
            "position": position.to_string(), "oldest": oldest.to_string(),
        });
        self.publish("balto.consumer.gone", &[data]).await;
    }

    /// Whether an endpoint could receive operator events.
    pub(crate) fn has_operator(self) -> bool {
        self.0
            .outbox_of(Home::All)
            .registry(|registry| registry.endpoints().any(|endpoint| is_reserved(&endpoint.tenant)))
    }

    async fn publish(self, event_type: &str, all: &[Value]) {
        if all.is_empty() || !self.has_operator() {
            return;
        }
        let draft = |data: &Value| {
            EventDraft::new(
                Tenant::OPERATOR.parse().expect("the reserved tenant is a valid name"),
                event_type.parse().expect("operator event types are valid"),
                data.to_string().into(),
            )
        };
        for some in all.chunks(limits::BATCH_EVENTS_MAX) {
            let published = Events(self.0).publish_batch(some.iter().map(draft).collect(), None).await;
            let errors = published.map_or_else(
                |error| vec![error],
                |published| published.results.into_iter().filter_map(Result::err).collect(),
            );
            for error in errors {
                tracing::warn!(%error, "publishing operator event failed");
            }
        }
    }
}

fn is_reserved(tenant: &Tenant) -> bool {
    tenant.as_str() == Tenant::OPERATOR
}
