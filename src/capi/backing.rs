//! The backing file of an open image: another name, another file, nothing of its own.

use super::callbacks::*;
use super::edge::{with, Guarded};
use super::flags::check_flags;
use super::text::optional_text;
use super::types::*;
use crate::error::{Error, Result};
use crate::ops::backing::{change_backing_file, make_empty};
use crate::ops::rebase::rebase;
use crate::ops::stream::stream;
use std::ffi::{c_char, c_int, c_void, CStr};

/// NULL and "" mean none.
unsafe fn name_of<'a>(pointer: *const c_char) -> Option<&'a [u8]> {
    // SAFETY: NULL, or the caller's NUL-terminated string, which lives across the call. (A length that is asked of a
    // NULL too, by a conditional move, is what valgrind calls uninitialised.)
    let named = !pointer.is_null() && unsafe { *pointer } != 0;
    named.then(|| unsafe { CStr::from_ptr(pointer) }.to_bytes())
}

/// Records another backing file, whatever it holds: the contents of the disk change where that file differs. `name` (at
/// most 1023 bytes, relative names: to the image's directory) is neither opened nor looked for; NULL or "": no backing
/// file, and what the image does not hold reads as zeroes from now on. `format` is required with a name, and NULL
/// without one; names of QEMU's other formats are recorded too, which no open here serves. With another name or format
/// the handle goes on with the chain that it has open, and zeroing, discarding and growing are refused (EINVAL): open
/// the image again to use the new one (QCOW2_OPEN_NO_BACKING opens an image whose backing file is gone). Other header
/// extensions stay byte for byte. Requests of other threads wait.
///
/// Durable when it returns; a power cut before leaves the old name or the new one. ENOSPC also where a cluster of 1
/// or 2 KiB cannot hold the old names beside the new ones, which that takes.
///
/// Returns 0 or -errno: EINVAL (name, format), ENOSPC (no space left in the header cluster), EROFS, ENOTSUP (a raw
/// disk), EIO. Specification: "Header extensions", "Backing file name".
#[no_mangle]
pub unsafe extern "C" fn qcow2_change_backing_file(
    image: *mut qcow2_image,
    name: *const c_char,
    format: *const c_char,
) -> c_int {
    with(image, |guarded| {
        let format = unsafe { optional_text(format, "format") }?;
        change_backing_file(&guarded.handle, unsafe { name_of(name) }, format).map(|()| 0)
    }) as c_int
}

/// Gives the image another backing file without changing what the disk shows: what the image has from its chain and
/// `backing` would show otherwise is written into the image, and durable before the header changes as by
/// qcow2_change_backing_file. `backing` is open already, NULL: none, and is recorded as `name` and `format`. Where
/// both chains have a range from the same file nothing is read. Internal snapshots are not looked at: what they have
/// from the backing file becomes what the new one has. Requests of other threads on `image` wait; `backing` must not
/// change. With another name or format the handle goes on with the chain that it has open, which shows the same;
/// zeroing, discarding and growing are refused (EINVAL) until the image is opened anew. `flags`:
/// QCOW2_REBASE_COMPRESSED. `progress` may be NULL. After a failure or a power cut the image has its old backing
/// file, or the new one if the header's change had begun, and shows the same.
///
/// Returns 0 or -errno: EINVAL (parameters; `backing` is the image itself, or open as one of its snapshots; the image
/// was opened with QCOW2_OPEN_NO_BACKING), ELOOP (`backing` has the image in its chain), ECANCELED (`progress` returned
/// non-zero), and as qcow2_change_backing_file, qcow2_pread of both chains and qcow2_pwrite.
#[no_mangle]
pub unsafe extern "C" fn qcow2_rebase(
    image: *mut qcow2_image,
    backing: *mut qcow2_image,
    name: *const c_char,
    format: *const c_char,
    flags: u64,
    progress: qcow2_progress_fn,
    progress_opaque: *mut c_void,
) -> c_int {
    with(image, |guarded| {
        check_flags("rebase", flags, QCOW2_REBASE_COMPRESSED)?;
        if backing == image {
            return Err(Error::invalid("rebase: the image cannot be its own backing file"));
        }
        // SAFETY: NULL, or a pointer from an open that has not been closed.
        let below = unsafe { backing.cast::<Guarded>().as_ref() };
        below.map_or(Ok(()), Guarded::check)?;
        let format = unsafe { optional_text(format, "format") }?;
        rebase(
            &guarded.handle,
            below.map(|b| &b.handle),
            unsafe { name_of(name) },
            format,
            flags & QCOW2_REBASE_COMPRESSED != 0,
            &mut |done, total| send_progress(progress, progress_opaque, done, total),
        )?;
        Ok(0)
    }) as c_int
}

/// Copies what a range shows of the disks below into the image; the disk shows the same before, meanwhile and
/// afterwards. What the image holds itself stays; zeroes are not written as data (but in version 2). `base` is the
/// depth of the layer to stop at, as in qcow2_extent: what it and those below it hold is not copied; 0: everything
/// is. Requests of other threads go on, and a write of the guest's wins. `flags`: 0. `progress` may be NULL.
///
/// After a stream of the whole disk with `base` 0 the image needs no backing file: qcow2_change_backing_file with NULL
/// lets go of it. After one with a base, its name can be recorded instead. Both make the copies durable first. Where
/// all of it is zeroes a hole may stay, so that no other file may follow. Internal snapshots are not looked at.
///
/// Returns 0 or -errno: EINVAL (flags; no layer at `base`; opened with QCOW2_OPEN_NO_BACKING, or the backing file has
/// been changed), ECANCELED (`progress` returned non-zero), ENOTSUP (a raw disk), and as qcow2_pwrite. What has been
/// copied by then stays.
#[no_mangle]
pub unsafe extern "C" fn qcow2_stream(
    image: *mut qcow2_image,
    offset: u64,
    length: u64,
    base: u32,
    flags: u64,
    progress: qcow2_progress_fn,
    progress_opaque: *mut c_void,
) -> c_int {
    with(image, |guarded| {
        check_flags("stream", flags, 0)?;
        let mut told = |done, total| send_progress(progress, progress_opaque, done, total);
        stream(&guarded.handle, offset, length, base, &mut told).map(|()| 0)
    }) as c_int
}

/// Lets go of everything that the image holds itself: afterwards the disk shows its backing file, or zeroes, and the
/// file is as short as it gets. Internal snapshots stay, VM state that none of them has goes. Requests of other
/// threads wait. A power cut leaves each part of the disk as it was or as below.
///
/// Returns 0 or -errno: EROFS, ENOTSUP (a raw disk), EIO.
#[no_mangle]
pub unsafe extern "C" fn qcow2_make_empty(image: *mut qcow2_image) -> c_int {
    with(image, |guarded| -> Result<i64> { make_empty(&guarded.handle).map(|()| 0) }) as c_int
}
