//! A disk in memory that can lose power and fail on demand.
//!
//! Owns: for each file the bytes as written and the bytes as synced, and the same for the directory's names. A crash
//! leaves what was synced plus a random, possibly after_crash part of the rest; of the unsynced changes of names it keeps any
//! subset, because not every file system keeps their order. SplitMix64 comes from the seed alone.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile};

/// Unit in which a power cut tears a write.
const SECTOR_BYTES: usize = 512;

/// What a [`Fault`] strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Write,
    SyncData,
    Read,
    List,
    Open,
    Truncate,
    Create,
    Rename,
    Remove,
    SyncDir,
    /// Something that is written elsewhere, on the same power supply.
    External,
}

/// An error to come: `skip` operations of the kind succeed, the next `count` fail with `errno`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub operation: Operation,
    pub errno: i32,
    pub skip: u64,
    pub count: u64,
}

impl Fault {
    pub const EIO: i32 = 5;
    pub const ENOSPC: i32 = 28;

    /// The next operation of the kind fails, once.
    #[must_use]
    pub fn once(operation: Operation, errno: i32) -> Self {
        Self { operation, errno, skip: 0, count: 1 }
    }
}

#[derive(Clone, Default)]
struct FileImage {
    written: Vec<u8>,
    durable: Vec<u8>,
    /// Where the two may differ.
    unsynced: Range<usize>,
    /// A sync has failed: as on Linux, the pages count as clean, and later syncs succeed without writing them.
    sync_lies: bool,
}

impl FileImage {
    /// A file that is on disk as it was written.
    fn synced(bytes: Vec<u8>) -> Self {
        Self { durable: bytes.clone(), written: bytes, ..Self::default() }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.written.len(), "nothing is written behind the end");
        let inside = bytes.len().min(self.written.len() - offset);
        self.written[offset..offset + inside].copy_from_slice(&bytes[..inside]);
        self.written.extend_from_slice(&bytes[inside..]);
        self.changed(offset..offset + bytes.len());
    }

    fn truncate(&mut self, length: usize) {
        let before = self.written.len();
        self.written.resize(length, 0);
        self.changed(length.min(before)..length.max(before));
    }

    fn changed(&mut self, bytes: Range<usize>) {
        if self.unsynced.is_empty() {
            self.unsynced = bytes;
        } else {
            self.unsynced = self.unsynced.start.min(bytes.start)..self.unsynced.end.max(bytes.end);
        }
    }

    fn sync(&mut self) {
        // Only what has changed: copying the whole image each time would make long simulations quadratic.
        let Range { start, end } = std::mem::take(&mut self.unsynced);
        self.durable.resize(self.written.len(), 0);
        let end = end.min(self.written.len());
        if start < end {
            self.durable[start..end].copy_from_slice(&self.written[start..end]);
        }
    }

    /// What a power cut leaves: the synced part, and of what was written since all or a random length, of which some
    /// sectors never arrived.
    fn after_crash(&self, random: &mut SplitMix64) -> Vec<u8> {
        let Self { written, durable, unsynced, .. } = self;
        if written.len() < durable.len() {
            // The truncation (or what was written after it) may or may not have reached the disk.
            return if random.below(2) == 0 { durable.clone() } else { written.clone() };
        }
        let most = unsynced.end.min(written.len()).saturating_sub(unsynced.start);
        let arrived = if random.below(3) == 0 { most } else { random.below(most + 1) };
        let arrived = unsynced.start + arrived;
        let mut bytes = durable.clone();
        bytes.resize(arrived.max(durable.len()), 0);
        bytes[unsynced.start..arrived].copy_from_slice(&written[unsynced.start..arrived]);
        if random.below(2) == 0 {
            let mut at = unsynced.start;
            while at < arrived {
                let next = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(arrived);
                match random.below(4) {
                    0 => {
                        let before = durable.iter().skip(at).copied().chain(std::iter::repeat(0));
                        bytes[at..next].iter_mut().zip(before).for_each(|(byte, before)| *byte = before);
                    }
                    1 => bytes[at..next].iter_mut().for_each(|byte| *byte = random.next() as u8),
                    _ => {}
                }
                at = next;
            }
        }
        bytes
    }
}

type SharedImage = Arc<Mutex<FileImage>>;

