//! What every exported function goes through: panics, cancellation, fork, the codes of failures.

use super::last_error::set_last_error;
use super::messages::Receiver;
use super::types::qcow2_image;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::handle::Handle;
use crate::storage::file::{forks, forks_so_far};
use std::ffi::{c_char, c_int, CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};

extern "C" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

const PTHREAD_CANCEL_DISABLE: c_int = 1;

/// Keeps `pthread_cancel` out of a call: unwinding a thread inside the engine would leave locks held.
struct NoCancel(c_int);

impl NoCancel {
    fn new() -> NoCancel {
        let mut old = 0;
        // SAFETY: `old` lives across the call; the function cannot fail with this state.
        unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &mut old) };
        NoCancel(old)
    }
}

impl Drop for NoCancel {
    fn drop(&mut self) {
        let mut unused = 0;
        // SAFETY: restores the state that the same function returned.
        unsafe { pthread_setcancelstate(self.0, &mut unused) };
    }
}

fn fail(error: &Error) -> i64 {
    set_last_error(error);
    -i64::from(error.errno())
}

/// What stands behind a `qcow2_image`.
pub(super) struct Guarded {
    pub(super) handle: Handle,
    /// Forks at open.
    forks: u64,
    /// A panic was caught in a call on this handle.
    broken: AtomicBool,
    /// Reads meet cancellation points: in functions of the caller, or because they copy what they read.
    may_be_cancelled: AtomicBool,
    /// Takes what closing finds.
    pub(super) messages: Receiver,
    /// Strings handed out by info calls.
    pub(super) strings: std::sync::Mutex<super::strings::Strings>,
}

impl Guarded {
    pub(super) fn new(handle: Handle, messages: Receiver) -> Self {
        Guarded {
            may_be_cancelled: AtomicBool::new(may_be_cancelled(&handle)),
            handle,
            forks: forks(),
            broken: AtomicBool::new(false),
            messages,
            strings: std::sync::Mutex::default(),
        }
    }

    /// Runs something that may change the chain or the options.
    pub(super) fn changing<T>(&self, change: impl FnOnce(&Handle) -> T) -> T {
        self.may_be_cancelled.store(true, Ordering::SeqCst);
        let done = change(&self.handle);
        self.may_be_cancelled.store(may_be_cancelled(&self.handle), Ordering::SeqCst);
        done
    }

    /// Fails in a forked child and after a panic.
    pub(super) fn check(&self) -> Result<()> {
        match self.is_usable() {
            true => Ok(()),
            false => Err(self.unusable()),
        }
    }

    #[inline(always)]
    fn is_usable(&self) -> bool {
        !self.is_foreign() && !self.broken.load(Ordering::Relaxed)
    }

    #[cold]
    fn unusable(&self) -> Error {
        if self.is_foreign() {
            let text =
                "the handle belongs to the parent process; open the image anew after the parent has closed it";
            return Error::new(ErrorKind::Forked, text);
        }
        Error::new(ErrorKind::Latched, "the handle failed inside the library; only reopening helps")
    }

    /// In a forked child nothing of the handle may be touched, not even to free it: locks and descriptors
    /// belong to the parent.
    #[inline]
    pub(super) fn is_foreign(&self) -> bool {
        self.forks != forks_so_far()
    }
}

/// Whether reads meet cancellation points.
fn may_be_cancelled(handle: &Handle) -> bool {
    handle.uses_callbacks() || handle.options().copy_on_read
}

fn caught() -> Error {
    Error::new(ErrorKind::Latched, "internal error in libqcow2: the call was abandoned")
}

/// Runs a call that has no handle.
pub(super) fn enter(call: impl FnOnce() -> Result<i64>) -> i64 {
    let _no_cancel = NoCancel::new();
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => value,
        Ok(Err(e)) => fail(&e),
        Err(_) => fail(&caught()),
    }
}

/// Runs a read on a handle: as `with`, but for calls that meet no cancellation point (the file storage reads
/// by bare system calls, and locks wait on futexes), so that there is nothing to keep out.
#[inline(always)]
pub(super) fn with_read(image: *mut qcow2_image, call: impl FnOnce(&Guarded) -> Result<i64>) -> i64 {
    if image.is_null() {
        return fail(&Error::invalid("image is NULL"));
    }
    // SAFETY: the caller passes a pointer from an open that has not been closed.
    let guarded = unsafe { &*image.cast::<Guarded>() };
    if guarded.may_be_cancelled.load(Ordering::Relaxed) {
        return with(image, call);
    }
    run(guarded, call)
}

/// Runs `shortcut`, which meets no cancellation point on a file, and, when it answers `None` because there is
/// more to do, `call`.
#[inline(always)]
pub(super) fn with_shortcut(
    image: *mut qcow2_image,
    shortcut: impl FnOnce(&Guarded) -> Result<Option<i64>>,
    call: impl FnOnce(&Guarded) -> Result<i64>,
) -> i64 {
    if image.is_null() {
        return fail(&Error::invalid("image is NULL"));
    }
    // SAFETY: the caller passes a pointer from an open that has not been closed.
    let guarded = unsafe { &*image.cast::<Guarded>() };
    if guarded.may_be_cancelled.load(Ordering::Relaxed) {
        return with(image, call);
    }
    match run(guarded, |guarded| Ok(shortcut(guarded)?.unwrap_or(MORE_TO_DO))) {
        MORE_TO_DO => with(image, call),
        done => done,
    }
}

