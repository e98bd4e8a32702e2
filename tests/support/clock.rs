//! A daemon whose time of day a test sets, by libfaketime. Monotonic time stays correct, as after
//! setting a machine's clock.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Daemon;

/// A clock with an offset in seconds to the real time.
pub(crate) struct Clock {
    library: String,
    file: PathBuf,
}

impl Clock {
    /// `None` where libfaketime is not available.
    pub(crate) fn new(below: &Path) -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/faketime");
        let found = Command::new(script).output().unwrap();
        let library = String::from_utf8(found.stdout).unwrap().trim().to_owned();
        let clock = Self { library, file: below.join("clock") };
        clock.set(0);
        found.status.success().then_some(clock)
    }

    /// An atomic replacement, so that the process never reads half a file.
    pub(crate) fn set(&self, seconds: i64) {
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{seconds:+}\n")).unwrap();
        std::fs::rename(&next, &self.file).unwrap();
    }

    pub(crate) async fn start(&self, data: &Path, more: &[(&str, &str)]) -> Daemon {
        let mut command = super::serve(data, &["--dev"]);
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
            .envs(more.iter().copied());
        let daemon = Daemon::spawn(command);
        daemon.until_ready().await;
        daemon
    }
}
