//! What the journal is made of. Everything else is derived from records.

use std::sync::Arc;

use super::{
    ApiKey, Attempt, DeadReason, DeliveryKey, Endpoint, EndpointNumber, Event, KeyId, Rejection, Reservation,
    Timestamp, Trigger,
};

/// Remembers that a request was answered: a hash of its scope and key, and a hash of its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// Hash of tenant, route and key.
    pub scope: [u8; 16],
    /// Hash of the request's body.
    pub fingerprint: [u8; 16],
    /// `None`: as long as the event is kept (chosen ids).
    pub expires_at: Option<Timestamp>,
}

/// One fact in the journal. Tags and layouts of the encoded form are in `storage::format`.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// An event was accepted, with its fan-out.
    EventAccepted(Arc<Event>),
    /// An attempt ended. `due` is the due time that it was sent under: with the key it names the pending row.
    AttemptFinished {
        delivery: DeliveryKey,
        due: Timestamp,
        attempt: Arc<Attempt>,
    },
    /// An endpoint was created or changed.
    EndpointPut(Arc<Endpoint>),
    EndpointDeleted {
        endpoint: EndpointNumber,
        at: Timestamp,
    },
    KeyPut(Arc<ApiKey>),
    KeyDeleted {
        id: KeyId,
        at: Timestamp,
    },
    /// These deliveries are pending again, from now on, in a new retry series; those that never existed are created.
    /// Pending ones become due now. A redrive is of dead ones alone, and nothing but a replay brings back purged ones.
    DeliveriesRevived {
        deliveries: Vec<DeliveryKey>,
        trigger: Trigger,
        at: Timestamp,
    },
    /// These pending deliveries were cancelled by an operator.
    DeliveriesCancelled {
        deliveries: Vec<DeliveryKey>,
        at: Timestamp,
    },
    /// These pending deliveries were given up without an attempt.
    DeliveriesDied {
        deliveries: Vec<DeliveryKey>,
        reason: DeadReason,
        at: Timestamp,
    },
    /// These dead letters were purged.
    DeadLettersPurged {
        deliveries: Vec<DeliveryKey>,
        at: Timestamp,
    },
    /// These deliveries, where they are pending, were put where their endpoint's ordering of then wants them.
    DeliveriesReordered {
        deliveries: Vec<DeliveryKey>,
        at: Timestamp,
    },
    /// A request other than an event was answered; a repetition of it gets the same answer.
    RequestAnswered {
        idempotency: Idempotency,
        status: u16,
        body: Arc<[u8]>,
    },
    /// An endpoint reserved some of its rate.
    RateReserved {
        endpoint: EndpointNumber,
        reservation: Reservation,
    },
    /// An event that came with a key was not accepted; a repetition of it is not either.
    EventRejected {
        idempotency: Idempotency,
        rejection: Rejection,
    },
}
