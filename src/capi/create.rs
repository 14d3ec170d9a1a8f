//! Create.

use super::callbacks::{qcow2_progress_fn, qcow2_secret_fn, SecretCallbacks};
use super::custom_io::{self, place, qcow2_io_ops};
use super::edge::{self, enter, option_list, take};
use super::flags::check_flags;
use super::types::{QCOW2_CREATE_DATA_FD, QCOW2_CREATE_FD};
use crate::error::{Error, Result};
use crate::ops::create_at::{create_at, size_of_new};
use crate::ops::formats::Driver;
use crate::ops::open::Origin;
use std::ffi::{c_char, c_int, c_void};

/// Everything that a create can be given; begin with QCOW2_CREATE_PARAMS_INIT, or with zeroes, `struct_size` and `size`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_create_params {
    /// sizeof(qcow2_create_params), set by the caller.
    pub struct_size: usize,
    /// One of path, fd, io.
    pub path: *const c_char,
    /// Duplicated; the caller keeps its own. -1: none; so does 0 mean without QCOW2_CREATE_FD.
    pub fd: c_int,
    /// Copied; its `close` is called before the call returns.
    pub io: *const qcow2_io_ops,
    /// Handed to the functions of `io`.
    pub io_opaque: *mut c_void,
    /// Bytes, rounded up to 512; UINT64_MAX: the option "size" says, or else the backing file.
    pub size: u64,
    /// "key=value" strings, NULL at the end; may be NULL. See qcow2_option_list.
    pub options: *const *const c_char,
    /// With the option data_file, at most one of data_path, data_fd, data_io says where that file is; none: at the name
    /// that is recorded.
    pub data_path: *const c_char,
    /// As `fd`; -1: none; so does 0 mean without QCOW2_CREATE_DATA_FD.
    pub data_fd: c_int,
    /// As `io`.
    pub data_io: *const qcow2_io_ops,
    /// Handed to the functions of `data_io`.
    pub data_io_opaque: *mut c_void,
    /// QCOW2_CREATE_*; unknown bits are -EINVAL.
    pub flags: u64,
    /// "qcow2" or "luks"; NULL: "qcow2". A LUKS file has options of its own: QCOW2_SCOPE_CREATE_LUKS.
    pub format: *const c_char,
    /// Has the secret of an encrypted image. It is asked for before anything is made. May be NULL: then an encrypted image
    /// is -ENOKEY.
    pub secret: qcow2_secret_fn,
    /// Handed to `secret`.
    pub secret_opaque: *mut c_void,
    /// Takes the progress of deriving keys, which lasts as long as the option encrypt.iter-time says. May be NULL.
    pub progress: qcow2_progress_fn,
    /// Handed to `progress`.
    pub progress_opaque: *mut c_void,
}

impl qcow2_create_params {
    fn empty() -> Self {
        qcow2_create_params {
            struct_size: std::mem::size_of::<qcow2_create_params>(),
            path: std::ptr::null(),
            fd: -1,
            io: std::ptr::null(),
            io_opaque: std::ptr::null_mut(),
            size: 0,
            options: std::ptr::null(),
            data_path: std::ptr::null(),
            data_fd: -1,
            data_io: std::ptr::null(),
            data_io_opaque: std::ptr::null_mut(),
            flags: 0,
            format: std::ptr::null(),
            secret: None,
            secret_opaque: std::ptr::null_mut(),
            progress: None,
            progress_opaque: std::ptr::null_mut(),
        }
    }
}

unsafe fn make(
    format: Driver,
    origin: &Origin,
    data_file: Option<&Origin>,
    size: u64,
    options: *const *const c_char,
    callbacks: SecretCallbacks,
) -> Result<i64> {
    let list = unsafe { option_list(options) }?;
    let options = (format.create_options)(&list)?;
    let size = match (size, options.size) {
        (u64::MAX, Some(size)) => size,
        (u64::MAX, None) => size_of_new(origin, &options)?,
        (size, _) => size,
    };
    callbacks.with(|secrets| create_at(format, origin, data_file, size, &options, secrets)).map(|()| 0)
}

