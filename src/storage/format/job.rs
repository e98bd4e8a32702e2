//! The fields of jobs and audit entries.

use std::net::IpAddr;
use std::sync::Arc;

use super::attempt::get_dead_reason;
use super::fields::{
    CodecError, get_bool, get_coded, get_list, get_name, get_number, get_option, get_owner, get_text,
    get_time, put_list, put_option, put_text, put_time,
};
use super::record::{MEANING_JOB_LAYOUT, SEARCH_JOB_LAYOUT};
use crate::codec::{Reader, put_bytes, put_u8, put_u16, put_varint};
use crate::domain::{
    ActOutcome, Actor, Audience, AuditEntry, DeliverySearch, IdMeaning, Job, JobCursor, JobKind, JobProgress,
    JobSelection, JobStatus, LastAttemptFilter, Position, Record, Role, ShownClass,
};

fn put_actor(out: &mut Vec<u8>, Actor { key, role, tenant }: &Actor) {
    put_option(out, key.as_ref(), |out, key| put_text(out, key.as_str()));
    put_u8(out, role.code());
    put_option(out, tenant.as_ref(), |out, tenant| put_text(out, tenant.as_str()));
}

fn get_actor(r: &mut Reader<'_>) -> Result<Actor, CodecError> {
    Ok(Actor {
        key: get_option(r, get_name)?,
        role: get_coded(r, "role", Role::from_code)?,
        tenant: get_option(r, get_name)?,
    })
}

fn put_selection(out: &mut Vec<u8>, selection: &JobSelection) {
    let JobSelection { endpoint, types, reason, since, until, only_undelivered, search: _, id_meaning: _ } =
        selection;
    put_option(out, endpoint.as_ref(), |out, endpoint| put_varint(out, u64::from(endpoint.0)));
    put_list(out, types, |out, pattern| put_text(out, pattern.as_str()));
    put_option(out, reason.as_ref(), |out, reason| put_u8(out, reason.code()));
    put_option(out, since.as_ref(), |out, at| put_time(out, *at));
    put_option(out, until.as_ref(), |out, at| put_time(out, *at));
    put_u8(out, u8::from(*only_undelivered));
}

fn get_selection(r: &mut Reader<'_>) -> Result<JobSelection, CodecError> {
    Ok(JobSelection {
        endpoint: get_option(r, get_number)?,
        types: get_list(r, 2, get_name)?,
        reason: get_option(r, get_dead_reason)?,
        since: get_option(r, get_time)?,
        until: get_option(r, get_time)?,
        only_undelivered: get_bool(r)?,
        search: DeliverySearch::default(),
        id_meaning: None,
    })
}

/// Last attempt? (status?, class? (0: no reply), audience), id start?.
fn put_search(out: &mut Vec<u8>, DeliverySearch { last_attempt, id_start }: &DeliverySearch) {
    put_option(out, last_attempt.as_ref(), |out, LastAttemptFilter { status, class, audience }| {
        put_option(out, status.as_ref(), |out, status| put_u16(out, *status));
        put_option(out, class.as_ref(), |out, class| put_u8(out, class.code()));
        put_u8(out, audience.code());
    });
    put_option(out, id_start.as_ref(), |out, start| put_text(out, start.as_str()));
}

fn get_search(r: &mut Reader<'_>) -> Result<DeliverySearch, CodecError> {
    let last_attempt = get_option(r, |r| {
        let status = get_option(r, |r| Ok(r.get_u16()?))?;
        let class = get_option(r, |r| get_coded(r, "error class", ShownClass::from_code))?;
        let audience = get_coded(r, "audience", Audience::from_code)?;
        LastAttemptFilter::new(status, class, audience).ok_or(EMPTY_SEARCH)
    })?;
    let search = DeliverySearch { last_attempt, id_start: get_option(r, get_name)? };
    if search == DeliverySearch::default() { Err(EMPTY_SEARCH) } else { Ok(search) }
}

/// A search without conditions is not written.
const EMPTY_SEARCH: CodecError = CodecError::UnknownValue { what: "search of a job", found: 0 };

