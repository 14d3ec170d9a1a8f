//! Open, close, reopen: a path, a descriptor or a caller's storage becomes an origin, bits become flags, and a handle
//! becomes a box that the caller holds.

use super::callbacks::*;
use super::custom_io::{place, qcow2_io_ops};
use super::edge::{enter, is_given, option_list, take, with, Guarded};
use super::flags::check_flags;
use super::last_error::prepare_last_error;
use super::messages::*;
use super::types::*;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::check::MessageKind;
use crate::ops::formats::Driver;
use crate::ops::handle::Handle;
use crate::ops::inactive::{inactivate, invalidate_with};
use crate::ops::open::{
    Messages, OpenFlags, Opening, Origin, ResolveRequest, Resolver, SecretRequest, Secrets,
};
use crate::ops::probe::probe;
use crate::options::OpenOptions;
use std::ffi::{c_char, c_int, c_void};

const ALL_OPEN_FLAGS: u64 = 0x3ff;

/// Everything that an open can be given; begin with QCOW2_OPEN_PARAMS_INIT, or with zeroes and `struct_size`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_open_params {
    /// sizeof(qcow2_open_params), set by the caller.
    pub struct_size: usize,
    /// One of path, fd, io.
    pub path: *const c_char,
    /// Duplicated; the caller keeps its own. -1: none; so does 0 mean without QCOW2_OPEN_FD.
    pub fd: c_int,
    /// Copied.
    pub io: *const qcow2_io_ops,
    /// Handed to the functions of `io`.
    pub io_opaque: *mut c_void,
    /// QCOW2_OPEN_*; unknown bits are -EINVAL.
    pub flags: u64,
    /// "key=value" strings, NULL at the end; may be NULL. See qcow2_option_list.
    pub options: *const *const c_char,
    /// Decides about files that images name; wins over QCOW2_OPEN_ALLOW_RECORDED. May be NULL.
    pub resolve: qcow2_resolve_fn,
    /// Handed to `resolve`.
    pub resolve_opaque: *mut c_void,
    /// Takes what a repair at open says, and a corruption that qcow2_close finds. May be NULL.
    pub message: qcow2_message_fn,
    /// Handed to `message`. Both are kept: qcow2_close calls them, too, so what this points to must live until then.
    pub message_opaque: *mut c_void,
    /// Has the secrets of encrypted images. May be NULL: then an open of one fails (-ENOKEY), but with
    /// QCOW2_OPEN_METADATA_ONLY, which needs none.
    pub secret: qcow2_secret_fn,
    /// Handed to `secret`.
    pub secret_opaque: *mut c_void,
    /// Takes the progress of deriving keys, whose cost the image chooses: up to hours. May be NULL.
    pub progress: qcow2_progress_fn,
    /// Handed to `progress`.
    pub progress_opaque: *mut c_void,
    /// "qcow2", "raw" or "luks" (a plain LUKS1 file); NULL: "qcow2", or "raw" with QCOW2_OPEN_RAW. Never probed.
    pub format: *const c_char,
}

impl qcow2_open_params {
    fn empty() -> Self {
        qcow2_open_params {
            struct_size: std::mem::size_of::<qcow2_open_params>(),
            path: std::ptr::null(),
            fd: -1,
            io: std::ptr::null(),
            io_opaque: std::ptr::null_mut(),
            flags: 0,
            options: std::ptr::null(),
            resolve: None,
            resolve_opaque: std::ptr::null_mut(),
            message: None,
            message_opaque: std::ptr::null_mut(),
            secret: None,
            secret_opaque: std::ptr::null_mut(),
            progress: None,
            progress_opaque: std::ptr::null_mut(),
            format: std::ptr::null(),
        }
    }
}

fn open_flags(bits: u64) -> Result<OpenFlags> {
    check_flags("open", bits, ALL_OPEN_FLAGS)?;
    let has = |flag: u64| bits & flag != 0;
    Ok(OpenFlags {
        read_only: has(QCOW2_OPEN_READ_ONLY),
        no_repair: has(QCOW2_OPEN_NO_REPAIR),
        force_share: has(QCOW2_OPEN_FORCE_SHARE),
        allow_recorded: has(QCOW2_OPEN_ALLOW_RECORDED),
        metadata_only: has(QCOW2_OPEN_METADATA_ONLY),
        no_lock: has(QCOW2_OPEN_NO_LOCK),
        format: if has(QCOW2_OPEN_RAW) { Driver::RAW } else { Driver::QCOW2 },
        no_backing: has(QCOW2_OPEN_NO_BACKING),
        inactive: has(QCOW2_OPEN_INACTIVE),
    })
}

