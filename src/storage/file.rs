//! An image in a host file or block device: positioned I/O, the host's allocation calls, OFD lock bytes.
//!
//! The only file of the engine below `capi` with `unsafe`: raw system calls that `std` does not offer.
//! Each call passes a descriptor owned by a live `File` and buffers borrowed for the duration of the call.
#![allow(unsafe_code)]

use super::device::{self, identity_of};
use super::direct::Direct;
use super::end::{End, EndAlone};
use super::lock::{Access, FileLock};
use super::{HostRun, Purpose, Storage, Traits};
use crate::error::Result;
use crate::planted::{planted, Plant};
use once_cell::sync::Lazy;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Most buffers of one system call (Linux's UIO_MAXIOV).
const MAX_IOV: usize = 1024;
/// Largest transfer of one system call, bytes; Linux stops at 2^31 - 4096.
const MAX_TRANSFER_BYTES: usize = 1 << 30;
/// Of linux/stat.h: alignment of O_DIRECT.
const STATX_DIOALIGN: u32 = 0x2000;
/// `_IO(0x12, 104)` of linux/fs.h: the block of a device, bytes.
const BLKSSZGET: libc::Ioctl = 0x1268;
/// `_IO(0x12, 127)` of linux/fs.h: zeroes a range of a device.
const BLKZEROOUT: libc::Ioctl = 0x127f;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOptions {
    /// Opened for writing too.
    pub writable: bool,
    /// Created when missing. Never truncated here.
    pub create: bool,
    /// Bypass the page cache (O_DIRECT).
    pub direct: bool,
    /// `sync` does nothing (cache=unsafe).
    pub no_sync: bool,
}

/// A file or block device.
pub struct FileStorage {
    file: Arc<File>,
    identity: (u64, u64),
    options: FileOptions,
    direct: Option<Direct>,
    regular: bool,
    end: End,
    /// Released with the storage.
    lock: Mutex<Option<FileLock>>,
}

impl FileStorage {
    /// Opens `path`.
    pub fn open(path: &Path, options: FileOptions) -> io::Result<FileStorage> {
        let mut flags = libc::O_CLOEXEC | libc::O_NOCTTY;
        if options.direct {
            flags |= libc::O_DIRECT;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(options.writable)
            .create(options.create && options.writable)
            .truncate(false)
            .mode(0o644)
            .custom_flags(flags)
            .open(path)?;
        Self::from_file(file, options)
    }

    /// Takes a duplicate of the caller's descriptor; the caller keeps its own.
    pub fn from_fd(fd: i32, options: FileOptions) -> io::Result<FileStorage> {
        // SAFETY: F_DUPFD_CLOEXEC takes no pointer; a bad descriptor is answered with EBADF.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `copy` is a descriptor that nobody else owns.
        let file = unsafe { File::from_raw_fd(copy) };
        // SAFETY: F_GETFL takes no pointer.
        let flags = unsafe { libc::fcntl(copy, libc::F_GETFL) };
        if flags < 0 {
            return Err(io::Error::last_os_error());
        }
        let mode = flags & libc::O_ACCMODE;
        if mode == libc::O_WRONLY || (options.writable && mode == libc::O_RDONLY) {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        // The host would append every write, whatever its offset.
        if options.writable && flags & libc::O_APPEND != 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let direct = flags & libc::O_DIRECT != 0;
        Self::from_file(file, FileOptions { direct, ..options })
    }

    /// The same file with other options, through the descriptor: no path is looked up again.
    pub fn reopen(&self, options: FileOptions) -> io::Result<FileStorage> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let again = Self::open(Path::new(&path), FileOptions { create: false, ..options })?;
        if again.identity != self.identity {
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        }
        Ok(again)
    }

    fn from_file(file: File, options: FileOptions) -> io::Result<FileStorage> {
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let file = Arc::new(file);
        let direct = options.direct.then(|| Direct::probe(&file));
        let identity = identity_of(&metadata);
        let (regular, end) = (kind.is_file(), End::new(metadata.len()));
        Ok(FileStorage { file, identity, options, direct, regular, end, lock: Mutex::new(None) })
    }

    /// Locks the file against other programs and other opens of this process.
    pub fn lock(&self, access: Access, shown: &str) -> Result<()> {
        let taken = FileLock::take(&self.file, self.identity, access, shown)?;
        *self.lock.lock().unwrap_or_else(|e| e.into_inner()) = Some(taken);
        Ok(())
    }

    /// Changes the access of the lock, where there is one. On failure it is as it was.
    pub fn change_lock(&self, access: Access, shown: &str) -> Result<()> {
        match &mut *self.lock.lock().unwrap_or_else(|e| e.into_inner()) {
            Some(lock) => lock.change(access, shown),
            None => Ok(()),
        }
    }

    /// Takes the lock over from another descriptor of the same file, with another access. On failure `old`
    /// keeps it as it was.
    pub fn take_lock_from(&self, old: &FileStorage, access: Access, shown: &str) -> Result<()> {
        let mut held = old.lock.lock().unwrap_or_else(|e| e.into_inner());
        let Some(lock) = held.take() else { return Ok(()) };
        match lock.exchange(&self.file, access, shown) {
            Ok(lock) => {
                *self.lock.lock().unwrap_or_else(|e| e.into_inner()) = Some(lock);
                Ok(())
            }
            Err((lock, e)) => {
                *held = Some(lock);
                Err(e)
            }
        }
    }

    /// How it was opened.
    pub fn options(&self) -> FileOptions {
        self.options
    }

    /// The host's descriptor of the file.
    pub fn descriptor(&self) -> i32 {
        self.file.as_raw_fd()
    }

    pub(super) fn fallocate(&self, mode: i32, offset: u64, length: u64) -> io::Result<()> {
        let (offset, length) = (to_off(offset)?, to_off(length)?);
        // Beside a block that is read, changed and written back, this would be undone.
        let _blocks = self.direct.as_ref().map(Direct::beside);
        loop {
            // SAFETY: no pointers; the descriptor is open.
            let answer = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, length) };
            if answer == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
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
        alone.set(length, || self.file.set_len(length))
    }

    /// As `fallocate` of a kernel that does so for devices (Linux 4.9).
    pub(super) fn zero_blocks(&self, offset: u64, length: u64) -> io::Result<()> {
        let _blocks = self.direct.as_ref().map(Direct::beside);
        let range = [offset, length];
        // SAFETY: the call reads two numbers, which live across it; the descriptor is open.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), BLKZEROOUT, range.as_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn seek(&self, offset: u64, whence: i32) -> io::Result<Option<u64>> {
        // SAFETY: no pointers. Nobody reads or writes at the shared file offset, so moving it is harmless.
        let at = unsafe { libc::lseek(self.file.as_raw_fd(), to_off(offset)?, whence) };
        if at >= 0 {
            return Ok(Some(at as u64));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ENXIO) {
            return Ok(None);
        }
        Err(error)
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

    fn write(&self, _: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes: u64 = buffers.iter().map(|b| b.len() as u64).sum();
        self.end.write(offset.saturating_add(bytes), || match (&self.direct, buffers) {
            (None, [one]) => write_one(&self.file, offset, one),
            (None, many) => write_many(&self.file, offset, many),
            (Some(direct), many) => direct.write(&self.file, offset, many),
        })
    }

    fn sync(&self) -> io::Result<()> {
        match self.options.no_sync {
            true => Ok(()),
            false => self.sync_data(),
        }
    }

    fn length(&self) -> io::Result<u64> {
        if self.regular {
            let length = self.file.metadata()?.len();
            self.end.note(length);
            return Ok(length);
        }
        Ok(self.seek(0, libc::SEEK_END)?.unwrap_or(0))
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let alone = self.end.alone();
        let _blocks = self.direct.as_ref().map(Direct::alone);
        self.set_length_alone(&alone, length)
    }

    fn grow(&self, length: u64) -> io::Result<u64> {
        let alone = self.end.alone();
        let _blocks = self.direct.as_ref().map(Direct::alone);
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
        let blocks = self.direct.as_ref().map(Direct::alone);
        if offset >= self.length()? {
            // Growing the file is enough and costs nothing.
            return self.set_length_alone(&alone, end);
        }
        drop(blocks);
        zero()
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, length)
    }

    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.fallocate(0, offset, length)
    }

    fn is_device(&self) -> bool {
        !self.regular
    }

    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
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
        match self.regular {
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
                copy_range(from, source_offset, &self.file, offset, length)
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

    fn identity(&self) -> Option<(u64, u64)> {
        Some(self.identity)
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

/// pread as a bare system call. The C library's is a cancellation point, and a thread that is cancelled
/// inside the engine would leave a request half done; this one is not, and costs nothing to keep out.
pub(super) fn pread(file: &File, buffer: &mut [u8], offset: i64) -> isize {
    // SAFETY: the buffer is borrowed mutably for the call, and its length is passed with it.
    unsafe {
        libc::syscall(libc::SYS_pread64, file.as_raw_fd(), buffer.as_mut_ptr(), buffer.len(), offset) as isize
    }
}

/// Reads all of `buffer`; zeroes past the end of the file.
#[inline]
pub(super) fn read_one(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let n = pread(file, buffer, offset as i64);
    if n == buffer.len() as isize {
        return Ok(());
    }
    read_rest(file, offset, buffer, n)
}

/// Goes on after a first call that answered `n`.
#[cold]
fn read_rest(file: &File, mut offset: u64, mut buffer: &mut [u8], mut n: isize) -> io::Result<()> {
    loop {
        match n {
            0 => {
                buffer.fill(0);
                return Ok(());
            }
            1.. => {
                offset += n as u64;
                buffer = &mut buffer[n as usize..];
            }
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
        if buffer.is_empty() {
            return Ok(());
        }
        let bytes = buffer.len().min(MAX_TRANSFER_BYTES);
        n = pread(file, &mut buffer[..bytes], to_off(offset)?);
    }
}

/// pwrite as a bare system call, as `pread`.
fn pwrite(file: &File, buffer: &[u8], offset: i64) -> isize {
    // SAFETY: the buffer is borrowed for the call, and its length is passed with it.
    unsafe {
        libc::syscall(libc::SYS_pwrite64, file.as_raw_fd(), buffer.as_ptr(), buffer.len(), offset) as isize
    }
}

/// Writes all of `buffer`.
pub(super) fn write_one(file: &File, mut offset: u64, mut buffer: &[u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        let bytes = buffer.len().min(MAX_TRANSFER_BYTES);
        match once(|| pwrite(file, &buffer[..bytes], offset as i64))? {
            0 => return Err(io::Error::from_raw_os_error(libc::EIO)),
            n if n < bytes && planted(Plant::ShortWriteTakenForWhole) => return Ok(()),
            n => {
                offset += n as u64;
                buffer = &buffer[n..];
            }
        }
    }
    Ok(())
}

/// Fills all buffers with one system call where it goes in one; the rest piece by piece.
pub(super) fn read_many(file: &File, mut offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
    for group in buffers.chunks_mut(MAX_IOV) {
        let wanted: usize = group.iter().map(|b| b.len()).sum();
        let mut done = 0;
        if wanted <= MAX_TRANSFER_BYTES {
            let at = to_off(offset)?;
            // SAFETY: IoSliceMut has the layout of iovec; the buffers are borrowed mutably for the call. A bare
            // system call, as in `pread`; the kernel takes the offset in two halves.
            done = once(|| unsafe {
                let (fd, count) = (file.as_raw_fd(), group.len());
                libc::syscall(libc::SYS_preadv, fd, group.as_ptr(), count, at, at >> 32) as isize
            })?;
        }
        let mut start = 0;
        for buffer in group.iter_mut().filter(|_| done < wanted) {
            let skip = done.saturating_sub(start).min(buffer.len());
            read_one(file, offset + (start + skip) as u64, &mut buffer[skip..])?;
            start += buffer.len();
        }
        offset += wanted as u64;
    }
    Ok(())
}

/// Writes all buffers with one system call where it goes in one; the rest piece by piece.
pub(super) fn write_many(file: &File, mut offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
    for group in buffers.chunks(MAX_IOV) {
        let wanted: usize = group.iter().map(|b| b.len()).sum();
        let mut done = 0;
        if wanted <= MAX_TRANSFER_BYTES {
            let at = to_off(offset)?;
            // SAFETY: IoSlice has the layout of iovec; the buffers are borrowed for the call. Bare, as above.
            done = once(|| unsafe {
                let (fd, count) = (file.as_raw_fd(), group.len());
                libc::syscall(libc::SYS_pwritev, fd, group.as_ptr(), count, at, at >> 32) as isize
            })?;
        }
        let mut start = 0;
        for buffer in group.iter().filter(|_| done < wanted) {
            let skip = done.saturating_sub(start).min(buffer.len());
            write_one(file, offset + (start + skip) as u64, &buffer[skip..])?;
            start += buffer.len();
        }
        offset += wanted as u64;
    }
    Ok(())
}

/// One system call, again after EINTR.
fn once(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        let answer = call();
        if answer >= 0 {
            return Ok(answer as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// copy_file_range as a bare system call, again after a short one.
fn copy_range(from: i32, from_offset: u64, to: &File, to_offset: u64, length: u64) -> io::Result<()> {
    let (mut at, mut to_at) = (to_off(from_offset)?, to_off(to_offset)?);
    let mut left = length;
    while left > 0 {
        let part = left.min(MAX_TRANSFER_BYTES as u64);
        // SAFETY: both offsets live across the call, which moves them; the descriptors are open.
        let copied = once(|| unsafe {
            libc::syscall(
                libc::SYS_copy_file_range,
                from,
                &mut at,
                to.as_raw_fd(),
                &mut to_at,
                part as usize,
                0u32,
            ) as isize
        });
        match copied {
            // The source has ended. What is missing reads as zeroes, which is not the host's to know.
            Ok(0) => return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
            Ok(bytes) => left -= bytes as u64,
            // On different file systems, or a kind of file that is not copied so.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EXDEV | libc::EBADF | libc::EPERM)) => {
                return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
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
}