/// 1 event (position), 2 events (first, last), 3 deliveries, 4 endpoints, 5 nothing.
fn put_id_meaning(out: &mut Vec<u8>, meaning: IdMeaning) {
    match meaning {
        IdMeaning::Event(position) => {
            put_u8(out, 1);
            put_varint(out, position.0);
        }
        IdMeaning::Events(first, last) => {
            put_u8(out, 2);
            put_varint(out, first.0);
            put_varint(out, last.0);
        }
        IdMeaning::Deliveries => put_u8(out, 3),
        IdMeaning::Endpoints => put_u8(out, 4),
        IdMeaning::Nothing => put_u8(out, 5),
    }
}

fn get_id_meaning(r: &mut Reader<'_>) -> Result<IdMeaning, CodecError> {
    Ok(match r.get_u8()? {
        1 => IdMeaning::Event(Position(r.get_varint()?)),
        2 => IdMeaning::Events(Position(r.get_varint()?), Position(r.get_varint()?)),
        3 => IdMeaning::Deliveries,
        4 => IdMeaning::Endpoints,
        5 => IdMeaning::Nothing,
        found => return Err(CodecError::UnknownValue { what: "meaning of an id", found: u64::from(found) }),
    })
}

fn put_progress(out: &mut Vec<u8>, progress: &JobProgress) {
    let JobProgress { status, done, cursor, at, error } = progress;
    put_u8(out, status.code());
    put_varint(out, *done);
    put_option(out, cursor.as_ref(), |out, JobCursor { position, endpoint, event }| {
        put_varint(out, position.0);
        put_varint(out, u64::from(endpoint.0));
        put_varint(out, event.0);
    });
    put_time(out, *at);
    put_option(out, error.as_ref(), |out, error| put_text(out, error));
}

fn get_progress(r: &mut Reader<'_>) -> Result<JobProgress, CodecError> {
    let cursor = |r: &mut Reader<'_>| {
        let position = Position(r.get_varint()?);
        Ok(JobCursor { position, endpoint: get_number(r)?, event: Position(r.get_varint()?) })
    };
    Ok(JobProgress {
        status: get_coded(r, "job status", JobStatus::from_code)?,
        done: r.get_varint()?,
        cursor: get_option(r, cursor)?,
        at: get_time(r)?,
        error: get_option(r, get_text)?,
    })
}

pub(super) fn put_move(out: &mut Vec<u8>, job: Position, progress: &JobProgress) {
    put_varint(out, job.0);
    put_progress(out, progress);
}

pub(super) fn get_move(r: &mut Reader<'_>) -> Result<Record, CodecError> {
    Ok(Record::JobMoved { job: Position(r.get_varint()?), progress: Box::new(get_progress(r)?) })
}

pub(super) fn put_job(out: &mut Vec<u8>, job: &Job) {
    let Job { id, number, kind, tenant, started_by, started_at, count, rate, selection, progress } = job;
    put_text(out, id.as_str());
    put_varint(out, number.0);
    put_u8(out, kind.code());
    put_option(out, tenant.as_ref(), |out, tenant| put_text(out, tenant.as_str()));
    put_actor(out, started_by);
    put_time(out, *started_at);
    put_varint(out, *count);
    put_option(out, rate.as_ref(), |out, rate| put_varint(out, u64::from(*rate)));
    put_selection(out, selection);
    put_progress(out, progress);
    if selection.search != DeliverySearch::default() {
        put_search(out, &selection.search);
        if let Some(meaning) = selection.id_meaning {
            put_id_meaning(out, meaning);
        }
    }
}

pub(super) fn get_job(r: &mut Reader<'_>, layout: u8) -> Result<Arc<Job>, CodecError> {
    let mut job = Job {
        id: get_name(r)?,
        number: Position(r.get_varint()?),
        kind: get_coded(r, "kind of a job", JobKind::from_code)?,
        tenant: get_option(r, get_owner)?,
        started_by: get_actor(r)?,
        started_at: get_time(r)?,
        count: r.get_varint()?,
        rate: get_option(r, |r| Ok(r.get_varint_u32()?))?,
        selection: get_selection(r)?,
        progress: get_progress(r)?,
    };
    if layout >= SEARCH_JOB_LAYOUT {
        job.selection.search = get_search(r)?;
    }
    if layout >= MEANING_JOB_LAYOUT {
        if job.selection.search.id_start.is_none() {
            return Err(EMPTY_SEARCH);
        }
        job.selection.id_meaning = Some(get_id_meaning(r)?);
    }
    Ok(Arc::new(job))
}

