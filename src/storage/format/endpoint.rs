//! The bytes of an endpoint: the fields of `EndpointPut` in order, then rarely used fields as
//! options.

use std::time::Duration;

use super::fields::{
    CodecError, get_bool, get_coded, get_duration, get_list, get_name, get_number, get_option, get_owner,
    get_pair, get_text, get_time, put_duration, put_list, put_option, put_pair, put_text, put_time,
};
use super::outgoing::{
    get_amqp, get_auth, get_request, get_signatures, get_token_request, has_token_request, only_preset,
    put_amqp, put_auth, put_request, put_signatures, put_token_request,
};
use super::record::LAYOUT;
use crate::codec::{Reader, put_bytes, put_u8, put_u64, put_varint};
use crate::domain::{
    Asked, ClientCertificate, Consent, DisabledReason, Endpoint, EndpointAuth, EndpointStatus,
    EndpointTransport, EventSelection, EventType, Format, Handshake, Network, OAuthClient, Ordering,
    Position, QueueTarget, RateLimit, RequestShape, RetryPolicy, Sealed, Secret, SecretKind, SignaturePreset,
    SignatureScheme, VersionPin,
};

pub(super) fn put_endpoint(out: &mut Vec<u8>, endpoint: &Endpoint) {
    put_varint(out, u64::from(endpoint.number.0));
    put_text(out, endpoint.id.as_str());
    put_text(out, endpoint.tenant.as_str());
    put_text(out, &endpoint.url);
    put_text(out, &endpoint.description);
    put_list(out, &endpoint.event_types, |out, pattern| put_text(out, pattern.as_str()));
    put_list(out, &endpoint.headers, put_pair);
    put_option(out, endpoint.rate_limit.as_ref(), put_rate_limit);
    put_varint(out, endpoint.max_in_flight.map_or(0, u64::from));
    put_duration(out, endpoint.timeout.unwrap_or_default());
    put_u8(out, endpoint.ordering.code());
    put_retry(out, endpoint.retry.as_ref().unwrap_or(&NO_RETRY));
    put_u8(out, endpoint.format.code());
    put_u8(out, only_preset(&endpoint.signatures).unwrap_or_default().code());
    put_list(out, &endpoint.secrets, |out, secret| {
        put_u8(out, secret.kind.code());
        put_sealed(out, &secret.key);
        put_option(out, secret.expires_at.as_ref(), |out, at| put_time(out, *at));
    });
    put_u8(out, u8::from(endpoint.trace));
    put_option(out, endpoint.metadata.as_ref(), |out, metadata| put_text(out, metadata));
    put_status(out, endpoint.status);
    put_time(out, endpoint.created_at);
    put_time(out, endpoint.updated_at);
    put_varint(out, endpoint.revision.0);
    put_endpoint_options(out, endpoint);
}

pub(super) fn put_rate_limit(out: &mut Vec<u8>, rate: &RateLimit) {
    put_varint(out, u64::from(rate.limit));
    put_duration(out, rate.per);
    put_varint(out, u64::from(rate.burst));
}

pub(super) fn get_rate_limit(r: &mut Reader<'_>) -> Result<RateLimit, CodecError> {
    Ok(RateLimit { limit: r.get_varint_u32()?, per: get_duration(r)?, burst: r.get_varint_u32()? })
}

pub(super) fn get_endpoint(r: &mut Reader<'_>, layout: u8) -> Result<Endpoint, CodecError> {
    let mut endpoint = Endpoint {
        number: get_number(r)?,
        id: get_name(r)?,
        uid: None,
        tenant: get_owner(r)?,
        transport: EndpointTransport::Http,
        url: get_text(r)?,
        description: get_text(r)?,
        event_types: get_list(r, 1, get_name)?,
        selection: EventSelection::default(),
        headers: get_list(r, 2, get_pair)?,
        sensitive_headers: Vec::new(),
        rate_limit: get_option(r, get_rate_limit)?,
        max_in_flight: Some(r.get_varint_u32()?),
        timeout: Some(get_duration(r)?),
        ordering: get_coded(r, "ordering", Ordering::from_code)?,
        retry: Some(get_retry(r)?),
        format: get_coded(r, "format", Format::from_code)?,
        signatures: vec![SignatureScheme::Preset(get_coded(
            r,
            "signature preset",
            SignaturePreset::from_code,
        )?)],
        request: RequestShape::default(),
        auth: None,
        handshake: None,
        client_certificate: None,
        secrets: get_list(r, 2, |r| get_secret(r, layout))?,
        trace: get_bool(r)?,
        versions: Vec::new(),
        metadata: get_option(r, get_text)?,
        status: get_status(r)?,
        created_at: get_time(r)?,
        updated_at: get_time(r)?,
        revision: Position(r.get_varint()?),
    };
    if layout > LAYOUT {
        get_endpoint_options(r, &mut endpoint)?;
    }
    Ok(endpoint)
}