unsafe fn origin_of(params: &qcow2_open_params) -> Result<Origin> {
    let by_fd = is_given(params.fd, params.flags & QCOW2_OPEN_FD != 0);
    // SAFETY: the caller's pointers, as the contract says.
    let place = unsafe { place(params.path, by_fd.then_some(params.fd), params.io, params.io_opaque) };
    if params.flags & QCOW2_OPEN_FD != 0 && !by_fd {
        return Err(Error::invalid(format!(
            "fd is {}, and by QCOW2_OPEN_FD or qcow2_open_fd it is to count",
            params.fd
        )));
    }
    place?.ok_or_else(|| {
        Error::invalid("exactly one of path, fd and io must be given (fd 0 only counts with QCOW2_OPEN_FD)")
    })
}

/// Runs `run` with the caller's resolver, receiver of messages, and secrets.
fn with_callbacks<T>(
    params: &qcow2_open_params,
    run: impl for<'a> FnOnce(Option<Resolver<'a>>, Option<Messages<'a>>, Secrets<'a>) -> T,
) -> T {
    let mut ask = params.resolve.map(|function| {
        let opaque = params.resolve_opaque;
        move |request: &ResolveRequest| ask_resolver(function, opaque, request)
    });
    let mut say =
        |kind: MessageKind, text: &str| send_message(params.message, params.message_opaque, kind, text);
    let mut ask_for_secret = params.secret.map(|function| {
        let opaque = params.secret_opaque;
        move |request: &SecretRequest, room: &mut [u8]| ask_secret(function, opaque, request, room)
    });
    let mut told = |done, total| send_progress(params.progress, params.progress_opaque, done, total);
    let secrets = Secrets { source: ask_for_secret.as_mut().map(|a| a as _), progress: Some(&mut told) };
    run(ask.as_mut().map(|a| a as _), params.message.is_some().then_some(&mut say as _), secrets)
}

unsafe fn open(params: &qcow2_open_params, image: *mut *mut qcow2_image) -> Result<i64> {
    // The storage first: its `close` is owed from here on, whatever else is wrong.
    let origin = unsafe { origin_of(params) };
    if image.is_null() {
        return Err(Error::invalid("image is NULL"));
    }
    // SAFETY: checked for NULL; the caller's pointer is writable.
    unsafe { *image = std::ptr::null_mut() };
    prepare_last_error();
    let origin = origin?;
    let mut flags = open_flags(params.flags)?;
    // SAFETY: the caller's string.
    if let Some(format) = unsafe { super::text::optional_text(params.format, "format") }? {
        let by_flag = params.flags & QCOW2_OPEN_RAW != 0;
        flags.format = Driver::by_name(format)?;
        if by_flag && flags.format != Driver::RAW {
            return Err(Error::invalid(format!("format is '{format}', and QCOW2_OPEN_RAW is given")));
        }
    }
    let options = OpenOptions::parse(&unsafe { option_list(params.options) }?)?;
    let handle = with_callbacks(params, |resolver, messages, secrets| {
        Handle::open(&mut Opening { flags, options, resolver, messages, secrets }, &origin)
    })?;
    let messages = Receiver { function: params.message, opaque: params.message_opaque };
    // SAFETY: as above. The box is taken back by `qcow2_close`.
    unsafe { *image = Box::into_raw(Box::new(Guarded::new(handle, messages))).cast() };
    Ok(0)
}

