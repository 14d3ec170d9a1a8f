//! An image in a host file or block device: positioned I/O, the host's allocation calls, OFD lock bytes.

mod descriptor;
mod hands;
mod io;
pub(super) mod sys;
#[cfg(test)]
mod tests;
mod transfer;

pub use super::access::FileOptions;
use super::access::Identity;
use super::direct::Direct;
use super::end::End;
use super::lock::FileLock;
use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
pub use sys::{forks, forks_so_far, thread_time, KeyPages};
pub(super) use transfer::{read_many, write_many, write_one};

/// A file or block device. After it has been opened, a request makes no system calls but those that move, sync, cut,
/// reserve and release bytes, and lseek: a program may have forbidden itself all others.
pub struct FileStorage {
    file: Arc<File>,
    identity: Identity,
    options: FileOptions,
    /// Where it was opened, if by name.
    path: Option<Arc<Path>>,
    direct: Option<Arc<Direct>>,
    regular: bool,
    end: Arc<End>,
    /// See `Storage::dense_bytes`.
    dense_bytes: u64,
    /// The description takes writes, at the offset that is asked for.
    takes_writes: bool,
    /// The length where it cannot be asked: the description, and with it the file offset that lseek moves, is the
    /// caller's too (or nobody is to ask). Exact while nobody else writes, and never too short.
    shared_length: Option<Arc<AtomicU64>>,
    /// RLIMIT_FSIZE when the file was opened, and what its description takes.
    size_limit: u64,
    /// Shared with what is reopened from it, and released with the last of them.
    lock: Arc<Mutex<Option<FileLock>>>,
}

impl FileStorage {
    /// Opens `path`.
    pub fn open(path: &Path, options: FileOptions) -> Result<FileStorage> {
        Self::open_how(path, options, false)
    }

    /// Makes a file at `path`; EEXIST when something has the name, be it a link to nothing.
    pub fn create_new(path: &Path, options: FileOptions) -> Result<FileStorage> {
        Self::open_how(path, options, true)
    }

    fn open_how(path: &Path, options: FileOptions, new: bool) -> Result<FileStorage> {
        let mut how = OpenOptions::new();
        how.read(true).write(options.writable).create(options.create && options.writable).create_new(new);
        how.truncate(false).mode(0o644);
        let file = descriptor::open(path, &how, if options.direct { sys::O_DIRECT } else { 0 })?;
        let storage = Self::from_file(file, options, options.writable, false)?;
        Ok(FileStorage { path: Some(path.into()), ..storage })
    }

    /// Makes a file in `folder` that is gone with the storage. Nobody asks it for holes, which would take a sync.
    pub fn nameless(folder: &Path, options: FileOptions) -> Result<FileStorage> {
        Self::from_file(descriptor::nameless(folder)?, options, true, true)
    }

    /// Takes a duplicate of the caller's descriptor; the caller keeps its own.
    pub fn from_fd(fd: i32, options: FileOptions) -> Result<FileStorage> {
        let file = descriptor::duplicate(fd)?;
        let flags = sys::status_flags(&file)?;
        let mode = flags & libc::O_ACCMODE;
        if mode == libc::O_WRONLY || (options.writable && mode == libc::O_RDONLY) {
            return Err(Error::from_raw_os_error(libc::EBADF));
        }
        // The host would append every write, whatever its offset.
        let appends = flags & libc::O_APPEND != 0;
        if options.writable && appends {
            return Err(Error::from_raw_os_error(libc::EINVAL));
        }
        let direct = flags & sys::O_DIRECT != 0;
        let takes_writes = mode == libc::O_RDWR && !appends;
        let mut storage = Self::from_file(file, FileOptions { direct, ..options }, takes_writes, true)?;
        storage.size_limit = storage.size_limit.min(sys::description_limit(flags));
        Ok(storage)
    }

    /// The same file with other options, through the description where that can serve them, and otherwise through one
    /// that is opened anew: by the descriptor, or, where the host has no /proc, by name.
    fn opened_again(&self, mut options: FileOptions) -> Result<FileStorage> {
        options.create = false;
        if self.shared_length.is_some() {
            // The caller decided.
            options.direct = self.options.direct;
        }
        let (path, lock) = (self.path.clone(), Arc::clone(&self.lock));
        if options.direct == self.options.direct && (self.takes_writes || !options.writable) {
            return Ok(FileStorage {
                file: Arc::clone(&self.file),
                direct: self.direct.clone(),
                end: Arc::clone(&self.end),
                shared_length: self.shared_length.clone(),
                options,
                path,
                lock,
                ..*self
            });
        }
        let name = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let again = match (Self::open(Path::new(&name), options), &path) {
            (Err(e), Some(path)) => Self::open(path, options).map_err(|_| e)?,
            (done, _) => done?,
        };
        if again.identity != self.identity {
            return Err(Error::from_raw_os_error(libc::ESTALE));
        }
        Ok(FileStorage { path, lock, ..again })
    }

    fn from_file(
        file: File,
        options: FileOptions,
        takes_writes: bool,
        is_shared: bool,
    ) -> Result<FileStorage> {
        let metadata = file.metadata()?;
        descriptor::refuse_other_kinds(&metadata)?;
        let file = Arc::new(file);
        let direct = options.direct.then(|| Arc::new(Direct::probe(&file)));
        let shared_length =
            if is_shared { Some(Arc::new(AtomicU64::new(sys::length_in_place(&file)?))) } else { None };
        Ok(FileStorage {
            file,
            identity: Identity::of(&metadata),
            options,
            path: None,
            direct,
            regular: metadata.is_file(),
            end: Arc::new(End::new(metadata.len())),
            dense_bytes: if metadata.blocks() >= metadata.len().div_ceil(512) { metadata.len() } else { 0 },
            takes_writes,
            shared_length,
            size_limit: if metadata.is_file() { sys::size_limit() } else { u64::MAX },
            lock: Arc::default(),
        })
    }
}
