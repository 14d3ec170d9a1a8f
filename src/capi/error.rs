//! The last failure.

use super::edge::give;
use super::last_error::{last_text, with_last, Part};
use crate::error::ErrorKind;
use std::ffi::{c_char, c_int};

/// Nothing has failed on this thread.
pub const QCOW2_ERROR_NONE: u32 = 0;
/// An argument or option is out of range: EINVAL.
pub const QCOW2_ERROR_INVALID: u32 = 1;
/// The image or the host cannot do this: ENOTSUP.
pub const QCOW2_ERROR_UNSUPPORTED: u32 = 2;
/// The image breaks a rule of the format: EIO.
pub const QCOW2_ERROR_CORRUPT: u32 = 3;
/// The file is not a qcow2 image: EMEDIUMTYPE.
pub const QCOW2_ERROR_NOT_QCOW2: u32 = 4;
/// A guest range ends past the virtual disk: EIO.
pub const QCOW2_ERROR_PAST_END: u32 = 5;
/// A compressed write would overwrite a cluster: EIO.
pub const QCOW2_ERROR_OCCUPIED: u32 = 6;
/// The handle is read-only: EROFS.
pub const QCOW2_ERROR_READ_ONLY: u32 = 7;
/// Somebody else holds the image: EAGAIN.
pub const QCOW2_ERROR_LOCKED: u32 = 8;
/// The image is dirty and must not be repaired: EUCLEAN.
pub const QCOW2_ERROR_DIRTY: u32 = 9;
/// The image is marked corrupt, or has just been; writes are refused: EIO.
pub const QCOW2_ERROR_MARKED_CORRUPT: u32 = 10;
/// An earlier sync failed, or the library did; only reopening helps: ENOTRECOVERABLE.
pub const QCOW2_ERROR_LATCHED: u32 = 11;
/// The handle belongs to the parent process: EOWNERDEAD.
pub const QCOW2_ERROR_FORKED: u32 = 12;
/// A size or a table is over its limit: EFBIG.
pub const QCOW2_ERROR_TOO_LARGE: u32 = 13;
/// No memory: ENOMEM.
pub const QCOW2_ERROR_NO_MEMORY: u32 = 14;
/// A callback asked to stop: ECANCELED.
pub const QCOW2_ERROR_CANCELLED: u32 = 15;
/// The caller did not allow it: EPERM.
pub const QCOW2_ERROR_NOT_ALLOWED: u32 = 16;
/// There is no such item: ENOENT.
pub const QCOW2_ERROR_NOT_FOUND: u32 = 17;
/// A loop of backing files, or too many of them: ELOOP.
pub const QCOW2_ERROR_LOOP: u32 = 18;
/// The host, or a callback, answered with this errno.
pub const QCOW2_ERROR_HOST: u32 = 19;
/// The image is encrypted, and no secret was given: ENOKEY.
pub const QCOW2_ERROR_NO_SECRET: u32 = 20;
/// The secret opens no key slot of the image: EKEYREJECTED.
pub const QCOW2_ERROR_WRONG_SECRET: u32 = 21;

fn number_of(kind: ErrorKind) -> u32 {
    match kind {
        ErrorKind::Invalid => QCOW2_ERROR_INVALID,
        ErrorKind::Unsupported => QCOW2_ERROR_UNSUPPORTED,
        ErrorKind::Corrupt => QCOW2_ERROR_CORRUPT,
        ErrorKind::NotQcow2 => QCOW2_ERROR_NOT_QCOW2,
        ErrorKind::PastEnd => QCOW2_ERROR_PAST_END,
        ErrorKind::Occupied => QCOW2_ERROR_OCCUPIED,
        ErrorKind::ReadOnly => QCOW2_ERROR_READ_ONLY,
        ErrorKind::Locked => QCOW2_ERROR_LOCKED,
        ErrorKind::Dirty => QCOW2_ERROR_DIRTY,
        ErrorKind::MarkedCorrupt => QCOW2_ERROR_MARKED_CORRUPT,
        ErrorKind::Latched => QCOW2_ERROR_LATCHED,
        ErrorKind::Forked => QCOW2_ERROR_FORKED,
        ErrorKind::TooLarge => QCOW2_ERROR_TOO_LARGE,
        ErrorKind::NoMemory => QCOW2_ERROR_NO_MEMORY,
        ErrorKind::Cancelled => QCOW2_ERROR_CANCELLED,
        ErrorKind::NotAllowed => QCOW2_ERROR_NOT_ALLOWED,
        ErrorKind::NotFound => QCOW2_ERROR_NOT_FOUND,
        ErrorKind::Loop => QCOW2_ERROR_LOOP,
        ErrorKind::Host(_) => QCOW2_ERROR_HOST,
        ErrorKind::NoSecret => QCOW2_ERROR_NO_SECRET,
        ErrorKind::WrongSecret => QCOW2_ERROR_WRONG_SECRET,
    }
}

