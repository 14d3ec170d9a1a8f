//! Create.

use super::custom_io::{self, qcow2_io_ops};
use super::edge::{enter, option_list, path};
use crate::error::{Error, Result};
use crate::ops::open::{create_at, Origin};
use crate::options::CreateOptions;
use std::ffi::{c_char, c_int, c_void};

unsafe fn make(origin: &Origin, size: u64, options: *const *const c_char) -> Result<i64> {
    let options = CreateOptions::parse(&unsafe { option_list(options) }?)?;
    let size = match (size, options.size) {
        (u64::MAX, Some(size)) => size,
        (u64::MAX, None) => return Err(Error::invalid("no size is given")),
        (size, _) => size,
    };
    create_at(origin, size, &options).map(|()| 0)
}

/// Creates an image file, or replaces what is in it, with a disk of `size` bytes, rounded up to 512
/// (UINT64_MAX: the option "size" says). The same options to qemu-img create give the same header and extensions. A backing file is
/// recorded, never opened. `options`: "key=value" strings, NULL at the end; may be NULL; see
/// qcow2_option_list(QCOW2_SCOPE_CREATE). The image is durable when the call returns; a crash before leaves
/// nothing that opens.
///
/// Returns 0 or -errno: EINVAL, ENOTSUP (an option's value that is not served yet), EFBIG (size), EAGAIN (the
/// file is in use), ENOSPC and what else the host says.
#[no_mangle]
pub unsafe extern "C" fn qcow2_create(
    name: *const c_char,
    size: u64,
    options: *const *const c_char,
) -> c_int {
    enter(|| unsafe { make(&Origin::Path(path(name)?), size, options) }) as c_int
}

/// qcow2_create in an open file; the descriptor stays the caller's.
#[no_mangle]
pub unsafe extern "C" fn qcow2_create_fd(fd: c_int, size: u64, options: *const *const c_char) -> c_int {
    enter(|| unsafe { make(&Origin::Descriptor(fd), size, options) }) as c_int
}

/// qcow2_create over a caller's storage; `close` of `io` is called before it returns.
#[no_mangle]
pub unsafe extern "C" fn qcow2_create_io(
    io: *const qcow2_io_ops,
    io_opaque: *mut c_void,
    size: u64,
    options: *const *const c_char,
) -> c_int {
    enter(|| unsafe { make(&Origin::Custom(custom_io::wrap(io, io_opaque)?), size, options) }) as c_int
}
