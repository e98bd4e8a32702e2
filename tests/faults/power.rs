//! The power cut: a separate file system on a loop device, shut down under load so that only synced
//! data survives.
//!
//! Needs root, loop devices and `mkfs.ext4`; without them the test reports that it is skipped.
//! `BALTO_TEST_ROUNDS` sets the number of cuts (default 4). The negative control is the same daemon
//! with an `fdatasync` that does nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::load::{Ledger, check_stored, publishers, stored_events};
use crate::support::{Daemon, has_program, number, quiet, say, seed, traced};
use fastrand::Rng;

/// Bytes of the image; the file is sparse.
const IMAGE: u64 = 512 << 20;

/// `EXT4_IOC_SHUTDOWN` without a flush of the journal: the effect of a power cut.
const SHUT_DOWN: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).status().is_ok_and(|status| status.success())
}

/// A mounted file system in a file.
struct Volume {
    image: PathBuf,
    mount: PathBuf,
}

impl Volume {
    /// `None` where this machine does not support it.
    fn make(below: &Path) -> Option<Self> {
        let volume = Self { image: below.join("image"), mount: below.join("mount") };
        std::fs::File::create(&volume.image).unwrap().set_len(IMAGE).unwrap();
        std::fs::create_dir(&volume.mount).unwrap();
        let image = volume.image.to_str().unwrap();
        (has_program("mkfs.ext4")
            && has_program("python3")
            && run("mkfs.ext4", &["-q", image])
            && volume.mount())
        .then_some(volume)
    }

    fn mount(&self) -> bool {
        run("mount", &["-o", "loop", self.image.to_str().unwrap(), self.mount.to_str().unwrap()])
    }

    fn data(&self) -> PathBuf {
        self.mount.join("data")
    }

    fn cut(&self) {
        assert!(run("python3", &["-c", SHUT_DOWN, self.mount.to_str().unwrap()]));
    }

    /// The steps of the machine when the power returns.
    fn back(&self) {
        assert!(run("umount", &[self.mount.to_str().unwrap()]) && self.mount());
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // After a failed test it may not be mounted.
        let _gone = run("umount", &["--lazy", self.mount.to_str().unwrap()]);
    }
}

fn ledger_size(ledger: &Mutex<Ledger>) -> usize {
    ledger.lock().unwrap().accepted.len()
}

/// Load, and the cut at a random moment. Acknowledgements during the cut do not count.
async fn cut_under_load(volume: &Volume, mut daemon: Daemon, ledger: &mut Ledger, random: &mut Rng) {
    daemon.until_ready().await;
    let shared = Arc::new(Mutex::new(std::mem::take(ledger)));
    let publishers = publishers(&shared, &daemon, random);
    let known = ledger_size(&shared);
    while ledger_size(&shared) < known + 50 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(random.u64(0..600))).await;
    let before = shared.lock().unwrap().accepted.clone();
    volume.cut();
    daemon.kill();
    for publisher in publishers {
        publisher.await.unwrap();
    }
    volume.back();
    *ledger = std::mem::take(&mut *shared.lock().unwrap());
    ledger.accepted = before;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_events_survive_a_power_cut() {
    let below = tempfile::tempdir().unwrap();
    let Some(volume) = Volume::make(below.path()) else {
        return say("SKIPPED: this machine gives no loop device with ext4");
    };
    let mut random = Rng::with_seed(seed());
    let mut ledger = Ledger::default();
    for _ in 0..number("BALTO_TEST_ROUNDS").unwrap_or(4) {
        let daemon = Daemon::spawn(quiet(crate::support::serve(&volume.data(), &["--dev"])));
        cut_under_load(&volume, daemon, &mut ledger, &mut random).await;
        let daemon = Daemon::start(&volume.data()).await;
        check_stored(&ledger, &stored_events(&daemon).await);
    }
    assert!(ledger.accepted.len() > 100, "only {} acknowledged", ledger.accepted.len());
    say(&format!("{} acknowledged, none lost", ledger.accepted.len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon_with_disabled_syncs_fails_the_power_test() {
    let below = tempfile::tempdir().unwrap();
    let Some(volume) = Volume::make(below.path()).filter(|_| has_program("strace")) else {
        return say("SKIPPED: this machine gives no loop device with ext4, or no strace");
    };
    let mut random = Rng::with_seed(seed());
    let mut ledger = Ledger::default();
    Daemon::start(&volume.data()).await.terminate();
    let lying = traced(
        &quiet(crate::support::serve(&volume.data(), &["--dev"])),
        &["-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:retval=0", "-o", "/dev/null"],
    );
    cut_under_load(&volume, Daemon::spawn(lying), &mut ledger, &mut random).await;
    let daemon = Daemon::start(&volume.data()).await;
    let kept = stored_events(&daemon).await.len();
    assert!(kept < ledger.accepted.len(), "{kept} of {} survived without a sync", ledger.accepted.len());
}
