//! The power cut: a file system of its own on a loop device, shut down under load so that nothing un-synced survives.
//!
//! Needs root, loop devices and `mkfs.ext4`; without them the test says so and checks nothing. `BALTO_TEST_ROUNDS` says how
//! many cuts (default 4). The negative control is the same daemon with a system whose `fdatasync` does nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::load::{Book, check_held, held, publishers};
use crate::support::{Daemon, has, number, quiet, say, seed, traced};
use fastrand::Rng;

/// Bytes of the image; the kernel keeps it sparse.
const IMAGE: u64 = 512 << 20;

/// `EXT4_IOC_SHUTDOWN` without a flush of the journal: what a cut leaves.
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
    /// `None` where this machine cannot do it.
    fn make(below: &Path) -> Option<Self> {
        let volume = Self { image: below.join("image"), mount: below.join("mount") };
        std::fs::File::create(&volume.image).unwrap().set_len(IMAGE).unwrap();
        std::fs::create_dir(&volume.mount).unwrap();
        let image = volume.image.to_str().unwrap();
        (has("mkfs.ext4") && has("python3") && run("mkfs.ext4", &["-q", image]) && volume.mount())
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

    /// What the machine does when the power is back.
    fn back(&self) {
        assert!(run("umount", &[self.mount.to_str().unwrap()]) && self.mount());
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // When the test failed it may not be mounted.
        let _gone = run("umount", &["--lazy", self.mount.to_str().unwrap()]);
    }
}

fn book_size(book: &Mutex<Book>) -> usize {
    book.lock().unwrap().accepted.len()
}

/// Load, and the cut at a random moment. What is acknowledged while the cut happens counts for nothing.
async fn cut_under_load(volume: &Volume, mut daemon: Daemon, book: &mut Book, random: &mut Rng) {
    daemon.until_ready().await;
    let shared = Arc::new(Mutex::new(std::mem::take(book)));
    let publishers = publishers(&shared, &daemon, random);
    let known = book_size(&shared);
    while book_size(&shared) < known + 50 {
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
    *book = std::mem::take(&mut *shared.lock().unwrap());
    book.accepted = before;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_power_is_cut() {
    let below = tempfile::tempdir().unwrap();
    let Some(volume) = Volume::make(below.path()) else {
        return say("SKIPPED: this machine gives no loop device with ext4");
    };
    let mut random = Rng::with_seed(seed());
    let mut book = Book::default();
    for _ in 0..number("BALTO_TEST_ROUNDS").unwrap_or(4) {
        let daemon = Daemon::spawn(quiet(crate::support::serve(&volume.data(), &["--dev"])));
        cut_under_load(&volume, daemon, &mut book, &mut random).await;
        let daemon = Daemon::start(&volume.data()).await;
        check_held(&book, &held(&daemon).await);
    }
    assert!(book.accepted.len() > 100, "only {} acknowledged", book.accepted.len());
    say(&format!("{} acknowledged, none lost", book.accepted.len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_whose_syncs_do_nothing_would_be_caught() {
    let below = tempfile::tempdir().unwrap();
    let Some(volume) = Volume::make(below.path()).filter(|_| has("strace")) else {
        return say("SKIPPED: this machine gives no loop device with ext4, or no strace");
    };
    let mut random = Rng::with_seed(seed());
    let mut book = Book::default();
    Daemon::start(&volume.data()).await.terminate();
    let lying = traced(
        &quiet(crate::support::serve(&volume.data(), &["--dev"])),
        &["-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:retval=0", "-o", "/dev/null"],
    );
    cut_under_load(&volume, Daemon::spawn(lying), &mut book, &mut random).await;
    let daemon = Daemon::start(&volume.data()).await;
    let kept = held(&daemon).await.len();
    assert!(kept < book.accepted.len(), "{kept} of {} survived without a sync", book.accepted.len());
}
