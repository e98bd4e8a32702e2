//! Event types: registration, checks of a new definition, and the check of events.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::context::Context;
use crate::context::folded_states::RulesRevision;
use crate::context::home::Home;
use crate::context::records::UNEXPECTED_OUTCOME;
use crate::domain::{
    ConsumerKey, EndpointId, Event, EventType, EventVersion, Position, Timestamp, TypeDefinition, VersionPin,
};
use crate::limits;
use crate::outbox::ReadModel;
use crate::outbox::draft::{ChangeError, EventDraft, Unavailable};
use crate::outbox::registry::Registry;
use crate::outbox::unit::{Command, Outcome, ProposedType};
use crate::projections::reads::Filter;
use crate::projections::type_usage::TypeUsage;
use crate::schemas::registered::VersionIncompatibility;
use crate::schemas::{DefinitionError, RegisteredType, TypeRefusal, json};
use crate::service::pages::{Pages, cut};
use crate::service::types::Scope;

/// A pin of an endpoint, a queue or a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinView {
    pub holder: PinHolder,
    pub pin: VersionPin,
}

/// The holder of a pin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinHolder {
    /// An endpoint or a queue.
    Subscription(EndpointId),
    Consumer(ConsumerKey),
}

impl fmt::Display for PinHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subscription(id) => id.fmt(f),
            Self::Consumer(key) => write!(f, "consumer {}", key.name),
        }
    }
}

/// Tries of a change, if a version that it replaces gets an event in between.
const CHANGE_TRIES_MAX: usize = 5;

/// A type with its use.
#[derive(Clone, Debug)]
pub struct TypeView {
    pub registered: Arc<RegisteredType>,
    /// Versions with events.
    pub usage: Vec<(EventVersion, TypeUsage)>,
    /// Pins of the endpoints that the caller sees.
    pub pins: Vec<PinView>,
}

/// How strict a registration is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strictness {
    #[default]
    Compatible,
    /// Also registers an incompatible version.
    Force,
}

/// Whether a change is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effect {
    #[default]
    Store,
    /// The checks alone.
    DryRun,
}

/// The stored events that a definition was tried on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    pub checked: usize,
    pub failed: usize,
    /// The newest failed events.
    pub examples: Vec<SampleFailure>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleFailure {
    pub event_id: String,
    pub tenant: String,
    pub version: EventVersion,
    pub detail: String,
}

/// The result of a registration.
#[derive(Clone, Debug)]
pub struct TypeChange {
    /// The definition, as it is or would be stored.
    pub registered: Arc<RegisteredType>,
    /// The type did not exist before.
    pub is_new: bool,
    pub sample: Sample,
    /// Differences that were accepted by force.
    pub incompatibilities: Vec<VersionIncompatibility>,
}

/// Why a type was not changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TypeChangeError {
    #[error("the definition is not valid")]
    Definition(Vec<DefinitionError>),
    /// The change would affect a version with events or pins.
    #[error("{0}")]
    InUse(String),
    #[error("a version is not compatible with an earlier one")]
    Incompatible(Vec<VersionIncompatibility>),
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl From<Unavailable> for TypeChangeError {
    fn from(error: Unavailable) -> Self {
        Self::Change(error.into())
    }
}

/// Revision of all event types: the position of the last registration, and their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypesRevision(Position, usize);

impl TypesRevision {
    /// An entity tag. It never repeats: registrations raise the position, and deletions alone lower
    /// the number.
    #[must_use]
    pub fn tag(self) -> String {
        format!("\"{}-{}\"", self.0, self.1)
    }
}

/// Operations on event types.
#[derive(Clone, Copy)]
pub struct EventTypes<'a>(pub &'a Context);

