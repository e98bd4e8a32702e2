//! The engine: decide, commit, then act.
//!
//! Owns tasks, clock and channels; hands out one cheap handle, [`Engine`]. Must never know wire formats.

pub mod types;

use std::sync::Arc;
use std::time::Duration;

use crate::domain::{
    ApiKey, DeliveryKey, Endpoint, EndpointId, EndpointNumber, EventId, Idempotency, KeyId, Now, Position,
    Tenant, Timestamp, Trigger,
};
use types::{
    Accepted, Answer, ChangeError, Cursor, DeadLetterDetail, DeadLetterView, DeliveryDetail, DeliveryView,
    EndpointStats, EventDraft, EventView, Filter, LaneView, Page, PublishError, Remembered, Scope,
    Unavailable,
};

/// The handle that everything outside holds.
#[derive(Clone)]
pub struct Engine {
    _inner: Arc<()>,
}

#[expect(
    unused_variables,
    clippy::unused_async,
    reason = "signatures first: the API is written against them"
)]
impl Engine {
    /// Both clocks.
    pub fn now(&self) -> Now {
        unimplemented!()
    }
    pub fn new_endpoint_id(&self) -> EndpointId {
        unimplemented!()
    }
    pub fn new_key_id(&self) -> KeyId {
        unimplemented!()
    }
    /// `N` bytes from the system's random source.
    pub fn random_bytes<const N: usize>(&self) -> [u8; N] {
        unimplemented!()
    }