pub(super) fn put_audit_entry(out: &mut Vec<u8>, entry: &AuditEntry) {
    let AuditEntry { at, actor, action, target, tenant, address, outcome } = entry;
    put_time(out, *at);
    put_actor(out, actor);
    put_text(out, action);
    put_option(out, target.as_ref(), |out, target| put_text(out, target));
    put_option(out, tenant.as_ref(), |out, tenant| put_text(out, tenant.as_str()));
    put_option(out, address.as_ref(), |out, address| match address {
        IpAddr::V4(address) => put_bytes(out, &address.octets()),
        IpAddr::V6(address) => put_bytes(out, &address.octets()),
    });
    put_u8(out, outcome.code());
}

pub(super) fn get_audit_entry(r: &mut Reader<'_>) -> Result<Arc<AuditEntry>, CodecError> {
    Ok(Arc::new(AuditEntry {
        at: get_time(r)?,
        actor: get_actor(r)?,
        action: get_text(r)?,
        target: get_option(r, get_text)?,
        tenant: get_option(r, get_owner)?,
        address: get_option(r, get_address)?,
        outcome: get_coded(r, "outcome of an act", ActOutcome::from_code)?,
    }))
}

fn get_address(r: &mut Reader<'_>) -> Result<IpAddr, CodecError> {
    let bytes = r.get_bytes()?;
    let unknown = CodecError::UnknownValue { what: "address of bytes", found: bytes.len() as u64 };
    match bytes.len() {
        4 => bytes.try_into().map(|octets: [u8; 4]| octets.into()).map_err(|_| unknown),
        16 => bytes.try_into().map(|octets: [u8; 16]| octets.into()).map_err(|_| unknown),
        _ => Err(unknown),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::{DeadReason, EndpointNumber, ErrorClass, Timestamp};
    use crate::storage::format::encode;

    fn time(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    pub(in crate::storage::format) fn job() -> Job {
        Job {
            id: "job_1".parse().unwrap(),
            number: Position(300),
            kind: JobKind::ReplayEndpoint,
            tenant: Some("acme".parse().unwrap()),
            started_by: Actor {
                key: Some("key_1".parse().unwrap()),
                role: Role::Admin,
                tenant: Some("acme".parse().unwrap()),
            },
            started_at: time(1_000),
            count: 5_000,
            rate: Some(200),
            selection: JobSelection {
                endpoint: Some(EndpointNumber(7)),
                types: vec!["pet.*".parse().unwrap()],
                reason: Some(DeadReason::MaxAge),
                since: Some(time(1)),
                until: Some(time(900)),
                only_undelivered: true,
                search: DeliverySearch::default(),
                id_meaning: None,
            },
            progress: progress(),
        }
    }

    fn searching_job(class: Option<ShownClass>, id_start: Option<&str>) -> Job {
        let last_attempt = LastAttemptFilter::new(Some(503), class, Audience::Tenant);
        let search = DeliverySearch { last_attempt, id_start: id_start.map(|id| id.parse().unwrap()) };
        Job { selection: JobSelection { search, ..job().selection }, ..job() }
    }

    fn resolved_job(meaning: IdMeaning) -> Job {
        let job = searching_job(None, Some("evt_1"));
        Job { selection: JobSelection { id_meaning: Some(meaning), ..job.selection }, ..job }
    }

    const MEANINGS: [(IdMeaning, &str); 5] = [
        (IdMeaning::Event(Position(300)), "01ac02"),
        (IdMeaning::Events(Position(1), Position(300)), "0201ac02"),
        (IdMeaning::Deliveries, "03"),
        (IdMeaning::Endpoints, "04"),
        (IdMeaning::Nothing, "05"),
    ];

    pub(in crate::storage::format) fn bare_job() -> Job {
        Job {
            kind: JobKind::DeleteTenant,
            tenant: None,
            started_by: Actor { key: None, role: Role::Admin, tenant: None },
            rate: None,
            selection: JobSelection::default(),
            progress: JobProgress::begin(None, time(1_000)),
            ..job()
        }
    }

    pub(in crate::storage::format) fn progress() -> JobProgress {
        JobProgress {
            status: JobStatus::Failed,
            done: 4_000,
            cursor: Some(JobCursor {
                position: Position(200),
                endpoint: EndpointNumber(7),
                event: Position(100),
            }),
            at: time(2_000),
            error: Some("the endpoint was deleted".into()),
        }
    }

    pub(in crate::storage::format) fn audit_entry() -> AuditEntry {
        AuditEntry {
            at: time(1_000),
            actor: job().started_by,
            action: "deleteEndpoint".into(),
            target: Some("ep_1".into()),
            tenant: Some("acme".parse().unwrap()),
            address: Some([10, 0, 0, 1].into()),
            outcome: ActOutcome::Done,
        }
    }

    pub(in crate::storage::format) fn bare_audit_entry() -> AuditEntry {
        AuditEntry {
            actor: bare_job().started_by,
            target: None,
            tenant: None,
            address: Some(std::net::Ipv6Addr::LOCALHOST.into()),
            outcome: ActOutcome::Accepted,
            ..audit_entry()
        }
    }

    /// Records of jobs and acts, with every status and kind.
    pub(in crate::storage::format) fn work_records() -> Vec<Record> {
        let mut all = vec![
            Record::JobPut(Arc::new(job())),
            Record::JobPut(Arc::new(bare_job())),
            Record::JobPut(Arc::new(searching_job(Some(ShownClass::NoReply), None))),
            Record::JobPut(Arc::new(searching_job(None, Some("evt_01")))),
            Record::JobMoved { job: Position(300), progress: Box::new(progress()) },
            Record::Audited(Arc::new(audit_entry())),
            Record::Audited(Arc::new(bare_audit_entry())),
            Record::Audited(Arc::new(AuditEntry { address: None, ..audit_entry() })),
        ];
        for (meaning, _) in MEANINGS {
            all.push(Record::JobPut(Arc::new(resolved_job(meaning))));
        }
        for kind in JobKind::ALL {
            all.push(Record::JobPut(Arc::new(Job { kind, ..bare_job() })));
        }
        for status in JobStatus::ALL {
            let progress = JobProgress { status, cursor: None, error: None, ..progress() };
            all.push(Record::JobMoved { job: Position(1), progress: Box::new(progress) });
        }
        all
    }

    #[test]
    fn codes_of_jobs_and_acts_never_change() {
        assert_eq!(JobKind::ALL.map(JobKind::code), [1, 2, 3, 4, 5, 6]);
        assert_eq!(JobStatus::ALL.map(JobStatus::code), [1, 2, 3, 4]);
        assert_eq!(ActOutcome::ALL.map(ActOutcome::code), [1, 2]);
    }

    /// As in `golden.txt`: these bytes never change.
    #[test]
    fn golden_bytes_of_a_search() {
        let hex = |record: &Record| -> String {
            let mut bytes = Vec::new();
            encode(record, &mut bytes);
            bytes.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let plain = hex(&Record::JobPut(Arc::new(job())));
        let class = Some(ShownClass::Class(ErrorClass::Timeout));
        for (job, golden) in [
            (searching_job(class, Some("evt_1")), "0101f7010104020105657674"),
            (searching_job(Some(ShownClass::NoReply), None), "0101f70101000200"),
        ] {
            let (tag, fields) = ("1b02", &plain[4..]);
            let bytes = hex(&Record::JobPut(Arc::new(job)));
            assert!(bytes.starts_with(&format!("{tag}{fields}{golden}")), "{bytes}");
        }
        for (meaning, golden) in MEANINGS {
            let bytes = hex(&Record::JobPut(Arc::new(resolved_job(meaning))));
            let id = "056576745f31";
            assert!(bytes.starts_with("1b03") && bytes.ends_with(&format!("{id}{golden}")), "{bytes}");
        }
        for (what, search) in [("no condition", &[0, 0][..]), ("no status and class", &[1, 0, 0, 1, 0])] {
            assert_eq!(get_search(&mut Reader::new(search)), Err(EMPTY_SEARCH), "{what}");
        }
    }

    #[test]
    fn address_of_another_length_is_rejected() {
        let mut bytes = Vec::new();
        put_bytes(&mut bytes, &[1, 2, 3]);
        assert!(get_address(&mut Reader::new(&bytes)).is_err());
    }
}