/// The parts of what qcow2_last_error says, which is `summary`, `hint` and, if there is a `detail`, " [", `detail` and
/// "]". No string is NULL; a part that the failure does not have is "".
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_error_detail {
    /// sizeof(qcow2_error_detail), set by the caller.
    pub struct_size: usize,
    /// What the call returned: -errno; 0 if nothing has failed on this thread.
    pub result: i32,
    /// QCOW2_ERROR_*: finer than errno. Kinds may be added.
    pub kind: u32,
    /// What went wrong, in the words of the stock tools where they have some.
    pub summary: *const c_char,
    /// What may help. It follows `summary` at once and begins with what stands between them: a line break, or a space
    /// and a parenthesis.
    pub hint: *const c_char,
    /// What the stock tools do not say: fields, values, limits, and last the file, as "in 'file'".
    pub detail: *const c_char,
    /// The file that the failure is about, of a chain the one that has it, where it is known.
    pub file: *const c_char,
    /// The key of the option that was refused.
    pub option: *const c_char,
    /// What the host said, or the sentence of the error that this one was made from.
    pub cause: *const c_char,
    /// Of a broken rule of the format: which structure of the image.
    pub structure: *const c_char,
    /// Of a broken rule: where in the structure.
    pub index: *const c_char,
    /// Of a broken rule: what the rule is.
    pub rule: *const c_char,
    /// Of a broken rule: what the image has there; otherwise 0.
    pub value: u64,
}

/// The text of the last failure on this thread: structure, index, value and rule, or what the host said. ""
/// if none. The words are those of the stock tools where they have some; details follow in brackets. A text
/// may have two lines (a refused lock). Valid until the next failure on this thread; never NULL.
#[no_mangle]
pub extern "C" fn qcow2_last_error() -> *const c_char {
    last_text()
}

/// The last failure on this thread in parts, so that nobody need take the text of qcow2_last_error apart. Set
/// `detail->struct_size` first. The strings belong to the library and are valid until the next failure on this thread;
/// all together they have 4096 bytes, and what is longer is cut off at its end.
///
/// Returns 0, also when nothing has failed yet, or -EINVAL (NULL, `struct_size`), which is not a failure that this
/// function or qcow2_last_error tells of. May be called at any time, in a forked child too.
#[no_mangle]
pub unsafe extern "C" fn qcow2_last_error_detail(detail: *mut qcow2_error_detail) -> c_int {
    let found = with_last(|last| qcow2_error_detail {
        struct_size: 0,
        result: last.kind.map_or(0, |kind| -kind.errno()),
        kind: last.kind.map_or(QCOW2_ERROR_NONE, number_of),
        summary: last.part(Part::Summary),
        hint: last.part(Part::Hint),
        detail: last.part(Part::Detail),
        file: last.part(Part::File),
        option: last.part(Part::Option),
        cause: last.part(Part::Cause),
        structure: last.part(Part::Structure),
        index: last.part(Part::Index),
        rule: last.part(Part::Rule),
        value: last.value,
    });
    let found = found.unwrap_or(NOTHING);
    // SAFETY: the caller's struct, checked for NULL.
    match unsafe { give(found, detail, "detail") } {
        Ok(()) => 0,
        Err(error) => -error.errno(),
    }
}

const NOTHING: qcow2_error_detail = qcow2_error_detail {
    struct_size: 0,
    result: 0,
    kind: QCOW2_ERROR_NONE,
    summary: c"".as_ptr(),
    hint: c"".as_ptr(),
    detail: c"".as_ptr(),
    file: c"".as_ptr(),
    option: c"".as_ptr(),
    cause: c"".as_ptr(),
    structure: c"".as_ptr(),
    index: c"".as_ptr(),
    rule: c"".as_ptr(),
    value: 0,
};
