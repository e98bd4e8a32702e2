//! The log: lines for standard error, written by a separate thread.
//!
//! Owns the buffer between the threads that log and standard error. Logging never blocks, fails or
//! panics. Lines that find the buffer full, and lines that standard error refuses, are dropped and
//! counted.
//!
//! `tracing-appender` was not used: its buffer is bounded in lines only, it does not count failed
//! writes, and its guard prints to standard output at the end, which can panic or block.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::panic::PanicHookInfo;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use prometheus::IntCounter;

use crate::config::{Config, LogFormat};
use crate::limits;
use crate::panics::{self, PanicEffect};

/// Target of lines that every configured level logs, also `off`.
pub(super) const NOTICE: &str = "balto::notice";
/// Time limit of the last lines at the end of the process.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// Pause before the next write to a standard error that is not ready and does not block.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Cheap handle.
#[derive(Clone)]
pub(super) struct LogSink(Arc<LogBuffer>);

impl LogSink {
    /// Starts the thread and makes this the log of the whole process.
    ///
    /// # Errors
    /// When the configured level is invalid, or the thread cannot be started.
    pub(super) fn start(config: &Config, dropped: IntCounter) -> anyhow::Result<Self> {
        let buffer = Arc::new(LogBuffer::new(dropped));
        subscribe(config, buffer.clone())?;
        // A separate descriptor: a write that hangs must not hold the lock of the standard
        // library's handle.
        let stderr =
            File::from(io::stderr().as_fd().try_clone_to_owned().context("cannot share standard error")?);
        let written = buffer.clone();
        std::thread::Builder::new()
            .name("balto-log".to_owned())
            .spawn(move || write_lines(&written, stderr, report_dropped))
            .context("cannot start the log's thread")?;
        Ok(Self(buffer))
    }

    /// Adds text as it is.
    pub(super) fn text(&self, text: &str) {
        self.0.push(text.as_bytes());
    }

    /// Waits until every line is written or dropped, at most [`FLUSH_MAX`]. The thread is never
    /// joined, because a write may hang forever.
    pub(super) fn flush(&self) {
        self.0.wait_until_written(FLUSH_MAX);
    }

    /// Ends the process with `code` on a fatal panic.
    pub(super) fn end_process_on_panic(&self, code: u8) {
        let log = self.clone();
        panics::end_process_on_panic(code, move |panic, effect| {
            report_panic(panic, effect);
            if effect == PanicEffect::Fatal {
                log.flush();
            }
        });
    }
}

fn subscribe(config: &Config, buffer: Arc<LogBuffer>) -> anyhow::Result<()> {
    let terminal = io::stderr().is_terminal();
    let json = match config.log.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let directives = match config.log.level.as_str() {
        // Libraries log every connection and page at these levels, which would hide the lines of
        // attempts.
        level @ ("debug" | "trace") => format!("info,balto={level}"),
        other => other.to_owned(),
    };
    let filter = tracing_subscriber::EnvFilter::try_new(directives)?;
    let filter = filter.add_directive(format!("{NOTICE}=info").parse()?);
    // It logs whole messages, with the content of events; the courier reports what matters.
    let filter = filter.add_directive("lapin=off".parse()?);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(buffer).with_ansi(terminal);
    let done = if json { builder.json().flatten_event(true).try_init() } else { builder.try_init() };
    done.map_err(|error| anyhow::anyhow!("logging: {error}"))
}

/// Pending lines.
struct LogBuffer {
    pending: Mutex<PendingLines>,
    /// Signals a new line.
    added: Condvar,
    /// Signals that all lines are written or dropped.
    emptied: Condvar,
    dropped: IntCounter,
}

#[derive(Default)]
struct PendingLines {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    is_writing: bool,
}

impl LogBuffer {
    fn new(dropped: IntCounter) -> Self {
        Self { pending: Mutex::default(), added: Condvar::new(), emptied: Condvar::new(), dropped }
    }

    /// Never waits for standard error.
    fn push(&self, line: &[u8]) {
        let line: Box<[u8]> = line.into();
        let mut pending = self.lock();
        if pending.bytes + line.len() > limits::LOG_BYTES_MAX {
            drop(pending);
            return self.dropped.inc();
        }
        pending.bytes += line.len();
        pending.lines.push_back(line);
        drop(pending);
        self.added.notify_one();
    }