/// The version of the library that is loaded, as QCOW2_VERSION is that of the header. Static.
#[no_mangle]
pub extern "C" fn qcow2_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Opens an image file.
///
/// A writable open of a dirty image (its writer died, lazy refcounts) repairs it before it returns.
/// A refused or read-only open changes no byte. Requests on the handle make few kinds of system calls: docs/features.md,
/// "System calls after open", lists them. `options` as in qcow2_open_params. On success `*image`
/// must be given to qcow2_close; on failure it is NULL.
///
/// Returns 0 or -errno: EINVAL (arguments, options, a header field out of its range), EMEDIUMTYPE (not a qcow2 image at
/// all), ENOTSUP (version or feature, named), EFBIG (a table over its limit), EIO (corrupt, or the host), EAGAIN (in use by another program
/// or handle), EUCLEAN (dirty, with QCOW2_OPEN_NO_REPAIR), ENOKEY (encrypted, and no secret was given: qcow2_open_with
/// takes one), EKEYREJECTED (the secret opens no key slot), ECANCELED (`progress` returned non-zero), EPERM (names a backing file or a data file, not allowed),
/// ELOOP, ENOENT and what else the host says.
#[no_mangle]
pub unsafe extern "C" fn qcow2_open(
    path: *const c_char,
    flags: u64,
    options: *const *const c_char,
    image: *mut *mut qcow2_image,
) -> c_int {
    let params = qcow2_open_params { path, flags, options, ..qcow2_open_params::empty() };
    enter(|| unsafe { open(&params, image) }) as c_int
}

/// Opens an image by descriptor. The descriptor is duplicated; the caller keeps its own and may close it.
/// Relative backing file names need a resolver, for a descriptor has no directory. One that appends (O_APPEND) is
/// EINVAL for a writable open. Its file offset is neither used nor moved; holes of the file are not asked for, which would
/// move it. On a machine of 32 bits, one that was opened without O_LARGEFILE ends at 2 GiB: EFBIG. Otherwise as
/// qcow2_open.
#[no_mangle]
pub unsafe extern "C" fn qcow2_open_fd(
    fd: c_int,
    flags: u64,
    options: *const *const c_char,
    image: *mut *mut qcow2_image,
) -> c_int {
    let params =
        qcow2_open_params { fd, flags: flags | QCOW2_OPEN_FD, options, ..qcow2_open_params::empty() };
    enter(|| unsafe { open(&params, image) }) as c_int
}

fn is_image(origin: &Origin) -> Result<i64> {
    Ok(i64::from(probe(origin)? == Some(Driver::QCOW2)))
}

/// Whether the file at `path` begins as a qcow2 image of version 2 or later does: 1 or 0; -errno: what the host says.
/// Nothing is locked. A guest can write such a beginning into its raw disk, and the image that it makes up names files of
/// the host: what is found this way is no reason to give QCOW2_OPEN_ALLOW_RECORDED.
#[no_mangle]
pub unsafe extern "C" fn qcow2_probe(path: *const c_char) -> c_int {
    enter(|| is_image(&Origin::Path(unsafe { super::text::path(path) }?))) as c_int
}

/// qcow2_probe by descriptor, whose offset does not move.
#[no_mangle]
pub unsafe extern "C" fn qcow2_probe_fd(fd: c_int) -> c_int {
    enter(|| is_image(&Origin::Descriptor(fd))) as c_int
}

/// The general form of open: by path, descriptor or callbacks, with a resolver for backing files and a
/// receiver of repair messages, and a source of secrets for encrypted images. Otherwise as qcow2_open.
#[no_mangle]
pub unsafe extern "C" fn qcow2_open_with(
    params: *const qcow2_open_params,
    image: *mut *mut qcow2_image,
) -> c_int {
    enter(|| unsafe {
        if !image.is_null() {
            // Also when the parameters are not even looked at.
            *image = std::ptr::null_mut();
        }
        open(&take(params, qcow2_open_params::empty(), "params")?, image)
    }) as c_int
}

/// Flushes, leaves the image clean, and frees the handle, whatever it returns: the first error that kept
/// something from the disk, or 0. A corruption that is found here is an error, and a message to the `message` that the
/// open was given. NULL is fine. No other call on the handle may be under way. In a forked
/// child it does nothing and returns -EOWNERDEAD.
#[no_mangle]
pub unsafe extern "C" fn qcow2_close(image: *mut qcow2_image) -> c_int {
    if image.is_null() {
        return 0;
    }
    let foreign =
        with(image, |guarded| if guarded.is_foreign() { guarded.check().map(|()| 0) } else { Ok(0) });
    if foreign == -i64::from(libc::EOWNERDEAD) {
        return foreign as c_int;
    }
    let usable = foreign;
    enter(|| {
        // SAFETY: the pointer came from `Box::into_raw`; the caller gives it up.
        let guarded = unsafe { Box::from_raw(image.cast::<Guarded>()) };
        if usable != 0 {
            return Err(guarded.check().err().unwrap_or_else(|| Error::invalid("unusable handle")));
        }
        let Guarded { handle, messages, .. } = *guarded;
        handle.close().map(|()| 0).inspect_err(|e| {
            if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::MarkedCorrupt) {
                send_message(messages.function, messages.opaque, MessageKind::Error, &e.to_string());
            }
        })
    }) as c_int
}

