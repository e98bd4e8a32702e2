//! Tests of the record codec: round trips, golden bytes, hostile bytes.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::codec::Malformed;
use crate::domain::{
    AmqpTarget, Asked, Attempt, ClientCertificate, Consent, Consumer, ConsumerFilter, DeadReason,
    DisabledReason, EndedLease, Endpoint, EndpointAuth, EndpointNumber, EndpointStatus, EndpointTransport,
    ErrorClass, Event, EventSelection, Exchange, Format, Handshake, Hold, KeyId, LeaseEnd, LeaseKey, Network,
    Next, Ordering, QueueTarget, Quota, QuotaOverride, QuotaOverrides, RateLimit, RequestShape, RetryPolicy,
    RoutingKey, Sealed, Secret, SecretKind, SignaturePreset, SignatureScheme, StreamChoice, TakenFrom,
    TakenMessage, TenantDelivery, TenantSettings, Timestamp, Trigger, VersionPin,
};
use crate::storage::format::consumer::tests::{bare_consumer, consumer, pinned_consumer};
use crate::storage::format::endpoint::{get_handshake, put_handshake};
use crate::storage::format::event_type::tests::{sample_type, type_with_rules};
use crate::storage::format::exchange::tests::{bare_exchange, exchange};
use crate::storage::format::job::tests::work_records;
use crate::storage::format::outgoing::tests::{parametric_endpoint, posting_endpoint, sample_endpoint};
use crate::storage::format::selection_tests::{labelled_event, sample_selection};
use crate::storage::format::source::tests::sample_source;

#[path = "golden_tests.rs"]
mod golden;

