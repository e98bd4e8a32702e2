//! File system interface of the journal.
//!
//! Owns a flat directory of files, real or in memory, and knows nothing of their content. A name is
//! a plain file name without a path. A file's bytes are durable after [`DiskFile::sync_data`]
//! returns `Ok`. A creation, rename or removal is durable after [`Disk::sync_dir`] returns `Ok`.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

mod memory;

pub use memory::{Fault, MemoryDisk, Operation};

/// An open file. One owner writes and truncates; any number of threads read at the same time.
pub trait DiskFile: Send + Sync {
    /// Writes all of `bytes` at `offset`, which is at most the file's length. After an error, any
    /// part of the bytes may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Returns when all written bytes are on disk. After an error, the bytes written since the last
    /// success may be lost, even if a later sync succeeds.
    fn sync_data(&self) -> io::Result<()>;
    /// Reads up to `buffer.len()` bytes. Reads fewer only at the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    fn len(&self) -> io::Result<u64>;
    fn truncate(&self, length: u64) -> io::Result<()>;

    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A directory of files.
pub trait Disk: Send + Sync + 'static {
    /// Lists the names of all files, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Creates an empty file. Fails if the name exists.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading and writing.
    fn open_write(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading.
    fn open_read(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file atomically. Replaces `to` if it exists.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Size of the file system and its free bytes; `None` if unknown.
    fn space(&self) -> Option<DiskSpace> {
        None
    }
}

/// Size of a file system, and free bytes for an unprivileged process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    pub total: u64,
    pub free: u64,
}

/// File mode: only the owner can read and write.
pub const PRIVATE_FILE_MODE: u32 = 0o600;
/// Directory that `mkfs` creates in the root of an ext2, ext3 or ext4 file system, for `fsck`.
const LOST_AND_FOUND: &str = "lost+found";

/// Creates a directory and its missing parents with access for the owner only. Leaves an existing
/// directory unchanged.
///
/// # Errors
/// When the path is not a directory, or the directory cannot be created.
pub fn create_private(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Lists the entries of a directory, without the `lost+found` of a new file system.
///
/// # Errors
/// When the directory cannot be read.
pub fn entry_names(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let made_by_mkfs = entry.file_name() == LOST_AND_FOUND && entry.file_type()?.is_dir();
        if !made_by_mkfs {
            names.push(entry.file_name());
        }
    }
    Ok(names)
}

/// Whether the error means that the disk or the quota is full.
#[must_use]
pub fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether the error means that the process or the system has no free file descriptor.
#[must_use]
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NFILE | Errno::MFILE))
}

/// A directory of the operating system.
#[derive(Clone, Debug)]
pub struct RealDisk {
    root: PathBuf,
    /// Stays open, so that [`Disk::sync_dir`] works even when no file descriptor is free.
    directory: Arc<File>,
}

impl RealDisk {
    /// Opens the directory. Creates it if it is missing.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        if !root.is_dir() {
            create_private(&root)?;
            if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
        }
        Self::existing(root)
    }

    /// Opens an existing directory.
    pub fn existing(root: PathBuf) -> io::Result<Self> {
        let directory = Arc::new(File::open(&root)?);
        Ok(Self { root, directory })
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn open(&self, name: &str, options: &OpenOptions) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(options.open(self.root.join(name))?)))
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.root)? {
            let entry = entry?;
            // Balto creates no file whose name is not UTF-8.
            if let (true, Ok(name)) = (entry.file_type()?.is_file(), entry.file_name().into_string()) {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.open(name, OpenOptions::new().read(true).write(true).create_new(true).mode(PRIVATE_FILE_MODE))
    }

    fn open_write(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.open(name, OpenOptions::new().read(true).write(true))
    }

    fn open_read(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.open(name, OpenOptions::new().read(true))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.root.join(from), self.root.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.root.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.directory.sync_all()
    }

    fn space(&self) -> Option<DiskSpace> {
        let disk = rustix::fs::fstatvfs(&self.directory).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        Some(DiskSpace { total: bytes(disk.f_blocks), free: bytes(disk.f_bavail) })
    }
}

/// A read-only directory that ignores repairs. Opening a journal repairs crash damage: it truncates
/// a torn tail and removes temporary files. Through this disk the journal opens as if repaired, and
/// no file changes.
#[derive(Clone, Debug)]
pub struct ReadOnlyDisk(pub RealDisk);

impl Disk for ReadOnlyDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn create(&self, _: &str) -> io::Result<Arc<dyn DiskFile>> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn open_write(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.open_read(name)
    }

    fn open_read(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(ReadOnlyFile(self.0.open_read(name)?)))
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
}

struct ReadOnlyFile(Arc<dyn DiskFile>);

impl DiskFile for ReadOnlyFile {
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buffer)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn truncate(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.0.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }
}
