//! Messages to AMQP brokers, with publisher confirms.
//!
//! Owns the connections: one for each broker, virtual host, user and client certificate, with one
//! channel for each exchange. The courier's connector opens their sockets, so that the address
//! guard judges every one; lapin speaks the protocol on them. A connection that fails is forgotten,
//! and the next message opens another: lapin's own recovery is not used.

mod failure;
mod link;
mod runtime;
mod stream;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::maybe_done;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Confirmation};

use super::broker_url::{BrokerCredentials, BrokerUrl};
use super::deadline::{running_timer, with_deadline};
use super::failure::RequestFailure;
use super::generation::Generation;
use super::progress::ConnectProgress;
use super::reply::ReceiverReply;
use super::tls::ClientIdentity;
use super::{Courier, NotSent, Observed};
use crate::domain::{ConnectionFacts, EndpointNumber, ErrorClass, ReceiverAnswer};
use crate::limits;
pub use link::BrokerSession;
use link::{Link, ReadBound};

/// Interval at which idle connections are looked for.
const REAP_INTERVAL: Duration = Duration::from_secs(5);
/// The delivery mode of messages that survive a restart of the broker.
const PERSISTENT: u8 = 2;

/// One outbound message, with the timeout of its attempt.
#[derive(Debug)]
pub struct OutboundMessage {
    pub url: BrokerUrl,
    pub credentials: BrokerCredentials,
    pub identity: Option<ClientIdentity>,
    pub exchange: Box<str>,
    /// Whether a new channel declares the exchange, as a durable topic exchange.
    pub declares: bool,
    pub routing_key: Box<str>,
    pub content_type: Option<Box<str>>,
    pub message_id: Box<str>,
    /// The property `type`.
    pub kind: Box<str>,
    /// Seconds since 1970.
    pub timestamp: u64,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    pub timeout: Duration,
}

impl OutboundMessage {
    /// The property `app-id`.
    pub const APP: &str = "balto";

    fn properties(&self) -> BasicProperties {
        let mut headers = FieldTable::default();
        for (name, value) in &self.headers {
            headers.insert(short(name), AMQPValue::LongString(LongString::from(value.as_str())));
        }
        let properties = BasicProperties::default()
            .with_headers(headers)
            .with_delivery_mode(PERSISTENT)
            .with_message_id(short(&self.message_id))
            .with_timestamp(self.timestamp)
            .with_type(short(&self.kind))
            .with_app_id(short(Self::APP));
        match &self.content_type {
            Some(media) => properties.with_content_type(short(media)),
            None => properties,
        }
    }

    fn key(&self) -> LinkKey {
        let identity = self.identity.as_ref().map(ClientIdentity::pool_key);
        LinkKey { url: self.url.clone(), credentials: self.credentials.clone(), identity }
    }
}

