//! A unit: the commands that one request or one attempt commits together, and their outcomes.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::draft::{AcceptedEvent, EventDraft};
use super::recent_keys::Prepared;
use super::registry::ConsumerStatus;
use crate::domain::{
    AuditEntry, Consumer, ConsumerKey, ConsumerMove, Endpoint, EndpointNumber, EventType, EventVersion,
    Expected, Idempotency, Job, JobProgress, Party, Position, QuotaExceeded, Record, Rejection, Source,
    SourceName, StreamName, Tenant, TenantSettings, Timestamp, TypeDefinition,
};
use crate::limits;
use crate::schemas::TypeRefusal;
use crate::storage::format;

/// A definition to register. A new type has revision 0; a changed one has the revision that the
/// change rests on.
#[derive(Clone, Debug)]
pub struct ProposedType {
    pub definition: TypeDefinition,
    /// Versions whose schema it changes or removes. They had no events up to `as_of`.
    pub replaced: Vec<EventVersion>,
    pub as_of: Position,
}

impl std::ops::Deref for ProposedType {
    type Target = TypeDefinition;

    fn deref(&self) -> &TypeDefinition {
        &self.definition
    }
}

/// One requested change.
#[derive(Clone, Debug)]
pub enum Command {
    Publish(Box<EventDraft>),
    /// A new endpoint has number 0; a changed one has the revision that the change rests on.
    PutEndpoint(Box<Endpoint>),
    DeleteEndpoint {
        endpoint: EndpointNumber,
        at: Timestamp,
    },
    /// New settings have revision 0; changed ones have the revision that the change rests on.
    PutTenant(Box<TenantSettings>),
    /// Ends a tenant without endpoints and keys.
    DeleteTenant {
        tenant: Tenant,
        at: Timestamp,
    },
    PutType(Box<ProposedType>),
    DeleteType {
        name: EventType,
        at: Timestamp,
    },
    /// A new source has revision 0; a changed one has the revision that the change rests on.
    PutSource(Box<Source>),
    DeleteSource {
        name: SourceName,
        at: Timestamp,
    },
    /// First in its unit: all commands are committed, or none. The others are checks and events.
    /// With the request's key, which the first event has too.
    Atomic(Option<Idempotency>),
    /// A condition on a stream. Writes nothing.
    Check {
        tenant: Tenant,
        stream: StreamName,
        expected: Expected,
    },
    /// Creates a consumer, or changes its definition.
    PutConsumer(Box<Consumer>),
    MoveConsumer(Box<ConsumerMove>),
    DeleteConsumer {
        key: ConsumerKey,
        at: Timestamp,
    },
    /// First in its unit: binds an idempotency key to the request whose events follow. None of them
    /// is published when the key belongs to another request.
    Claim(Idempotency),
    /// Begins a job. The committer gives its number.
    PutJob(Box<Job>),
    /// A step of a job, or its end.
    MoveJob {
        /// Its number.
        job: Position,
        progress: Box<JobProgress>,
    },
    /// Last in its unit: written if the unit writes anything else.
    Audit(Arc<AuditEntry>),
    /// A record that needs no judgement.
    Record(Record),
    /// Seals the active segment of the journal. Records of the same group follow it.
    SealSegment,
}

impl Command {
    /// The event that it publishes.
    #[must_use]
    pub fn draft(&self) -> Option<&EventDraft> {
        match self {
            Self::Publish(draft) => Some(draft),
            Self::PutEndpoint(_)
            | Self::DeleteEndpoint { .. }
            | Self::PutTenant(_)
            | Self::DeleteTenant { .. }
            | Self::Atomic(_)
            | Self::Check { .. }
            | Self::PutConsumer(_)
            | Self::MoveConsumer(_)
            | Self::DeleteConsumer { .. }
            | Self::PutType(_)
            | Self::DeleteType { .. }
            | Self::PutJob(_)
            | Self::MoveJob { .. }
            | Self::Audit(_)
            | Self::PutSource(_)
            | Self::DeleteSource { .. }
            | Self::Claim(_)
            | Self::Record(_)
            | Self::SealSegment => None,
        }
    }

    /// The stream whose version decides about it.
    #[must_use]
    pub fn stream(&self) -> Option<(&Tenant, &StreamName)> {
        match self {
            Self::Publish(draft) => draft.stream.as_ref().map(|stream| (&draft.tenant, stream)),
            Self::Check { tenant, stream, .. } => Some((tenant, stream)),
            _ => None,
        }
    }

