//! One handshake request as a task of the delivery loop.

use crate::context::Context;
use crate::context::signal::Signal;
use crate::domain::EndpointNumber;
use crate::panics;
use crate::service::handshakes::Handshakes;

/// Asks once and tells the dispatcher when that is over.
pub(crate) async fn ask(context: Context, number: EndpointNumber) {
    let _guard = HandshakeGuard { context: &context, number };
    panics::test_point("handshake");
    if let Err(error) = Handshakes(&context).ask(number).await {
        tracing::warn!(endpoint = number.0, %error, "a handshake waits for its next turn");
    }
}

/// A request under way. However it ends, the endpoint can be asked again.
struct HandshakeGuard<'a> {
    context: &'a Context,
    number: EndpointNumber,
}

impl Drop for HandshakeGuard<'_> {
    fn drop(&mut self) {
        self.context.signal(Signal::Asked { endpoint: self.number });
    }
}