/// A name in AMQP.
///
/// # Panics
/// When it is longer than [`limits::broker::NAME_BYTES_MAX`].
pub(crate) fn short(text: &str) -> ShortString {
    ShortString::try_new(text).expect("names are checked when they are saved or built")
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct LinkKey {
    url: BrokerUrl,
    credentials: BrokerCredentials,
    identity: Option<(EndpointNumber, [u8; 32])>,
}

/// The place of one connection.
struct Slot {
    state: tokio::sync::Mutex<SlotState>,
    used_at: Mutex<Instant>,
}

#[derive(Default)]
struct SlotState {
    link: Option<Arc<Link>>,
    /// The last failure to connect, for the messages that waited for it.
    failed: Option<(Instant, RequestFailure)>,
}

impl Slot {
    fn touch(&self) {
        *self.used_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn used_at(&self) -> Instant {
        *self.used_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open connection, or a new one.
    async fn link(
        &self,
        generation: &Generation,
        message: &OutboundMessage,
        progress: &ConnectProgress,
    ) -> Result<(Arc<Link>, bool), RequestFailure> {
        let asked_at = Instant::now();
        let mut state = self.state.lock().await;
        if let Some(link) = state.link.as_ref().filter(|link| link.is_open()) {
            return Ok((link.clone(), true));
        }
        if let Some((at, failure)) = &state.failed
            && *at >= asked_at
        {
            return Err(failure.clone());
        }
        state.link = None;
        let connector = generation.broker_connector(message.identity.as_ref());
        let connector = connector.map_err(|reason| RequestFailure::Attempt(ErrorClass::Request, reason))?;
        let opening =
            Link::open(&connector, &message.url, &message.credentials, ReadBound::Echo, progress.clone());
        match Box::pin(opening).await {
            Ok(link) => {
                let link = Arc::new(link);
                state.link = Some(link.clone());
                Ok((link, false))
            }
            Err(failure) => {
                state.failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    /// Forgets a connection that does not answer.
    fn forget(&self, link: &Arc<Link>) {
        // The deadline has passed, so it must not wait. Another message that holds the lock looks
        // at the connection itself, or forgets it at its own deadline.
        let Ok(mut state) = self.state.try_lock() else { return };
        if state.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            state.link = None;
        }
    }
}

/// The connections to brokers that were opened under the same settings.
#[derive(Default)]
pub(super) struct Brokers {
    slots: Mutex<BrokerSlots>,
}

#[derive(Default)]
struct BrokerSlots {
    by_key: HashMap<LinkKey, Arc<Slot>>,
    has_reaper: bool,
}

impl Brokers {
    fn lock(&self) -> MutexGuard<'_, BrokerSlots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(self: &Arc<Self>, key: LinkKey) -> Arc<Slot> {
        let mut slots = self.lock();
        if let Some(slot) = slots.by_key.get(&key) {
            slot.touch();
            return slot.clone();
        }
        if slots.by_key.len() >= limits::broker::CONNECTIONS_MAX {
            let oldest =
                slots.by_key.iter().min_by_key(|(_, slot)| slot.used_at()).map(|(key, _)| key.clone());
            oldest.and_then(|key| slots.by_key.remove(&key));
        }
        let slot =
            Arc::new(Slot { state: tokio::sync::Mutex::default(), used_at: Mutex::new(Instant::now()) });
        slots.by_key.insert(key, slot.clone());
        if !std::mem::replace(&mut slots.has_reaper, true) {
            tokio::spawn(run_reaper(Arc::downgrade(self)));
        }
        slot
    }

    /// Closes idle connections. Returns whether any is left.
    fn evict_idle(&self) -> bool {
        let mut slots = self.lock();
        slots.by_key.retain(|_, slot| slot.used_at().elapsed() < limits::broker::IDLE_TIMEOUT);
        slots.has_reaper = !slots.by_key.is_empty();
        slots.has_reaper
    }
}

async fn run_reaper(brokers: Weak<Brokers>) {
    loop {
        tokio::time::sleep(REAP_INTERVAL).await;
        let Some(brokers) = brokers.upgrade() else { return };
        if !brokers.evict_idle() {
            return;
        }
    }
}

impl Courier {
    /// Publishes one message and waits for the broker's confirm. It ends within the message's
    /// timeout, not counting time in which this process was suspended.
    ///
    /// # Errors
    /// When the message was not sent for a local reason, or the broker takes no messages now. No
    /// attempt was made.
    pub async fn publish(&self, message: OutboundMessage) -> Result<ReceiverReply, NotSent> {
        let started = Instant::now();
        let mut observed = Observed::default();
        // Boxed, because it is rare; every attempt would reserve its size otherwise.
        let published = Box::pin(self.publish_and_confirm(message, started, &mut observed)).await;
        self.to_reply(published, started, observed)
    }

    async fn publish_and_confirm(
        &self,
        message: OutboundMessage,
        started: Instant,
        observed: &mut Observed,
    ) -> Result<ReceiverReply, RequestFailure> {
        self.shared.guard.check_broker(&message.url)?;
        let generation = self.shared.generation.load_full();
        let slot = generation.brokers.slot(message.key());
        let deadline = pin!(maybe_done(running_timer(message.timeout)));
        let progress = ConnectProgress::default();
        let used = Mutex::new(None);
        let work = pin!(async {
            let (link, is_reused) = slot.link(&generation, &message, &progress).await?;
            *used.lock().unwrap_or_else(PoisonError::into_inner) = Some((link.clone(), is_reused));
            if link.is_blocked() {
                return Err(RequestFailure::BrokerBlocked);
            }
            publish_on(&link, &message).await
        });
        let published = with_deadline(deadline, work).await;
        slot.touch();
        let used = used.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((link, is_reused)) = &used {
            observed.network = link.progress.network();
            let times = if *is_reused { Default::default() } else { link.progress.times() };
            let remote_address = link.progress.address();
            observed.connection = ConnectionFacts { remote_address, is_reused: *is_reused, times };
            let has_answer = match &published {
                Some(Ok(())) => true,
                Some(Err(RequestFailure::Attempt(class, _))) => {
                    matches!(class, ErrorClass::Broker | ErrorClass::Unroutable)
                }
                Some(Err(_)) | None => false,
            };
            observed.connection.times.first_byte = has_answer.then(|| started.elapsed());
        } else {
            observed.network = progress.network();
            observed.connection.remote_address = progress.address();
            observed.connection.times = progress.times();
        }
        match (published, used) {
            (Some(Ok(())), _) => Ok(ReceiverReply {
                network: observed.network,
                duration: started.elapsed(),
                ..ReceiverReply::new(Ok(ReceiverAnswer::Confirmed))
            }),
            (Some(Err(failure)), _) => Err(failure),
            // The broker may send no confirm for a message that came with an alarm.
            (None, Some((link, _))) if link.is_blocked() => Err(RequestFailure::BrokerBlocked),
            (None, Some((link, _))) => {
                slot.forget(&link);
                let message = "no confirm from the broker within the timeout".to_owned();
                Err(RequestFailure::Attempt(ErrorClass::Timeout, message))
            }
            (None, None) => Err(progress.timeout_error().into()),
        }
    }

    /// Opens a connection for one source.
    ///
    /// # Errors
    /// Class and description of the failure.
    pub async fn open_broker(
        &self,
        url: &BrokerUrl,
        credentials: &BrokerCredentials,
        timeout: Duration,
    ) -> Result<BrokerSession, (ErrorClass, String)> {
        let open = async {
            self.shared.guard.check_broker(url)?;
            let connector = self.shared.generation.load().broker_connector(None);
            let connector =
                connector.map_err(|reason| RequestFailure::Attempt(ErrorClass::Request, reason))?;
            let progress = ConnectProgress::default();
            let deadline = pin!(maybe_done(running_timer(timeout)));
            let work = pin!(Link::open(&connector, url, credentials, ReadBound::None, progress.clone()));
            with_deadline(deadline, work).await.unwrap_or_else(|| Err(progress.timeout_error().into()))
        };
        match Box::pin(open).await {
            Ok(link) => Ok(BrokerSession::new(link)),
            Err(RequestFailure::Forbidden(refused)) => Err((ErrorClass::BlockedAddress, refused.to_string())),
            Err(RequestFailure::Attempt(class, message)) => Err((class, message)),
            Err(RequestFailure::DescriptorsExhausted) => {
                self.on_shortage();
                Err((ErrorClass::Connect, "this process can open no further connection".to_owned()))
            }
            Err(RequestFailure::AddressLimit | RequestFailure::BrokerBlocked) => {
                Err((ErrorClass::Connect, "no connection could be made".to_owned()))
            }
        }
    }
}

/// Publishes a message that must reach a queue, and waits for its confirm.
async fn publish_on(link: &Link, message: &OutboundMessage) -> Result<(), RequestFailure> {
    let failed = |error: lapin::Error| failure::classify(&error, &link.progress);
    let channel = link.channel(&message.exchange, message.declares).await.map_err(failed)?;
    let options = lapin::options::BasicPublishOptions { mandatory: true, immediate: false };
    let (exchange, key) = (short(&message.exchange), short(&message.routing_key));
    let confirm = channel.basic_publish(exchange, key, options, &message.body, message.properties()).await;
    match confirm.map_err(failed)?.await.map_err(failed)? {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
            let text = format!(
                "the broker returned the message: {} {} (exchange `{}`, routing key `{}`)",
                returned.reply_code, returned.reply_text, message.exchange, message.routing_key
            );
            Err(RequestFailure::Attempt(ErrorClass::Unroutable, text))
        }
        Confirmation::Nack(None) => {
            let text = "the broker refused the message (basic.nack)".to_owned();
            Err(RequestFailure::Attempt(ErrorClass::Broker, text))
        }
        Confirmation::NotRequested => {
            let text = "the broker does not confirm messages".to_owned();
            Err(RequestFailure::Attempt(ErrorClass::Broker, text))
        }
    }
}
