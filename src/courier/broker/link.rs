//! One connection to a broker.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::{FieldTable, LongString};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, ExchangeKind};

use super::super::broker_url::{BrokerCredentials, BrokerUrl};
use super::super::connect::{Connector, Target};
use super::super::failure::RequestFailure;
use super::super::progress::ConnectProgress;
use super::failure::classify;
use super::runtime::BrokerRuntime;
use super::stream::{BrokerStream, Lifeline};
use super::{OutboundMessage, short};
use crate::domain::ErrorClass;
use crate::limits;

/// Time for the handshake that closes a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The reply code of a connection that is closed without a failure.
const CLOSED_NORMALLY: u16 = 200;

/// Bound of what the broker may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadBound {
    /// A tenant chose the broker: it sends back no more than it gets.
    Echo,
    /// The operator chose the broker.
    None,
}

/// An open connection with its channels. Closed when the last user drops it.
pub(super) struct Link {
    /// `None` during drop only.
    connection: Option<(Connection, Lifeline)>,
    /// The channel of each exchange, with confirms.
    channels: tokio::sync::Mutex<HashMap<Box<str>, Channel>>,
    pub(super) progress: ConnectProgress,
}

impl Link {
    pub(super) async fn open(
        connector: &Connector,
        url: &BrokerUrl,
        credentials: &BrokerCredentials,
        bound: ReadBound,
        progress: ConnectProgress,
    ) -> Result<Self, RequestFailure> {
        let mut stream = connector.connect(&Target::of_broker(url), &progress).await?;
        match bound {
            ReadBound::Echo => stream.limit_reads_to_echo(),
            ReadBound::None => stream.lift_read_limit(),
        }
        let (stream, lifeline) = BrokerStream::new(stream);
        let stream = Mutex::new(Some(stream));
        // Called once, because lapin does not recover the connection.
        let connect = async move |_, _| {
            let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            let stream = stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected))?;
            Ok(AsyncTcpStream::Plain(stream))
        };
        let properties = ConnectionProperties::default()
            .with_connection_name(LongString::from(OutboundMessage::APP))
            .with_client_property(short("product"), LongString::from(OutboundMessage::APP));
        let runtime = async_rs::Runtime::new(BrokerRuntime::current());
        let opened = Connection::connector(uri(url, credentials), runtime, connect, properties).await;
        let connection = opened.map_err(|error| classify(&error, &progress))?;
        Ok(Self {
            connection: Some((connection, lifeline)),
            channels: tokio::sync::Mutex::default(),
            progress,
        })
    }

    fn connection(&self) -> &Connection {
        &self.connection.as_ref().expect("present until drop").0
    }

    pub(super) fn is_open(&self) -> bool {
        self.connection().status().connected()
    }

    /// Whether the broker takes no messages, because it is short of memory or disk.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection().status().blocked()
    }

    /// The channel of an exchange.
    pub(super) async fn channel(&self, exchange: &str, declares: bool) -> lapin::Result<Channel> {
        let mut channels = self.channels.lock().await;
        if let Some(channel) = channels.get(exchange).filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        channels.retain(|_, channel| channel.status().connected());
        if channels.len() >= limits::broker::CHANNELS_MAX {
            let any = channels.keys().next().cloned();
            any.and_then(|any| channels.remove(&any));
        }
        let channel = self.connection().create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        if declares {
            let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            let kind = ExchangeKind::Topic;
            channel.exchange_declare(short(exchange), kind, options, FieldTable::default()).await?;
        }
        channels.insert(exchange.into(), channel.clone());
        Ok(channel)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let Some((connection, lifeline)) = self.connection.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let closing = connection.close(CLOSED_NORMALLY, short("closed"));
            drop(tokio::time::timeout(CLOSE_TIMEOUT, closing).await);
            drop(lifeline);
        });
    }
}

fn uri(url: &BrokerUrl, credentials: &BrokerCredentials) -> AMQPUri {
    AMQPUri {
        // The stream has its TLS already.
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo {
                username: credentials.username.to_string(),
                password: credentials.password.to_string(),
            },
            host: url.host.to_string(),
            port: url.port,
        },
        vhost: url.vhost.to_string(),
        query: AMQPQueryString {
            heartbeat: Some(limits::broker::HEARTBEAT_SECONDS),
            ..AMQPQueryString::default()
        },
    }
}

/// A connection of one source.
pub struct BrokerSession {
    link: Link,
}

impl BrokerSession {
    pub(super) fn new(link: Link) -> Self {
        Self { link }
    }

    /// A new channel.
    ///
    /// # Errors
    /// Class and description of the failure.
    pub async fn channel(&self) -> Result<Channel, (ErrorClass, String)> {
        self.link.connection().create_channel().await.map_err(|error| self.describe(&error))
    }

    /// Class and description of a failure on this connection.
    #[must_use]
    pub fn describe(&self, error: &lapin::Error) -> (ErrorClass, String) {
        match classify(error, &self.link.progress) {
            RequestFailure::Attempt(class, text) => (class, text),
            _ => (ErrorClass::Reset, error.to_string()),
        }
    }
}
