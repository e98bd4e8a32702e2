//! Every parser of external bytes, with almost valid input: no panic, no hang, and a valid result.
//!
//! Mutations come from a printed seed: `BALTO_TEST_SEED` repeats a run. `BALTO_TEST_ROUNDS` sets
//! the inputs per target (default 3,000; targets that use the disk get fewer). `fuzz/` runs the
//! same targets guided by coverage.

#[path = "../../fuzz/parsers/mod.rs"]
mod parsers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::support::{number, say};
use fastrand::Rng;
use parsers::{TARGETS, Target, WORDS};

/// An input that takes longer counts as a hang.
const HANG: Duration = Duration::from_secs(60);
const INPUT_BYTES_MAX: usize = 16 * 1024;

/// The current input and its start time, for the report of a hang.
static CURRENT_INPUT: Mutex<Option<(Instant, String)>> = Mutex::new(None);

fn random_index(random: &mut Rng, bytes: &[u8]) -> usize {
    random.usize(0..=bytes.len())
}

fn mutate(random: &mut Rng, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    let at = random_index(random, bytes);
    let end = bytes.len().min(at + random.usize(0..40));
    match random.u8(0..10) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(0..8),
        1 if at < bytes.len() => bytes[at] = random.u8(..),
        2 if at < bytes.len() => {
            bytes[at] = *random.choice(b"\0\x01\x7f\x80\xff\"\\{}[],:.*#%\n\t ").unwrap()
        }
        3 => drop(bytes.drain(at..end)),
        4 => bytes.truncate(at),
        5 => {
            let word = random.choice(WORDS).unwrap().as_bytes();
            drop(bytes.splice(at..end.min(at + word.len()), word.iter().copied()));
        }
        6 => drop(bytes.splice(at..at, random.choice(WORDS).unwrap().bytes())),
        7 => {
            // Repeats a part of the input.
            let part = bytes[at..end].repeat(random.usize(1..20));
            drop(bytes.splice(at..at, part));
        }
        8 => {
            let other = random.choice(others).unwrap();
            let from = random_index(random, other);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        _ => {
            let number = [0_u64, 1, 0x7f, 0x80, 0xffff, 1 << 31, 1 << 32, u64::MAX / 2, u64::MAX];
            let number = random.choice(number).unwrap().to_le_bytes();
            let width = random.usize(1..=8).min(bytes.len() - at);
            bytes[at..at + width].copy_from_slice(&number[..width]);
        }
    }
    bytes.truncate(INPUT_BYTES_MAX);
}

/// Waits for the thread, and fails when an input hangs. The hanging thread keeps running, so that
/// the other tests of this process continue.
fn watch(feeding: std::thread::JoinHandle<()>) {
    while !feeding.is_finished() {
        std::thread::sleep(Duration::from_millis(20));
        let trying = CURRENT_INPUT.lock().unwrap().clone();
        if let Some((_, what)) = trying.filter(|(since, _)| since.elapsed() > HANG) {
            panic!("HANGS: {what}");
        }
    }
    if let Err(panic) = feeding.join() {
        std::panic::resume_unwind(panic);
    }
}

fn describe(target: &Target, seed: u64, bytes: &[u8]) -> String {
    format!("target {}, BALTO_TEST_SEED={seed}: {:?}", target.name, String::from_utf8_lossy(bytes))
}

fn run_target(target: &Target, rounds: u64) {
    let seed = number("BALTO_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    let mut random = Rng::with_seed(seed);
    let seeds = (target.seeds)();
    let started = Instant::now();
    for round in 0..rounds.max(seeds.len() as u64) {
        // The unchanged seeds come first.
        let mut bytes = match seeds.get(usize::try_from(round).unwrap()) {
            Some(bytes) => bytes.clone(),
            None => random.choice(&seeds).unwrap().clone(),
        };
        if round >= seeds.len() as u64 {
            let most = *random.choice(&[1, 2, 8]).unwrap();
            for _ in 0..random.usize(1..=most) {
                mutate(&mut random, &mut bytes, &seeds);
            }
        }
        *CURRENT_INPUT.lock().unwrap() = Some((Instant::now(), describe(target, seed, &bytes)));
        let ended = catch_unwind(AssertUnwindSafe(|| (target.run)(&bytes)));
        assert!(ended.is_ok(), "{}", describe(target, seed, &bytes));
    }
    *CURRENT_INPUT.lock().unwrap() = None;
    let rounds = rounds.max(seeds.len() as u64);
    say(&format!("{}: {rounds} inputs from seed {seed} in {:.1?}", target.name, started.elapsed()));
}

#[test]
fn parsers_of_external_bytes_return_a_valid_result() {
    let rounds = number("BALTO_TEST_ROUNDS").unwrap_or(3_000);
    watch(std::thread::spawn(move || {
        for target in TARGETS {
            let cost = match target.name {
                "backups" => 20,
                "rows" => 5,
                "journals" => 5,
                _ => 1,
            };
            run_target(target, rounds / cost);
        }
    }));
}

/// Writes the seeds for coverage-guided fuzzing to the directory in `BALTO_FUZZ_SEEDS`.
#[test]
fn seeds_are_written_down() {
    let Some(below) = std::env::var_os("BALTO_FUZZ_SEEDS").map(std::path::PathBuf::from) else { return };
    for target in TARGETS {
        let directory = below.join(target.name);
        std::fs::create_dir_all(&directory).unwrap();
        for (number, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(directory.join(number.to_string()), seed).unwrap();
        }
    }
    let escaped = |word: &str| word.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let words: String = WORDS.iter().map(|word| format!("\"{}\"\n", escaped(word))).collect();
    std::fs::write(below.join("words"), words).unwrap();
}