impl EventTypes<'_> {
    #[must_use]
    pub fn registered(self, name: &EventType) -> Option<Arc<RegisteredType>> {
        self.0.outbox_of(Home::All).registry(|registry| registry.event_type(name).cloned())
    }

    /// All types by name, and their revision.
    #[must_use]
    pub fn all(self) -> (TypesRevision, Vec<Arc<TypeDefinition>>) {
        self.0.outbox_of(Home::All).registry(|registry| {
            let (last, count) = registry.types_revision();
            let types = registry.event_types().map(|registered| registered.definition().clone());
            (TypesRevision(last, count), types.collect())
        })
    }

    /// The revision of all types.
    pub(crate) fn revision(self) -> RulesRevision {
        self.0.outbox_of(Home::All).registry(Registry::types_revision)
    }

    /// The types with state rules, and the revision of all types.
    pub(crate) fn with_state_rules(self) -> (RulesRevision, HashMap<EventType, Arc<RegisteredType>>) {
        self.0.outbox_of(Home::All).registry(|registry| {
            let with_rules = registry.event_types().filter(|one| one.definition().state.is_some());
            let by_name = with_rules.map(|one| (one.definition().name.clone(), one.clone()));
            (registry.types_revision(), by_name.collect())
        })
    }

    /// # Errors
    /// When the outbox is unavailable.
    pub async fn get(self, scope: &Scope, name: &EventType) -> Result<Option<TypeView>, Unavailable> {
        match self.registered(name) {
            Some(registered) => Ok(Some(self.view(scope, registered).await?)),
            None => Ok(None),
        }
    }

    /// Types after a name, by name, and whether there are more.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn list(
        self,
        scope: &Scope,
        after: Option<&EventType>,
        limit: usize,
    ) -> Result<(Vec<TypeView>, bool), Unavailable> {
        let mut types: Vec<_> = self
            .0
            .outbox_of(Home::All)
            .registry(|registry| registry.event_types_after(after).take(limit + 1).cloned().collect());
        let more = cut(&mut types, limit);
        let mut views = Vec::with_capacity(types.len());
        for registered in types {
            views.push(self.view(scope, registered).await?);
        }
        Ok((views, more))
    }

    /// The view of a definition that was not stored.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn preview(self, scope: &Scope, change: &TypeChange) -> Result<TypeView, Unavailable> {
        self.view(scope, change.registered.clone()).await
    }

    async fn view(self, scope: &Scope, registered: Arc<RegisteredType>) -> Result<TypeView, Unavailable> {
        let name = registered.definition().name.clone();
        let pins = self.pins(scope, &name);
        let usage = self.0.outbox_of(Home::All).read(move |state| state.type_usage(&name)).await?;
        Ok(TypeView { registered, usage, pins })
    }

    fn pins(self, scope: &Scope, name: &EventType) -> Vec<PinView> {
        self.0.outbox_of(Home::All).registry(|registry| {
            let endpoints = registry.endpoints_of(scope.0.as_ref());
            let pinned = endpoints.filter_map(|endpoint| {
                let holder = PinHolder::Subscription(endpoint.id.clone());
                Some(PinView { holder, pin: endpoint.pin(name)?.clone() })
            });
            let consumers = registry.consumers().after(None).map(|status| &status.consumer);
            let is_covered = |key: &ConsumerKey| scope.0.is_none() || scope.0 == key.tenant;
            let consumers = consumers.filter(|consumer| is_covered(&consumer.key));
            let reading = consumers.filter_map(|consumer| {
                let holder = PinHolder::Consumer(consumer.key.clone());
                let (_, pin) = consumer.versions.iter().find(|(pinned, _)| pinned == name)?;
                Some(PinView { holder, pin: pin.clone() })
            });
            pinned.chain(reading).collect()
        })
    }

    /// Checks an event at the door. Records the refusal in the draft.
    pub fn check(self, draft: &mut EventDraft, unregistered: Unregistered) {
        let registered = self.registered(&draft.event_type);
        let revision = registered.as_ref().map(|registered| registered.definition().revision);
        draft.type_revision = Some(revision.unwrap_or_default());
        let refusal = match registered {
            Some(registered) => registered.check(&draft.version, &draft.data).err(),
            None if unregistered == Unregistered::Refused => Some(TypeRefusal::UnknownType),
            None => None,
        };
        draft.refusal = refusal.map(Box::new);
    }

    /// Registers a type, or replaces its definition.
    ///
    /// # Errors
    /// When the definition is not valid, changes a version in use, or is incompatible.
    pub async fn put(
        self,
        wanted: TypeDefinition,
        strictness: Strictness,
        effect: Effect,
    ) -> Result<TypeChange, TypeChangeError> {
        let _alone = self.0.type_changes().acquire().await.map_err(|_| Unavailable::Stopping)?;
        for _ in 0..CHANGE_TRIES_MAX {
            match self.put_once(wanted.clone(), strictness, effect).await {
                // A version that it changes has got its first event.
                Err(TypeChangeError::Change(ChangeError::Conflict)) => {}
                result => return result,
            }
        }
        Err(ChangeError::Conflict.into())
    }

    async fn put_once(
        self,
        wanted: TypeDefinition,
        strictness: Strictness,
        effect: Effect,
    ) -> Result<TypeChange, TypeChangeError> {
        let (current, count) = self
            .0
            .outbox_of(Home::All)
            .registry(|registry| (registry.event_type(&wanted.name).cloned(), registry.event_types().len()));
        if current.is_none() && count >= limits::TYPES_MAX {
            return Err(ChangeError::NotAllowed("2,000 event types are registered; delete one first").into());
        }
        let earlier = current.as_ref().map(|current| current.definition().clone());
        let wanted = based_on(wanted, earlier.as_deref(), self.0.now().wall);
        let registered = Arc::new(RegisteredType::new(Arc::new(wanted.clone())));
        let checked = registered.clone();
        self.0.blocking(move || checked.check_definition()).await?.map_err(TypeChangeError::Definition)?;
        // Read before the events: the writer refuses a change of a version that got one since.
        let as_of = self.0.outbox_of(Home::All).journal().last_position();
        let events = self.sample_events(&wanted.name).await?;
        let replaced = match &earlier {
            Some(earlier) => self.check_use(earlier, &wanted, &events).await?,
            None => Vec::new(),
        };
        let incompatibilities = self.incompatibilities(&registered, earlier).await?;
        if !incompatibilities.is_empty() && strictness == Strictness::Compatible {
            return Err(TypeChangeError::Incompatible(incompatibilities));
        }
        let tried = registered.clone();
        let sample = self.0.blocking(move || try_on(&tried, &events)).await?;
        if effect == Effect::Store {
            let proposed = ProposedType { definition: wanted, replaced, as_of };
            let outcomes = self.0.commit(vec![Command::PutType(Box::new(proposed))], None).await?;
            assert!(matches!(outcomes.first(), Some(Outcome::Type(_))), "{UNEXPECTED_OUTCOME}");
        }
        Ok(TypeChange { registered, is_new: current.is_none(), sample, incompatibilities })
    }

    /// Deletes a type. Its events stay.
    ///
    /// # Errors
    /// When the type is unknown, or subscriptions pin it and `strictness` does not force.
    pub async fn delete(self, name: &EventType, strictness: Strictness) -> Result<(), TypeChangeError> {
        let _alone = self.0.type_changes().acquire().await.map_err(|_| Unavailable::Stopping)?;
        if self.registered(name).is_none() {
            return Err(ChangeError::NotFound.into());
        }
        let pins = self.pins(&Scope(None), name);
        if let Some(first) = pins.first().filter(|_| strictness == Strictness::Compatible) {
            return Err(TypeChangeError::InUse(format!(
                "{} subscriptions pin a version of the type, for example {}; remove the pins first",
                pins.len(),
                first.holder
            )));
        }
        let command = Command::DeleteType { name: name.clone(), at: self.0.now().wall };
        self.0.commit(vec![command], None).await?;
        Ok(())
    }

    /// A version with events keeps its schema. A pinned version stays. Returns the versions whose
    /// schema is changed or removed.
    async fn check_use(
        self,
        earlier: &TypeDefinition,
        wanted: &TypeDefinition,
        events: &[Arc<Event>],
    ) -> Result<Vec<EventVersion>, TypeChangeError> {
        let name = earlier.name.clone();
        let counted = self.0.outbox_of(Home::All).read(move |state| state.type_usage(&name)).await?;
        let mut used: BTreeSet<&EventVersion> = counted.iter().map(|(version, _)| version).collect();
        used.extend(events.iter().map(|event| &event.version));
        let mut replaced = Vec::new();
        for version in &earlier.versions {
            let changed = match wanted.version(&version.version) {
                None => "removed",
                Some(new) if !is_same_json(&new.schema, &version.schema) => "changed",
                Some(_) => continue,
            };
            if used.contains(&version.version) {
                return Err(TypeChangeError::InUse(format!(
                    "events of version {} exist, so its schema cannot be {changed}; register a new version",
                    version.version
                )));
            }
            replaced.push(version.version.clone());
        }
        for PinView { holder, pin } in self.pins(&Scope(None), &earlier.name) {
            if let VersionPin::Version(version) = pin
                && wanted.version(&version).is_none()
            {
                return Err(TypeChangeError::InUse(format!(
                    "{holder} pins version {version}, so it cannot be removed"
                )));
            }
        }
        Ok(replaced)
    }

    /// Compares the schemas, within [`limits::COMPARISON_TIME_MAX`].
    async fn incompatibilities(
        self,
        registered: &Arc<RegisteredType>,
        earlier: Option<Arc<TypeDefinition>>,
    ) -> Result<Vec<VersionIncompatibility>, Unavailable> {
        let compared = registered.clone();
        let compare = async {
            // A comparison that took too long still runs, and keeps its turn.
            let turn = self.0.comparisons().clone().acquire_owned().await;
            let turn = turn.map_err(|_| Unavailable::Stopping)?;
            self.0
                .blocking(move || {
                    let _turn = turn;
                    compared.incompatibilities(earlier.as_deref())
                })
                .await
        };
        match tokio::time::timeout(limits::COMPARISON_TIME_MAX, compare).await {
            Ok(compared) => compared,
            Err(_) => Ok(registered.undecided()),
        }
    }

    /// The newest stored events of a type, of all tenants.
    async fn sample_events(self, name: &EventType) -> Result<Vec<Arc<Event>>, Unavailable> {
        let filter = Filter { event_type: Some(name.clone()), ..Filter::default() };
        let step = move |state: &dyn ReadModel, after, limit| state.events(&filter, after, limit);
        let page = Pages(self.0).collect(None, None, limits::TYPE_SAMPLE_EVENTS, step).await?;
        let (mut events, mut bytes) = (Vec::new(), 0);
        let add = |_, event: Option<Arc<Event>>| {
            let Some(event) = event.filter(|event| event.erased_at.is_none()) else {
                return ControlFlow::Continue(());
            };
            bytes += event.data.len();
            if bytes > limits::TYPE_SAMPLE_BYTES {
                return ControlFlow::Break(());
            }
            events.push(event);
            ControlFlow::Continue(())
        };
        self.0.visit_events(page.items, |position| *position, add).await?;
        Ok(events)
    }
}