/// Neither a count nor a code.
const MORE_TO_DO: i64 = i64::MIN;

/// The call's value, or the code of its failure, which the thread remembers. No result goes through memory in parts,
/// which a processor waits for.
#[inline(always)]
fn run(guarded: &Guarded, call: impl FnOnce(&Guarded) -> Result<i64>) -> i64 {
    let checked = AssertUnwindSafe(|| match guarded.is_usable() {
        true => call(guarded).unwrap_or_else(|e| fail(&e)),
        false => fail(&guarded.unusable()),
    });
    catch_unwind(checked).unwrap_or_else(|_| {
        guarded.broken.store(true, Ordering::Relaxed);
        fail(&caught())
    })
}

/// Runs a call on a handle. A panic breaks the handle: whatever it left half done is never written.
#[inline]
pub(super) fn with(image: *mut qcow2_image, call: impl FnOnce(&Guarded) -> Result<i64>) -> i64 {
    let _no_cancel = NoCancel::new();
    if image.is_null() {
        return fail(&Error::invalid("image is NULL"));
    }
    // SAFETY: the caller passes a pointer from an open that has not been closed.
    let guarded = unsafe { &*image.cast::<Guarded>() };
    run(guarded, call)
}

/// Whether a descriptor of a struct is one: a struct that begins with zeroes says 0 for "none".
pub(super) fn is_given(fd: c_int, also_zero: bool) -> bool {
    fd > 0 || (fd == 0 && also_zero)
}

/// Most options of one call.
const MAX_OPTIONS: usize = 1000;

/// A NULL-terminated array of "key=value" strings.
pub(super) unsafe fn option_list<'a>(list: *const *const c_char) -> Result<Vec<&'a OsStr>> {
    let mut options = Vec::new();
    if list.is_null() {
        return Ok(options);
    }
    loop {
        // SAFETY: the caller's array ends with NULL, and this stops there.
        let pointer = unsafe { *list.add(options.len()) };
        if pointer.is_null() {
            return Ok(options);
        }
        // SAFETY: the caller's strings end with NUL and live across the call.
        options.push(OsStr::from_bytes(unsafe { CStr::from_ptr(pointer) }.to_bytes()));
        if options.len() > MAX_OPTIONS {
            return Err(Error::invalid("options: more than 1000 strings, or no NULL at the end"));
        }
    }
}

/// Copies `value` to where the caller wants it, no more bytes than the caller's `struct_size` says, and
/// leaves `struct_size` as it was. Structs only ever grow at their end.
pub(super) unsafe fn give<T: Copy>(value: T, out: *mut T, name: &str) -> Result<()> {
    if out.is_null() {
        return Err(Error::invalid(format!("{name} is NULL")));
    }
    let size_bytes = std::mem::size_of::<usize>();
    // SAFETY: `struct_size` is the first field of every struct that is passed here.
    let wanted = unsafe { std::ptr::read_unaligned(out.cast::<usize>()) };
    if wanted < size_bytes * 2 {
        return Err(Error::invalid(format!("{name}->struct_size is {wanted}: set it to sizeof(*{name})")));
    }
    let bytes = wanted.min(std::mem::size_of::<T>());
    // SAFETY: both sides have `bytes` bytes; the part after `struct_size` is copied.
    unsafe {
        std::ptr::copy_nonoverlapping(
            (&raw const value).cast::<u8>().add(size_bytes),
            out.cast::<u8>().add(size_bytes),
            bytes - size_bytes,
        );
    }
    Ok(())
}

/// Takes a sized struct from the caller; what an older caller's struct lacks is as in `T::default()`.
pub(super) unsafe fn take<T: Copy>(given: *const T, default: T, name: &str) -> Result<T> {
    if given.is_null() {
        return Err(Error::invalid(format!("{name} is NULL")));
    }
    let mut value = default;
    // SAFETY: `struct_size` is the first field of every struct that is passed here.
    let size = unsafe { std::ptr::read_unaligned(given.cast::<usize>()) };
    if size < std::mem::size_of::<usize>() * 2 {
        return Err(Error::invalid(format!("{name}->struct_size is {size}: set it to sizeof(*{name})")));
    }
    let bytes = size.min(std::mem::size_of::<T>());
    // SAFETY: the caller's struct has at least `bytes` bytes, and `value` too.
    unsafe { std::ptr::copy_nonoverlapping(given.cast::<u8>(), (&raw mut value).cast::<u8>(), bytes) };
    // A newer caller's extra fields must be unused, for we do not know what they ask for.
    for at in std::mem::size_of::<T>()..size.min(4096) {
        // SAFETY: inside the caller's struct.
        if unsafe { *given.cast::<u8>().add(at) } != 0 {
            return Err(Error::unsupported(format!("{name} has fields that this version does not know")));
        }
    }
    Ok(value)
}
