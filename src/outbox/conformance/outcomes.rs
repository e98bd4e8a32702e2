//! Outcomes and commands of the work: names, comparison, short descriptions.

use super::work::BEGINNING;
use crate::domain::{EventId, Record, Rejection};
use crate::outbox::unit::{Command, Outcome};

pub(super) fn chooses_no_id(command: &Command) -> bool {
    command.draft().is_some_and(|draft| draft.id.is_none())
}

pub(super) fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Accepted(_) => "Accepted",
        Outcome::Duplicate(_) => "Duplicate",
        Outcome::Mismatch => "Mismatch",
        Outcome::Rejected(Rejection::VersionConflict { .. }) => "VersionConflict",
        Outcome::Rejected(Rejection::IdTaken) => "IdTaken",
        Outcome::Rejected(Rejection::PartialDuplicate) => "PartialDuplicate",
        Outcome::Passed => "Passed",
        Outcome::Withdrawn => "Withdrawn",
        Outcome::TooManyTargets => "TooManyTargets",
        Outcome::Refused(_) => "Refused",
        Outcome::UidTaken => "UidTaken",
        Outcome::Endpoint(_) => "Endpoint",
        Outcome::Tenant(_) => "Tenant",
        Outcome::Type(_) => "Type",
        Outcome::Source(_) => "Source",
        Outcome::QuotaExceeded(_) => "QuotaExceeded",
        Outcome::Consumer(_) => "Consumer",
        Outcome::ConsumerCreated(_) => "ConsumerCreated",
        Outcome::ConsumerMoved { .. } => "ConsumerMoved",
        Outcome::TooManyConsumers => "TooManyConsumers",
        Outcome::Job(_) => "Job",
        Outcome::TooManyJobs => "TooManyJobs",
        Outcome::Written(_) => "Written",
        Outcome::Sealed => "Sealed",
        Outcome::Conflict => "Conflict",
    }
}

pub(super) fn is_same(one: &Outcome, other: &Outcome) -> bool {
    match (one, other) {
        (Outcome::Accepted(one), Outcome::Accepted(other)) => {
            one.event == other.event && one.position == other.position && one.duplicate == other.duplicate
        }
        (Outcome::Duplicate(one), Outcome::Duplicate(other))
        | (Outcome::Written(one), Outcome::Written(other)) => one == other,
        (Outcome::Endpoint(one), Outcome::Endpoint(other)) => one == other,
        (Outcome::Rejected(one), Outcome::Rejected(other)) => one == other,
        (Outcome::Tenant(one), Outcome::Tenant(other)) => one == other,
        (Outcome::Consumer(one), Outcome::Consumer(other))
        | (Outcome::ConsumerCreated(one), Outcome::ConsumerCreated(other)) => one == other,
        (Outcome::ConsumerMoved { actual: one }, Outcome::ConsumerMoved { actual: other }) => one == other,
        (Outcome::Type(one), Outcome::Type(other)) => one == other,
        (Outcome::Job(one), Outcome::Job(other)) => one == other,
        (Outcome::Source(one), Outcome::Source(other)) => one == other,
        (Outcome::QuotaExceeded(one), Outcome::QuotaExceeded(other)) => one == other,
        (Outcome::Mismatch, Outcome::Mismatch)
        | (Outcome::Conflict, Outcome::Conflict)
        | (Outcome::Passed, Outcome::Passed)
        | (Outcome::Withdrawn, Outcome::Withdrawn) => true,
        _ => false,
    }
}

pub(super) fn brief(command: &Command) -> String {
    match command {
        Command::Publish(draft) => format!(
            "publish {} id {:?} key {:?} stream {:?} {:?}",
            draft.event_type,
            draft.id.as_ref().map(EventId::as_str),
            draft.idempotency.as_ref().map(|request| request.scope[0]),
            draft.stream.as_ref().map(ToString::to_string),
            draft.expected,
        ),
        Command::PutEndpoint(endpoint) => format!(
            "endpoint {} {:?} {:?} of revision {}",
            endpoint.number.0, endpoint.ordering, endpoint.status, endpoint.revision
        ),
        Command::DeleteEndpoint { endpoint, .. } => format!("delete {}", endpoint.0),
        Command::PutTenant(settings) => format!("tenant {} {:?}", settings.tenant, settings.quotas),
        Command::DeleteTenant { tenant, .. } => format!("delete tenant {tenant}"),
        Command::PutType(definition) => {
            format!("type {} of revision {}", definition.name, definition.revision)
        }
        Command::DeleteType { name, .. } => format!("delete type {name}"),
        Command::PutSource(source) => format!("source {} of revision {}", source.name, source.revision),
        Command::DeleteSource { name, .. } => format!("delete source {name}"),
        Command::Record(Record::AttemptFinished { delivery, due, attempt }) => {
            format!(
                "attempt of {}/{} due {} -> {:?}",
                delivery.event,
                delivery.endpoint.0,
                due.millis() - BEGINNING,
                attempt.next
            )
        }
        Command::Atomic(key) => format!("atomic {:?}", key.as_ref().map(|key| key.scope[0])),
        Command::Check { tenant, stream, expected } => format!("check {stream} of {tenant} {expected:?}"),
        Command::PutConsumer(consumer) => format!("consumer {:?} {:?}", consumer.key, consumer.filter),
        Command::MoveConsumer(wanted) => format!("move {:?} to {} {:?}", wanted.key, wanted.to, wanted.kind),
        Command::DeleteConsumer { key, .. } => format!("delete {key:?}"),
        Command::PutJob(job) => format!("job {} {:?}", job.id, job.progress),
        Command::MoveJob { job, progress } => format!("job at {job}: {progress:?}"),
        Command::Audit(entry) => format!("audit {} {:?}", entry.action, entry.target),
        Command::Claim(request) => format!("claim {}", request.scope[0]),
        Command::SealSegment => "seal".to_owned(),
        Command::Record(record) => format!("{record:?}"),
    }
}
