//! Dirty bitmaps: what of the disk has changed since some point in time.

use super::edge::{give, with, Guarded};
use super::strings::keep;
use super::types::*;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::bitmaps;
use crate::sync::locked;
use std::ffi::{c_char, c_int, CStr};

/// The name that a caller gives.
unsafe fn name_of<'a>(name: *const c_char, what: &str) -> Result<&'a [u8]> {
    match name.is_null() {
        true => Err(Error::invalid(format!("{what} is NULL"))),
        // SAFETY: the caller's NUL-terminated string, which lives across the call.
        false => Ok(unsafe { CStr::from_ptr(name) }.to_bytes()),
    }
}

/// Adds a dirty bitmap: from now on, each change of the disk sets the bits of what it touches. No bit is set yet.
/// `granularity` is the number of guest bytes that one bit stands for, a power of two from 512 to 2^31; 0: a cluster,
/// but from 4 KiB to 64 KiB. `flags`: 0 or QCOW2_BITMAP_DISABLED. `name` has 1 to 1023 bytes.
///
/// Bitmaps are stored in the image by qcow2_close, qcow2_inactivate, qcow2_reopen and qcow2_bitmap_sync. A writer that is
/// killed leaves the enabled ones inconsistent, if it had written anything since they were stored: they are good for
/// qcow2_bitmap_remove and qcow2_bitmap_recover only. Writes, zeroes, discards and compressed writes set bits, also those
/// that fail; snapshots, VM state and qcow2_stream do not. A disk that gets another size keeps its bitmaps. While an image
/// has bitmaps no snapshot of it can be applied.
///
/// The functions of bitmaps let requests of other threads wait; each is durable when it returns, and a crash before
/// leaves all bitmaps as they were before, or as after it. They may be called from any thread.
///
/// Returns 0 or -errno: EINVAL (name, granularity, a disk of 0 bytes), EEXIST, EFBIG (the bitmap would take more than 512
/// MiB, or there are 65,535 bitmaps), EROFS, ENOTSUP (a raw disk, an image of version 2), ENOSPC, EIO.
/// Specification: "Bitmaps".
#[no_mangle]
pub unsafe extern "C" fn qcow2_bitmap_add(
    image: *mut qcow2_image,
    name: *const c_char,
    granularity: u64,
    flags: u64,
) -> c_int {
    with(image, |guarded| {
        super::flags::check_flags("bitmap_add", flags, QCOW2_BITMAP_DISABLED)?;
        let granularity = (granularity != 0).then_some(granularity);
        let name = unsafe { name_of(name, "name") }?;
        bitmaps::add(&guarded.handle, name, granularity, flags & QCOW2_BITMAP_DISABLED == 0)?;
        Ok(0)
    }) as c_int
}

/// Removes a dirty bitmap; an inconsistent one, too. Returns 0 or -errno: ENOENT, EROFS, ENOTSUP, ENOSPC, EIO.
/// Specification: "Bitmaps".
#[no_mangle]
pub unsafe extern "C" fn qcow2_bitmap_remove(image: *mut qcow2_image, name: *const c_char) -> c_int {
    with(image, |guarded| bitmaps::remove(&guarded.handle, unsafe { name_of(name, "name") }?).map(|()| 0))
        as c_int
}

/// Clears all bits of a dirty bitmap. Returns 0 or -errno: ENOENT, EINVAL (it is inconsistent), EROFS, ENOTSUP, ENOSPC,
/// EIO. Specification: "Bitmaps".
#[no_mangle]
pub unsafe extern "C" fn qcow2_bitmap_clear(image: *mut qcow2_image, name: *const c_char) -> c_int {
    with(image, |guarded| bitmaps::clear(&guarded.handle, unsafe { name_of(name, "name") }?).map(|()| 0))
        as c_int
}

/// Has a dirty bitmap track changes from now on; what changed while it was disabled is not in it. Returns 0 or -errno as
/// qcow2_bitmap_clear. Specification: "Bitmaps", flag "auto".
#[no_mangle]
pub unsafe extern "C" fn qcow2_bitmap_enable(image: *mut qcow2_image, name: *const c_char) -> c_int {
    with(image, |guarded| {
        bitmaps::set_enabled(&guarded.handle, unsafe { name_of(name, "name") }?, true).map(|()| 0)
    }) as c_int
}

