//! TLS connections that end when they are reused. `receivers/closed.rs` has the same without TLS.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use balto::courier::{Courier, CourierSettings, ReceiverReply};
use balto::domain::ReceiverAnswer::Status;
use balto::domain::{ConnectionFacts, ErrorClass};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificates::{Authority, params, plain_config};
use super::fixture::{fixed_resolver, open, send, settings};
use crate::support::{answer, next_request};

/// The end of the first connection after its second request was read.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// TCP close without `close_notify`.
    Closes,
    /// With `close_notify`.
    ClosesCleanly,
    /// With bytes that are not a TLS record; the courier sends an alert.
    Garbage,
    /// After the first byte of a reply.
    OneByte,
}

async fn end(mut stream: TlsStream<TcpStream>, ending: Ending) {
    match ending {
        Ending::Closes => {}
        Ending::ClosesCleanly => stream.shutdown().await.unwrap(),
        Ending::Garbage => stream.get_mut().0.write_all(b"\0\0\0\0\0\0\0\0").await.unwrap(),
        Ending::OneByte => {
            stream.write_all(b"H").await.unwrap();
            stream.flush().await.unwrap();
        }
    }
}

/// Asserts the address and the phases of an attempt over TLS to a host with a name.
fn is_observed(reply: &ReceiverReply, address: SocketAddr, is_reused: bool) {
    let ConnectionFacts { remote_address, is_reused: reused, times } = reply.connection;
    assert_eq!((remote_address, reused), (Some(address), is_reused));
    let opening = [times.dns, times.connect, times.tls].map(|time| time.is_some());
    assert_eq!((opening, times.first_byte.is_some()), ([!is_reused; 3], true));
}

#[tokio::test]
async fn ended_tls_connection_is_replaced_once() {
    let authority = Authority::new("a test's own");
    let own = authority.issue(&params(&["receiver.example"]));
    for ending in [Ending::Closes, Ending::ClosesCleanly, Ending::Garbage, Ending::OneByte] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let url = format!("https://receiver.example:{}/", address.port());
        // The connection of each request.
        let seen: Arc<Mutex<Vec<usize>>> = Arc::default();
        let (acceptor, kept) = (TlsAcceptor::from(plain_config(&own)), seen.clone());
        let receiver = tokio::spawn(async move {
            for connection in 0.. {
                let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
                let mut buffer = Vec::new();
                let mut requests = 0;
                while next_request(&mut stream, &mut buffer).await.is_some() {
                    kept.lock().unwrap().push(connection);
                    requests += 1;
                    if connection == 0 && requests == 2 {
                        break;
                    }
                    stream.write_all(answer(200).as_bytes()).await.unwrap();
                }
                end(stream, ending).await;
            }
        });
        let trusted = CourierSettings {
            roots: authority.roots(),
            ..settings(open(&["127.0.0.0/8"]), fixed_resolver(&["127.0.0.1"]))
        };
        let courier = Courier::new(trusted).unwrap();
        let first = send(&courier, &url).await;
        assert_eq!(first.outcome, Ok(Status(200)), "{ending:?}");
        let second = send(&courier, &url).await;
        is_observed(&first, address, false);
        is_observed(&second, address, matches!(ending, Ending::OneByte));
        let second = second.outcome;
        if matches!(ending, Ending::OneByte) {
            assert!(matches!(second, Err((ErrorClass::Reset, _))), "{ending:?}: {second:?}");
            assert_eq!(*seen.lock().unwrap(), [0, 0], "{ending:?}");
        } else {
            assert_eq!(second, Ok(Status(200)), "{ending:?}");
            assert_eq!(*seen.lock().unwrap(), [0, 0, 1], "{ending:?}");
        }
        receiver.abort();
    }
}
