//! Scripted receivers: what a parcel meets instead of the network.

use std::time::Duration;

use crate::courier::{Parcel, Reply};
use crate::domain::ErrorClass;

/// All receivers of a simulated world.
#[derive(Clone, Debug, Default)]
pub(in crate::engine) struct Receivers;

impl Receivers {
    pub(in crate::engine) async fn receive(&self, parcel: &Parcel) -> Reply {
        let (url, _, _, timeout) = parcel.contents();
        tokio::time::sleep(timeout.min(Duration::from_millis(1))).await;
        Reply::failed(ErrorClass::Connect, format!("nobody is at {url}"))
    }

    /// How long a read of the journal takes.
    pub(in crate::engine) async fn wait_for_the_disk(&self) {
        tokio::task::yield_now().await;
    }
}
