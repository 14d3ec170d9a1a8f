//! The host's own calls: all that the engine asks of Linux and that `std` does not offer.
//!
//! Outside `capi` the only file with `unsafe`. Each call passes a descriptor that a live `File` owns and memory that is
//! borrowed for the duration of the call. Offsets have 64 bits on every machine, whatever its `off_t`.
#![allow(unsafe_code)]

use once_cell::sync::Lazy;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileTypeExt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most buffers of one system call (Linux's UIO_MAXIOV).
pub(super) const MAX_IOV: usize = 1024;

/// Flag of an open or a description: past the page cache.
pub(super) const O_DIRECT: i32 = libc::O_DIRECT;
/// Flag of an open of a folder: makes a file without a name in it.
pub(super) const O_TMPFILE: i32 = libc::O_TMPFILE;
/// Flag of an open: the place alone, which can be neither read nor written.
pub(super) const O_PATH: i32 = libc::O_PATH;

/// Of linux/stat.h: alignment of O_DIRECT.
const STATX_DIOALIGN: u32 = 0x2000;
/// `_IO(0x12, 104)` of linux/fs.h: the block of a device, bytes.
const BLKSSZGET: libc::Ioctl = libc::_IO(0x12, 104);
/// `_IO(0x12, 127)` of linux/fs.h: zeroes a range of a device.
const BLKZEROOUT: libc::Ioctl = libc::_IO(0x12, 127);
/// Of linux/fs.h: the length of a device. Its number names a `size_t`; it writes 64 bits on every machine.
const BLKGETSIZE64: libc::Ioctl = libc::_IOR::<usize>(0x12, 114);

/// A bare system call with an offset as its fourth argument. The C library's function is a cancellation point, and a
/// thread that is cancelled inside the engine would leave a request half done; this is none, and costs nothing to keep
/// out.
///
/// # Safety
///
/// `memory` is what the call takes for `count`.
#[inline]
unsafe fn at_offset<T>(
    number: libc::c_long,
    file: &File,
    memory: *const T,
    count: usize,
    offset: i64,
) -> isize {
    let fd = file.as_raw_fd();
    if cfg!(target_pointer_width = "64") {
        return libc::syscall(number, fd, memory, count, offset) as isize;
    }
    // In two registers, as the offset would be in memory.
    let (low, high) = (offset as libc::c_long, (offset >> 32) as libc::c_long);
    let [first, second] = if cfg!(target_endian = "big") { [high, low] } else { [low, high] };
    // These begin a pair of registers at an even one.
    let pairs = cfg!(any(target_arch = "arm", target_arch = "mips", target_arch = "powerpc"));
    match pairs {
        true => libc::syscall(number, fd, memory, count, 0, first, second) as isize,
        false => libc::syscall(number, fd, memory, count, first, second) as isize,
    }
}

/// pread, once: what it answers.
#[inline]
pub(in crate::storage) fn pread(file: &File, buffer: &mut [u8], offset: i64) -> isize {
    // SAFETY: the buffer is borrowed mutably for the call, and its length is passed with it.
    unsafe { at_offset(libc::SYS_pread64, file, buffer.as_mut_ptr(), buffer.len(), offset) }
}

/// pwrite, once: what it answers.
#[inline]
pub(super) fn pwrite(file: &File, buffer: &[u8], offset: i64) -> isize {
    // SAFETY: the buffer is borrowed for the call, and its length is passed with it.
    unsafe { at_offset(libc::SYS_pwrite64, file, buffer.as_ptr(), buffer.len(), offset) }
}

/// preadv, once, of at most `MAX_IOV` buffers: what it answers.
pub(super) fn preadv(file: &File, buffers: &mut [IoSliceMut<'_>], offset: i64) -> isize {
    let (fd, count) = (file.as_raw_fd(), buffers.len());
    let (low, high) = (offset as libc::c_long, (offset >> 32) as libc::c_long);
    // SAFETY: IoSliceMut has the layout of iovec; the buffers are borrowed mutably for the call. The kernel takes the
    // offset in two halves, of which 64 bits of the first are enough.
    unsafe { libc::syscall(libc::SYS_preadv, fd, buffers.as_mut_ptr(), count, low, high) as isize }
}

/// pwritev, once, of at most `MAX_IOV` buffers: what it answers.
pub(super) fn pwritev(file: &File, buffers: &[IoSlice<'_>], offset: i64) -> isize {
    let (fd, count) = (file.as_raw_fd(), buffers.len());
    let (low, high) = (offset as libc::c_long, (offset >> 32) as libc::c_long);
    // SAFETY: IoSlice has the layout of iovec; the buffers are borrowed for the call. The offset as in `preadv`.
    unsafe { libc::syscall(libc::SYS_pwritev, fd, buffers.as_ptr(), count, low, high) as isize }
}

/// copy_file_range, once: what it answers. Both offsets move on.
pub(super) fn copy_file_range(
    from: i32,
    from_offset: &mut i64,
    to: &File,
    to_offset: &mut i64,
    bytes: usize,
) -> isize {
    let (at, to_at): (*mut i64, *mut i64) = (from_offset, to_offset);
    // SAFETY: both offsets live across the call; a bad descriptor is answered with EBADF.
    unsafe { libc::syscall(libc::SYS_copy_file_range, from, at, to.as_raw_fd(), to_at, bytes, 0u32) as isize }
}

/// What `allocate` does with a range.
#[derive(Clone, Copy)]
pub(in crate::storage) enum Allocate {
    /// Reserves space; the file grows.
    Reserve,
    /// Makes it read as zeroes; the file grows.
    Zero,
    /// Makes it read as zeroes; the file keeps its length.
    ZeroInside,
    /// Gives it back, and it reads as zeroes; the file keeps its length.
    Punch,
}

/// fallocate, once: what it answers.
pub(super) fn fallocate(file: &File, what: Allocate, offset: i64, length: i64) -> isize {
    let mode = match what {
        Allocate::Reserve => 0,
        Allocate::Zero => libc::FALLOC_FL_ZERO_RANGE,
        Allocate::ZeroInside => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        Allocate::Punch => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
    };
    // SAFETY: no pointers; the descriptor is open.
    unsafe { libc::fallocate64(file.as_raw_fd(), mode, offset, length) as isize }
}

/// Where `seek` goes.
#[derive(Clone, Copy)]
pub(super) enum Seek {
    /// To the end.
    End,
    /// To data, from an offset on.
    Data(u64),
    /// To a hole, or the end, from an offset on.
    Hole(u64),
}

/// Moves the file offset; where to. `None`: there is none such.
pub(super) fn seek(file: &File, to: Seek) -> io::Result<Option<u64>> {
    let (offset, whence) = match to {
        Seek::End => (0, libc::SEEK_END),
        Seek::Data(offset) => (host_offset(offset)?, libc::SEEK_DATA),
        Seek::Hole(offset) => (host_offset(offset)?, libc::SEEK_HOLE),
    };
    loop {
        // SAFETY: no pointers.
        let at = unsafe { libc::lseek64(file.as_raw_fd(), offset, whence) };
        if at >= 0 {
            return Ok(Some(at as u64));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::ENXIO) => return Ok(None),
            _ => return Err(error),
        }
    }
}

/// An offset or a length as the host takes it.
pub(super) fn host_offset(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

/// Zeroes a range of a device.
pub(super) fn zero_blocks(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: the call reads two numbers, which live across it; the descriptor is open.
    match unsafe { libc::ioctl(file.as_raw_fd(), BLKZEROOUT, range.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The length of a file or block device, asked without moving its offset.
pub(super) fn length_in_place(file: &File) -> io::Result<u64> {
    let found = file.metadata()?;
    if !found.file_type().is_block_device() {
        return Ok(found.len());
    }
    let mut bytes = 0u64;
    // SAFETY: BLKGETSIZE64 writes a u64, which lives across the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &mut bytes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(bytes)
}

/// The unit of O_DIRECT in this file, bytes, where the kernel tells: of a device its block, of others since Linux 6.1.
pub(in crate::storage) fn direct_alignment(file: &File) -> Option<u64> {
    let kind = file.metadata().ok()?.file_type();
    if kind.is_block_device() {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the call writes one int, which lives across it; the descriptor is open.
        let answer = unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &mut bytes) };
        return (answer == 0 && bytes > 0).then_some(bytes as u64);
    }
    // SAFETY: statx is plain data; all-zero is a valid value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let (fd, flags, place) = (file.as_raw_fd(), libc::AT_EMPTY_PATH, &mut found as *mut libc::statx);
    // SAFETY: the name is a C string, `found` lives across the call; the descriptor is open. Bare, for musl has the
    // function since 1.2.4 only.
    let answer = unsafe { libc::syscall(libc::SYS_statx, fd, c"".as_ptr(), flags, STATX_DIOALIGN, place) };
    let known = answer == 0 && found.stx_mask & STATX_DIOALIGN != 0 && found.stx_dio_offset_align > 0;
    known.then(|| u64::from(found.stx_dio_offset_align))
}

/// The largest length of a file that this process may write (RLIMIT_FSIZE). Going over it costs a signal that ends the
/// program.
pub(super) fn size_limit() -> u64 {
    let mut limit = libc::rlimit64 { rlim_cur: libc::RLIM64_INFINITY, rlim_max: libc::RLIM64_INFINITY };
    // SAFETY: `limit` lives across the call, which fills it.
    let answer = unsafe { libc::getrlimit64(libc::RLIMIT_FSIZE, &mut limit) };
    match limit.rlim_cur {
        libc::RLIM64_INFINITY => u64::MAX,
        _ if answer != 0 => u64::MAX,
        bytes => bytes,
    }
}

/// A duplicate of a descriptor, at `lowest` or above.
pub(super) fn duplicate(fd: i32, lowest: i32) -> io::Result<File> {
    // SAFETY: F_DUPFD_CLOEXEC takes no pointer; a bad descriptor is answered with EBADF.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, lowest) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `copy` is a descriptor that nobody else owns.
    Ok(unsafe { File::from_raw_fd(copy) })
}

/// Whether the process has this descriptor.
pub(super) fn is_open(fd: i32) -> bool {
    // SAFETY: F_GETFD takes no pointer.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// What F_GETFL says.
pub(super) fn status_flags(file: &File) -> io::Result<i32> {
    // SAFETY: F_GETFL takes no pointer.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(flags)
}

/// The largest length that a description with these flags takes: on a machine of 32 bits one that was opened without
/// O_LARGEFILE ends there.
pub(super) fn description_limit(_flags: i32) -> u64 {
    #[cfg(target_pointer_width = "32")]
    if _flags & libc::O_LARGEFILE == 0 {
        return i32::MAX as u64;
    }
    u64::MAX
}

/// Takes O_NONBLOCK off.
pub(super) fn let_block(file: &File) {
    if let Ok(now) = status_flags(file) {
        // SAFETY: no pointers; the descriptor is open.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, now & !libc::O_NONBLOCK) };
    }
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
pub(in crate::storage) struct SignalsHeld(libc::sigset_t);

impl SignalsHeld {
    pub(in crate::storage) fn new() -> Self {
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

/// One call of fcntl with a lock of 64-bit offsets.
///
/// # Safety
///
/// `lock` is valid, and `command` one of the OFD locks.
unsafe fn lock_control(file: &File, command: i32, lock: *mut libc::flock64) -> i32 {
    // The C library's function of this name takes a lock of its own there, with a 32-bit `off_t`.
    #[cfg(all(target_pointer_width = "32", target_env = "gnu", not(target_arch = "riscv32")))]
    return libc::syscall(libc::SYS_fcntl64, file.as_raw_fd(), command, lock) as i32;
    #[cfg(not(all(target_pointer_width = "32", target_env = "gnu", not(target_arch = "riscv32"))))]
    return libc::fcntl(file.as_raw_fd(), command, lock);
}

fn lock_call(file: &File, command: i32, kind: i32, byte: u64) -> io::Result<libc::flock64> {
    // SAFETY: flock64 is plain data; all-zero is a valid value.
    let mut lock: libc::flock64 = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = host_offset(byte)?;
    lock.l_len = 1;
    loop {
        // SAFETY: `lock` lives across the call; the descriptor is open.
        if unsafe { lock_control(file, command, &mut lock) } == 0 {
            return Ok(lock);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Takes a shared OFD lock on one byte.
pub(in crate::storage) fn lock_byte_shared(file: &File, byte: u64) -> io::Result<()> {
    lock_call(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte).map(drop)
}

/// Gives an OFD lock on one byte back.
pub(in crate::storage) fn lock_byte_release(file: &File, byte: u64) -> io::Result<()> {
    lock_call(file, libc::F_OFD_SETLK, libc::F_UNLCK, byte).map(drop)
}

/// Whether another open file description holds a lock on the byte.
pub(in crate::storage) fn lock_byte_held(file: &File, byte: u64) -> io::Result<bool> {
    lock_call(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte).map(|l| i32::from(l.l_type) != libc::F_UNLCK)
}

/// A file of memory of `length` bytes that cannot grow, for tests.
#[cfg(test)]
pub(super) fn sealed_memory(length: u64) -> File {
    // SAFETY: the name is a C string; the descriptor that comes back is the caller's alone.
    let fd = unsafe { libc::memfd_create(c"sealed".as_ptr(), libc::MFD_ALLOW_SEALING) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(length).expect("memory");
    // SAFETY: no pointers; the descriptor is open.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_GROW) }, 0);
    file
}

/// Time that the calling thread has had of a processor.
pub fn thread_time() -> std::time::Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct is the caller's. The clock is there on every Linux; without it the time stands still.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A value in pages of its own, which hold keys: no core dump has them, a forked child finds zeroes there, they are locked
/// into memory where the process may do that, and are wiped when it is dropped. It has no `Debug`.
pub struct KeyPages<T> {
    value: std::ptr::NonNull<T>,
    bytes: usize,
}

// SAFETY: it owns its value as a box does.
unsafe impl<T: Send> Send for KeyPages<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for KeyPages<T> {}

impl<const BYTES: usize> KeyPages<[u8; BYTES]> {
    /// Bytes of zeroes.
    pub fn zeroed() -> io::Result<KeyPages<[u8; BYTES]>> {
        // Its pages are new: all zeroes, which is what they are to be.
        KeyPages::map()
    }
}

impl<T> KeyPages<T> {
    /// Moves `value` there; what it leaves behind is the caller's to wipe.
    pub fn new(value: T) -> io::Result<KeyPages<T>> {
        let pages = Self::map()?;
        // SAFETY: writable memory of its size and alignment.
        unsafe { pages.value.write(value) };
        Ok(pages)
    }

    /// The pages, zeroed: of a type that this is a value of, or to be written next.
    fn map() -> io::Result<KeyPages<T>> {
        // A mapping of its own is aligned to a page, which is enough for anything that holds a key.
        let bytes = std::mem::size_of::<T>().max(1);
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, of memory that nobody has.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Each is as good as the host has it; none is a reason to fail.
        // SAFETY: the mapping from above, whole.
        unsafe {
            libc::madvise(start, bytes, libc::MADV_DONTDUMP);
            libc::madvise(start, bytes, libc::MADV_WIPEONFORK);
            libc::mlock(start, bytes);
        }
        let value_at = std::ptr::NonNull::new(start.cast::<T>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(KeyPages { value: value_at, bytes })
    }
}

impl<T> std::ops::Deref for KeyPages<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: written by `new`, there until the drop.
        unsafe { self.value.as_ref() }
    }
}

impl<T> std::ops::DerefMut for KeyPages<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above; borrowed alone.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for KeyPages<T> {
    fn drop(&mut self) {
        // SAFETY: the value is dropped once, its bytes are overwritten, and nobody has the mapping any more.
        unsafe {
            std::ptr::drop_in_place(self.value.as_ptr());
            for at in 0..self.bytes {
                self.value.as_ptr().cast::<u8>().add(at).write_volatile(0);
            }
            libc::munmap(self.value.as_ptr().cast(), self.bytes);
        }
    }
}