fn time(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn full_event() -> Event {
    Event {
        id: "evt_1".parse().unwrap(),
        tenant: "default".parse().unwrap(),
        event_type: "order.paid".parse().unwrap(),
        version: "1.0".parse().unwrap(),
        timestamp: time(1_700_000_000_000),
        accepted_at: time(1_700_000_000_001),
        stream: Some(("order-42".parse().unwrap(), 7)),
        ordering_key: Some("customer 9".parse().unwrap()),
        deliver_at: Some(time(300)),
        labels: Vec::new(),
        metadata: Some(Bytes::from_static(b"{}")),
        attributes: vec![("traceparent".into(), "00-ab".into())],
        data: Bytes::from_static(b"{\"a\":1}"),
        targets: vec![EndpointNumber(1), EndpointNumber(u32::MAX)],
        idempotency: vec![
            Idempotency { scope: [1; 16], fingerprint: [2; 16], expires_at: Some(Timestamp::MAX) },
            Idempotency { scope: [3; 16], fingerprint: [4; 16], expires_at: None },
        ],
        erased_at: None,
    }
}

fn bare_event() -> Event {
    Event {
        stream: None,
        ordering_key: None,
        deliver_at: None,
        labels: Vec::new(),
        metadata: None,
        attributes: vec![],
        data: Bytes::from_static(b"1"),
        targets: vec![],
        idempotency: vec![],
        ..full_event()
    }
}

fn attempt(next: Next) -> Attempt {
    Attempt {
        number: 3,
        trigger: Trigger::Retry,
        started_at: time(500),
        duration: Duration::new(2, 5_000_000),
        status: Some(503),
        error: Some((ErrorClass::Status, "503 from receiver".into())),
        reply: Bytes::from_static(b"busy"),
        network: Network::Public,
        next,
        hold: None,
        uptime: None,
        delay: Duration::ZERO,
        exchange: Exchange::default(),
    }
}

fn held_attempt() -> Attempt {
    Attempt {
        hold: Some(Hold { until: time(7_000), revision: Position(12) }),
        uptime: Some(Duration::from_millis(86_400_123)),
        delay: Duration::from_millis(300),
        ..attempt(Next::RetryAt(time(99)))
    }
}

fn endpoint() -> Endpoint {
    Endpoint {
        number: EndpointNumber(4),
        id: "ep_a".parse().unwrap(),
        uid: None,
        tenant: "acme".parse().unwrap(),
        transport: EndpointTransport::Http,
        url: "https://example.com/".into(),
        description: "d".into(),
        event_types: vec!["order.*".parse().unwrap()],
        selection: EventSelection::default(),
        headers: vec![("x-a".into(), "b".into())],
        sensitive_headers: Vec::new(),
        rate_limit: Some(RateLimit { limit: 10, per: Duration::from_secs(1), burst: 5 }),
        max_in_flight: Some(8),
        timeout: Some(Duration::from_secs(15)),
        ordering: Ordering::Key,
        retry: Some(RetryPolicy::Exponential {
            initial: Duration::from_secs(5),
            multiplier: 2.0,
            max_interval: Duration::from_secs(60),
            max_attempts: 12,
            max_age: Duration::from_secs(86_400),
            jitter: 0.25,
        }),
        format: Format::Standard,
        signatures: SignatureScheme::standard(),
        request: RequestShape::default(),
        auth: None,
        handshake: None,
        client_certificate: None,
        secrets: vec![Secret {
            kind: SecretKind::Hmac,
            key: Sealed::Plain([9; 24].into()),
            expires_at: None,
        }],
        trace: true,
        versions: Vec::new(),
        metadata: Some("{}".into()),
        status: EndpointStatus::Disabled { reason: DisabledReason::Failing, at: time(9) },
        created_at: time(1),
        updated_at: time(2),
        revision: Position(77),
    }
}

fn key() -> ApiKey {
    ApiKey {
        id: "key_1".parse().unwrap(),
        role: Role::Publisher,
        tenant: Some("acme".parse().unwrap()),
        description: "ci".into(),
        hash: [7; 32],
        created_at: time(5),
        expires_at: None,
    }
}

fn keys() -> Vec<DeliveryKey> {
    (1..4).map(|n| DeliveryKey { event: Position(n * 100), endpoint: EndpointNumber(n as u32) }).collect()
}

fn tenant() -> TenantSettings {
    let mut quotas = QuotaOverrides::default();
    quotas.set(Quota::Endpoints, QuotaOverride::Limit(300));
    quotas.set(Quota::StoredBytes, QuotaOverride::Off);
    quotas.set(Quota::BytesPerSecond, QuotaOverride::Limit(u64::MAX));
    TenantSettings {
        tenant: "acme".parse().unwrap(),
        name: "Acme Inc.".into(),
        metadata: Some("{\"plan\":\"gold\"}".into()),
        quotas,
        delivery: TenantDelivery {
            max_in_flight: Some(4),
            timeout: Some(Duration::from_millis(2_500)),
            retry: Some(RetryPolicy::Schedule(vec![Duration::from_secs(5)])),
        },
        created_at: time(1_000),
        updated_at: time(2_000),
        revision: Position(77),
    }
}

fn bare_tenant() -> TenantSettings {
    TenantSettings {
        name: "".into(),
        metadata: None,
        quotas: QuotaOverrides::default(),
        delivery: TenantDelivery::default(),
        ..tenant()
    }
}

fn rejections() -> impl Iterator<Item = Record> {
    let conflict = |expected, actual| Rejection::VersionConflict { expected, actual };
    let all = [
        (conflict(Expected::Version(6), Some(300)), None),
        (conflict(Expected::NoStream, Some(1)), None),
        (conflict(Expected::Any, None), None),
        (Rejection::IdTaken, None),
        (conflict(Expected::Exists, None), Some(0)),
        (Rejection::PartialDuplicate, Some(2_000)),
    ];
    let expires_at = Some(time(1_000));
    all.into_iter().map(move |(rejection, command)| {
        let idempotency = Idempotency { scope: [1; 16], fingerprint: [2; 16], expires_at };
        Record::EventRejected { idempotency, rejection, command }
    })
}

fn consumer_and_type_samples(at: Timestamp) -> Vec<Record> {
    vec![
        Record::ConsumerPut(Arc::new(consumer())),
        Record::ConsumerPut(Arc::new(bare_consumer())),
        Record::ConsumerPut(Arc::new(pinned_consumer())),
        Record::TypePut(Arc::new(type_with_rules())),
        Record::ConsumerPut(Arc::new(Consumer {
            filter: ConsumerFilter {
                streams: StreamChoice::Prefix("order-".into()),
                ..ConsumerFilter::default()
            },
            ..bare_consumer()
        })),
        Record::ConsumerMoved { key: consumer().key, position: Position(300), at },
        Record::ConsumerDeleted { key: bare_consumer().key, at },
    ]
}

fn lease_records() -> Vec<Record> {
    let (queue, at) = (EndpointNumber(4), time(1_000));
    let taken = |event, from| TakenMessage { event: Position(event), from };
    let key = |event| LeaseKey { event: Position(event), lease: Position(302) };
    let ends = [
        LeaseEnd::Acked,
        LeaseEnd::Released,
        LeaseEnd::Requeued(time(9_000)),
        LeaseEnd::Dead(DeadReason::Refused),
    ];
    let ends = (300..).map(key).zip(ends).map(|(key, end)| EndedLease { key, end }).collect();
    let messages = vec![taken(300, TakenFrom::Due(time(400))), taken(301, TakenFrom::Lease(Position(299)))];
    let worker = Some("w1".parse().unwrap());
    vec![
        Record::MessagesLeased { queue, messages: messages.clone(), until: time(31_000), at, worker },
        Record::MessagesLeased { queue, messages, until: time(31_000), at, worker: None },
        Record::LeasesEnded { queue, ends, at, reason: Some("no such user".into()) },
        Record::LeasesEnded { queue, ends: Vec::new(), at, reason: None },
        lost_answers(),
        Record::LeasesExtended { queue, leases: vec![key(300), key(301)], until: time(61_000), at },
    ]
}

fn lost_answers() -> Record {
    let key = |event| LeaseKey { event: Position(event), lease: Position(302) };
    let end = |(event, due)| EndedLease { key: key(event), end: LeaseEnd::Lost(due) };
    let ends = [(300, None), (301, Some(time(9_000)))].map(end).into();
    Record::LeasesEnded { queue: EndpointNumber(4), ends, at: time(1_000), reason: None }
}

/// Samples with every variant of every type in a record.
fn erasures() -> [Record; 2] {
    let (event, tenant, at) = (Position(300), "acme".parse().unwrap(), time(1_000));
    [
        Record::EventAccepted(Arc::new(full_event().erased(at))),
        Record::EventErased { event, tenant, at, reason: "request 7".into() },
    ]
}

fn key_samples(at: Timestamp) -> Vec<Record> {
    let id: KeyId = "key_1".parse().unwrap();
    vec![
        Record::KeyPut(Arc::new(key())),
        Record::KeyPut(Arc::new(ApiKey { tenant: None, role: Role::Admin, ..key() })),
        Record::KeyPut(Arc::new(ApiKey { role: Role::Viewer, expires_at: Some(time(900)), ..key() })),
        Record::KeyPut(Arc::new(ApiKey { role: Role::Worker, ..key() })),
        Record::KeyDeleted { id: id.clone(), at },
        Record::KeyUsed { id, at },
    ]
}

fn samples() -> Vec<Record> {
    let at = time(1_000);
    let delivery = DeliveryKey { event: Position(300), endpoint: EndpointNumber(2) };
    let finished = |attempt| Record::AttemptFinished { delivery, due: time(400), attempt: Arc::new(attempt) };
    let mut all = vec![
        Record::EventAccepted(Arc::new(full_event())),
        Record::EventAccepted(Arc::new(bare_event())),
        Record::EventAccepted(Arc::new(labelled_event(bare_event()))),
        finished(Attempt { status: None, error: None, ..attempt(Next::Delivered) }),
        finished(attempt(Next::RetryAt(time(99)))),
        finished(held_attempt()),
        finished(Attempt { uptime: None, ..held_attempt() }),
        finished(Attempt { hold: None, ..held_attempt() }),
        finished(Attempt { network: Network::Internal, ..attempt(Next::Delivered) }),
        finished(Attempt { exchange: exchange(), ..held_attempt() }),
        finished(Attempt { exchange: bare_exchange(), ..attempt(Next::RetryAt(time(99))) }),
        Record::EndpointPut(Arc::new(endpoint())),
        Record::EndpointDeleted { endpoint: EndpointNumber(4), at },
        Record::RateReserved {
            endpoint: EndpointNumber(4),
            reservation: Reservation {
                revision: Position(77),
                rate: RateLimit { limit: 3, per: Duration::from_secs(60), burst: 3 },
                full_at: time(61_000),
            },
        },
        Record::TenantPut(Arc::new(tenant())),
        Record::TenantPut(Arc::new(bare_tenant())),
        Record::TenantDeleted { tenant: "acme".parse().unwrap(), at },
        Record::HorizonMoved { horizon: Horizon { events: Position(300), stream_events: Position(20) }, at },
        Record::TypePut(Arc::new(sample_type())),
        Record::TypeDeleted { name: "pet.adopted".parse().unwrap(), at },
        Record::SourcePut(Arc::new(sample_source())),
        Record::SourceDeleted { name: "shop".parse().unwrap(), at },
        Record::DeliveriesCancelled { deliveries: keys(), at },
        Record::DeadLettersPurged { deliveries: vec![], at },
        Record::DeliveriesReordered { deliveries: keys(), at },
        Record::RequestAnswered {
            idempotency: Idempotency { scope: [1; 16], fingerprint: [2; 16], expires_at: Some(at) },
            status: 201,
            body: Arc::from(&b"{}"[..]),
        },
    ];
    all.extend(key_samples(at));
    all.extend(rejections());
    all.extend(consumer_and_type_samples(at));
    all.extend(erasures());
    all.extend(lease_records());
    all.extend(work_records());
    for reason in DeadReason::ALL {
        all.push(finished(attempt(Next::Dead(reason))));
        all.push(Record::DeliveriesDied { deliveries: keys(), reason, at });
    }
    for class in ErrorClass::ALL {
        all.push(finished(Attempt { error: Some((class, "x".into())), ..attempt(Next::Delivered) }));
    }
    for trigger in Trigger::ALL {
        all.push(Record::DeliveriesRevived { deliveries: keys(), trigger, at });
    }
    let disabled = |reason| EndpointStatus::Disabled { reason, at };
    for status in [
        EndpointStatus::Active,
        EndpointStatus::Paused,
        disabled(DisabledReason::Gone),
        disabled(DisabledReason::Requested),
    ] {
        all.push(Record::EndpointPut(Arc::new(Endpoint { status, ..endpoint() })));
    }
    all.extend(endpoints_with_options());
    for ordering in [Ordering::None, Ordering::Endpoint] {
        let retry = Some(RetryPolicy::Schedule(vec![Duration::from_millis(1), Duration::MAX]));
        let bare = Endpoint { ordering, retry, rate_limit: None, metadata: None, trace: false, ..endpoint() };
        all.push(Record::EndpointPut(Arc::new(bare)));
    }
    all
}

fn endpoints_with_options() -> Vec<Record> {
    let sealed = Sealed::Encrypted([5; 40].into());
    let secret = |kind| Secret { kind, key: sealed.clone(), expires_at: Some(time(7)) };
    let handshake = Handshake::new("a.example".parse().unwrap(), None, false);
    let consent = |rate| Some(Consent { at: time(8), rate });
    let full = Endpoint {
        sensitive_headers: vec![
            ("authorization".into(), sealed.clone()),
            ("x-b".into(), Sealed::Plain([1].into())),
        ],
        format: Format::CloudEvents,
        signatures: vec![SignatureScheme::Preset(SignaturePreset::Stripe)],
        handshake: Some(Handshake { consent: consent(None), ..handshake.clone() }),
        secrets: [SecretKind::Hmac, SecretKind::Ed25519, SecretKind::Text].map(secret).into(),
        ..endpoint()
    };
    let agreed = Handshake { consent: consent(Some(9)), ..handshake };
    let pins = vec![
        ("order.paid".parse().unwrap(), VersionPin::Latest),
        ("pet.adopted".parse().unwrap(), VersionPin::Version("1.0".parse().unwrap())),
    ];
    let pinned = Endpoint { versions: pins, ..endpoint() };
    let other = |handshake| Endpoint { handshake: Some(handshake), ..endpoint() };
    let github =
        Endpoint { signatures: vec![SignatureScheme::Preset(SignaturePreset::Github)], ..other(agreed) };
    let pending = other(pending_handshake());
    let inside = other(internal_handshake());
    let certificate = ClientCertificate {
        chain: vec![[1, 2].into(), [3].into()],
        key: sealed,
        subject: "CN=balto".into(),
        expires_at: time(9),
    };
    let certified = Endpoint { client_certificate: Some(certificate.clone()), ..pending.clone() };
    let alone = Endpoint { client_certificate: Some(certificate), ..endpoint() };
    let open = Endpoint { max_in_flight: None, timeout: None, retry: None, ..endpoint() };
    let partly = Endpoint { retry: None, ..certified.clone() };
    let outgoing = sample_endpoint(endpoint());
    let basic = EndpointAuth::Basic { username: "u".into(), password: Sealed::Plain([7].into()) };
    let basic = Endpoint { format: Format::Raw, auth: Some(basic), ..endpoint() };
    let svix = vec![SignatureScheme::Preset(SignaturePreset::Svix)];
    let svix = Endpoint { signatures: svix, ..endpoint() };
    let queue = QueueTarget { name: "notify.sms".parse().unwrap(), lease_max: Duration::from_secs(43_200) };
    let queue = Endpoint { transport: EndpointTransport::Queue(queue), url: "".into(), ..endpoint() };
    let target = AmqpTarget {
        exchange: "pets".into(),
        routing_key: RoutingKey::Literal("all".into()),
        declares: true,
    };
    let broker = Endpoint { transport: EndpointTransport::Amqp(target), ..endpoint() };
    let named = Endpoint { uid: Some("crm.main".parse().unwrap()), ..endpoint() };
    let selective = Endpoint { selection: sample_selection(), ..endpoint() };
    let (posting, parametric) = (posting_endpoint(endpoint()), parametric_endpoint(endpoint()));
    [
        full, github, pending, certified, partly, open, inside, alone, queue, pinned, outgoing, basic, svix,
        named, selective, broker, posting, parametric,
    ]
    .map(|endpoint| Record::EndpointPut(Arc::new(endpoint)))
    .into()
}

fn pending_handshake() -> Handshake {
    let answer = "status 405: no WebHook-Allowed-Origin".into();
    Handshake {
        asked: Some(Asked {
            since: time(1),
            count: 300,
            at: time(2),
            answer,
            network: Network::Public,
            next_at: time(500),
        }),
        callbacks: vec![[6; 32], [7; 32]],
        ..Handshake::new("events.example.com".parse().unwrap(), Some(120), true)
    }
}

fn internal_handshake() -> Handshake {
    let pending = pending_handshake();
    let asked = pending.asked.clone().map(|asked| Asked { network: Network::Internal, ..asked });
    Handshake { asked, ..pending }
}

fn encoded(record: &Record) -> Vec<u8> {
    let mut out = Vec::new();
    encode(record, &mut out);
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_record_survives_a_round_trip() {
    for record in samples() {
        assert_eq!(decode(&encoded(&record)).as_ref(), Ok(&record));
    }
}

#[test]
fn truncated_or_extended_record_is_rejected() {
    for record in samples() {
        let bytes = encoded(&record);
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end]).is_err(), "{record:?} cut at {end}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(decode(&longer), Err(CodecError::Malformed(Malformed::Trailing(1))), "{record:?}");
    }
}

