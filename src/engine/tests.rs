//! An engine for tests that need little of one.

use super::*;
use crate::courier::CourierSettings;
use crate::engine::clock::SystemSource;
use crate::engine::dispatcher::Dispatcher;
use crate::store::Admission;

/// An engine over an empty directory, which goes when the third is dropped.
pub(crate) fn engine() -> (Engine, Dispatcher, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let admission = Admission { bytes: 1 << 26, commands: 10_000 };
    let opened =
        Outbox::open(directory.path(), admission, Box::new(SystemSource), Arc::new(|_, _| ()), &mut |_| ())
            .unwrap();
    let courier = Courier::new(CourierSettings::for_tests()).unwrap();
    let settings = Settings {
        max_in_flight: 1,
        host_max_in_flight: 0,
        disable_after: Duration::from_secs(60),
        refused_statuses: RefusedStatuses::default(),
        breaker_failures: 5,
        breaker_probe_initial: Duration::from_secs(1),
        breaker_probe_max: Duration::from_secs(1),
        asking: AskingPolicy { initial: Duration::from_secs(1), max_interval: Duration::from_secs(1) },
        defaults: PolicyDefaults {
            max_in_flight: 1,
            timeout: Duration::from_secs(1),
            retry: crate::domain::RetryPolicy::Schedule(Vec::new()),
        },
        callback_base: None,
    };
    let metrics = Arc::new(Metrics::new());
    let (engine, dispatcher) =
        Engine::new(opened, courier, Arc::new(Vault::new([])), Clock::default(), metrics, settings);
    (engine, dispatcher, directory)
}