/// Has a dirty bitmap track no more changes; its bits stay. Returns 0 or -errno as qcow2_bitmap_clear.
/// Specification: "Bitmaps", flag "auto".
#[no_mangle]
pub unsafe extern "C" fn qcow2_bitmap_disable(image: *mut qcow2_image, name: *const c_char) -> c_int {
    with(image, |guarded| {
        bitmaps::set_enabled(&guarded.handle, unsafe { name_of(name, "name") }?, false).map(|()| 0)
    }) as c_int
}

/// Sets in the dirty bitmap `target` all that is set in `source_name`: a bitmap of `source`, another open image with a
/// disk of the same size, or, where `source` is NULL, of `image` itself. The granularities may differ. `source` may be
/// open read-only; what somebody writes to it meanwhile may be missing.
///
/// Returns 0 or -errno: ENOENT, EINVAL (one of them is inconsistent; the sizes of the disks differ), EROFS, ENOTSUP,
/// ENOMEM, ENOSPC, EIO. Specification: "Bitmaps".
#[no_mangle]
pub unsafe extern "C" fn qcow2_bitmap_merge(
    image: *mut qcow2_image,
    target: *const c_char,
    source: *mut qcow2_image,
    source_name: *const c_char,
) -> c_int {
    with(image, |guarded| {
        let (target, name) = unsafe { (name_of(target, "target")?, name_of(source_name, "source_name")?) };
        let source = match source.is_null() || source == image {
            true => None,
            false => {
                // SAFETY: the caller passes a pointer from an open that has not been closed.
                let source = unsafe { &*source.cast::<Guarded>() };
                source.check()?;
                Some(&source.handle)
            }
        };
        bitmaps::merge(&guarded.handle, target, source, name).map(|()| 0)
    }) as c_int
}

/// Adds a dirty bitmap that is what the bitmap `name` of `source` is, another open image with a disk of the same size: as
/// large granules, the same bits, and it tracks changes if that one does. What is written to `source` meanwhile may be
/// missing; whoever fills `image` with what `source` has does so before.
///
/// Returns 0 or -errno: ENOENT, EEXIST, EINVAL (it is inconsistent; the sizes of the disks differ; both are one image),
/// EFBIG, EROFS, ENOTSUP, ENOMEM, ENOSPC, EIO. Specification: "Bitmaps".
#[no_mangle]
pub unsafe extern "C" fn qcow2_bitmap_copy(
    image: *mut qcow2_image,
    source: *mut qcow2_image,
    name: *const c_char,
) -> c_int {
    with(image, |guarded| {
        if source.is_null() || source == image {
            return Err(Error::invalid("source is NULL, or the image itself"));
        }
        let name = unsafe { name_of(name, "name") }?;
        // SAFETY: the caller passes a pointer from an open that has not been closed.
        let source = unsafe { &*source.cast::<Guarded>() };
        source.check()?;
        bitmaps::copy(&guarded.handle, &source.handle, name).map(|()| 0)
    }) as c_int
}

/// Hands over from one dirty bitmap to the next, for an incremental backup: the bits of `name` go to a new bitmap
/// `frozen`, which is disabled, and `name` tracks on with no bit set. Requests wait meanwhile, so each write is in one of
/// the two: what `frozen` says, copied from now on, is a backup as of any time after this call. When the backup is
/// complete `frozen` is removed; when it has failed qcow2_bitmap_merge puts it back into `name`.
///
/// Returns 0 or -errno: ENOENT, EEXIST (`frozen`), EINVAL (`name` is inconsistent or disabled; the name `frozen`), EFBIG,
/// EROFS, ENOTSUP, ENOSPC, EIO. Specification: "Bitmaps".
#[no_mangle]
pub unsafe extern "C" fn qcow2_bitmap_rotate(
    image: *mut qcow2_image,
    name: *const c_char,
    frozen: *const c_char,
) -> c_int {
    with(image, |guarded| {
        let (name, frozen) = unsafe { (name_of(name, "name")?, name_of(frozen, "frozen")?) };
        bitmaps::rotate(&guarded.handle, name, frozen).map(|()| 0)
    }) as c_int
}