    // ---- events
    pub async fn publish(&self, draft: EventDraft) -> Result<Accepted, PublishError> {
        unimplemented!()
    }
    /// Each event stands alone; results in order.
    pub async fn publish_batch(&self, drafts: Vec<EventDraft>) -> Vec<Result<Accepted, PublishError>> {
        unimplemented!()
    }
    /// A chosen id is looked up in `tenant`.
    pub async fn event(
        &self,
        scope: &Scope,
        tenant: &Tenant,
        id: &EventId,
    ) -> Result<Option<EventView>, Unavailable> {
        unimplemented!()
    }
    /// Filters: tenant, event_type, stream, event_status, since, until.
    pub async fn events(
        &self,
        scope: &Scope,
        filter: Filter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Page<EventView>, Unavailable> {
        unimplemented!()
    }
    /// To these endpoints, or (when `None`) to those that it matches now. Gives the number of deliveries.
    pub async fn replay_event(
        &self,
        scope: &Scope,
        tenant: &Tenant,
        id: &EventId,
        endpoints: Option<Vec<EndpointId>>,
    ) -> Result<u64, ChangeError> {
        unimplemented!()
    }

    // ---- endpoints (all synchronous reads come from memory)
    pub fn endpoint(&self, scope: &Scope, id: &EndpointId) -> Option<Arc<Endpoint>> {
        unimplemented!()
    }
    /// Newest first. `status` is `active`, `paused` or `disabled`.
    pub fn endpoints(
        &self,
        scope: &Scope,
        tenant: Option<&Tenant>,
        status: Option<&str>,
        after: Option<Cursor>,
        limit: usize,
    ) -> Page<Arc<Endpoint>> {
        unimplemented!()
    }
    /// `endpoint.number` and `.revision` are set by the engine. The answer is remembered in the same commit.
    pub async fn create_endpoint(
        &self,
        endpoint: Endpoint,
        answer: Option<(Idempotency, Answer)>,
    ) -> Result<Arc<Endpoint>, ChangeError> {
        unimplemented!()
    }
    /// Replaces it when its revision is still `endpoint.revision`, else [`ChangeError::Conflict`].
    pub async fn update_endpoint(&self, endpoint: Endpoint) -> Result<Arc<Endpoint>, ChangeError> {
        unimplemented!()
    }
    pub async fn delete_endpoint(&self, scope: &Scope, id: &EndpointId) -> Result<(), ChangeError> {
        unimplemented!()
    }
    pub async fn endpoint_stats(
        &self,
        endpoint: EndpointNumber,
        since: Timestamp,
        until: Timestamp,
    ) -> Result<EndpointStats, Unavailable> {
        unimplemented!()
    }
    pub async fn lane(&self, endpoint: EndpointNumber) -> Result<LaneView, Unavailable> {
        unimplemented!()
    }
    /// Replays what the log holds of the endpoint's tenant between the times; gives the number of deliveries.
    pub async fn replay_endpoint(
        &self,
        endpoint: &Endpoint,
        since: Timestamp,
        until: Option<Timestamp>,
        event_types: &[crate::domain::Pattern],
        only_undelivered: bool,
    ) -> Result<u64, ChangeError> {
        unimplemented!()
    }
    /// Judges a URL as it will be judged when it is connected to; gives its canonical form, or why it is forbidden.
    pub async fn check_url(&self, url: &str) -> Result<Box<str>, String> {
        unimplemented!()
    }

    // ---- deliveries and dead letters
    /// Filters: tenant, endpoint, event, event_type, delivery_state, since, until.
    pub async fn deliveries(
        &self,
        scope: &Scope,
        filter: Filter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Page<DeliveryView>, Unavailable> {
        unimplemented!()
    }
    pub async fn delivery(
        &self,
        scope: &Scope,
        key: DeliveryKey,
    ) -> Result<Option<DeliveryDetail>, Unavailable> {
        unimplemented!()
    }
    /// Due now, in a new retry series; for pending, dead, delivered and cancelled ones.
    pub async fn retry_delivery(&self, scope: &Scope, key: DeliveryKey) -> Result<DeliveryView, ChangeError> {
        unimplemented!()
    }
    /// Pending ones only.
    pub async fn cancel_delivery(
        &self,
        scope: &Scope,
        key: DeliveryKey,
    ) -> Result<DeliveryView, ChangeError> {
        unimplemented!()
    }
    /// Filters: tenant, endpoint, event_type, reason, since, until (of the death).
    pub async fn dead_letters(
        &self,
        scope: &Scope,
        filter: Filter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Page<DeadLetterView>, Unavailable> {
        unimplemented!()
    }
    pub async fn dead_letter(
        &self,
        scope: &Scope,
        key: DeliveryKey,
    ) -> Result<Option<DeadLetterDetail>, Unavailable> {
        unimplemented!()
    }
    pub async fn redrive(&self, scope: &Scope, key: DeliveryKey) -> Result<DeliveryView, ChangeError> {
        unimplemented!()
    }
    pub async fn purge(&self, scope: &Scope, key: DeliveryKey) -> Result<(), ChangeError> {
        unimplemented!()
    }
    pub async fn redrive_matching(&self, scope: &Scope, filter: Filter) -> Result<u64, Unavailable> {
        unimplemented!()
    }
    pub async fn purge_matching(&self, scope: &Scope, filter: Filter) -> Result<u64, Unavailable> {
        unimplemented!()
    }

    // ---- keys and idempotent requests
    /// The key whose secret has this SHA-256, compared in constant time by construction (lookup by hash).
    pub fn key_by_hash(&self, hash: &[u8; 32]) -> Option<Arc<ApiKey>> {
        unimplemented!()
    }
    pub fn keys(&self) -> Vec<Arc<ApiKey>> {
        unimplemented!()
    }
    pub async fn create_key(
        &self,
        key: ApiKey,
        answer: Option<(Idempotency, Answer)>,
    ) -> Result<(), Unavailable> {
        unimplemented!()
    }
    pub async fn delete_key(&self, id: &KeyId) -> Result<(), ChangeError> {
        unimplemented!()
    }
    /// What an earlier request with the same scope and key was answered (requests other than events).
    pub async fn remembered(&self, idempotency: &Idempotency) -> Result<Remembered, Unavailable> {
        unimplemented!()
    }
    pub async fn remember(&self, idempotency: Idempotency, answer: Answer) -> Result<(), Unavailable> {
        unimplemented!()
    }
}