fn get_secret(r: &mut Reader<'_>, layout: u8) -> Result<Secret, CodecError> {
    if layout == LAYOUT {
        let key = Sealed::Plain(r.get_bytes()?.into());
        return Ok(Secret { kind: SecretKind::Hmac, key, expires_at: get_option(r, get_time)? });
    }
    Ok(Secret {
        kind: get_coded(r, "secret kind", SecretKind::from_code)?,
        key: get_sealed(r)?,
        expires_at: get_option(r, get_time)?,
    })
}

/// 1 plain, 2 encrypted; then the bytes.
pub(super) fn put_sealed(out: &mut Vec<u8>, sealed: &Sealed) {
    let (tag, bytes) = match sealed {
        Sealed::Plain(bytes) => (1, bytes),
        Sealed::Encrypted(bytes) => (2, bytes),
    };
    put_u8(out, tag);
    put_bytes(out, bytes);
}

pub(super) fn get_sealed(r: &mut Reader<'_>) -> Result<Sealed, CodecError> {
    match r.get_u8()? {
        1 => Ok(Sealed::Plain(r.get_bytes()?.into())),
        2 => Ok(Sealed::Encrypted(r.get_bytes()?.into())),
        found => Err(CodecError::UnknownValue { what: "sealed value", found: u64::from(found) }),
    }
}

const OPTION_SENSITIVE_HEADERS: u8 = 1;
/// Layout of the handshake. It was fixed before the first release with handshakes.
const OPTION_HANDSHAKE: u8 = 2;
const OPTION_CLIENT_CERTIFICATE: u8 = 3;
/// Flags of the settings that the endpoint inherits from the configuration: 1 max in flight, 2
/// timeout, 4 retry. The fields of these settings are empty.
const OPTION_INHERITED: u8 = 4;
/// The handshake's last answer came from the operator's internal network. No bytes.
const OPTION_INTERNAL_ANSWER: u8 = 5;

/// The endpoint is a queue: its name, and the longest time of a lease.
const OPTION_QUEUE: u8 = 16;
/// Pinned versions; see [`put_pins`].
const OPTION_VERSIONS: u8 = 17;
/// All signature schemes, unless there is only one preset. The endpoint's own field is then 1.
const OPTION_SIGNATURES: u8 = 18;
const OPTION_REQUEST: u8 = 19;
const OPTION_AUTH: u8 = 20;

/// The endpoint's uid: a text.
const OPTION_UID: u8 = 21;

/// The filter: the text of a JSON object.
const OPTION_FILTER: u8 = 22;
/// The labels: a list of texts.
const OPTION_LABELS: u8 = 23;
/// The endpoint publishes to an exchange: its name, the routing key, whether it is declared.
const OPTION_AMQP: u8 = 24;
/// Further members of a client of a token server: its authentication, resource?.
const OPTION_TOKEN_REQUEST: u8 = 25;
/// Further parameters (name, value) of the requests of a client of a token server.
const OPTION_TOKEN_PARAMETERS: u8 = 26;

/// Placeholder of an inherited retry policy.
const NO_RETRY: RetryPolicy = RetryPolicy::Schedule(Vec::new());

