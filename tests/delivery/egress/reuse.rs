//! TLS connections that end when they are reused. `receivers/closed.rs` has the same without TLS.

use std::sync::{Arc, Mutex};

use balto::courier::{Courier, CourierSettings};
use balto::domain::ErrorClass;
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

#[tokio::test]
async fn ended_tls_connection_is_replaced_once() {
    let authority = Authority::new("a test's own");
    let own = authority.issue(&params(&["receiver.example"]));
    for ending in [Ending::Closes, Ending::ClosesCleanly, Ending::Garbage, Ending::OneByte] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://receiver.example:{}/", listener.local_addr().unwrap().port());
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
        assert_eq!(send(&courier, &url).await.outcome, Ok(200), "{ending:?}");
        let second = send(&courier, &url).await.outcome;
        if matches!(ending, Ending::OneByte) {
            assert!(matches!(second, Err((ErrorClass::Reset, _))), "{ending:?}: {second:?}");
            assert_eq!(*seen.lock().unwrap(), [0, 0], "{ending:?}");
        } else {
            assert_eq!(second, Ok(200), "{ending:?}");
            assert_eq!(*seen.lock().unwrap(), [0, 0, 1], "{ending:?}");
        }
        receiver.abort();
    }
}
