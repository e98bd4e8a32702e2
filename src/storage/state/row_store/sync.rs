//! `fdatasync` on a thread, so that questions are answered during it.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

/// A thread that syncs a file, one sync at a time. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct BackgroundSync {
    orders: mpsc::SyncSender<()>,
    results: mpsc::Receiver<io::Result<()>>,
    /// A sync has begun, and its result was not taken.
    is_open: bool,
    has_result: Arc<AtomicBool>,
}

impl BackgroundSync {
    pub(super) fn start(file: File) -> io::Result<Self> {
        let (orders, ordered) = mpsc::sync_channel(1);
        let (done, results) = mpsc::channel();
        let has_result = Arc::<AtomicBool>::default();
        let flag = Arc::clone(&has_result);
        let run = move || {
            while ordered.recv().is_ok() {
                let result = file.sync_data();
                flag.store(true, Ordering::Relaxed);
                if done.send(result).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("balto-sync".to_owned()).spawn(run)?;
        Ok(Self { orders, results, is_open: false, has_result })
    }

    /// Begins a sync of all that was written. The one before must have been finished.
    pub(super) fn begin(&mut self) {
        self.has_result.store(false, Ordering::Relaxed);
        // Without the thread, the end of the sync is an error.
        let _ended = self.orders.send(()).is_err();
        self.is_open = true;
    }

    /// Whether [`Self::finish`] would wait.
    pub(super) fn is_running(&self) -> bool {
        self.is_open && !self.has_result.load(Ordering::Relaxed)
    }

    /// Waits for the sync, if one has begun, and returns its result.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.is_open) {
            return Ok(());
        }
        let ended = |_| Err(io::Error::other("the thread that syncs the state has ended"));
        self.results.recv().unwrap_or_else(ended)
    }
}
