//! Progress of a connection, from the lookup of its name to the head of each reply.
//!
//! Owns the facts about a connection that several of its futures share: the current phase, the
//! times of the phases that ended, the receiver's address and network, the TLS error, the reply's
//! head. Makes the error of a timeout independent of which deadline ends first.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::address_limit::{AddressLimit, AddressPermit};
use super::addresses;
use super::connect::{ConnectError, DNS_TIMED_OUT};
use super::guard::AllowedAddress;
use super::reply_head::ReplyHead;
use super::tls;
use super::tls::ClientCertificateUse;
use crate::domain::{Network, PhaseTimes};

#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum ConnectPhase {
    Resolving = 1,
    Connecting = 2,
    Tunnelling = 3,
    TlsHandshake = 4,
}

/// Progress of a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectProgress(Arc<ProgressState>);

#[derive(Debug, Default)]
struct ProgressState {
    /// A [`ConnectPhase`].
    phase: AtomicU8,
    /// An address could not be tried for lack of file descriptors.
    exhausted: AtomicBool,
    /// An address could not be tried because it is at its limit.
    is_address_full: AtomicBool,
    /// The limit that the request counts in, and its tenant.
    account: Option<(Arc<AddressLimit>, Arc<str>)>,
    /// The address of the connection, unless it leads to a proxy.
    address: OnceLock<SocketAddr>,
    /// Times of the phases that ended.
    times: Mutex<PhaseTimes>,
    /// Counts the current request.
    permit: Mutex<Option<AddressPermit>>,
    /// One of the receiver's addresses is allowed only by the operator's allow list.
    is_internal: AtomicBool,
    /// Client certificate use, known once the local side has completed the handshake.
    certificate_use: OnceLock<ClientCertificateUse>,
    /// The receiver's TLS error after the local side completed the handshake. The future that waits
    /// for the reply may see only a closed connection.
    tls_alert: OnceLock<String>,
    /// The head of the reply to the current request.
    reply: Mutex<ReplyHead>,
    /// When the first byte of that reply arrived.
    replied_at: Mutex<Option<Instant>>,
}

impl ConnectProgress {
    pub(super) fn enter(&self, phase: ConnectPhase) {
        self.0.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Progress of a connection whose requests count at its address.
    pub(super) fn counted(limit: Arc<AddressLimit>, tenant: Arc<str>) -> Self {
        Self(Arc::new(ProgressState { account: Some((limit, tenant)), ..ProgressState::default() }))
    }

    /// `error`, or the local reason why an address could not be tried.
    pub(super) fn unless_exhausted(&self, error: ConnectError) -> ConnectError {
        if self.0.exhausted.load(Ordering::Relaxed) {
            ConnectError::DescriptorsExhausted
        } else if self.0.is_address_full.load(Ordering::Relaxed) {
            ConnectError::AddressLimit
        } else {
            error
        }
    }

    /// Counts a connection attempt to an address. Fails at the address's limit.
    pub(super) fn acquire(&self, address: IpAddr) -> io::Result<Option<AddressPermit>> {
        let Some((limit, tenant)) = &self.0.account else { return Ok(None) };
        match limit.acquire(address, tenant) {
            Some(permit) => Ok(Some(permit)),
            None => {
                self.0.is_address_full.store(true, Ordering::Relaxed);
                Err(io::Error::other("the address is at its limit"))
            }
        }
    }

    pub(super) fn on_connected(&self, address: Option<SocketAddr>, permit: Option<AddressPermit>) {
        if let Some(address) = address {
            self.0.address.get_or_init(|| address);
        }
        *self.permit() = permit;
    }

    /// Counts the next request on an idle connection. Returns whether its address allows it.
    pub(super) fn count_request(&self, limit: &Arc<AddressLimit>, tenant: &Arc<str>) -> bool {
        let Some(address) = self.0.address.get() else { return true };
        let permit = limit.acquire(address.ip(), tenant);
        let is_counted = permit.is_some();
        *self.permit() = permit;
        is_counted
    }

    /// The request on the connection has ended.
    pub(super) fn end_request(&self) {
        *self.permit() = None;
    }

    fn permit(&self) -> MutexGuard<'_, Option<AddressPermit>> {
        self.0.permit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the network of the addresses to connect to.
    pub(super) fn record_network(&self, addresses: &[AllowedAddress]) {
        let is_internal =
            |allowed: &AllowedAddress| addresses::network(allowed.address().ip()) == Network::Internal;
        self.0.is_internal.store(addresses.iter().any(is_internal), Ordering::Relaxed);
    }

    /// The receiver's network as far as known. Failures on the internal network are shown to
    /// operators only.
    pub(super) fn network(&self) -> Network {
        if self.0.is_internal.load(Ordering::Relaxed) { Network::Internal } else { Network::Public }
    }

    /// The receiver's address, once connected to it directly.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.0.address.get().copied()
    }

