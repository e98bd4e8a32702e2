//! Commits per second of the journal on a real file system, by batch size. `cargo bench --bench
//! commit`; the directory is a fresh one in `TMPDIR` (by default `/tmp`): set it to measure another
//! disk.
#![expect(clippy::print_stdout, reason = "a benchmark's result is its output")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use balto::domain::{Event, Record, Timestamp};
use balto::storage::disk::RealDisk;
use balto::storage::journal::{Journal, JournalOptions};
use bytes::Bytes;

const EVENT_BYTES: usize = 700;
const RUN: Duration = Duration::from_secs(3);

fn event() -> anyhow::Result<Record> {
    let event = Event {
        id: "evt_01ARZ3NDEKTSV4RRFFQ69G5FAV".parse()?,
        tenant: "default".parse()?,
        event_type: "order.paid".parse()?,
        version: "1.0".parse()?,
        timestamp: Timestamp::from_millis(1),
        accepted_at: Timestamp::from_millis(1),
        erased_at: None,
        stream: None,
        ordering_key: None,
        deliver_at: None,
        labels: Vec::new(),
        metadata: None,
        attributes: Vec::new(),
        data: Bytes::from(vec![b'7'; EVENT_BYTES]),
        targets: vec![balto::domain::EndpointNumber(1)],
        idempotency: Vec::new(),
    };
    Ok(Record::EventAccepted(Arc::new(event)))
}

fn main() -> anyhow::Result<()> {
    println!("| events per commit | events/s | fsyncs/s | p50 ms | p99 ms |\n|---|---|---|---|---|");
    for batch in [1, 16, 64, 256] {
        let directory = tempfile::tempdir()?;
        let disk = Arc::new(RealDisk::new(directory.path())?);
        let (mut journal, _) = Journal::open(disk, JournalOptions::new(1))?;
        let record = event()?;
        let mut times = Vec::new();
        let start = Instant::now();
        while start.elapsed() < RUN {
            let commit = Instant::now();
            let units: Vec<_> = (0..batch).map(|_| std::slice::from_ref(&record)).collect();
            let now = Timestamp::from_millis(start.elapsed().as_millis() as u64);
            journal.append(now, &units)?;
            times.push(commit.elapsed());
        }
        let seconds = start.elapsed().as_secs_f64();
        let commits = times.len();
        times.sort_unstable();
        let millis = |part: usize| times[commits * part / 100].as_secs_f64() * 1e3;
        let rate = commits as f64 / seconds;
        println!(
            "| {batch} | {:.0} | {rate:.0} | {:.2} | {:.2} |",
            rate * f64::from(batch),
            millis(50),
            millis(99)
        );
    }
    Ok(())
}