/// Writes the rarely used fields, each as a tag and bytes, by ascending tag. A new option needs no
/// new layout: an older version rejects the unknown tag.
fn put_endpoint_options(out: &mut Vec<u8>, endpoint: &Endpoint) {
    let mut options: Vec<(u8, Vec<u8>)> = Vec::new();
    if !endpoint.sensitive_headers.is_empty() {
        let mut bytes = Vec::new();
        put_list(&mut bytes, &endpoint.sensitive_headers, |out, (name, value)| {
            put_text(out, name);
            put_sealed(out, value);
        });
        options.push((OPTION_SENSITIVE_HEADERS, bytes));
    }
    if let Some(handshake) = &endpoint.handshake {
        let mut bytes = Vec::new();
        put_handshake(&mut bytes, handshake);
        options.push((OPTION_HANDSHAKE, bytes));
    }
    if let Some(certificate) = &endpoint.client_certificate {
        let mut bytes = Vec::new();
        put_client_certificate(&mut bytes, certificate);
        options.push((OPTION_CLIENT_CERTIFICATE, bytes));
    }
    let inherited = u8::from(endpoint.max_in_flight.is_none())
        | u8::from(endpoint.timeout.is_none()) << 1
        | u8::from(endpoint.retry.is_none()) << 2;
    if inherited != 0 {
        options.push((OPTION_INHERITED, vec![inherited]));
    }
    let asked = endpoint.handshake.as_ref().and_then(|handshake| handshake.asked.as_ref());
    if asked.is_some_and(|asked| asked.network == Network::Internal) {
        options.push((OPTION_INTERNAL_ANSWER, Vec::new()));
    }
    if let EndpointTransport::Queue(queue) = &endpoint.transport {
        let mut bytes = Vec::new();
        put_text(&mut bytes, queue.name.as_str());
        put_duration(&mut bytes, queue.lease_max);
        options.push((OPTION_QUEUE, bytes));
    }
    if !endpoint.versions.is_empty() {
        let mut bytes = Vec::new();
        put_pins(&mut bytes, &endpoint.versions);
        options.push((OPTION_VERSIONS, bytes));
    }
    put_outgoing_options(&mut options, endpoint);
    if let Some(uid) = &endpoint.uid {
        let mut bytes = Vec::new();
        put_text(&mut bytes, uid.as_str());
        options.push((OPTION_UID, bytes));
    }
    put_selection_options(&mut options, &endpoint.selection);
    if let EndpointTransport::Amqp(target) = &endpoint.transport {
        let mut bytes = Vec::new();
        put_amqp(&mut bytes, target);
        options.push((OPTION_AMQP, bytes));
    }
    if let Some(EndpointAuth::OAuth2(client)) = &endpoint.auth {
        put_token_options(&mut options, client);
    }
    put_list(out, &options, |out, (tag, bytes)| {
        put_u8(out, *tag);
        put_bytes(out, bytes);
    });
}

fn put_token_options(options: &mut Vec<(u8, Vec<u8>)>, client: &OAuthClient) {
    if has_token_request(client) {
        let mut bytes = Vec::new();
        put_token_request(&mut bytes, client);
        options.push((OPTION_TOKEN_REQUEST, bytes));
    }
    if !client.parameters.is_empty() {
        let mut bytes = Vec::new();
        put_list(&mut bytes, &client.parameters, put_pair);
        options.push((OPTION_TOKEN_PARAMETERS, bytes));
    }
}

fn put_outgoing_options(options: &mut Vec<(u8, Vec<u8>)>, endpoint: &Endpoint) {
    let mut option = |tag: u8, put: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Vec::new();
        put(&mut bytes);
        options.push((tag, bytes));
    };
    if only_preset(&endpoint.signatures).is_none() {
        option(OPTION_SIGNATURES, &|out| put_signatures(out, &endpoint.signatures));
    }
    if endpoint.request != RequestShape::default() {
        option(OPTION_REQUEST, &|out| put_request(out, &endpoint.request));
    }
    if let Some(auth) = &endpoint.auth {
        option(OPTION_AUTH, &|out| put_auth(out, auth));
    }
}

fn put_selection_options(options: &mut Vec<(u8, Vec<u8>)>, selection: &EventSelection) {
    if let Some(filter) = &selection.filter {
        let mut bytes = Vec::new();
        put_text(&mut bytes, filter);
        options.push((OPTION_FILTER, bytes));
    }
    if !selection.labels.is_empty() {
        let mut bytes = Vec::new();
        put_list(&mut bytes, &selection.labels, |out, label| put_text(out, label.as_str()));
        options.push((OPTION_LABELS, bytes));
    }
}