/// Creates an image file, or replaces what is in it, with a disk of `size` bytes, rounded up to 512 (UINT64_MAX: the
/// option "size" says, or else the backing file, which is opened for nothing but that). The same options to qemu-img
/// create give the same header and extensions. A backing file is recorded, not opened; a data file (option data_file, a name relative to the working directory) is made too, and
/// what it held is lost. `options`: "key=value" strings, NULL at the end; may be NULL; see
/// qcow2_option_list(QCOW2_SCOPE_CREATE). The image is durable when the call returns; a crash before leaves nothing
/// that opens. A call that fails removes the file if it was made by it, and nothing that somebody else has put there.
///
/// Returns 0 or -errno: EINVAL, ENOTSUP (a cipher that this build lacks, a combination of options), ENOKEY (an encrypted
/// image, whose secret qcow2_create_with takes), EFBIG (size), EAGAIN (the file is in use), ENOSPC and what else the host says.
#[no_mangle]
pub unsafe extern "C" fn qcow2_create(
    path: *const c_char,
    size: u64,
    options: *const *const c_char,
) -> c_int {
    enter(|| unsafe {
        make(
            Driver::QCOW2,
            &Origin::Path(super::text::path(path)?),
            None,
            size,
            options,
            SecretCallbacks::NONE,
        )
    }) as c_int
}

/// qcow2_create in an open file; the descriptor stays the caller's.
#[no_mangle]
pub unsafe extern "C" fn qcow2_create_fd(fd: c_int, size: u64, options: *const *const c_char) -> c_int {
    enter(|| unsafe {
        make(Driver::QCOW2, &Origin::Descriptor(fd), None, size, options, SecretCallbacks::NONE)
    }) as c_int
}

/// qcow2_create over a caller's storage; `close` of `io` is called before it returns.
#[no_mangle]
pub unsafe extern "C" fn qcow2_create_io(
    io: *const qcow2_io_ops,
    io_opaque: *mut c_void,
    size: u64,
    options: *const *const c_char,
) -> c_int {
    enter(|| unsafe {
        make(
            Driver::QCOW2,
            &Origin::Custom(custom_io::wrap(io, io_opaque)?),
            None,
            size,
            options,
            SecretCallbacks::NONE,
        )
    }) as c_int
}

/// The general form of create: the image, and its external data file, by path, descriptor or callbacks; encrypted ones,
/// too. Their key is random; the options encrypt.* say what it is for, and the secret, which is not among the options,
/// opens it. Otherwise as qcow2_create. ENOKEY: `secret` has none; ECANCELED: `progress` returned non-zero. In both cases
/// nothing has been made. Specification: "External data file name", "Full disk encryption header pointer".
#[no_mangle]
pub unsafe extern "C" fn qcow2_create_with(params: *const qcow2_create_params) -> c_int {
    enter(|| unsafe {
        let p = take(params, qcow2_create_params::empty(), "params")?;
        // Both storages first: their `close` is owed from here on, whatever else is wrong.
        let has = |flag: u64| p.flags & flag != 0;
        let fd = |fd, flag| edge::is_given(fd, has(flag)).then_some(fd);
        let image = place(p.path, fd(p.fd, QCOW2_CREATE_FD), p.io, p.io_opaque);
        let data_fd = fd(p.data_fd, QCOW2_CREATE_DATA_FD);
        let data_file = place(p.data_path, data_fd, p.data_io, p.data_io_opaque)?;
        let Some(image) = image? else {
            return Err(Error::invalid(
                "exactly one of path, fd and io must be given (fd 0 only counts with QCOW2_CREATE_FD)",
            ));
        };
        check_flags("create", p.flags, QCOW2_CREATE_FD | QCOW2_CREATE_DATA_FD)?;
        let callbacks = SecretCallbacks {
            secret: p.secret,
            secret_opaque: p.secret_opaque,
            progress: p.progress,
            progress_opaque: p.progress_opaque,
        };
        let format = super::text::optional_text(p.format, "format")?;
        let format = Driver::by_name(format.unwrap_or("qcow2"))?;
        make(format, &image, data_file.as_ref(), p.size, p.options, callbacks)
    }) as c_int
}
