//! One handshake request as a task of the delivery loop.

use crate::context::Context;
use crate::context::signal::Signal;
use crate::domain::EndpointNumber;
use crate::panics;
use crate::service::handshakes::Handshakes;

/// Sends one handshake request and signals its end to the dispatcher.
pub(crate) async fn request_consent(context: Context, number: EndpointNumber) {
    let _guard = HandshakeGuard { context: &context, number };
    panics::test_point("handshake");
    if let Err(error) = Handshakes(&context).request_consent(number).await {
        tracing::warn!(endpoint = number.0, %error, "handshake failed, retrying at the next tick");
    }
}

/// Signals the end of a handshake request, also after a panic, so that the next one can start.
struct HandshakeGuard<'a> {
    context: &'a Context,
    number: EndpointNumber,
}

impl Drop for HandshakeGuard<'_> {
    fn drop(&mut self) {
        self.context.signal(Signal::Asked { endpoint: self.number });
    }
}