/// Makes an inconsistent dirty bitmap usable again: all of the disk counts as changed. A backup then copies everything
/// once, and goes on with increments. Returns 0 or -errno: ENOENT, EINVAL (it is consistent), EROFS, ENOTSUP, ENOSPC, EIO.
/// Specification: "Bitmaps", flag "in_use".
#[no_mangle]
pub unsafe extern "C" fn qcow2_bitmap_recover(image: *mut qcow2_image, name: *const c_char) -> c_int {
    with(image, |guarded| bitmaps::recover(&guarded.handle, unsafe { name_of(name, "name") }?).map(|()| 0))
        as c_int
}

/// Stores all dirty bitmaps durably, with everything else that is not yet on the medium, as qcow2_close does: a crash
/// before the next change of the disk leaves them consistent. Returns 0 or -errno: EROFS, ENOTSUP (a raw disk), ENOSPC,
/// EIO. Specification: "Bitmaps".
#[no_mangle]
pub unsafe extern "C" fn qcow2_bitmap_sync(image: *mut qcow2_image) -> c_int {
    with(image, |guarded| bitmaps::sync(&guarded.handle).map(|()| 0)) as c_int
}

/// Dirty bitmap number `index`, counted from 0, as this handle has it, with what has been written through it: so
/// QCOW2_BITMAP_IN_USE is set of an inconsistent bitmap only, where qcow2_get_bitmap shows what the file says.
/// `dirty_bytes` is counted; of an inconsistent one it is the size of the disk. The name is valid until the next call of
/// this function or of qcow2_get_bitmap on the handle.
///
/// A handle that is open read-only loads them when it is asked first and answers from that, whatever another program
/// stores meanwhile: for what is new, open again. Bitmaps are about the disk as it is now, also where the handle shows a
/// snapshot: what has changed up to a snapshot is in the bitmap that was frozen (qcow2_bitmap_rotate) when it was taken.
///
/// Returns 0, -ENOENT past the last one, or another -errno: EINVAL, EIO (the bitmaps are damaged), EFBIG (they are too
/// large to be looked at), ENOTSUP (a raw disk), ENOMEM. Specification: "Bitmaps".
#[no_mangle]
pub unsafe extern "C" fn qcow2_bitmap_list(
    image: *mut qcow2_image,
    index: usize,
    bitmap: *mut qcow2_bitmap_info,
) -> c_int {
    with(image, |guarded| {
        let Some(found) = bitmaps::status_of(&guarded.handle, index)? else {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no bitmap number {index}")));
        };
        let mut strings = locked(guarded.strings.lock());
        strings.bitmaps.clear();
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        let answer = qcow2_bitmap_info {
            struct_size: 0,
            name: keep(&mut strings.bitmaps, Some(&found.name)),
            granularity: found.granularity,
            flags: flag(found.inconsistent, QCOW2_BITMAP_IN_USE) | flag(found.enabled, QCOW2_BITMAP_AUTO),
            reserved: 0,
            dirty_bytes: found.dirty_bytes,
        };
        // SAFETY: the caller's struct, checked for NULL.
        unsafe { give(answer, bitmap, "bitmap") }.map(|()| 0)
    }) as c_int
}

/// The first range that is dirty in a bitmap, at or after `offset`: its first byte to `start`, its length to `length`, as
/// long as it is dirty without a gap. A range that begins before `offset` is cut there.
///
/// Returns 1, 0 where nothing more is dirty, or -errno: ENOENT, EINVAL (it is inconsistent), ENOTSUP (a raw disk), EIO,
/// ENOMEM. Specification: "Bitmaps".
#[no_mangle]
pub unsafe extern "C" fn qcow2_bitmap_next_dirty(
    image: *mut qcow2_image,
    name: *const c_char,
    offset: u64,
    start: *mut u64,
    length: *mut u64,
) -> c_int {
    with(image, |guarded| {
        if start.is_null() || length.is_null() {
            return Err(Error::invalid("start or length is NULL"));
        }
        let name = unsafe { name_of(name, "name") }?;
        let Some((from, to)) = bitmaps::next_dirty(&guarded.handle, name, offset)? else { return Ok(0) };
        // SAFETY: the caller's variables, checked for NULL.
        unsafe {
            *start = from;
            *length = to - from;
        }
        Ok(1)
    }) as c_int
}