fn get_endpoint_options(r: &mut Reader<'_>, endpoint: &mut Endpoint) -> Result<(), CodecError> {
    let options = get_list(r, 2, |r| Ok((r.get_u8()?, r.get_bytes()?)))?;
    let mut last = 0;
    for (tag, bytes) in options {
        let unknown = CodecError::UnknownValue { what: "endpoint option", found: u64::from(tag) };
        if tag <= last {
            return Err(unknown);
        }
        last = tag;
        let mut reader = Reader::new(bytes);
        match tag {
            OPTION_SENSITIVE_HEADERS => {
                endpoint.sensitive_headers =
                    get_list(&mut reader, 3, |r| Ok((get_text(r)?, get_sealed(r)?)))?;
                if endpoint.sensitive_headers.is_empty() {
                    return Err(unknown);
                }
            }
            OPTION_HANDSHAKE => endpoint.handshake = Some(get_handshake(&mut reader)?),
            OPTION_CLIENT_CERTIFICATE => {
                endpoint.client_certificate = Some(get_client_certificate(&mut reader)?);
            }
            OPTION_INHERITED => inherit_settings(reader.get_u8()?, endpoint).ok_or(unknown)?,
            OPTION_INTERNAL_ANSWER => {
                let asked = endpoint.handshake.as_mut().and_then(|handshake| handshake.asked.as_mut());
                asked.ok_or(unknown)?.network = Network::Internal;
            }
            OPTION_QUEUE => {
                let (name, lease_max) = (get_name(&mut reader)?, get_duration(&mut reader)?);
                endpoint.transport = EndpointTransport::Queue(QueueTarget { name, lease_max });
            }
            OPTION_VERSIONS => {
                endpoint.versions = get_pins(&mut reader)?;
                if endpoint.versions.is_empty() {
                    return Err(unknown);
                }
            }
            OPTION_SIGNATURES => {
                let schemes = get_signatures(&mut reader)?;
                let is_placeholder = endpoint.signatures == SignatureScheme::standard();
                if schemes.is_empty() || only_preset(&schemes).is_some() || !is_placeholder {
                    return Err(unknown);
                }
                endpoint.signatures = schemes;
            }
            OPTION_REQUEST => {
                endpoint.request = get_request(&mut reader)?;
                if endpoint.request == RequestShape::default() {
                    return Err(unknown);
                }
            }
            OPTION_AUTH => endpoint.auth = Some(get_auth(&mut reader)?),
            OPTION_UID => endpoint.uid = Some(get_name(&mut reader)?),
            OPTION_FILTER => endpoint.selection.filter = Some(get_text(&mut reader)?),
            OPTION_LABELS => {
                endpoint.selection.labels = get_list(&mut reader, 2, get_name)?;
                if endpoint.selection.labels.is_empty() {
                    return Err(unknown);
                }
            }
            OPTION_AMQP => endpoint.transport = EndpointTransport::Amqp(get_amqp(&mut reader)?),
            OPTION_TOKEN_REQUEST | OPTION_TOKEN_PARAMETERS => {
                let Some(EndpointAuth::OAuth2(client)) = &mut endpoint.auth else { return Err(unknown) };
                if !get_token_option(tag, &mut reader, client)? {
                    return Err(unknown);
                }
            }
            _ => return Err(unknown),
        }
        reader.finish()?;
    }
    Ok(())
}

/// Whether the option sets a value.
fn get_token_option(tag: u8, reader: &mut Reader<'_>, client: &mut OAuthClient) -> Result<bool, CodecError> {
    if tag == OPTION_TOKEN_REQUEST {
        get_token_request(reader, client)?;
        return Ok(has_token_request(client));
    }
    client.parameters = get_list(reader, 2, get_pair)?;
    Ok(!client.parameters.is_empty())
}

/// Pinned versions: a list of type and version; an empty version is the latest.
pub(super) fn put_pins(out: &mut Vec<u8>, pins: &[(EventType, VersionPin)]) {
    put_list(out, pins, |out, (name, pin)| {
        put_text(out, name.as_str());
        put_text(out, if let VersionPin::Version(version) = pin { version.as_str() } else { "" });
    });
}

pub(super) fn get_pins(r: &mut Reader<'_>) -> Result<Vec<(EventType, VersionPin)>, CodecError> {
    get_list(r, 2, |r| Ok((get_name(r)?, get_pin(r)?)))
}

fn get_pin(r: &mut Reader<'_>) -> Result<VersionPin, CodecError> {
    match r.get_str()? {
        "" => Ok(VersionPin::Latest),
        version => Ok(VersionPin::Version(version.parse()?)),
    }
}

/// Applies the flags of inherited settings. Returns `None` for zero or unknown flags, or a flag
/// whose field is not empty.
fn inherit_settings(flags: u8, endpoint: &mut Endpoint) -> Option<()> {
    let is_known = (1..8).contains(&flags);
    if flags & 1 != 0 {
        endpoint.max_in_flight.take().filter(|most| *most == 0)?;
    }
    if flags & 2 != 0 {
        endpoint.timeout.take().filter(Duration::is_zero)?;
    }
    if flags & 4 != 0 {
        endpoint.retry.take().filter(|retry| *retry == NO_RETRY)?;
    }
    is_known.then_some(())
}