    /// Records the end of a phase that started then.
    pub(super) fn end_phase(&self, phase: ConnectPhase, started: Instant) {
        let mut times = self.0.times.lock().unwrap_or_else(PoisonError::into_inner);
        let time = match phase {
            ConnectPhase::Resolving => &mut times.dns,
            ConnectPhase::Connecting | ConnectPhase::Tunnelling => &mut times.connect,
            ConnectPhase::TlsHandshake => &mut times.tls,
        };
        *time = Some(started.elapsed());
    }

    /// Times of the phases that ended.
    pub(super) fn times(&self) -> PhaseTimes {
        *self.0.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records whether an address could not be tried for lack of file descriptors.
    pub(super) fn set_exhausted(&self, is_exhausted: bool) {
        self.0.exhausted.store(is_exhausted, Ordering::Relaxed);
    }

    pub(super) fn set_certificate_use(&self, certificate_use: ClientCertificateUse) {
        self.0.certificate_use.get_or_init(|| certificate_use);
    }

    /// The error of a timeout in the current phase.
    pub(super) fn timeout_error(&self) -> ConnectError {
        let error = match self.0.phase.load(Ordering::Relaxed) {
            phase if phase == ConnectPhase::Resolving as u8 => DNS_TIMED_OUT,
            phase if phase == ConnectPhase::Tunnelling as u8 => ConnectError::ProxyUnreachable,
            phase if phase == ConnectPhase::TlsHandshake as u8 => {
                return ConnectError::Tls("the TLS handshake did not end in time".to_owned());
            }
            _ => ConnectError::Unreachable,
        };
        self.unless_exhausted(error)
    }

    /// Records a TLS error that arrives after the local side completed the handshake.
    pub(super) fn record_tls_error(&self, error: &rustls::Error) {
        let certificate_use = self.0.certificate_use.get().copied().unwrap_or_default();
        self.0.tls_alert.get_or_init(|| tls::describe(error, certificate_use));
    }

    /// The receiver's TLS error after the handshake, if any.
    pub(super) fn tls_alert(&self) -> Option<ConnectError> {
        self.0.tls_alert.get().cloned().map(ConnectError::Tls)
    }

    /// A new request begins: no byte of its reply has arrived.
    pub(super) fn begin_request(&self) {
        *self.reply() = ReplyHead::default();
        *self.replied_at_mut() = None;
    }

    /// Passes bytes of the reply through its head. Returns how many remain.
    pub(super) fn read_reply(&self, bytes: &mut [u8]) -> usize {
        let mut reply = self.reply();
        let has_begun = reply.has_begun();
        let kept = reply.read(bytes);
        if !has_begun && reply.has_begun() {
            *self.replied_at_mut() = Some(Instant::now());
        }
        kept
    }

    /// When the first byte of the reply to the current request arrived.
    pub(super) fn replied_at(&self) -> Option<Instant> {
        *self.replied_at_mut()
    }

    fn replied_at_mut(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.replied_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn reply(&self) -> MutexGuard<'_, ReplyHead> {
        self.0.reply.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