    /// Waits for the next line, which is then being written.
    fn next(&self) -> Box<[u8]> {
        let mut pending = self.lock();
        loop {
            if let Some(line) = pending.lines.pop_front() {
                pending.bytes -= line.len();
                pending.is_writing = true;
                return line;
            }
            pending = self.added.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn is_empty(&self) -> bool {
        self.lock().lines.is_empty()
    }

    /// Reports that the line of [`Self::next`] is written or dropped.
    fn end_write(&self) {
        let mut pending = self.lock();
        pending.is_writing = false;
        if pending.lines.is_empty() {
            self.emptied.notify_all();
        }
    }

    fn wait_until_written(&self, limit: Duration) {
        let waits = |pending: &mut PendingLines| pending.is_writing || !pending.lines.is_empty();
        drop(self.emptied.wait_timeout_while(self.lock(), limit, waits));
    }

    fn lock(&self) -> MutexGuard<'_, PendingLines> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The subscriber writes complete lines. It would print an error to standard error, so this never
/// returns one.
impl Write for &LogBuffer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The loop of the log's thread. When a write succeeds and no line is pending, it calls `report`
/// with the number of lines dropped since the last report, and in total.
fn write_lines(buffer: &LogBuffer, output: impl Write, report: impl Fn(u64, u64)) {
    let mut writer = WholeLineWriter { output, is_torn: false };
    let mut reported = 0;
    loop {
        let line = buffer.next();
        panics::test_point("log");
        let written = writer.write(&line);
        if written.is_err() {
            buffer.dropped.inc();
        }
        let dropped = buffer.dropped.get();
        if written.is_ok() && dropped > reported && buffer.is_empty() {
            report(dropped - reported, dropped);
            reported = dropped;
        }
        buffer.end_write();
    }
}

struct WholeLineWriter<W> {
    output: W,
    /// The last line was written in part.
    is_torn: bool,
}

impl<W: Write> WholeLineWriter<W> {
    /// The line after a torn line begins on a new line.
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_torn { self.write_bytes(&[b"\n", line].concat()) } else { self.write_bytes(line) }
    }

    fn write_bytes(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.output.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    self.is_torn = !bytes.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Another process has set the shared pipe or terminal to non-blocking.
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(RETRY_PAUSE),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn report_dropped(lines: u64, total: u64) {
    tracing::warn!(target: NOTICE, lines, total, "log lines dropped: standard error did not take them");
}

fn report_panic(panic: &PanicHookInfo<'_>, effect: PanicEffect) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let location = panic.location().map(tracing::field::display);
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let reason = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
    // Only with RUST_BACKTRACE.
    let backtrace = std::backtrace::Backtrace::capture();
    let backtrace = (backtrace.status() == std::backtrace::BacktraceStatus::Captured)
        .then(|| tracing::field::display(backtrace));
    match effect {
        PanicEffect::Contained => {
            tracing::error!(target: NOTICE, thread, location, reason, backtrace, "internal error, request, attempt or task aborted");
        }
        PanicEffect::Fatal => {
            tracing::error!(target: NOTICE, thread, location, reason, backtrace, "internal error, process ends");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Instant;

    use super::*;

    fn buffer() -> Arc<LogBuffer> {
        Arc::new(LogBuffer::new(IntCounter::new("dropped", "Lines.").unwrap()))
    }

    /// An output whose writes the test answers.
    struct ScriptedOutput {
        answers: Receiver<io::Result<usize>>,
        writes: Sender<Vec<u8>>,
    }

    impl Write for ScriptedOutput {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = self.answers.recv().map_err(|_| ErrorKind::BrokenPipe)?;
            let taken = taken.map(|most| most.min(bytes.len()));
            self.writes.send(bytes[..*taken.as_ref().unwrap_or(&0)].to_vec()).unwrap();
            taken
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The log's thread with a scripted output, and its reports.
    struct Bench {
        buffer: Arc<LogBuffer>,
        answers: Sender<io::Result<usize>>,
        writes: Receiver<Vec<u8>>,
        reports: Receiver<(u64, u64)>,
    }

    impl Bench {
        fn new() -> Self {
            let buffer = buffer();
            let (answers, told) = channel();
            let (heard, writes) = channel();
            let (report, reports) = channel();
            let written = buffer.clone();
            std::thread::spawn(move || {
                let output = ScriptedOutput { answers: told, writes: heard };
                write_lines(&written, output, |lines, total| report.send((lines, total)).unwrap());
            });
            Self { buffer, answers, writes, reports }
        }

        fn answer(&self, answer: io::Result<usize>) -> String {
            self.answers.send(answer).unwrap();
            String::from_utf8(self.writes.recv().unwrap()).unwrap()
        }
    }

    const ALL: io::Result<usize> = Ok(usize::MAX);

    #[test]
    fn full_buffer_drops_lines_and_recovery_reports_them() {
        let bench = Bench::new();
        let line = [b'x'; 1_000];
        let mut pushed = 0;
        while bench.buffer.dropped.get() < 7 {
            bench.buffer.push(&line);
            pushed += 1;
        }
        let kept = pushed - 7;
        assert!(kept * line.len() <= limits::LOG_BYTES_MAX + line.len(), "one line is with the writer");
        for _ in 0..kept {
            assert!(bench.reports.try_recv().is_err(), "reported while lines wait");
            assert_eq!(bench.answer(ALL).len(), line.len());
        }
        assert_eq!(bench.reports.recv().unwrap(), (7, 7));
        bench.buffer.push(b"next\n");
        assert_eq!(bench.answer(ALL), "next\n");
        bench.buffer.wait_until_written(Duration::from_secs(60));
        assert!(bench.reports.try_recv().is_err(), "reported twice");
    }

    #[test]
    fn refused_line_is_counted_and_a_torn_line_is_ended() {
        let bench = Bench::new();
        for line in ["first\n", "second\n", "third\n", "fourth\n"] {
            bench.buffer.push(line.as_bytes());
        }
        assert_eq!(bench.answer(Err(ErrorKind::BrokenPipe.into())), "");
        assert_eq!(bench.answer(Ok(3)), "sec");
        assert_eq!(bench.answer(Err(ErrorKind::StorageFull.into())), "");
        assert_eq!(bench.answer(Err(ErrorKind::Interrupted.into())), "");
        assert_eq!(bench.answer(Err(ErrorKind::WouldBlock.into())), "");
        assert_eq!(bench.answer(ALL), "\nthird\n");
        assert_eq!(bench.answer(ALL), "fourth\n");
        assert_eq!(bench.reports.recv().unwrap(), (2, 2));
    }

    #[test]
    fn flush_waits_for_the_last_line_but_not_for_a_stalled_output() {
        let bench = Bench::new();
        bench.buffer.push(b"stalled\n");
        let since = Instant::now();
        bench.buffer.wait_until_written(Duration::from_millis(50));
        assert!(since.elapsed() >= Duration::from_millis(50), "it did not wait");
        bench.answers.send(ALL).unwrap();
        bench.buffer.wait_until_written(Duration::from_secs(60));
        assert_eq!(bench.writes.try_recv().unwrap(), b"stalled\n", "it ended before the line was written");
    }
}
