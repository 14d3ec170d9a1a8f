//! Function pointers of the caller, and how the engine calls them.

use super::custom_io::qcow2_io_ops;
use super::types::*;
use crate::disk::Encryption;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::formats::Driver;
use crate::ops::open::{Named, ResolveAnswer, ResolveRequest, SecretKind, SecretRequest, Secrets};
use std::ffi::{c_char, c_int, c_void, CString};
use std::os::unix::ffi::OsStrExt;

/// Takes the progress of a long call. A non-zero answer cancels it: the call then fails with -ECANCELED.
pub type qcow2_progress_fn =
    Option<unsafe extern "C" fn(opaque: *mut c_void, done: u64, total: u64) -> c_int>;

/// What an image asks for when it names another file.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_resolve_request {
    /// Set by the library.
    pub struct_size: usize,
    /// QCOW2_NODE_*.
    pub kind: c_int,
    /// Of a backing file, its own: 1 for the top image's. Of a data file, that of the image that names it: 0 for the top
    /// image.
    pub depth: c_int,
    /// As stored in the image.
    pub recorded_name: *const c_char,
    /// A backing file's relative name joined to the image's directory; what follows "file:", and a data file's name, as it
    /// is, for these are relative to the working directory. NULL when that is not known or not a file name
    /// ("nbd://host/x", "json:{...}", "C:\\x"): every image can say so.
    pub resolved_path: *const c_char,
    /// Recorded format, or NULL; "raw" for a data file.
    pub format: *const c_char,
}

/// What a resolver gives: exactly one of path, fd, io. The library presets all of them to "none".
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_resolve_answer {
    /// Set by the library.
    pub struct_size: usize,
    /// Open this path; must stay valid until the call that asks returns.
    pub path: *const c_char,
    /// Duplicate this descriptor; -1: none; so does 0 mean beside a path or io.
    pub fd: c_int,
    /// Use this storage.
    pub io: *const qcow2_io_ops,
    /// Handed to its functions.
    pub io_opaque: *mut c_void,
    /// "qcow2" or "raw", valid as `path` is; NULL: the recorded one.
    pub format: *const c_char,
}

/// Decides about a file that an image names: 0 with `answer` filled, or -errno to refuse. With 0 the storage of `io` is
/// the library's, which calls its `close` whatever becomes of the open; with -errno nothing is handed over. A descriptor
/// and the texts stay the caller's in any case.
pub type qcow2_resolve_fn = Option<
    unsafe extern "C" fn(
        opaque: *mut c_void,
        request: *const qcow2_resolve_request,
        answer: *mut qcow2_resolve_answer,
    ) -> c_int,
>;

/// What an encrypted image asks for when it is opened, made or amended.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_secret_request {
    /// Set by the library.
    pub struct_size: usize,
    /// QCOW2_ENCRYPTION_*: what the secret is for.
    pub encryption: c_int,
    /// How far below the top image it is, whose depth is 0.
    pub depth: c_int,
    /// Where the image was opened, or is made, for messages.
    pub file: *const c_char,
    /// QCOW2_SECRET_*: what for.
    pub kind: c_int,
    /// What the option says that asks for it ("encrypt.key-secret=s": "s"): a name by which the caller knows the secret,
    /// never the secret. NULL: no option does.
    pub name: *const c_char,
}

/// Puts the secret of an image into `buffer`, which holds `buffer_bytes` bytes (64 KiB), and returns how many it has put
/// there. The buffer is in memory that no core dump and no forked child has, and is wiped after use. -ENOKEY: there is
/// none; another -errno is the error of the call. Called by the thread that calls, inside its call.
pub type qcow2_secret_fn = Option<
    unsafe extern "C" fn(
        opaque: *mut c_void,
        request: *const qcow2_secret_request,
        buffer: *mut c_void,
        buffer_bytes: usize,
    ) -> i64,
>;

/// Asks the caller for a secret.
pub(super) fn ask_secret(
    function: unsafe extern "C" fn(*mut c_void, *const qcow2_secret_request, *mut c_void, usize) -> i64,
    opaque: *mut c_void,
    request: &SecretRequest,
    room: &mut [u8],
) -> Result<Option<usize>> {
    let file = c_text(Some(request.file.as_bytes()));
    let name = c_text(request.name.as_ref().map(|name| name.as_bytes()));
    let asked = qcow2_secret_request {
        struct_size: std::mem::size_of::<qcow2_secret_request>(),
        encryption: match request.encryption {
            Encryption::Aes => QCOW2_ENCRYPTION_AES,
            Encryption::Luks => QCOW2_ENCRYPTION_LUKS,
        },
        depth: request.depth as c_int,
        file: file.as_ptr(),
        kind: match request.kind {
            SecretKind::Current => QCOW2_SECRET_CURRENT,
            SecretKind::New => QCOW2_SECRET_NEW,
            SecretKind::Old => QCOW2_SECRET_OLD,
        },
        name: pointer_or_null(&name, request.name.is_some()),
    };
    // SAFETY: the struct and the buffer live across the call.
    let answer = unsafe { function(opaque, &asked, room.as_mut_ptr().cast(), room.len()) };
    match usize::try_from(answer) {
        Ok(length) => Ok(Some(length)),
        Err(_) if answer == -i64::from(libc::ENOKEY) => Ok(None),
        Err(_) => {
            let errno = if (-4095..0).contains(&answer) { -answer as i32 } else { libc::EPERM };
            Err(Error::new(ErrorKind::Host(errno), format!("the secret of '{}' was refused", request.file)))
        }
    }
}

