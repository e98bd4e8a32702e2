//! The seat of a request: it counts for its party, and can be ended while it waits for its client
//! or for an event. A stream of events can be ended at any time.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::parties::Endable;
use super::{ConnectionSlot, lock};
use crate::api::http::key_places::KeyPlace;
use crate::api::http::problem::Problem;
use crate::domain::{KeyId, Party, QuotaExceeded};

/// For a request that was ended.
const ENDED: Problem = Problem::Overloaded { retry_after: Duration::from_secs(1) };

/// The connection of a request. Without a connection, as in tests, nothing is counted or ended.
#[derive(Clone, Default)]
pub(crate) struct RequestSeat(Option<Arc<ConnectionSlot>>);

impl RequestSeat {
    pub(in crate::api::http) fn new(slot: &Arc<ConnectionSlot>) -> Self {
        Self(Some(Arc::clone(slot)))
    }

    /// Counts the connection for the party of its request.
    pub(crate) fn enter(&self, party: &Party) {
        let Some(slot) = &self.0 else { return };
        let mut own = lock(&slot.party);
        if own.as_ref() != Some(party) {
            let mut slots = slot.connections.lock();
            if let Some(before) = own.replace(party.clone()) {
                slots.parties.leave(&before);
            }
            slots.parties.enter(party);
        }
    }

    /// Counts the connection for the key of its request, and no longer for an earlier one. `enter`
    /// takes a place for the key, if a quota limits its connections.
    ///
    /// # Errors
    /// Those of `enter`, which runs unless the connection counts for the key already.
    pub(crate) fn enter_key(
        &self,
        key: Option<&KeyId>,
        enter: impl FnOnce() -> Result<Option<KeyPlace>, QuotaExceeded>,
    ) -> Result<(), QuotaExceeded> {
        let Some(slot) = &self.0 else { return Ok(()) };
        let mut place = lock(&slot.key_place);
        let is_counted = key.is_some() && place.as_ref().map(KeyPlace::key) == key;
        if !is_counted {
            *place = None;
            *place = enter()?;
        }
        Ok(())
    }

    /// Runs a part of a request that its client can prolong: the arrival of its body, or a wait.
    ///
    /// # Errors
    /// 429 if the party has more than its share of the connections and another one needs room.
    pub(crate) async fn endable<T>(
        &self,
        party: &Party,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let Some(slot) = &self.0 else { return work.await };
        let request = EndableRequest::begin(slot, party.clone());
        tokio::select! {
            biased;
            done = work => done,
            () = request.end.notified() => Err(ENDED),
        }
    }

    /// The seat of a stream that this request begins. It can be ended until it is dropped.
    pub(crate) fn begin_stream(&self, party: &Party) -> StreamSeat {
        StreamSeat(self.0.as_ref().map(|slot| EndableRequest::begin(slot, party.clone())))
    }
}

/// The connection of a stream of events.
pub(crate) struct StreamSeat(Option<EndableRequest>);

impl StreamSeat {
    /// Returns when the stream must end: its party has more than its share of the connections, and
    /// another one needs room. Returns once.
    pub(crate) async fn ended(&self) {
        match &self.0 {
            Some(request) => request.end.notified().await,
            None => pending().await,
        }
    }
}

/// A request that can be ended, until it is dropped.
struct EndableRequest {
    slot: Arc<ConnectionSlot>,
    party: Party,
    number: u64,
    end: Arc<Notify>,
}

impl EndableRequest {
    fn begin(slot: &Arc<ConnectionSlot>, party: Party) -> Self {
        let mut slots = slot.connections.lock();
        let end = Arc::<Notify>::default();
        let endable = Endable { end: Arc::clone(&end), close: Arc::clone(&slot.evict) };
        let number = slots.parties.begin(&party, endable);
        slot.connections.evict_for_newcomer(&mut slots);
        drop(slots);
        Self { slot: Arc::clone(slot), party, number, end }
    }
}

impl Drop for EndableRequest {
    fn drop(&mut self) {
        self.slot.connections.lock().parties.finish(&self.party, self.number);
    }
}