/// Changes read-only to read-write and back, and run-time options; what `options` does not name stays.
/// `flags`: QCOW2_OPEN_READ_ONLY and QCOW2_OPEN_NO_REPAIR. Requests of other threads wait. Everything is
/// flushed first. On failure the handle stays as it was. Errors as qcow2_open.
#[no_mangle]
pub unsafe extern "C" fn qcow2_reopen(
    image: *mut qcow2_image,
    flags: u64,
    options: *const *const c_char,
) -> c_int {
    with(image, |guarded| {
        check_flags("reopen", flags, QCOW2_OPEN_READ_ONLY | QCOW2_OPEN_NO_REPAIR)?;
        let flags = open_flags(flags)?;
        let changes = unsafe { option_list(options) }?;
        guarded.changing(|handle| handle.reopen(flags.read_only, flags.no_repair, &changes, None)).map(|()| 0)
    }) as c_int
}

/// Hands the image to another program, as the source of a migration does: waits for requests under way, brings
/// everything to the medium, leaves the image clean, drops all caches, and gives the locks back that keep others out;
/// the files of its chain go with it. From then on reads, writes, flushes and every change are refused (-EPERM) until
/// qcow2_invalidate, and what is told about the image is what it was. On a raw disk no request may be under way. On
/// an inactive handle it does nothing. The other side must see the same bytes: over a network file system with a cache
/// of its own, use cache=none on both sides.
///
/// Returns 0 or -errno; after a failed write or sync the handle stays what it is, and takes no more writes.
#[no_mangle]
pub unsafe extern "C" fn qcow2_inactivate(image: *mut qcow2_image) -> c_int {
    with(image, |guarded| inactivate(&guarded.handle).map(|()| 0)) as c_int
}

/// Takes an image over that is inactive (qcow2_inactivate, QCOW2_OPEN_INACTIVE), as the target of a migration does:
/// takes the locks, reads header and tables anew (its size, its snapshots and its backing file may be others), and
/// repairs a dirty image as a writable open does. A backing file with the same recorded name is used by the descriptor
/// that is open; for another one, the flags of the open or the resolver in `params` decide. Of `params`, which may be
/// NULL, only the callbacks and their opaque values are used; the secret is asked for where the image has come to be
/// encrypted with another key. On a handle that is not inactive it does nothing.
///
/// Returns 0 or -errno as qcow2_open; EAGAIN: the other side still has it. After a failure the handle is inactive.
#[no_mangle]
pub unsafe extern "C" fn qcow2_invalidate(
    image: *mut qcow2_image,
    params: *const qcow2_open_params,
) -> c_int {
    with(image, |guarded| {
        let params = match params.is_null() {
            true => qcow2_open_params::empty(),
            // SAFETY: the caller's struct.
            false => unsafe { take(params, qcow2_open_params::empty(), "params") }?,
        };
        with_callbacks(&params, |resolver, messages, secrets| {
            guarded.changing(|handle| invalidate_with(handle, resolver, messages, secrets))
        })
        .map(|()| 0)
    }) as c_int
}

/// Drops cached tables that no request has used since the last call, and what is kept of compressed clusters (1 MiB
/// inflated at most, or two clusters, and a codec for each thread that was at it). Calls every `cache-clean-interval`
/// seconds bound the memory of an idle image; the library has no thread of its own for it. 0 or -errno.
#[no_mangle]
pub unsafe extern "C" fn qcow2_clean_caches(image: *mut qcow2_image) -> c_int {
    with(image, |guarded| guarded.handle.disk().clean_caches().map(|()| 0)) as c_int
}

/// Whether an option string is one that qcow2_open would take; 0 or -EINVAL with the reason in
/// qcow2_last_error. For programs that check a command line before they have a file.
#[no_mangle]
pub unsafe extern "C" fn qcow2_check_open_option(option: *const c_char) -> c_int {
    enter(|| {
        if option.is_null() {
            return Err(Error::invalid("option is NULL"));
        }
        let list = [option, std::ptr::null()];
        OpenOptions::parse(&unsafe { option_list(list.as_ptr()) }?).map(|_| 0)
    }) as c_int
}
