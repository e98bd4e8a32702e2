//! An in-memory disk with simulated power cuts and injected faults.
//!
//! Owns the written and the synced bytes of each file, and the written and the synced names of the
//! directory. A crash keeps the synced bytes and a random, possibly torn part of the unsynced ones.
//! It keeps any subset of the unsynced name changes, because some file systems do not keep their
//! order. All randomness comes from the seed.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile, DiskSpace};

/// Unit of a torn write.
const SECTOR_BYTES: usize = 512;

/// The operation that a [`Fault`] affects.
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
    /// A write outside this disk, on the same power supply.
    External,
}

/// An injected error: `skip` operations of this kind succeed, then `count` operations fail with
/// `errno`.
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

    /// Makes the next operation of this kind fail, once.
    #[must_use]
    pub fn once(operation: Operation, errno: i32) -> Self {
        Self { operation, errno, skip: 0, count: 1 }
    }
}

#[derive(Clone, Default)]
struct FileImage {
    written: Vec<u8>,
    durable: Vec<u8>,
    /// Range in which the written and the durable bytes may differ.
    unsynced: Range<usize>,
    /// Set after a failed sync. As on Linux, the pages then count as clean, and later syncs succeed
    /// without writing them.
    sync_lies: bool,
}

impl FileImage {
    /// A fully synced file.
    fn synced(bytes: Vec<u8>) -> Self {
        Self { durable: bytes.clone(), written: bytes, ..Self::default() }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.written.len(), "writes beyond the end are invalid");
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
        // Copies only the changed range: copying the whole file at each sync would make long
        // simulations quadratic.
        let Range { start, end } = std::mem::take(&mut self.unsynced);
        self.durable.resize(self.written.len(), 0);
        let end = end.min(self.written.len());
        if start < end {
            self.durable[start..end].copy_from_slice(&self.written[start..end]);
        }
    }

    /// Returns the bytes after a power cut: the synced bytes and a random prefix of the unsynced
    /// ones. Some sectors of that prefix may be missing or corrupt.
    fn after_crash(&self, random: &mut SplitMix64) -> Vec<u8> {
        let Self { written, durable, unsynced, .. } = self;
        if written.len() < durable.len() {
            // The truncation, and the writes after it, may not have reached the disk.
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
    /// Old name, new name and file. The rename can survive a crash even if the file's creation does
    /// not.
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
    space: Option<DiskSpace>,
    syncs: u64,
    faults_hit: u64,
    /// Operations until the power cut, and the seed of the surviving bytes.
    cut: Option<(u64, u64)>,
    /// The disk after the power cut. All later operations on this disk fail.
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

/// An in-memory disk. Clones share their files. See the module.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    directory: Arc<Mutex<MemoryDirectory>>,
}

impl MemoryDisk {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Simulates a power cut and returns the disk after the restart. Open handles keep using the
    /// old disk.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        lock(&self.directory).crash(seed)
    }

    /// Schedules a power cut after this number of operations. The next operation and all later ones
    /// fail. [`Self::disk_after_power_cut`] returns the surviving disk.
    pub fn cut_power_after(&self, operations: u64, seed: u64) {
        lock(&self.directory).cut = Some((operations, seed));
    }

    /// Returns the disk after a scheduled power cut, or `None` before it.
    #[must_use]
    pub fn disk_after_power_cut(&self) -> Option<Self> {
        lock(&self.directory).after_power_cut.clone()
    }

    /// Sets what [`Disk::space`] returns.
    pub fn set_space(&self, space: DiskSpace) {
        lock(&self.directory).space = Some(space);
    }

    /// Counts an operation outside this disk.
    ///
    /// # Errors
    /// During and after a power cut.
    pub fn external_operation(&self) -> io::Result<()> {
        lock(&self.directory).check(Operation::External)
    }

    pub fn inject(&self, fault: Fault) {
        lock(&self.directory).faults.push(fault);
    }

    pub fn clear_faults(&self) {
        lock(&self.directory).faults.clear();
    }

    /// Limits the total bytes of all files. A write beyond the limit is truncated and fails with
    /// ENOSPC.
    pub fn set_bytes_max(&self, bytes_max: Option<u64>) {
        lock(&self.directory).bytes_max = bytes_max;
    }

    /// Number of successful file syncs.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        lock(&self.directory).syncs
    }

    /// Number of operations that failed with an injected fault.
    #[must_use]
    pub fn faults_hit(&self) -> u64 {
        lock(&self.directory).faults_hit
    }

    #[must_use]
    pub fn bytes_used(&self) -> u64 {
        lock(&self.directory).bytes_used()
    }

    /// Returns the written bytes of a file.
    #[must_use]
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        lock(&self.directory).names.get(name).map(|image| lock(image).written.clone())
    }

    /// Creates or replaces a file, durably. Tests use it to damage a file.
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
    fn space(&self) -> Option<DiskSpace> {
        lock(&self.directory).space
    }

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
            // A failed write may have written a part of its bytes.
            lock(&self.image).write(offset, &bytes[..bytes.len() / 2]);
            return Err(error);
        }
        let free_bytes =
            directory.bytes_max.map_or(u64::MAX, |most| most.saturating_sub(directory.bytes_used()));
        let mut image = lock(&self.image);
        let grown = (offset + bytes.len()).saturating_sub(image.written.len());
        let rejected = grown.saturating_sub(usize::try_from(free_bytes).unwrap_or(usize::MAX));
        image.write(offset, &bytes[..bytes.len() - rejected]);
        if rejected == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(Fault::ENOSPC)) }
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

/// A panic of another thread leaves the maps consistent, because each change is a single step.
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
    fn synced_bytes_survive_every_crash() {
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
    fn crash_leaves_old_or_new_bytes_of_an_overwrite() {
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
    fn failed_sync_is_not_repaired_by_the_next() {
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