/// Origin, rate?, callback, consent? (time, rate?), asked? (since, count, at, answer, next at),
/// callbacks (32 bytes each).
pub(super) fn put_handshake(out: &mut Vec<u8>, handshake: &Handshake) {
    let put_rate = |out: &mut Vec<u8>, rate: &u32| put_varint(out, u64::from(*rate));
    put_text(out, handshake.origin.as_str());
    put_option(out, handshake.rate.as_ref(), put_rate);
    put_u8(out, u8::from(handshake.callback));
    put_option(out, handshake.consent.as_ref(), |out, consent| {
        put_time(out, consent.at);
        put_option(out, consent.rate.as_ref(), put_rate);
    });
    put_option(out, handshake.asked.as_ref(), |out, asked| {
        put_time(out, asked.since);
        put_varint(out, u64::from(asked.count));
        put_time(out, asked.at);
        put_text(out, &asked.answer);
        put_time(out, asked.next_at);
    });
    put_list(out, &handshake.callbacks, |out, hash| out.extend_from_slice(hash));
}

pub(super) fn get_handshake(r: &mut Reader<'_>) -> Result<Handshake, CodecError> {
    let get_rate = |r: &mut Reader<'_>| Ok(r.get_varint_u32()?);
    Ok(Handshake {
        origin: get_name(r)?,
        rate: get_option(r, get_rate)?,
        callback: get_bool(r)?,
        consent: get_option(r, |r| Ok(Consent { at: get_time(r)?, rate: get_option(r, get_rate)? }))?,
        asked: get_option(r, |r| {
            let (since, count, at) = (get_time(r)?, r.get_varint_u32()?, get_time(r)?);
            let (answer, next_at) = (get_text(r)?, get_time(r)?);
            Ok(Asked { since, count, at, answer, network: Network::Public, next_at })
        })?,
        callbacks: get_list(r, 32, |r| Ok(r.get_array()?))?,
    })
}

/// Certificates (bytes), sealed key, subject, expiry.
fn put_client_certificate(out: &mut Vec<u8>, certificate: &ClientCertificate) {
    put_list(out, &certificate.chain, |out, bytes| put_bytes(out, bytes));
    put_sealed(out, &certificate.key);
    put_text(out, &certificate.subject);
    put_time(out, certificate.expires_at);
}

fn get_client_certificate(r: &mut Reader<'_>) -> Result<ClientCertificate, CodecError> {
    Ok(ClientCertificate {
        chain: get_list(r, 1, |r| Ok(r.get_bytes()?.into()))?,
        key: get_sealed(r)?,
        subject: get_text(r)?,
        expires_at: get_time(r)?,
    })
}

/// 1 exponential (initial, multiplier, longest interval, attempts, age, jitter), 2 schedule
/// (durations).
pub(super) fn put_retry(out: &mut Vec<u8>, retry: &RetryPolicy) {
    match retry {
        RetryPolicy::Exponential { initial, multiplier, max_interval, max_attempts, max_age, jitter } => {
            put_u8(out, 1);
            put_duration(out, *initial);
            put_u64(out, multiplier.to_bits());
            put_duration(out, *max_interval);
            put_varint(out, u64::from(*max_attempts));
            put_duration(out, *max_age);
            put_u64(out, jitter.to_bits());
        }
        RetryPolicy::Schedule(delays) => {
            put_u8(out, 2);
            put_list(out, delays, |out, delay| put_duration(out, *delay));
        }
    }
}

pub(super) fn get_retry(r: &mut Reader<'_>) -> Result<RetryPolicy, CodecError> {
    match r.get_u8()? {
        1 => Ok(RetryPolicy::Exponential {
            initial: get_duration(r)?,
            multiplier: f64::from_bits(r.get_u64()?),
            max_interval: get_duration(r)?,
            max_attempts: r.get_varint_u32()?,
            max_age: get_duration(r)?,
            jitter: f64::from_bits(r.get_u64()?),
        }),
        2 => Ok(RetryPolicy::Schedule(get_list(r, 2, get_duration)?)),
        found => Err(CodecError::UnknownValue { what: "retry policy", found: u64::from(found) }),
    }
}

/// 1 active, 2 paused, 3 disabled (reason, time).
fn put_status(out: &mut Vec<u8>, status: EndpointStatus) {
    match status {
        EndpointStatus::Active => put_u8(out, 1),
        EndpointStatus::Paused => put_u8(out, 2),
        EndpointStatus::Disabled { reason, at } => {
            put_u8(out, 3);
            put_u8(out, reason.code());
            put_time(out, at);
        }
    }
}

fn get_status(r: &mut Reader<'_>) -> Result<EndpointStatus, CodecError> {
    match r.get_u8()? {
        1 => Ok(EndpointStatus::Active),
        2 => Ok(EndpointStatus::Paused),
        3 => {
            let reason = get_coded(r, "disabled reason", DisabledReason::from_code)?;
            Ok(EndpointStatus::Disabled { reason, at: get_time(r)? })
        }
        found => Err(CodecError::UnknownValue { what: "endpoint status", found: u64::from(found) }),
    }
}
