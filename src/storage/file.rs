//! An image in a host file or block device: positioned I/O, the host's allocation calls, OFD lock bytes.
//!
//! With its parts the only file of the engine below `capi` with `unsafe`: raw system calls that `std` does not offer.
//! Each call passes a descriptor owned by a live `File` and buffers borrowed for the duration of the call.
#![allow(unsafe_code)]

mod descriptor;
mod transfer;

pub use super::access::FileOptions;
use super::access::{Access, Identity};
use super::device;
use super::direct::Direct;
use super::end::{End, EndAlone};
use super::lock::FileLock;
use super::{names, HostRun, Purpose, Storage, Traits};
use crate::error::{Error, Result};
use crate::sync::locked;
use once_cell::sync::Lazy;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use transfer::{copy_range, once};
pub(super) use transfer::{pread, read_many, read_one, write_many, write_one};

/// Of linux/stat.h: alignment of O_DIRECT.
const STATX_DIOALIGN: u32 = 0x2000;
/// `_IO(0x12, 104)` of linux/fs.h: the block of a device, bytes.
const BLKSSZGET: libc::Ioctl = 0x1268;
/// `_IO(0x12, 127)` of linux/fs.h: zeroes a range of a device.
const BLKZEROOUT: libc::Ioctl = 0x127f;

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
    /// The description takes writes, at the offset that is asked for.
    takes_writes: bool,
    /// The length where it cannot be asked: the description, and with it the file offset that lseek moves, is the
    /// caller's too (or nobody is to ask). Exact while nobody else writes, and never too short.
    shared_length: Option<Arc<AtomicU64>>,
    /// RLIMIT_FSIZE when the file was opened.
    size_limit: u64,
    /// Shared with what is reopened from it, and released with the last of them.
    lock: Arc<Mutex<Option<FileLock>>>,
}

impl FileStorage {
    /// Opens `path`.
    pub fn open(path: &Path, options: FileOptions) -> io::Result<FileStorage> {
        Self::open_how(path, options, false)
    }

    /// Makes a file at `path`; EEXIST when something has the name, be it a link to nothing.
    pub fn create_new(path: &Path, options: FileOptions) -> io::Result<FileStorage> {
        Self::open_how(path, options, true)
    }

    fn open_how(path: &Path, options: FileOptions, new: bool) -> io::Result<FileStorage> {
        let mut how = OpenOptions::new();
        how.read(true).write(options.writable).create(options.create && options.writable).create_new(new);
        how.truncate(false).mode(0o644);
        let file = descriptor::open(path, &how, if options.direct { libc::O_DIRECT } else { 0 })?;
        let storage = Self::from_file(file, options, options.writable, false)?;
        Ok(FileStorage { path: Some(path.into()), ..storage })
    }

    /// Makes a file in `folder` that is gone with the storage. Nobody asks it for holes, which would take a sync.
    pub fn nameless(folder: &Path, options: FileOptions) -> io::Result<FileStorage> {
        Self::from_file(descriptor::nameless(folder)?, options, true, true)
    }

