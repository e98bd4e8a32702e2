//! Domain types: events, endpoints, deliveries, attempts, verdicts, records, positions and times.
//!
//! Owns plain values and their legal transitions. Must never use async, I/O, serde, clocks or
//! randomness. An illegal value cannot be constructed: parsing rejects it.

pub mod address;
pub mod audit;
pub mod closed_list;
pub mod consumer;
pub mod delivery;
pub mod delivery_search;
pub mod endpoint;
pub mod event;
pub mod event_type;
pub mod exchange;
pub mod horizon;
pub mod id_map;
pub mod ids;
pub mod job;
pub mod key;
pub mod last_attempt;
pub mod lease;
pub mod media;
pub mod names;
pub mod outgoing;
pub mod party;
pub mod quota;
pub mod record;
mod record_deliveries;
pub mod selection;
pub mod share;
pub mod source;
pub mod tenant;
pub mod text;
pub mod time;
pub mod trace;
pub mod transport;

pub use address::address_block;
pub use audit::{ActOutcome, Actor, AuditEntry};
pub use closed_list::ClosedList;
pub use consumer::{
    Consumer, ConsumerFilter, ConsumerKey, ConsumerMove, ConsumerPlace, MoveKind, StreamChoice,
};
pub use delivery::{
    Attempt, AttemptRef, DeadReason, DeliveryChange, DeliveryKey, DeliveryState, DeliveryStatus, DueKey,
    ErrorClass, Hold, Network, Next, Progress, ReceiverAnswer, Trigger, Verdict,
};
pub use delivery_search::{Audience, DeliverySearch, IdMeaning, LastAttemptFilter, ShownClass};
pub use endpoint::{
    Asked, ClientCertificate, Consent, DisabledReason, Endpoint, EndpointStatus, EndpointStatusName, Format,
    Handshake, Ordering, PolicyDefaults, RateLimit, Reservation, RetryPolicy, Sealed, Secret, SecretKind,
    SignaturePreset,
};
pub use event::{Event, EventStatus, Expected, OnDisk, Rejection, attribute, weigh};
pub use event_type::{Compatibility, TypeDefinition, TypeMigration, TypeVersion, VersionChoice, VersionPin};
pub use exchange::{ConnectionFacts, Exchange, PhaseTimes, RetryRule, SentRequest};
pub use horizon::Horizon;
pub use id_map::{IdMap, IdSet};
pub use ids::{DeliveryId, EndpointId, EndpointNumber, EventId, JobId, KeyId, Position};
pub use job::{Job, JobCursor, JobKind, JobProgress, JobSelection, JobStatus};
pub use key::{ApiKey, Role};
pub use last_attempt::{LastAttempt, LastFailure};
pub use lease::{EndedLease, HeldLease, LeaseEnd, LeaseKey, LeaseOutcome, TakenFrom, TakenMessage};
pub use names::{
    ConsumerName, EndpointOwner, EndpointUid, EventType, EventVersion, InvalidName, Label, OrderingKey,
    Pattern, QueueName, SenderName, SourceName, StreamName, Tenant, WorkerName, normalize_header_name,
};
pub use outgoing::{
    ClientAuthentication, CustomSignature, EndpointAuth, OAuthClient, RequestMethod, RequestShape,
    SignatureAlgorithm, SignatureEncoding, SignatureScheme,
};
pub use party::Party;
pub use quota::{Quota, QuotaExceeded, QuotaOverride, QuotaOverrides, Quotas};
pub use record::{Idempotency, Record};
pub use record_deliveries::RecordDeliveries;
pub use selection::EventSelection;
pub use share::SharedSlots;
pub use source::{
    Dedup, OnInvalid, Source, SourceFormat, SourceOutcome, SourceQueueType, SourceState, SourceStatus,
    SourceTenant,
};
pub use tenant::{TenantDelivery, TenantSettings};
pub use time::{Now, Timestamp};
pub use trace::{TraceId, TraceParent};
pub use transport::{AmqpTarget, EndpointTransport, QueueTarget, RoutingKey};
