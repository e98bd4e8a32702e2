//! Panic handling: a panic ends the process unless it is contained.
//!
//! By default a thread or task is essential, and its panic ends the process at once. Otherwise a
//! daemon without one of its parts would look alive and do nothing. Work for one request or one
//! attempt runs in [`contained`] or [`contain`]; its panic fails only that request or attempt. A
//! background task runs in [`caught`] and begins again after its panic. Any layer may contain its
//! work. Only the daemon installs the hook.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;

thread_local! {
    /// Number of nested containments on this thread.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// A panic is unwinding to the innermost containment. A second panic would make the standard
    /// library abort the process. Its abort message can block on a stalled standard error.
    static IS_UNWINDING: Cell<bool> = const { Cell::new(false) };
}

/// A containment of the current thread, until dropped.
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

/// A caught panic. The hook has reported it.
#[derive(Debug)]
pub(crate) struct Panicked;

/// Runs `work` and catches its panic.
pub(crate) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    let _containment = Containment::enter();
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| Panicked)
}

/// A future whose panic does not end the process.
pub(crate) struct Contained<F>(Pin<Box<F>>);

/// Contains a task. The task is boxed because the runtime moves it several times.
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

/// Runs a task whose panic ends only the task, and reports the panic to the caller.
pub(crate) async fn caught<F: Future>(task: F) -> Result<F::Output, Panicked> {
    AssertUnwindSafe(contained(task)).catch_unwind().await.map_err(|_| Panicked)
}

/// Continues the panic of work on another thread in the task that waits for it. The hook has
/// reported it.
pub(crate) fn pass_on(panicked: Panicked) -> ! {
    resume_unwind(Box::new(panicked))
}

/// Consequence of a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PanicEffect {
    /// Only the panicking work ends.
    Contained,
    /// The process ends.
    Fatal,
}

/// Installs the panic hook: it calls `report` with each panic, then ends the process with `code` if
/// the panic is fatal. `report` must neither block nor panic. The exit does not wait for other
/// threads.
pub(crate) fn end_process_on_panic(
    code: u8,
    report: impl Fn(&PanicHookInfo<'_>, PanicEffect) + Send + Sync + 'static,
) {
    std::panic::set_hook(Box::new(move |panic| {
        if DEPTH.get() > 0 && !IS_UNWINDING.replace(true) {
            return report(panic, PanicEffect::Contained);
        }
        report(panic, PanicEffect::Fatal);
        std::process::exit(i32::from(code));
    }));
}

/// Panics if the environment variable `BALTO_TEST_PANIC` names this point. Tests use it to trigger
/// a panic.
#[cfg(debug_assertions)]
pub(crate) fn test_point(name: &str) {
    if std::env::var_os("BALTO_TEST_PANIC").is_some_and(|named| named == name) {
        panic!("BALTO_TEST_PANIC names {name}");
    }
}

/// Release builds have no test points.
#[cfg(not(debug_assertions))]
pub(crate) const fn test_point(_name: &str) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_containment_ends_with_its_panic() {
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
    async fn containment_of_a_task_is_active_only_while_polled() {
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
