//! The state of a stream: the fold of its events by the rules of their types.
//!
//! Events are read and folded in bounded steps. The newest state of a stream is cached, so that the
//! next fold begins there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

pub use crate::context::folded_states::{FoldedState, StateProblem};

use crate::context::Context;
use crate::context::fair_semaphore::FairTurn;
use crate::domain::{EventType, Party, Position, StreamName, Tenant, Timestamp, attribute};
use crate::limits;
use crate::outbox::ReadModel;
use crate::outbox::draft::Unavailable;
use crate::outbox::tail::FeedEvent;
use crate::schemas::registered::value_of;
use crate::schemas::{RegisteredType, StreamState};
use crate::service::event_types::EventTypes;
use crate::service::streams::{ReadStart, StreamRead, StreamReadError, Streams};
use crate::service::types::Scope;

/// Why a stream was not folded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    #[error(transparent)]
    Read(#[from] StreamReadError),
    /// More events than one request folds.
    #[error("{events} events would have to be folded")]
    TooLong { events: u64 },
    /// The fold took too long. The next one begins at this version.
    #[error("the fold took too long, at version {version}")]
    TooSlow { version: u64 },
}

impl From<Unavailable> for FoldError {
    fn from(error: Unavailable) -> Self {
        Self::Read(error.into())
    }
}

/// The wanted version: not above `until_version`, and accepted before `until`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateBound {
    pub until_version: Option<u64>,
    pub until: Option<Timestamp>,
}

/// States of streams.
#[derive(Clone, Copy)]
pub struct StreamStates<'a>(pub &'a Context);

/// A fold in progress.
struct Fold {
    types: HashMap<EventType, Arc<RegisteredType>>,
    state: StreamState,
    version: u64,
    position: Position,
    first: Position,
    problems: Vec<StateProblem>,
    /// Time spent.
    spent: Duration,
    /// Bounds the states in memory.
    _turn: FairTurn<Party>,
}

impl StreamStates<'_> {
    /// The state of a stream at its last version within the bound.
    ///
    /// # Errors
    /// When the stream does not exist or its first events were removed, when there are too many
    /// events to fold, or when the outbox is unavailable.
    pub async fn get(
        self,
        scope: &Scope,
        tenant: &Tenant,
        stream: &StreamName,
        bound: StateBound,
    ) -> Result<Arc<FoldedState>, FoldError> {
        let key = (tenant.clone(), stream.clone());
        let cache = self.0.folded_states();
        // Before the read of any event.
        let erasures = cache.erasures(tenant);
        let (last, is_past) = self.last_version(&key, bound).await?;
        let known = cache.get(&key, EventTypes(self.0).revision(), last);
        if let Some(known) = known.filter(|known| known.version == last) {
            return Ok(known);
        }
        let fold_turn = cache.fold(&scope.party()).await;
        // The rules and their revision at one time. Another request may have folded the stream.
        let (revision, types) = EventTypes(self.0).with_state_rules();
        let known = cache.get(&key, revision, last);
        if let Some(known) = known.as_ref().filter(|known| known.version == last) {
            return Ok(known.clone());
        }
        let events = last - known.as_ref().map_or(0, |known| known.version);
        if events > limits::STATE_EVENTS_MAX {
            return Err(FoldError::TooLong { events });
        }
        let mut fold = self.0.blocking(move || Fold::new(types, known.as_deref(), fold_turn)).await?;
        while fold.version < last && fold.spent < limits::STATE_TIME_MAX {
            let wanted = StreamRead {
                start: ReadStart::Version(fold.version + 1),
                until_version: Some(last),
                limit: limits::STREAM_PAGE_EVENTS_MAX,
                ..StreamRead::default()
            };
            // Before the read, so that few pages are in memory.
            let turn = self.0.processor_turn(&scope.party()).await;
            let page = Streams(self.0).read(tenant, stream, wanted).await?;
            if page.events.is_empty() {
                let reason = format!("stream {stream} has no version {}", fold.version + 1);
                return Err(Unavailable::Failed(reason.into()).into());
            }
            let context = self.0.clone();
            // A fold whose client has gone still runs, and keeps its turn.
            let work = move || {
                let _turn = turn;
                fold.events(&context, &page.events)
            };
            fold = self.0.blocking(work).await?;
        }
        let folded = Arc::new(self.0.blocking(move || fold.folded()).await?);
        cache.insert(key, is_past, revision, folded.clone(), erasures);
        if folded.version < last {
            return Err(FoldError::TooSlow { version: folded.version });
        }
        Ok(folded)
    }

    /// The last version within the bound, and whether there are later ones. The first events must
    /// be there.
    async fn last_version(
        self,
        (tenant, stream): &(Tenant, StreamName),
        StateBound { until_version, until }: StateBound,
    ) -> Result<(u64, bool), FoldError> {
        let (owner, name) = (tenant.clone(), stream.clone());
        let question = move |state: &dyn ReadModel| {
            let head = state.stream(&owner, &name).ok_or(StreamReadError::NotFound)?;
            if head.first_version > 1 {
                return Err(StreamReadError::Gone { first_version: head.first_version });
            }
            let before = until.map(|until| state.stream_version_before(&owner, &name, until));
            let last = [until_version, before].into_iter().flatten().fold(head.version, u64::min);
            Ok((last, last < head.version))
        };
        Ok(self.0.outbox_of(tenant).read_of(Some(tenant), question).await??)
    }
}