/// The treatment of events of unregistered types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unregistered {
    Accepted,
    Refused,
}

fn based_on(wanted: TypeDefinition, earlier: Option<&TypeDefinition>, now: Timestamp) -> TypeDefinition {
    let (created_at, revision) =
        earlier.map_or((now, wanted.revision), |earlier| (earlier.created_at, earlier.revision));
    TypeDefinition { created_at, updated_at: now, revision, ..wanted }
}

fn is_same_json(one: &str, other: &str) -> bool {
    one == other || json::read(one.as_bytes()) == json::read(other.as_bytes())
}

/// Converts the events to the newest version and validates them.
fn try_on(registered: &RegisteredType, events: &[Arc<Event>]) -> Sample {
    let mut sample = Sample::default();
    let Some(latest) = registered.definition().latest().map(|latest| &latest.version) else { return sample };
    for event in events {
        sample.checked += 1;
        let failure = if event.version != *latest && registered.can_convert(&event.version, latest) {
            registered.convert(&event.version, latest, &event.data).err().map(|error| error.to_string())
        } else {
            registered.check(latest, &event.data).err().map(|refusal| describe(&refusal))
        };
        let Some(detail) = failure else { continue };
        sample.failed += 1;
        if sample.examples.len() < limits::TYPE_SAMPLE_EXAMPLES {
            sample.examples.push(SampleFailure {
                event_id: event.id.to_string(),
                tenant: event.tenant.to_string(),
                version: event.version.clone(),
                detail,
            });
        }
    }
    sample
}

fn describe(refusal: &TypeRefusal) -> String {
    match refusal {
        TypeRefusal::UnknownType => "the type is not registered".to_owned(),
        TypeRefusal::UnknownVersion { .. } => "the version is not registered".to_owned(),
        TypeRefusal::Violations(violations) => violations.first().map_or_else(String::new, |violation| {
            format!("/data{}: {}", violation.pointer, violation.detail)
        }),
    }
}