#[test]
fn changed_byte_never_panics_and_decoding_is_canonical() {
    for record in samples() {
        let mut bytes = encoded(&record);
        for at in 0..bytes.len() {
            let before = bytes[at];
            for value in [before ^ 1, before ^ 0x80, 0, 0x7f, 0xff, before.wrapping_add(1)] {
                bytes[at] = value;
                if let Ok(other) = decode(&bytes) {
                    assert_eq!(encoded(&other), bytes, "{record:?} with {value} at {at}");
                }
            }
            bytes[at] = before;
        }
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(tag in 0..40_u8, layout in LAYOUT..6, rest: Vec<u8>) {
        let mut bytes = vec![tag, layout];
        bytes.extend(rest);
        drop(decode(&bytes));
    }
}

#[test]
fn unknown_tags_and_layouts_are_reported() {
    assert_eq!(decode(&[0, 1]), Err(CodecError::UnknownTag(0)));
    assert_eq!(decode(&[99, 1]), Err(CodecError::UnknownTag(99)));
    assert_eq!(decode(&[1, 4]), Err(CodecError::UnknownLayout { tag: 1, found: 4, known: 3 }));
    assert_eq!(decode(&[4, 2]), Err(CodecError::UnknownLayout { tag: 4, found: 2, known: 1 }));
    assert_eq!(decode(&[2, 6]), Err(CodecError::UnknownLayout { tag: 2, found: 6, known: 5 }));
    assert_eq!(decode(&[3, 3]), Err(CodecError::UnknownLayout { tag: 3, found: 3, known: 2 }));
    assert_eq!(decode(&[3, 0]), Err(CodecError::UnknownLayout { tag: 3, found: 0, known: 2 }));
}

#[test]
fn unknown_or_unordered_endpoint_options_are_rejected() {
    let plain = encoded(&Record::EndpointPut(Arc::new(endpoint())));
    let (count, head) = plain.split_last().unwrap();
    assert_eq!(*count, 0);
    for options in [
        &[1, 5, 0][..],
        &[1, 4, 1, 0],
        &[1, 4, 1, 1],
        &[1, 4, 1, 8],
        &[1, 3, 0],
        &[1, 0, 0],
        &[1, 1, 1, 0],
        &[2, 2, 0, 1, 0],
        &[1, 2, 0],
        &[1, 25, 2, 2, 0],
        &[1, 26, 5, 1, 1, 0x61, 1, 0x31],
    ] {
        let bytes = [head, options].concat();
        assert!(decode(&bytes).is_err(), "{options:?}");
    }
}

/// These bytes are on users' disks. If this test fails, add a layout version and a line at the end
/// of the file. Never change a line.
#[test]
fn golden_bytes_of_each_tag() {
    let golden: Vec<_> = include_str!("golden.txt").lines().map(unhex).collect();
    let mut seen = std::collections::BTreeSet::new();
    for record in samples().iter().filter(|record| seen.insert(record_tag(record))) {
        let lines: Vec<_> = golden.iter().filter(|bytes| bytes[0] == record_tag(record)).collect();
        for line in &lines {
            assert_eq!(decode(line).as_ref(), Ok(record), "layout {}", line[1]);
        }
        let now = encoded(record);
        assert_eq!(lines.last().copied(), Some(&now), "\n{}\n", hex(&now));
    }
    let known = (0..=u8::MAX).filter(|tag| layout_of(*tag).is_some());
    assert_eq!(Vec::from_iter(seen), Vec::from_iter(known), "a tag has no sample");
}

/// As [`golden_bytes_of_each_tag`]: an option's bytes never change, and a new option gets a new
/// tag.
#[test]
fn golden_bytes_of_options() {
    let plain = encoded(&Record::EndpointPut(Arc::new(endpoint())));
    let alone = encoded(&endpoints_with_options()[7]);
    // The bytes before the options differ only in the option count.
    assert_eq!(alone[..plain.len() - 1], plain[..plain.len() - 1]);
    let certificate = format!("01033a0202010201030228{}08434e3d62616c746f09", "05".repeat(40));
    assert_eq!(hex(&alone[plain.len() - 1..]), certificate);
    let open = encoded(&endpoints_with_options()[5]);
    assert_eq!(hex(&open[open.len() - 4..]), "01040107");
    let inside = encoded(&endpoints_with_options()[6]);
    assert_eq!(hex(&inside[inside.len() - 2..]), "0500");
    let queue = encoded(&endpoints_with_options()[8]);
    assert_eq!(hex(&queue[queue.len() - 18..]), "01100f0a6e6f746966792e736d73c0d10200");
    let pinned = encoded(&endpoints_with_options()[9]);
    let pins = "111d020a6f726465722e70616964000b7065742e61646f7074656403312e30";
    assert!(hex(&pinned).ends_with(pins), "{}", hex(&pinned));
    let outgoing = encoded(&endpoints_with_options()[10]);
    let options = "031229020101\
        0205582d53696703020b7b69647d2e7b626f64797d0d613d7b7369676e61747572657d01012c\
        131702010a746578742f706c61696e01087b7b206964207d7d\
        141e021368747470733a2f2f612e6578616d706c652f740163010108010173\
        00";
    assert!(hex(&outgoing).ends_with(options), "{}", hex(&outgoing));
    let named = encoded(&endpoints_with_options()[13]);
    assert_eq!(hex(&named[plain.len() - 1..]), "0115090863726d2e6d61696e");
    let broker = encoded(&endpoints_with_options()[15]);
    assert_eq!(hex(&broker[plain.len() - 1..]), "01180b04706574730403616c6c01");
    let posting = encoded(&endpoints_with_options()[16]);
    assert!(hex(&posting).ends_with("190802010575726e3a61"), "{}", hex(&posting));
    let parametric = encoded(&endpoints_with_options()[17]);
    assert!(hex(&parametric).ends_with("1a050101610131"), "{}", hex(&parametric));
}

fn unhex(line: &str) -> Vec<u8> {
    let pairs = line.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
