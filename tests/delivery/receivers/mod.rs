//! Misbehaving receivers on real sockets: table F of the attack tables row by row, malformed bytes,
//! and the attempt records. The courier is the real one; tests of records use the real daemon.

mod beside;
mod closed;
mod lenient;
mod malformed;
mod records;
mod rows;
mod table_f;

use std::sync::Arc;
use std::time::Duration;

use balto::courier::guard::EgressPolicy;
use balto::courier::{Courier, CourierSettings, OutboundRequest, ReceiverReply, RequestUrl, SystemResolver};
use hyper::header::HeaderMap;

/// The courier of a daemon with `--dev`.
fn courier() -> Courier {
    courier_with(settings())
}

fn courier_with(settings: CourierSettings) -> Courier {
    Courier::new(settings).unwrap()
}

fn settings() -> CourierSettings {
    CourierSettings {
        policy: EgressPolicy::default().dev(),
        connect_timeout: Duration::from_secs(10),
        address_max_in_flight: 0,
        roots: Arc::new(rustls::RootCertStore::empty()),
        proxy: None,
        resolver: Arc::new(SystemResolver::new(&[]).unwrap()),
    }
}

/// One attempt; `id` distinguishes it from the others.
async fn send(courier: &Courier, url: &str, id: &str, timeout: Duration) -> ReceiverReply {
    send_body(courier, url, id, b"{}", timeout).await
}

async fn send_body(courier: &Courier, url: &str, id: &str, body: &[u8], timeout: Duration) -> ReceiverReply {
    let mut headers = HeaderMap::new();
    headers.insert("webhook-id", id.parse().unwrap());
    let url = RequestUrl::parse(url).unwrap().into();
    let outbound_request = OutboundRequest::new(url, headers, body.to_vec().into(), timeout);
    courier.send(outbound_request).await.unwrap()
}
