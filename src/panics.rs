//! Panics: each one ends the process, unless it is contained.
//!
//! Owns the rule that decides between the two. A thread or task is needed by default, and its panic ends the process at
//! once: a daemon without one of its parts would look alive and do nothing. Work for one request or one attempt runs
//! within [`contained`] or [`contain`]; its panic costs that request or attempt. A background job runs within [`caught`],
//! and begins again after its panic. Any layer may contain its work; only the daemon installs the hook.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;

thread_local! {
    /// Containments that the thread is in.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// The innermost containment is being left by a panic. A second panic would abort the process, with a message that
    /// the standard library writes itself and that a stalled standard error can block.
    static IS_UNWINDING: Cell<bool> = const { Cell::new(false) };
}

/// A containment of the current thread; ends when it is dropped.
struct Containment;

impl Containment {
    fn enter() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Self
    }
}

impl Drop for Containment {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
        IS_UNWINDING.set(false);
    }
}

/// A panic that was caught; the hook has reported it.
#[derive(Debug)]
pub(crate) struct Panicked;

/// Runs work whose panic does not end the process.
pub(crate) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    let _containment = Containment::enter();
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| Panicked)
}

/// A task whose panic ends the task and not the process.
pub(crate) struct Contained<F>(Pin<Box<F>>);

/// The task lies in a box, because the runtime moves a task several times.
pub(crate) fn contained<F: Future>(task: F) -> Contained<F> {
    Contained(Box::pin(task))
}

impl<F: Future> Future for Contained<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let _containment = Containment::enter();
        self.0.as_mut().poll(context)
    }
}

/// Runs a task whose panic ends the task, for one who wants to know of it.
pub(crate) async fn caught<F: Future>(task: F) -> Result<F::Output, Panicked> {
    AssertUnwindSafe(contained(task)).catch_unwind().await.map_err(|_| Panicked)
}

/// Work on another thread panicked, and so does the task that waits for it. The hook has reported it.
pub(crate) fn pass_on(panicked: Panicked) -> ! {
    resume_unwind(Box::new(panicked))
}

/// What becomes of a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The panicking work ends, and nothing else.
    Contained,
    /// The process ends.
    Fatal,
}

/// From now on calls `report` with each panic, then ends the process with `code` if the panic is fatal. `report` must
/// neither block nor panic. The exit waits for no other thread.
pub(crate) fn end_process_on_panic(
    code: u8,
    report: impl Fn(&PanicHookInfo<'_>, Fate) + Send + Sync + 'static,
) {
    std::panic::set_hook(Box::new(move |panic| {
        if DEPTH.get() > 0 && !IS_UNWINDING.replace(true) {
            return report(panic, Fate::Contained);
        }
        report(panic, Fate::Fatal);
        std::process::exit(i32::from(code));
    }));
}

/// Panics where the environment variable `BALTO_TEST_PANIC` names this place, so that a test can see what follows.
#[cfg(debug_assertions)]
pub(crate) fn test_point(place: &str) {
    if std::env::var_os("BALTO_TEST_PANIC").is_some_and(|named| named == place) {
        panic!("BALTO_TEST_PANIC names {place}");
    }
}

/// Release builds have no such places.
#[cfg(not(debug_assertions))]
pub(crate) const fn test_point(_place: &str) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containments_nest_and_end_with_a_panic() {
        let inner = || {
            assert_eq!(DEPTH.get(), 1);
            let panicked = contain(|| panic!("on purpose"));
            assert!(panicked.is_err());
            assert_eq!(DEPTH.get(), 1, "the inner containment has ended");
            7
        };
        assert_eq!(contain(inner).unwrap(), 7);
        assert_eq!(DEPTH.get(), 0);
    }

    #[tokio::test]
    async fn panic_of_other_work_is_passed_on_and_caught() {
        let work = async { contain(|| panic!("on purpose")).unwrap_or_else(|panicked| pass_on(panicked)) };
        assert!(caught(work).await.is_err());
        assert_eq!(caught(async { 7 }).await.unwrap(), 7);
        assert_eq!(DEPTH.get(), 0);
    }

    #[tokio::test]
    async fn contained_task_is_contained_only_while_it_runs() {
        let task = contained(async {
            assert_eq!(DEPTH.get(), 1);
            tokio::task::yield_now().await;
            DEPTH.get()
        });
        let (depth, between) = tokio::join!(task, async { DEPTH.get() });
        assert_eq!((depth, between), (1, 0));
        let panicked = tokio::spawn(contained(async { panic!("on purpose") })).await;
        assert!(panicked.unwrap_err().is_panic());
        assert_eq!(DEPTH.get(), 0);
    }
}