    /// The request that it claims, or whose response it stores.
    #[must_use]
    pub fn request(&self) -> Option<&Idempotency> {
        match self {
            Self::Claim(idempotency) | Self::Record(Record::RequestAnswered { idempotency, .. }) => {
                Some(idempotency)
            }
            Self::Publish(_)
            | Self::PutEndpoint(_)
            | Self::DeleteEndpoint { .. }
            | Self::PutTenant(_)
            | Self::DeleteTenant { .. }
            | Self::Atomic(_)
            | Self::Check { .. }
            | Self::PutType(_)
            | Self::DeleteType { .. }
            | Self::PutSource(_)
            | Self::DeleteSource { .. }
            | Self::PutConsumer(_)
            | Self::MoveConsumer(_)
            | Self::DeleteConsumer { .. }
            | Self::PutJob(_)
            | Self::MoveJob { .. }
            | Self::Audit(_)
            | Self::Record(_)
            | Self::SealSegment => None,
        }
    }

    /// Whether the decision depends on idempotency keys or streams that the state knows.
    fn needs_preparation(&self) -> bool {
        self.draft().is_some_and(EventDraft::needs_preparation)
            || self.request().is_some()
            || matches!(self, Self::Check { .. })
    }

    /// Whether it changes an endpoint, a key, a tenant, an event type, a job, a source or the set
    /// of consumers.
    fn changes_registry(&self) -> bool {
        match self {
            Self::PutEndpoint(_)
            | Self::DeleteEndpoint { .. }
            | Self::PutTenant(_)
            | Self::DeleteTenant { .. }
            | Self::PutConsumer(_)
            | Self::DeleteConsumer { .. }
            | Self::PutType(_)
            | Self::DeleteType { .. }
            | Self::PutJob(_)
            | Self::MoveJob { .. }
            | Self::PutSource(_)
            | Self::DeleteSource { .. }
            | Self::Record(Record::KeyPut(_) | Record::KeyDeleted { .. }) => true,
            Self::Publish(_)
            | Self::Atomic(_)
            | Self::Check { .. }
            | Self::MoveConsumer(_)
            | Self::Audit(_)
            | Self::Claim(_)
            | Self::Record(_)
            | Self::SealSegment => false,
        }
    }

    /// The tenant that it names.
    fn tenant(&self) -> Option<&Tenant> {
        match self {
            Self::Publish(draft) => Some(&draft.tenant),
            Self::PutEndpoint(endpoint) => Some(&endpoint.tenant),
            Self::PutTenant(settings) => Some(&settings.tenant),
            Self::DeleteTenant { tenant, .. } | Self::Check { tenant, .. } => Some(tenant),
            Self::PutConsumer(consumer) => consumer.key.tenant.as_ref(),
            Self::MoveConsumer(wanted) => wanted.key.tenant.as_ref(),
            Self::DeleteConsumer { key, .. } => key.tenant.as_ref(),
            Self::PutJob(job) => job.tenant.as_ref(),
            Self::DeleteEndpoint { .. }
            | Self::PutType(_)
            | Self::DeleteType { .. }
            | Self::MoveJob { .. }
            | Self::Audit(_)
            | Self::PutSource(_)
            | Self::DeleteSource { .. }
            | Self::Atomic(_)
            | Self::Claim(_)
            | Self::Record(_)
            | Self::SealSegment => None,
        }
    }

    /// Whether it stores something new, so that it needs space outside the disk reserve.
    #[must_use]
    pub fn is_growth(&self) -> bool {
        match self {
            Self::Publish(_) => true,
            Self::PutEndpoint(endpoint) => endpoint.number == EndpointNumber(0),
            // A quota must be lowered on a full disk.
            Self::PutTenant(_) | Self::DeleteTenant { .. } | Self::DeleteType { .. } => false,
            Self::PutSource(source) => source.revision == Position(0),
            Self::DeleteSource { .. } => false,
            Self::PutType(definition) => definition.revision == Position(0),
            Self::Record(record) => {
                matches!(record, Record::KeyPut(_) | Record::DeliveriesRevived { .. })
            }
            Self::PutConsumer(_) => true,
            Self::MoveConsumer(_)
            | Self::DeleteConsumer { .. }
            | Self::DeleteEndpoint { .. }
            | Self::PutJob(_)
            | Self::MoveJob { .. }
            | Self::Audit(_)
            | Self::Atomic(_)
            | Self::Check { .. }
            | Self::Claim(_)
            | Self::SealSegment => false,
        }
    }