    /// Takes a duplicate of the caller's descriptor; the caller keeps its own.
    pub fn from_fd(fd: i32, options: FileOptions) -> io::Result<FileStorage> {
        let file = descriptor::duplicate(fd)?;
        let flags = descriptor::status_flags(&file)?;
        let mode = flags & libc::O_ACCMODE;
        if mode == libc::O_WRONLY || (options.writable && mode == libc::O_RDONLY) {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        // The host would append every write, whatever its offset.
        let appends = flags & libc::O_APPEND != 0;
        if options.writable && appends {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let direct = flags & libc::O_DIRECT != 0;
        let takes_writes = mode == libc::O_RDWR && !appends;
        Self::from_file(file, FileOptions { direct, ..options }, takes_writes, true)
    }

    /// The same file with other options, through the description where that can serve them, and otherwise through one
    /// that is opened anew: by the descriptor, or, where the host has no /proc, by name.
    fn opened_again(&self, mut options: FileOptions) -> io::Result<FileStorage> {
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
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        }
        Ok(FileStorage { path, lock, ..again })
    }

    fn from_file(
        file: File,
        options: FileOptions,
        takes_writes: bool,
        is_shared: bool,
    ) -> io::Result<FileStorage> {
        let metadata = file.metadata()?;
        descriptor::refuse_other_kinds(&metadata)?;
        let file = Arc::new(file);
        let direct = options.direct.then(|| Arc::new(Direct::probe(&file)));
        let shared_length = if is_shared {
            Some(Arc::new(AtomicU64::new(descriptor::length_in_place(&file)?)))
        } else {
            None
        };
        Ok(FileStorage {
            file,
            identity: Identity::of(&metadata),
            options,
            path: None,
            direct,
            regular: metadata.is_file(),
            end: Arc::new(End::new(metadata.len())),
            takes_writes,
            shared_length,
            size_limit: if metadata.is_file() { descriptor::size_limit() } else { u64::MAX },
            lock: Arc::default(),
        })
    }

    /// Whether the lock keeps others from changing the length.
    fn keeps_length(&self) -> bool {
        locked(self.lock.lock()).as_ref().is_some_and(FileLock::keeps_length)
    }

    /// When the file has just come into these hands, with a lock or without: others may have changed the length until
    /// then, and who believed an old one would cut off what they have written.
    fn look_at_length(&self) {
        if let Some(shared) = &self.shared_length {
            if let Ok(length) = descriptor::length_in_place(&self.file) {
                shared.store(length, Ordering::SeqCst);
                self.end.note(length);
            }
        }
    }

    pub(super) fn fallocate(&self, mode: i32, offset: u64, length: u64) -> io::Result<()> {
        let (offset, length) = (to_off(offset)?, to_off(length)?);
        // Beside a block that is read, changed and written back, this would be undone.
        let _blocks = self.direct.as_ref().map(|d| d.beside());
        // SAFETY: no pointers; the descriptor is open.
        once(|| unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, length) as isize }).map(drop)
    }

    fn sync_data(&self) -> io::Result<()> {
        loop {
            match self.file.sync_data() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    fn set_length_alone(&self, alone: &EndAlone<'_>, length: u64) -> io::Result<()> {
        if !self.regular {
            // A device keeps its size; growing inside it is no change.
            return match length <= self.length()? {
                true => Ok(()),
                false => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            };
        }
        if length > self.size_limit && length > self.length()? {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        alone.set(length, || self.file.set_len(length))?;
        if let Some(shared) = &self.shared_length {
            shared.store(length, Ordering::SeqCst);
        }
        Ok(())
    }

    /// As `fallocate` of a kernel that does so for devices (Linux 4.9).
    pub(super) fn zero_blocks(&self, offset: u64, length: u64) -> io::Result<()> {
        let _blocks = self.direct.as_ref().map(|d| d.beside());
        let range = [offset, length];
        // SAFETY: the call reads two numbers, which live across it; the descriptor is open.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), BLKZEROOUT, range.as_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Never on a shared description.
    fn seek(&self, offset: u64, whence: i32) -> io::Result<Option<u64>> {
        debug_assert!(self.shared_length.is_none());
        let offset = to_off(offset)?;
        // SAFETY: no pointers. The offset that moves is this storage's, which reads and writes nothing there.
        match once(|| unsafe { libc::lseek(self.file.as_raw_fd(), offset, whence) as isize }) {
            Ok(at) => Ok(Some(at as u64)),
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Before the file may become `end` bytes long. The host would end the program for a length over the limit.
    #[cold]
    fn before_growth(&self, end: u64) -> io::Result<()> {
        if end.next_multiple_of(self.traits().alignment) > self.size_limit {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        if let Some(shared) = self.shared_length.as_ref().filter(|_| self.regular) {
            shared.fetch_max(end, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Any write: several buffers, past the end, or direct.
    fn write_any(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes: u64 = buffers.iter().map(|b| b.len() as u64).sum();
        let end = offset.saturating_add(bytes);
        self.end.write(end, || {
            if self.watches_growth() {
                self.before_growth(end)?;
            }
            match (&self.direct, buffers) {
                (None, [one]) => write_one(&self.file, offset, one),
                (None, many) => write_many(&self.file, offset, many),
                (Some(direct), many) => {
                    let length = || self.regular.then(|| self.length()).transpose();
                    direct.write(&self.file, offset, many, &length)
                }
            }
        })
    }

    /// Whether `before_growth` has something to do.
    #[inline]
    fn watches_growth(&self) -> bool {
        self.size_limit != u64::MAX || self.shared_length.is_some()
    }
}

impl Storage for FileStorage {
    #[inline]
    fn read(&self, _: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        match (&self.direct, buffers) {
            (None, [one]) => read_one(&self.file, offset, one),
            (None, many) => read_many(&self.file, offset, many),
            (Some(direct), many) => direct.read(&self.file, offset, many),
        }
    }

    #[inline]
    fn write(&self, _: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        if let (None, [one]) = (&self.direct, buffers) {
            let end = offset.saturating_add(one.len() as u64);
            if self.end.is_before(end) && end <= self.size_limit {
                return write_one(&self.file, offset, one);
            }
        }
        self.write_any(offset, buffers)
    }

    fn sync(&self) -> io::Result<()> {
        match self.options.no_sync {
            true => Ok(()),
            false => self.sync_data(),
        }
    }

    fn length(&self) -> io::Result<u64> {
        let length = match &self.shared_length {
            Some(shared) if self.options.writable || self.keeps_length() => {
                return Ok(shared.load(Ordering::SeqCst));
            }
            Some(_) => descriptor::length_in_place(&self.file)?,
            None => self.seek(0, libc::SEEK_END)?.unwrap_or(0),
        };
        if self.regular {
            self.end.note(length);
        }
        Ok(length)
    }

    fn size_limit(&self) -> u64 {
        self.size_limit
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let alone = self.end.alone();
        let _blocks = self.direct.as_ref().map(|d| d.alone());
        self.set_length_alone(&alone, length)
    }

    fn grow(&self, length: u64) -> io::Result<u64> {
        let alone = self.end.alone();
        let _blocks = self.direct.as_ref().map(|d| d.alone());
        let now = self.length()?;
        if now < length {
            self.set_length_alone(&alone, length)?;
        }
        Ok(now.max(length))
    }

    fn write_zeroes(&self, _: Purpose, offset: u64, length: u64) -> io::Result<()> {
        if !self.regular {
            return device::zero(self, offset, length);
        }
        let end = offset.saturating_add(length);
        // What crosses the end, or ends before it, the host does in one step, and never cuts.
        let zero = || self.fallocate(libc::FALLOC_FL_ZERO_RANGE, offset, length);
        if self.end.is_before(end) {
            return zero();
        }
        let alone = self.end.alone();
        let blocks = self.direct.as_ref().map(|d| d.alone());
        if offset >= self.length()? {
            // Growing the file is enough and costs nothing.
            return self.set_length_alone(&alone, end);
        }
        drop(blocks);
        if self.watches_growth() {
            self.before_growth(end)?;
        }
        zero()
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, length)
    }

    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset.saturating_add(length);
        self.end.write(end, || {
            if self.watches_growth() {
                self.before_growth(end)?;
            }
            self.fallocate(0, offset, length)
        })
    }

    fn is_device(&self) -> bool {
        !self.regular
    }

    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
        if self.shared_length.is_some() {
            // Only lseek knows, and that is not ours to use.
            return Ok(HostRun { data: true, end: i64::MAX as u64 });
        }
        let length = self.length()?;
        let whole = HostRun { data: true, end: length };
        if !self.regular || offset >= length {
            return Ok(whole);
        }
        match self.seek(offset, libc::SEEK_DATA) {
            Ok(None) => Ok(HostRun { data: false, end: length }),
            Ok(Some(data)) if data > offset => Ok(HostRun { data: false, end: data.min(length) }),
            Ok(Some(_)) => {
                let end = self.seek(offset, libc::SEEK_HOLE)?.unwrap_or(length);
                Ok(HostRun { data: true, end: end.min(length) })
            }
            Err(_) => Ok(whole),
        }
    }

    fn settle_runs(&self) -> io::Result<()> {
        match self.regular && self.shared_length.is_none() {
            true => self.sync_data(),
            false => Ok(()),
        }
    }

    fn copy_from(
        &self,
        _: Purpose,
        offset: u64,
        source: &dyn Storage,
        source_offset: u64,
        length: u64,
    ) -> io::Result<()> {
        match source.copy_source() {
            Some(from) if self.direct.is_none() => {
                let end = offset.saturating_add(length);
                self.end.write(end, || {
                    if self.watches_growth() {
                        self.before_growth(end)?;
                    }
                    copy_range(from, source_offset, &self.file, offset, length)
                })
            }
            _ => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        }
    }

    fn copy_source(&self) -> Option<i32> {
        self.direct.is_none().then(|| self.file.as_raw_fd())
    }

    fn traits(&self) -> Traits {
        Traits {
            alignment: self.direct.as_ref().map_or(1, |d| d.alignment()),
            zero_past_end: self.regular,
            // Of a device Linux punches what it can make read as zeroes, and refuses the rest.
            discard_zeroes: true,
            read_only: !self.options.writable,
        }
    }

    fn identity(&self) -> Option<Identity> {
        Some(self.identity)
    }

    fn descriptor(&self) -> Option<i32> {
        Some(self.file.as_raw_fd())
    }

    fn resolve(&self, name: &OsStr) -> Option<PathBuf> {
        names::resolve(name, self.path.as_deref())
    }

    fn lock(&self, access: Access, shown: &str) -> Result<()> {
        let taken = FileLock::take(&self.file, self.identity, access, shown)?;
        self.look_at_length();
        *locked(self.lock.lock()) = Some(taken);
        Ok(())
    }

    fn change_lock(&self, access: Access, shown: &str) -> Result<()> {
        let mut held = locked(self.lock.lock());
        match held.take() {
            None => {}
            Some(mut lock) if lock.is_on(&self.file) => {
                let done = lock.change(access, shown);
                *held = Some(lock);
                done?;
            }
            Some(lock) => match lock.exchange(&self.file, access, shown) {
                Ok(lock) => *held = Some(lock),
                Err((lock, e)) => {
                    *held = Some(lock);
                    return Err(e);
                }
            },
        }
        drop(held);
        self.look_at_length();
        Ok(())
    }

    fn reopen(&self, options: FileOptions, shown: &str) -> Result<Option<Arc<dyn Storage>>> {
        if (FileOptions { create: false, ..self.options }) == options {
            return Ok(None);
        }
        let again = self.opened_again(options);
        let again = again.map_err(|e| Error::host(format_args!("Could not reopen '{shown}'"), &e))?;
        Ok(Some(Arc::new(again)))
    }

    fn allocated_bytes(&self) -> Option<u64> {
        self.file.metadata().ok().map(|m| m.blocks() * 512)
    }
}

/// The unit of O_DIRECT in this file, bytes, where the kernel tells: of a device its block, of others since Linux 6.1.
pub(super) fn direct_alignment(file: &File) -> Option<u64> {
    let kind = file.metadata().ok()?.file_type();
    if kind.is_block_device() {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the call writes one int, which lives across it; the descriptor is open.
        let answer = unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &mut bytes) };
        return (answer == 0 && bytes > 0).then_some(bytes as u64);
    }
    // SAFETY: statx is plain data; all-zero is a valid value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let (fd, flags) = (file.as_raw_fd(), libc::AT_EMPTY_PATH);
    // SAFETY: the name is a C string, `found` lives across the call; the descriptor is open.
    let answer = unsafe { libc::statx(fd, c"".as_ptr(), flags, STATX_DIOALIGN, &mut found) };
    let known = answer == 0 && found.stx_mask & STATX_DIOALIGN != 0 && found.stx_dio_offset_align > 0;
    known.then(|| u64::from(found.stx_dio_offset_align))
}

fn to_off(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

static FORKS: AtomicU64 = AtomicU64::new(0);

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

static FORK_HANDLER: Lazy<()> = Lazy::new(|| {
    // SAFETY: the handler only touches an atomic, which is allowed after fork.
    unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
});

/// Forks between the process that first asked and this one: what was made under another number belongs to
/// a parent.
pub fn forks() -> u64 {
    Lazy::force(&FORK_HANDLER);
    forks_so_far()
}

/// As `forks`, for those who have asked it once.
#[inline]
pub fn forks_so_far() -> u64 {
    FORKS.load(Ordering::Relaxed)
}

/// Holds the calling thread's signals back while it lives, but for those that the thread itself causes.
pub(super) struct SignalsHeld(libc::sigset_t);

impl SignalsHeld {
    pub(super) fn new() -> Self {
        // SAFETY: sigset_t is plain data, filled by the calls before it is read; the numbers are valid signals.
        unsafe {
            let (mut held, mut before): (libc::sigset_t, libc::sigset_t) = std::mem::zeroed();
            libc::sigfillset(&mut held);
            for own in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
                libc::sigdelset(&mut held, own);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &held, &mut before);
            SignalsHeld(before)
        }
    }
}

impl Drop for SignalsHeld {
    fn drop(&mut self) {
        // SAFETY: the mask that `new` was given.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

fn lock_call(file: &File, command: i32, kind: i32, byte: u64) -> io::Result<libc::flock> {
    // SAFETY: flock is plain data; all-zero is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = byte as libc::off_t;
    lock.l_len = 1;
    loop {
        // SAFETY: `lock` lives across the call; the descriptor is open.
        if unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) } == 0 {
            return Ok(lock);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Takes a shared OFD lock on one byte.
pub(super) fn lock_byte_shared(file: &File, byte: u64) -> io::Result<()> {
    lock_call(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte).map(drop)
}

/// Gives an OFD lock on one byte back.
pub(super) fn lock_byte_release(file: &File, byte: u64) -> io::Result<()> {
    lock_call(file, libc::F_OFD_SETLK, libc::F_UNLCK, byte).map(drop)
}

/// Whether another open file description holds a lock on the byte.
pub(super) fn lock_byte_held(file: &File, byte: u64) -> io::Result<bool> {
    lock_call(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte).map(|l| i32::from(l.l_type) != libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::FromRawFd;
    use std::os::unix::fs::FileExt;

    /// A host that takes half of a write and refuses the rest: the caller hears of it.
    #[test]
    fn a_short_write_is_not_taken_for_a_whole_one() {
        // SAFETY: the name is a C string; the descriptor that comes back is this test's alone.
        let fd = unsafe { libc::memfd_create(c"short".as_ptr(), libc::MFD_ALLOW_SEALING) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: see above.
        let file = unsafe { File::from_raw_fd(fd) };
        let host_page = 4096;
        file.set_len(2 * host_page).unwrap();
        // SAFETY: no pointers; the descriptor is open.
        assert_eq!(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_GROW) }, 0);
        let data = vec![7; 3 * host_page as usize];
        // The precondition: the host writes what fits and says how much.
        assert_eq!(file.write_at(&data, 0).unwrap() as u64, 2 * host_page);
        let storage =
            FileStorage::from_fd(fd, FileOptions { writable: true, ..FileOptions::default() }).unwrap();
        let (one, two) = (IoSlice::new(&data), [IoSlice::new(&data[..512]), IoSlice::new(&data[512..])]);
        for buffers in [&[one][..], &two[..]] {
            let error = storage.write(Purpose::Data, 0, buffers).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        }
        storage.write(Purpose::Data, 0, &[IoSlice::new(&data[..2 * host_page as usize])]).unwrap();
    }

    /// Whoever decides about the length has whatever moves the end in view.
    #[test]
    fn nothing_moves_the_end_beside_a_change_of_the_length() {
        let (source, place) =
            (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
        let options = FileOptions { writable: true, ..FileOptions::default() };
        let source = FileStorage::open(source.path(), options).unwrap();
        let one = [7; 4096];
        source.write(Purpose::Data, 0, &[IoSlice::new(&one)]).unwrap();
        let storage = FileStorage::open(place.path(), options).unwrap();
        let moves: [&(dyn Fn(u64) -> io::Result<()> + Sync); 4] = [
            &|at| storage.write(Purpose::Data, at, &[IoSlice::new(&one)]),
            &|at| storage.copy_from(Purpose::Data, at, &source, 0, one.len() as u64),
            &|at| storage.write_zeroes(Purpose::Data, at, one.len() as u64),
            &|at| storage.preallocate(at, one.len() as u64),
        ];
        for (index, move_end) in moves.iter().enumerate() {
            let at = 8192 * (index as u64 + 1);
            std::thread::scope(|scope| {
                let alone = storage.end.alone();
                let other = scope.spawn(move || move_end(at));
                std::thread::sleep(std::time::Duration::from_millis(50));
                let length = storage.length().unwrap();
                storage.set_length_alone(&alone, length).unwrap();
                assert!(!other.is_finished(), "number {index} has not waited");
                drop(alone);
                match other.join().unwrap() {
                    Err(e) if super::super::is_not_supported(&e) => {}
                    done => {
                        done.unwrap();
                        assert_eq!(storage.length().unwrap(), at + one.len() as u64);
                    }
                }
            });
        }
    }
}