impl Fold {
    /// Begins before the first event, or after those of a known state.
    fn new(
        types: HashMap<EventType, Arc<RegisteredType>>,
        known: Option<&FoldedState>,
        turn: FairTurn<Party>,
    ) -> Self {
        let known = known.and_then(|known| Some((known, StreamState::new(value_of(&known.state)?))));
        let start = Self {
            types,
            state: StreamState::default(),
            version: 0,
            position: Position(0),
            first: Position(0),
            problems: Vec::new(),
            spent: Duration::ZERO,
            _turn: turn,
        };
        match known {
            None => start,
            Some((known, state)) => Self {
                state,
                version: known.version,
                position: known.position,
                first: known.first,
                problems: known.problems.clone(),
                ..start
            },
        }
    }

    /// Folds the next events, until the time is over.
    fn events(mut self, context: &Context, events: &[Arc<FeedEvent>]) -> Self {
        let began = context.now().monotonic;
        let mut spent = Duration::ZERO;
        for entry in events {
            if self.spent + spent >= limits::STATE_TIME_MAX {
                break;
            }
            self.event(entry);
            spent = context.now().monotonic.saturating_sub(began);
        }
        self.spent += spent;
        self
    }

    fn event(&mut self, FeedEvent { position, event, .. }: &FeedEvent) {
        if self.version == 0 {
            self.first = *position;
        }
        self.position = *position;
        self.version = event.stream.as_ref().map_or(0, |(_, version)| *version);
        let Some(registered) = self.types.get(&event.event_type) else { return };
        let result = if event.erased_at.is_some() {
            Err("the content of the event was erased".to_owned())
        } else if event.attribute(attribute::BINARY).is_some() {
            Err("the data cannot be read: it is binary".to_owned())
        } else {
            let timestamp = event.timestamp.rfc3339();
            let facts = (timestamp.as_str(), self.version);
            registered.fold(&mut self.state, &event.version, &event.data, facts)
        };
        if let Err(detail) = result
            && self.problems.len() < limits::STATE_PROBLEMS_MAX
        {
            let (version, event_type) = (self.version, event.event_type.clone());
            self.problems.push(StateProblem { version, event_type, detail: detail.into() });
        }
    }

    fn folded(self) -> FoldedState {
        let Self { state, version, position, first, problems, .. } = self;
        let state = state.value().to_string().into();
        FoldedState { version, position, first, state, problems }
    }
}