/// Where a call has its secrets, and whom it tells how far a derivation is.
#[derive(Clone, Copy)]
pub(super) struct SecretCallbacks {
    pub(super) secret: qcow2_secret_fn,
    pub(super) secret_opaque: *mut c_void,
    pub(super) progress: qcow2_progress_fn,
    pub(super) progress_opaque: *mut c_void,
}

impl SecretCallbacks {
    /// None are given.
    pub(super) const NONE: SecretCallbacks = SecretCallbacks {
        secret: None,
        secret_opaque: std::ptr::null_mut(),
        progress: None,
        progress_opaque: std::ptr::null_mut(),
    };

    /// Runs `run` with them.
    pub(super) fn with<T>(self, run: impl FnOnce(&mut Secrets<'_>) -> T) -> T {
        let mut ask = self.secret.map(|function| {
            move |request: &SecretRequest, room: &mut [u8]| {
                ask_secret(function, self.secret_opaque, request, room)
            }
        });
        let mut told = |done, total| send_progress(self.progress, self.progress_opaque, done, total);
        let source = ask.as_mut().map(|a| a as _);
        run(&mut Secrets { source, progress: Some(&mut told) })
    }
}

/// Hands progress to the caller; `false`: it asks to stop.
pub(super) fn send_progress(function: qcow2_progress_fn, opaque: *mut c_void, done: u64, total: u64) -> bool {
    match function {
        None => true,
        // SAFETY: the caller's function with the caller's opaque pointer, as it asked for.
        Some(function) => unsafe { function(opaque, done, total) == 0 },
    }
}

fn c_text(text: Option<&[u8]>) -> CString {
    CString::new(text.unwrap_or_default()).unwrap_or_default()
}

fn pointer_or_null(text: &CString, given: bool) -> *const c_char {
    if given {
        text.as_ptr()
    } else {
        std::ptr::null()
    }
}

/// Asks the caller's resolver.
pub(super) fn ask_resolver(
    function: unsafe extern "C" fn(
        *mut c_void,
        *const qcow2_resolve_request,
        *mut qcow2_resolve_answer,
    ) -> c_int,
    opaque: *mut c_void,
    request: &ResolveRequest,
) -> Result<ResolveAnswer> {
    let recorded = c_text(Some(request.recorded_name.as_bytes()));
    let resolved = c_text(request.resolved_path.as_ref().map(|p| p.as_os_str().as_bytes()));
    let format = c_text(request.format.as_ref().map(|f| f.as_bytes()));
    let asked = qcow2_resolve_request {
        struct_size: std::mem::size_of::<qcow2_resolve_request>(),
        kind: match request.named {
            Named::Backing => QCOW2_NODE_BACKING,
            Named::DataFile => QCOW2_NODE_DATA_FILE,
        },
        depth: request.depth as c_int,
        recorded_name: recorded.as_ptr(),
        resolved_path: pointer_or_null(&resolved, request.resolved_path.is_some()),
        format: pointer_or_null(&format, request.format.is_some()),
    };
    let mut answer = qcow2_resolve_answer {
        struct_size: std::mem::size_of::<qcow2_resolve_answer>(),
        path: std::ptr::null(),
        fd: -1,
        io: std::ptr::null(),
        io_opaque: std::ptr::null_mut(),
        format: std::ptr::null(),
    };
    // SAFETY: both structs live across the call.
    let code = unsafe { function(opaque, &asked, &mut answer) };
    if code != 0 {
        let errno = if (-4095..0).contains(&code) { -code } else { libc::EPERM };
        let text = format!("the resolver refused '{}'", request.recorded_name.to_string_lossy());
        return Err(Error::new(ErrorKind::Host(errno), text));
    }
    // SAFETY: the caller fills the answer with valid pointers, as the contract says. The storage first: its `close` is
    // owed from here on, whatever else is wrong.
    let by_fd = answer.fd > 0 || (answer.fd == 0 && answer.path.is_null() && answer.io.is_null());
    let fd = by_fd.then_some(answer.fd);
    let origin = unsafe { super::custom_io::place(answer.path, fd, answer.io, answer.io_opaque) }?;
    // SAFETY: as above.
    let format = unsafe { super::text::optional_text(answer.format, "resolve answer's format") }?;
    let origin = origin.ok_or_else(|| {
        let name = request.recorded_name.to_string_lossy();
        Error::invalid(format!("the resolver gave none of path, fd and io for '{name}'"))
    })?;
    Ok(ResolveAnswer { origin, format: format.map(Driver::by_name).transpose()? })
}