enum NameChange {
    Create(String, SharedImage),
    /// With the file that it moves: it takes effect whether the file's creation did or not.
    Rename(String, String, SharedImage),
    Remove(String),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, SharedImage>) {
        match self {
            Self::Create(name, image) => {
                names.insert(name.clone(), Arc::clone(image));
            }
            Self::Rename(from, to, image) => {
                names.remove(from);
                names.insert(to.clone(), Arc::clone(image));
            }
            Self::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

#[derive(Default)]
struct MemoryDirectory {
    names: BTreeMap<String, SharedImage>,
    names_durable: BTreeMap<String, SharedImage>,
    /// Changes since the last directory sync, in order.
    changes: Vec<NameChange>,
    faults: Vec<Fault>,
    bytes_max: Option<u64>,
    syncs: u64,
    faults_hit: u64,
    /// Operations until the power fails, and the seed of what is left then.
    cut: Option<(u64, u64)>,
    /// What the power cut left: nothing reaches this disk any more.
    after_power_cut: Option<MemoryDisk>,
}

impl MemoryDirectory {
    fn check(&mut self, operation: Operation) -> io::Result<()> {
        match &mut self.cut {
            None => {}
            Some((0, seed)) => {
                let seed = *seed;
                if self.after_power_cut.is_none() {
                    self.after_power_cut = Some(self.crash(seed));
                }
                return Err(io::Error::from_raw_os_error(Fault::EIO));
            }
            Some((operations, _)) => *operations -= 1,
        }
        for fault in self.faults.iter_mut().filter(|fault| fault.operation == operation && fault.count > 0) {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else {
                fault.count -= 1;
                self.faults_hit += 1;
                return Err(io::Error::from_raw_os_error(fault.errno));
            }
        }
        Ok(())
    }

    fn crash(&self, seed: u64) -> MemoryDisk {
        let mut random = SplitMix64(seed);
        let mut names = self.names_durable.clone();
        for change in &self.changes {
            if random.below(2) == 0 {
                change.apply(&mut names);
            }
        }
        let after = |image: &SharedImage, random: &mut SplitMix64| {
            let left = lock(image).after_crash(random);
            Arc::new(Mutex::new(FileImage::synced(left)))
        };
        let names: BTreeMap<_, _> =
            names.iter().map(|(name, image)| (name.clone(), after(image, &mut random))).collect();
        let directory = Self { names_durable: names.clone(), names, ..Self::default() };
        MemoryDisk { directory: Arc::new(Mutex::new(directory)) }
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    fn find(&self, name: &str) -> io::Result<SharedImage> {
        self.names.get(name).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn bytes_used(&self) -> u64 {
        self.names.values().map(|image| lock(image).written.len() as u64).sum()
    }
}

/// See the module.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    directory: Arc<Mutex<MemoryDirectory>>,
}

impl MemoryDisk {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cuts the power. The result is the disk after the restart; handles of this one do not reach it.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        lock(&self.directory).crash(seed)
    }

    /// The power fails at the operation that comes after so many others: it and all later ones fail, and what is left is
    /// in [`Self::after_power_cut`].
    pub fn cut_power_after(&self, operations: u64, seed: u64) {
        lock(&self.directory).cut = Some((operations, seed));
    }

    /// The disk after the restart, once the power has failed.
    #[must_use]
    pub fn disk_after_power_cut(&self) -> Option<Self> {
        lock(&self.directory).after_power_cut.clone()
    }

    /// Counts a write elsewhere as an operation.
    ///
    /// # Errors
    /// When the power fails, or has failed.
    pub fn external_operation(&self) -> io::Result<()> {
        lock(&self.directory).check(Operation::External)
    }

    pub fn inject(&self, fault: Fault) {
        lock(&self.directory).faults.push(fault);
    }

    pub fn clear_faults(&self) {
        lock(&self.directory).faults.clear();
    }

    /// Bounds the bytes of all files together; a write beyond it is cut short and fails with ENOSPC.
    pub fn set_bytes_max(&self, bytes_max: Option<u64>) {
        lock(&self.directory).bytes_max = bytes_max;
    }

    /// How many times file data was synced with success.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        lock(&self.directory).syncs
    }

    /// How many operations an injected fault has faults_hit.
    #[must_use]
    pub fn faults_hit(&self) -> u64 {
        lock(&self.directory).faults_hit
    }

    #[must_use]
    pub fn bytes_used(&self) -> u64 {
        lock(&self.directory).bytes_used()
    }

    /// The bytes of a file as written.
    #[must_use]
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        lock(&self.directory).names.get(name).map(|image| lock(image).written.clone())
    }

    /// Puts a file there, durably: for tests that damage one.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let image = Arc::new(Mutex::new(FileImage::synced(bytes.to_vec())));
        let mut directory = lock(&self.directory);
        directory.names.insert(name.to_owned(), Arc::clone(&image));
        directory.names_durable.insert(name.to_owned(), image);
    }

    fn file(&self, image: SharedImage) -> Arc<dyn DiskFile> {
        Arc::new(MemoryFile { image, directory: Arc::clone(&self.directory) })
    }
}

impl Disk for MemoryDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut directory = lock(&self.directory);
        directory.check(Operation::List)?;
        Ok(directory.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut directory = lock(&self.directory);
        directory.check(Operation::Create)?;
        if directory.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let image = SharedImage::default();
        directory.change(NameChange::Create(name.to_owned(), Arc::clone(&image)));
        Ok(self.file(image))
    }

    fn open_write(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.open_read(name)
    }

    fn open_read(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut directory = lock(&self.directory);
        directory.check(Operation::Open)?;
        let image = directory.find(name)?;
        Ok(self.file(image))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut directory = lock(&self.directory);
        directory.check(Operation::Rename)?;
        let image = directory.find(from)?;
        directory.change(NameChange::Rename(from.to_owned(), to.to_owned(), image));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut directory = lock(&self.directory);
        directory.check(Operation::Remove)?;
        directory.find(name)?;
        directory.change(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut directory = lock(&self.directory);
        directory.check(Operation::SyncDir)?;
        directory.names_durable = directory.names.clone();
        directory.changes.clear();
        Ok(())
    }
}