    /// Whether a tenant can repeat it without end, though it replaces something: a changed
    /// endpoint, a job, or a move of a consumer.
    fn is_repeatable_change(&self) -> bool {
        matches!(self, Self::PutEndpoint(_) | Self::PutJob(_) | Self::MoveConsumer(_))
    }

    /// Bytes that it appends to the journal, for a repeatable change. Else approximate ones.
    fn journal_bytes(&self) -> usize {
        match self {
            Self::PutEndpoint(endpoint) => {
                let mut encoded = Vec::new();
                format::encode(&Record::EndpointPut(Arc::new(Endpoint::clone(endpoint))), &mut encoded);
                encoded.len()
            }
            other => other.weight(),
        }
    }

    /// Approximate bytes in a group.
    fn weight(&self) -> usize {
        match self {
            Self::Publish(draft) => draft.weight(),
            Self::PutEndpoint(_)
            | Self::PutTenant(_)
            | Self::PutConsumer(_)
            | Self::PutJob(_)
            | Self::PutSource(_) => 4096,
            Self::MoveJob { .. } | Self::Audit(_) => 256,
            Self::Record(Record::AttemptFinished { attempt, .. }) => attempt.reply.len() + 64,
            Self::Record(record) if is_lease(record) => format::size_hint(record),
            Self::PutType(definition) => definition.weight(),
            Self::DeleteEndpoint { .. }
            | Self::DeleteTenant { .. }
            | Self::DeleteType { .. }
            | Self::DeleteSource { .. }
            | Self::Atomic(_)
            | Self::Check { .. }
            | Self::MoveConsumer(_)
            | Self::DeleteConsumer { .. }
            | Self::Claim(_)
            | Self::Record(_)
            | Self::SealSegment => 64,
        }
    }
}

fn is_lease(record: &Record) -> bool {
    matches!(
        record,
        Record::MessagesLeased { .. } | Record::LeasesEnded { .. } | Record::LeasesExtended { .. }
    )
}

/// The result of a command.
#[derive(Clone, Debug)]
pub enum Outcome {
    Accepted(AcceptedEvent),
    /// The position of an earlier event with the same key or id, or of an earlier request's result.
    Duplicate(Position),
    /// The key belongs to another request.
    Mismatch,
    /// The event breaks a rule. With an idempotency key, the rejection is stored.
    Rejected(Rejection),
    /// The event's type refuses it. Not stored: a corrected event may use the same key.
    Refused(Box<TypeRefusal>),
    /// The event would begin more than [`limits::EVENT_TARGETS_MAX`] deliveries, or its unit more
    /// than [`limits::REQUEST_TARGETS_MAX`].
    TooManyTargets,
    /// The command would exceed a quota of its tenant. Never stored for an idempotency key.
    QuotaExceeded(QuotaExceeded),
    /// Another endpoint of the tenant has the uid.
    UidTaken,
    Endpoint(Arc<Endpoint>),
    Tenant(Arc<TenantSettings>),
    /// The consumer after the command.
    Consumer(ConsumerStatus),
    /// The command created the consumer.
    ConsumerCreated(ConsumerStatus),
    /// The consumer is not at the position that the move expects.
    ConsumerMoved {
        actual: Position,
    },
    /// [`limits::CONSUMERS_MAX`] is reached.
    TooManyConsumers,
    Job(Arc<Job>),
    /// [`limits::JOBS_RUNNING_MAX`] is reached.
    TooManyJobs,
    Type(Arc<TypeDefinition>),
    Source(Arc<Source>),
    Written(Position),
    /// A check that holds, or the mark of an accepted atomic unit.
    Passed,
    /// Another command of the atomic unit failed it.
    Withdrawn,
    /// The active segment is sealed.
    Sealed,
    /// The endpoint, tenant, type or consumer was changed or deleted in between, or an earlier
    /// command of the unit had a conflict.
    Conflict,
}

