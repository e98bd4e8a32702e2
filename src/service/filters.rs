//! Filters on stored events: replays, and trials of filters.

use std::sync::Arc;

use crate::context::Context;
use crate::domain::{
    Endpoint, Event, EventId, EventSelection, Party, Pattern, Position, Record, Tenant, Timestamp,
};
use crate::filters::{CompiledFilter, EventContent, parse_stored};
use crate::outbox::ReadModel;
use crate::outbox::draft::Unavailable;
use crate::outbox::subscriptions::NoRoomForFilter;
use crate::projections::reads::Filter;
use crate::rules::matching::PatternSelection;
use crate::service::pages::Pages;
use crate::storage::journal::{JournalReader, ReadError};

/// Most stored events that one trial reads.
pub const TRIAL_EVENTS_MAX: usize = 1_000;
/// Stored events that a trial reads in one step.
const TRIAL_STEP: usize = 100;
/// Wanted events that a trial names.
const EXAMPLES_MAX: usize = 10;

/// The events that an endpoint wants, for a look at many stored ones.
pub(crate) struct StoredSelection {
    types: PatternSelection,
    selection: EventSelection,
    filter: Option<CompiledFilter>,
    reader: JournalReader,
}

impl StoredSelection {
    pub(crate) fn new(context: &Context, endpoint: &Endpoint, types: &[Pattern]) -> Self {
        let selection = endpoint.selection.clone();
        Self {
            types: PatternSelection::new(types),
            filter: selection.filter.as_deref().and_then(parse_stored),
            selection,
            reader: context.outbox_of(endpoint.number).journal().clone(),
        }
    }

    /// Whether an event of this type is wanted. Reads it only if its type does not decide. Blocks.
    ///
    /// # Errors
    /// When the event cannot be read now.
    pub(crate) fn wants(&self, event_type: &str, position: Position) -> Result<bool, Unavailable> {
        let is_of_type = event_type.parse().is_ok_and(|event_type| self.types.wants(&event_type));
        if !is_of_type || self.selection.is_everything() {
            return Ok(is_of_type);
        }
        Ok(event_at(&self.reader, position)?.is_some_and(|event| self.verdict(&event).is_wanted()))
    }

    fn verdict(&self, event: &Event) -> SelectionVerdict {
        SelectionVerdict {
            types: self.types.wants(&event.event_type),
            labels: self.selection.admits_labels(&event.labels),
            filter: match (&self.filter, &self.selection.filter) {
                (Some(filter), _) => {
                    let content = EventContent::new(&event.into(), filter.reads_json());
                    filter.matches(&content, &mut 0)
                }
                (None, unreadable) => unreadable.is_none(),
            },
        }
    }
}

fn event_at(reader: &JournalReader, position: Position) -> Result<Option<Arc<Event>>, Unavailable> {
    match reader.read(position) {
        Ok(Some(Record::EventAccepted(event))) => Ok(Some(event).filter(|event| event.erased_at.is_none())),
        Ok(_) | Err(ReadError::Damaged { .. } | ReadError::Undecodable { .. }) => Ok(None),
        Err(ReadError::Io(error)) => Err(Unavailable::Failed(error.to_string().into())),
    }
}

/// Whether an endpoint wants an event, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelectionVerdict {
    pub types: bool,
    pub labels: bool,
    pub filter: bool,
}

impl SelectionVerdict {
    #[must_use]
    pub fn is_wanted(self) -> bool {
        self.types && self.labels && self.filter
    }
}

/// The result of a trial over stored events.
#[derive(Clone, Debug, Default)]
pub struct FilterTrial {
    /// Events that were read, without erased ones.
    pub scanned: usize,
    pub count: usize,
    /// The newest wanted events, at most ten.
    pub examples: Vec<EventId>,
    /// Acceptance time of the oldest event that was read.
    pub oldest: Option<Timestamp>,
}

/// Checks and trials of filters.
#[derive(Clone, Copy)]
pub struct Filters<'a>(pub &'a Context);

impl Filters<'_> {
    /// Checks whether the endpoint's tenant may have its filter, in place of that of `replaced`.
    ///
    /// # Errors
    /// When the tenant's filters together exceed their bound.
    pub fn check_room(
        self,
        tenant: &Tenant,
        selection: &EventSelection,
        replaced: Option<&Endpoint>,
    ) -> Result<(), NoRoomForFilter> {
        let Some(text) = selection.filter.as_deref() else { return Ok(()) };
        let Some(filter) = parse_stored(text) else { return Ok(()) };
        self.0.outbox_of(tenant).subscriptions().check_filter_room(tenant, text, &filter, replaced)
    }

    /// Whether the endpoint wants an event.
    #[must_use]
    pub fn judge(self, endpoint: &Endpoint, event: &Event) -> SelectionVerdict {
        StoredSelection::new(self.0, endpoint, &endpoint.event_types).verdict(event)
    }

    /// Applies the endpoint's patterns, labels and filter to the newest `limit` events of its
    /// tenant since a time.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn scan(
        self,
        endpoint: &Endpoint,
        since: Option<Timestamp>,
        limit: usize,
    ) -> Result<FilterTrial, Unavailable> {
        let tenant = Some(endpoint.tenant.clone());
        let party = Party::of(tenant.as_ref());
        let filter = Filter { tenant: tenant.clone(), since, ..Filter::default() };
        let wanted = Arc::new(StoredSelection::new(self.0, endpoint, &endpoint.event_types));
        let (mut trial, mut after, mut left) = (FilterTrial::default(), None, limit);
        loop {
            let step = left.min(TRIAL_STEP);
            let filter = filter.clone();
            let page = Pages(self.0)
                .collect(tenant.as_ref(), after, step, move |state: &dyn ReadModel, after, limit| {
                    state.events(&filter, after, limit)
                })
                .await?;
            // Erased events count, too: each one is read.
            left = left.saturating_sub(page.items.len());
            let selection = wanted.clone();
            let judge = move || -> Result<Vec<_>, Unavailable> {
                let mut judged = Vec::new();
                for position in page.items {
                    if let Some(event) = event_at(&selection.reader, position)? {
                        judged.push((selection.verdict(&event).is_wanted(), event));
                    }
                }
                Ok(judged)
            };
            for (is_wanted, event) in self.0.compute(&party, judge).await?? {
                trial.scanned += 1;
                trial.count += usize::from(is_wanted);
                trial.oldest = Some(event.accepted_at);
                if is_wanted && trial.examples.len() < EXAMPLES_MAX {
                    trial.examples.push(event.id.clone());
                }
            }
            after = page.next;
            if after.is_none() || left == 0 {
                return Ok(trial);
            }
        }
    }
}
