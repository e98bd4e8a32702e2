//! The watch for a response that is not written: its client has gone, or reads too slowly.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

type Undo = Box<dyn FnOnce() + Send>;

/// Runs a function when its response is dropped before it was written.
pub struct WatchedWrite {
    /// The connection has all bytes of the response.
    taken: AtomicBool,
    undo: Mutex<Option<Undo>>,
}

impl WatchedWrite {
    pub fn new(undo: impl FnOnce() + Send + 'static) -> Self {
        Self { taken: AtomicBool::new(false), undo: Mutex::new(Some(Box::new(undo))) }
    }

    /// The connection has taken the last bytes.
    pub(super) fn on_taken(&self) {
        self.taken.store(true, Ordering::Relaxed);
    }

    /// The connection has written all that it took. Returns whether this was the whole response.
    pub(super) fn on_written(&self) -> bool {
        let is_whole = self.taken.load(Ordering::Relaxed);
        if is_whole {
            drop(self.take());
        }
        is_whole
    }

    fn take(&self) -> Option<Undo> {
        self.undo.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for WatchedWrite {
    fn drop(&mut self) {
        if let Some(undo) = self.take() {
            undo();
        }
    }
}

impl fmt::Debug for WatchedWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WatchedWrite")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn response_that_is_not_written_whole_is_undone() {
        for (taken, written, undone) in
            [(false, false, true), (false, true, true), (true, false, true), (true, true, false)]
        {
            let flag = Arc::new(AtomicBool::new(false));
            let seen = flag.clone();
            let watch = WatchedWrite::new(move || seen.store(true, Ordering::Relaxed));
            if taken {
                watch.on_taken();
            }
            assert_eq!(written && watch.on_written(), taken && written);
            drop(watch);
            assert_eq!(flag.load(Ordering::Relaxed), undone, "taken {taken}, written {written}");
        }
    }
}