/// Why nothing of a unit was committed.
#[derive(Debug)]
pub enum Refusal {
    /// The preparation is too old; prepare the commands again.
    Stale(Vec<Command>),
    DiskFull,
    Failed(Arc<str>),
}

/// The outcomes of a unit, in the order of its commands.
pub type UnitAnswer = Result<Vec<Outcome>, Refusal>;
pub type UnitReply = oneshot::Sender<UnitAnswer>;

/// Commands that are judged in order, without other commands in between.
#[derive(Debug)]
pub struct Unit {
    pub commands: Vec<Command>,
    pub prepared: Prepared,
    /// `None` without a waiting caller. Such a unit is an attempt's outcome and must be written as
    /// soon as possible.
    pub reply: Option<UnitReply>,
}

impl Unit {
    /// A record for which no caller waits.
    #[must_use]
    pub fn of_record(record: Record) -> Self {
        Self { commands: vec![Command::Record(record)], prepared: Prepared::default(), reply: None }
    }

    pub(super) fn seals_segment(&self) -> bool {
        self.commands.iter().any(|command| matches!(command, Command::SealSegment))
    }

    pub(super) fn needs_preparation(&self) -> bool {
        self.commands.iter().any(Command::needs_preparation)
    }

    /// The request's key of an atomic unit; `None` for another unit.
    #[must_use]
    pub fn atomic(&self) -> Option<Option<&Idempotency>> {
        match self.commands.first() {
            Some(Command::Atomic(key)) => Some(key.as_ref()),
            _ => None,
        }
    }

    /// Whether the unit is alone in its group: it changes the registry that later units are judged
    /// against, or others should not wait for its bytes.
    #[must_use]
    pub fn is_barrier(&self) -> bool {
        let is_large = || self.weight().1 > limits::ATOMIC_SHARED_BYTES_MAX;
        self.commands.iter().any(Command::changes_registry) || (self.atomic().is_some() && is_large())
    }

    /// Whether it only has records about leases. The number of leases bounds it. It is never
    /// refused for the sake of others: a lease whose end is refused runs out, and doubles the load.
    #[must_use]
    pub fn is_about_leases(&self) -> bool {
        self.commands.iter().all(|command| matches!(command, Command::Record(record) if is_lease(record)))
    }

    /// The party whose share of the commit queue it uses. A unit of several tenants uses that of
    /// the first.
    #[must_use]
    pub fn party(&self) -> Party {
        match &self.reply {
            None => Party::Delivery,
            Some(_) if self.is_about_leases() => Party::Delivery,
            Some(_) => Party::of(self.commands.iter().find_map(Command::tenant)),
        }
    }

    /// See [`Command::is_growth`].
    #[must_use]
    pub fn is_growth(&self) -> bool {
        self.commands.iter().any(Command::is_growth)
    }

    /// The tenant that uses the disk reserve with it: the one whose key makes a change that it
    /// could repeat without end. A move without an audit entry counts for the consumer's tenant.
    /// `None` for the operator's changes and those of the daemon.
    #[must_use]
    pub fn reserve_user(&self) -> Option<&Tenant> {
        if !self.commands.iter().any(Command::is_repeatable_change) {
            return None;
        }
        let audited = self.commands.iter().find_map(|command| match command {
            Command::Audit(entry) => Some(entry.actor.tenant.as_ref()),
            _ => None,
        });
        audited.unwrap_or_else(|| {
            self.commands.iter().find_map(|command| match command {
                Command::MoveConsumer(wanted) => wanted.key.tenant.as_ref(),
                _ => None,
            })
        })
    }

    /// Bytes that it uses of the disk reserve.
    #[must_use]
    pub fn journal_bytes(&self) -> u64 {
        self.commands.iter().map(|command| command.journal_bytes() as u64).sum()
    }

    /// Number of commands and approximate bytes in a group. A claim, a mark or an audit entry
    /// counts with the other commands.
    #[must_use]
    pub fn weight(&self) -> (usize, usize) {
        let is_mark = |command: &&Command| {
            matches!(command, Command::Claim(_) | Command::Atomic(_) | Command::Audit(_))
        };
        let commands = self.commands.iter().filter(|command| !is_mark(command)).count();
        let bytes = self.commands.iter().map(Command::weight).sum::<usize>();
        (commands, bytes.min(limits::FRAME_BYTES_MAX))
    }
}