struct MemoryFile {
    image: SharedImage,
    directory: Arc<Mutex<MemoryDirectory>>,
}

impl DiskFile for MemoryFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // Lock order everywhere: directory, then image.
        let mut directory = lock(&self.directory);
        if let Err(error) = directory.check(Operation::Write) {
            // Part of a failed write may well have arrived.
            lock(&self.image).write(offset, &bytes[..bytes.len() / 2]);
            return Err(error);
        }
        let room = directory.bytes_max.map_or(u64::MAX, |most| most.saturating_sub(directory.bytes_used()));
        let mut image = lock(&self.image);
        let grown = (offset + bytes.len()).saturating_sub(image.written.len());
        let refused = grown.saturating_sub(usize::try_from(room).unwrap_or(usize::MAX));
        image.write(offset, &bytes[..bytes.len() - refused]);
        if refused == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(Fault::ENOSPC)) }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut directory = lock(&self.directory);
        let checked = directory.check(Operation::SyncData);
        let mut image = lock(&self.image);
        if let Err(error) = checked {
            image.sync_lies = true;
            return Err(error);
        }
        directory.syncs += 1;
        if !image.sync_lies {
            image.sync();
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        lock(&self.directory).check(Operation::Read)?;
        let image = lock(&self.image);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(image.written.len());
        let count = buffer.len().min(image.written.len() - start);
        buffer[..count].copy_from_slice(&image.written[start..start + count]);
        Ok(count)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.image).written.len() as u64)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        lock(&self.directory).check(Operation::Truncate)?;
        let length = usize::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        lock(&self.image).truncate(length);
        Ok(())
    }
}

/// A panic of another thread does not make these maps inconsistent: every change is a single step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// SplitMix64.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_survives_every_crash_and_the_rest_may_not() {
        let disk = MemoryDisk::new();
        let file = disk.create("a").unwrap();
        disk.sync_dir().unwrap();
        file.write_at(0, b"durable").unwrap();
        file.sync_data().unwrap();
        file.write_at(7, &[7; 2_000]).unwrap();
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let after = disk.crash(seed).contents("a").unwrap();
            assert!(after.starts_with(b"durable"), "seed {seed}");
            lengths.insert(after.len());
        }
        assert!(lengths.len() > 10);
    }

    #[test]
    fn of_what_is_overwritten_a_crash_leaves_the_old_or_the_new_and_nothing_moves() {
        let disk = MemoryDisk::new();
        let file = disk.create("a").unwrap();
        disk.sync_dir().unwrap();
        file.write_at(0, &[1; 4_000]).unwrap();
        file.sync_data().unwrap();
        file.write_at(1_000, &[2; 2_000]).unwrap();
        let mut kept = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let after = disk.crash(seed).contents("a").unwrap();
            assert_eq!(after.len(), 4_000, "seed {seed}");
            let untouched = after[..1_000].iter().chain(&after[3_000..]).all(|byte| *byte == 1);
            assert!(untouched, "seed {seed}");
            kept.insert(after.iter().filter(|byte| **byte == 1).count());
        }
        assert!(kept.len() > 10 && kept.contains(&2_000), "{kept:?}");
    }

    #[test]
    fn crash_keeps_any_subset_of_unsynced_names() {
        let disk = MemoryDisk::new();
        disk.put("old", b"old");
        let file = disk.create("new").unwrap();
        file.write_at(0, b"new").unwrap();
        file.sync_data().unwrap();
        disk.rename("new", "renamed").unwrap();
        disk.remove("old").unwrap();
        let left = |disk: &MemoryDisk| (0..100).map(|seed| disk.crash(seed).list().unwrap()).collect();
        let subsets: std::collections::BTreeSet<Vec<String>> = left(&disk);
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let possible: [&[&str]; 6] =
            [&[], &["new"], &["renamed"], &["old"], &["new", "old"], &["old", "renamed"]];
        assert_eq!(subsets, possible.into_iter().map(names).collect());
        disk.sync_dir().unwrap();
        let subsets: std::collections::BTreeSet<Vec<String>> = left(&disk);
        assert_eq!(subsets, [names(&["renamed"])].into_iter().collect());
        assert_eq!(disk.crash(1).contents("renamed").unwrap(), b"new");
    }

    #[test]
    fn a_sync_that_failed_is_not_made_good_by_the_next() {
        let disk = MemoryDisk::new();
        let file = disk.create("a").unwrap();
        disk.sync_dir().unwrap();
        disk.inject(Fault::once(Operation::SyncData, Fault::EIO));
        file.write_at(0, b"x").unwrap();
        assert!(file.sync_data().is_err());
        assert!(file.sync_data().is_ok());
        assert!((0..50).any(|seed| disk.crash(seed).contents("a").unwrap() != b"x"));
    }
}
