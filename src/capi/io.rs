//! Guest I/O: the caller's buffers and vectors become slices here, lengths are checked against `ssize_t`, and a request
//! goes to the disk as one.

use super::edge::{give, with, with_read, with_shortcut};
use super::flags::check_flags;
use super::types::*;
use crate::disk::ZeroFlags;
use crate::error::{Error, Result};
use crate::ops::resize::resize;
use crate::options::Preallocation;
use libc::ssize_t;
use std::ffi::{c_int, c_void};
use std::io::{IoSlice, IoSliceMut};

/// Linux's UIO_MAXIOV.
const MAX_IOVCNT: c_int = 1024;

#[inline]
pub(super) fn check_count(count: usize) -> Result<()> {
    match count > isize::MAX as usize {
        true => Err(past_ssize_max(count)),
        false => Ok(()),
    }
}

#[cold]
fn past_ssize_max(count: usize) -> Error {
    Error::invalid(format!("count {count} is past SSIZE_MAX"))
}

/// The caller's buffers. Both slice types have the layout of `iovec`.
unsafe fn vectors<'a>(iov: *const libc::iovec, iovcnt: c_int) -> Result<&'a [libc::iovec]> {
    if !(0..=MAX_IOVCNT).contains(&iovcnt) {
        return Err(Error::invalid(format!("iovcnt {iovcnt} is not between 0 and {MAX_IOVCNT}")));
    }
    if iovcnt == 0 {
        return Ok(&[]);
    }
    if iov.is_null() {
        return Err(Error::invalid("iov is NULL"));
    }
    // SAFETY: the caller's array of `iovcnt` elements.
    let list = unsafe { std::slice::from_raw_parts(iov, iovcnt as usize) };
    let mut total = 0usize;
    for (index, one) in list.iter().enumerate() {
        if one.iov_base.is_null() && one.iov_len > 0 {
            return Err(Error::invalid(format!("iov[{index}].iov_base is NULL")));
        }
        total = total.saturating_add(one.iov_len);
    }
    check_count(total)?;
    Ok(list)
}

/// The caller's buffer, to read from.
#[inline]
pub(super) unsafe fn slice_of<'a>(buffer: *const c_void, count: usize) -> Result<&'a [u8]> {
    match (buffer.is_null(), count) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Error::invalid("buffer is NULL")),
        // SAFETY: the caller's buffer of `count` bytes.
        _ => Ok(unsafe { std::slice::from_raw_parts(buffer.cast(), count) }),
    }
}

/// The caller's buffer, to write to.
#[inline]
pub(super) unsafe fn slice_to_fill<'a>(buffer: *mut c_void, count: usize) -> Result<&'a mut [u8]> {
    match (buffer.is_null(), count) {
        (_, 0) => Ok(&mut []),
        (true, _) => Err(Error::invalid("buffer is NULL")),
        // SAFETY: the caller's buffer of `count` bytes, its own during the call.
        _ => Ok(unsafe { std::slice::from_raw_parts_mut(buffer.cast(), count) }),
    }
}

unsafe fn buffers_to_fill<'a>(list: &[libc::iovec]) -> Vec<IoSliceMut<'a>> {
    let filled = list.iter().filter(|v| v.iov_len > 0);
    // SAFETY: the caller's buffers, writable and its own during the call.
    filled
        .map(|v| IoSliceMut::new(unsafe { std::slice::from_raw_parts_mut(v.iov_base.cast(), v.iov_len) }))
        .collect()
}

unsafe fn buffers_to_write<'a>(list: &[libc::iovec]) -> Vec<IoSlice<'a>> {
    let filled = list.iter().filter(|v| v.iov_len > 0);
    // SAFETY: the caller's buffers, readable during the call.
    filled
        .map(|v| IoSlice::new(unsafe { std::slice::from_raw_parts(v.iov_base.cast(), v.iov_len) }))
        .collect()
}

/// Reads `count` bytes at `offset`: all of them or an error. Any length and alignment. Buffers are touched
/// only during the call. Concurrent calls on one handle do not wait for each other.
///
/// Returns `count`, or -errno: EIO (past the end of the disk, corrupt entry, host error), EINVAL, EPERM
/// (metadata-only handle), EOWNERDEAD (forked child), ENOTRECOVERABLE.
#[no_mangle]
pub unsafe extern "C" fn qcow2_pread(
    image: *mut qcow2_image,
    buffer: *mut c_void,
    count: usize,
    offset: u64,
) -> ssize_t {
    with_read(image, move |guarded| {
        check_count(count)?;
        let slice = unsafe { slice_to_fill(buffer, count) }?;
        let disk = guarded.handle.disk();
        if !disk.read_short(offset, slice)? {
            disk.read(offset, &mut [IoSliceMut::new(slice)])?;
        }
        Ok(count as i64)
    }) as ssize_t
}

/// Writes `count` bytes at `offset`: all of them or an error. After an error the range may hold old and new
/// bytes; nothing else has changed. Durable after the next qcow2_flush, or at once as the cache mode says.
///
/// Returns `count`, or -errno: EIO (past the end of the disk, corrupt entry, metadata would be overwritten,
/// host error), EROFS, ENOSPC, EINVAL, EPERM, EOWNERDEAD, ENOTRECOVERABLE (an earlier sync
/// failed: reopen).
#[no_mangle]
pub unsafe extern "C" fn qcow2_pwrite(
    image: *mut qcow2_image,
    buffer: *const c_void,
    count: usize,
    offset: u64,
) -> ssize_t {
    let bytes = move || {
        check_count(count)?;
        unsafe { slice_of(buffer, count) }
    };
    with_shortcut(
        image,
        move |guarded| Ok(guarded.handle.disk().overwrite(offset, bytes()?)?.then_some(count as i64)),
        move |guarded| {
            guarded.handle.disk().write(offset, &[IoSlice::new(bytes()?)], false)?;
            Ok(count as i64)
        },
    ) as ssize_t
}

/// qcow2_pread into several buffers, at most 1024.
#[no_mangle]
pub unsafe extern "C" fn qcow2_preadv(
    image: *mut qcow2_image,
    iov: *const libc::iovec,
    iovcnt: c_int,
    offset: u64,
) -> ssize_t {
    with(image, |guarded| {
        // SAFETY: the caller's array and buffers.
        let mut list = unsafe { buffers_to_fill(vectors(iov, iovcnt)?) };
        let total: usize = list.iter().map(|b| b.len()).sum();
        guarded.handle.disk().read(offset, &mut list)?;
        Ok(total as i64)
    }) as ssize_t
}

/// qcow2_pwrite from several buffers, at most 1024.
#[no_mangle]
pub unsafe extern "C" fn qcow2_pwritev(
    image: *mut qcow2_image,
    iov: *const libc::iovec,
    iovcnt: c_int,
    offset: u64,
) -> ssize_t {
    unsafe { qcow2_pwritev2(image, iov, iovcnt, offset, 0) }
}

/// qcow2_pwritev with flags: QCOW2_REQ_FUA, QCOW2_REQ_COMPRESSED.
///
/// A compressed write is whole clusters (the disk's last one may be shorter) that the image itself does not hold
/// yet; a cluster that does not get smaller is written as it is. The option compress-threads has one request
/// compressed by several threads, which end with the call. Beside the errors of qcow2_pwrite: EINVAL (not whole
/// clusters), EIO (a cluster is allocated), ENOTSUP (a raw disk, an external data file).
/// Specification: "Compressed Clusters Descriptor".
#[no_mangle]
pub unsafe extern "C" fn qcow2_pwritev2(
    image: *mut qcow2_image,
    iov: *const libc::iovec,
    iovcnt: c_int,
    offset: u64,
    flags: u64,
) -> ssize_t {
    with(image, |guarded| {
        check_flags("I/O", flags, QCOW2_REQ_FUA | QCOW2_REQ_COMPRESSED)?;
        // SAFETY: the caller's array and buffers.
        let list = unsafe { buffers_to_write(vectors(iov, iovcnt)?) };
        let total: usize = list.iter().map(|b| b.len()).sum();
        let (disk, fua) = (guarded.handle.disk(), flags & QCOW2_REQ_FUA != 0);
        match flags & QCOW2_REQ_COMPRESSED {
            0 => disk.write(offset, &list, fua)?,
            _ => disk.write_compressed(offset, &list, fua)?,
        }
        Ok(total as i64)
    }) as ssize_t
}

/// Makes a range read as zeroes, without writing them where the format allows. `flags`: QCOW2_REQ_UNMAP
/// (host clusters may be given back), QCOW2_REQ_NO_FALLBACK, QCOW2_REQ_FUA. Returns 0 or -errno as
/// qcow2_pwrite, and ENOTSUP with QCOW2_REQ_NO_FALLBACK.
#[no_mangle]
pub unsafe extern "C" fn qcow2_write_zeroes(
    image: *mut qcow2_image,
    offset: u64,
    length: u64,
    flags: u64,
) -> c_int {
    with(image, |guarded| {
        check_flags("I/O", flags, QCOW2_REQ_FUA | QCOW2_REQ_UNMAP | QCOW2_REQ_NO_FALLBACK)?;
        let how = ZeroFlags {
            unmap: flags & QCOW2_REQ_UNMAP != 0,
            no_fallback: flags & QCOW2_REQ_NO_FALLBACK != 0,
        };
        guarded.handle.disk().write_zeroes(offset, length, how, flags & QCOW2_REQ_FUA != 0).map(|()| 0)
    }) as c_int
}

/// Says that the guest does not need a range any more. With the open option discard=ignore nothing happens.
/// Otherwise whole clusters inside it read as zeroes afterwards;
/// where the format cannot say so (version 2 with a backing file) and at the unaligned ends nothing changes.
/// A backing file never shows through. Returns 0 or -errno as qcow2_pwrite.
#[no_mangle]
pub unsafe extern "C" fn qcow2_discard(image: *mut qcow2_image, offset: u64, length: u64) -> c_int {
    with(image, |guarded| guarded.handle.disk().discard(offset, length).map(|()| 0)) as c_int
}

/// qcow2_discard with flags: QCOW2_REQ_FUA.
#[no_mangle]
pub unsafe extern "C" fn qcow2_discard2(
    image: *mut qcow2_image,
    offset: u64,
    length: u64,
    flags: u64,
) -> c_int {
    with(image, |guarded| {
        check_flags("I/O", flags, QCOW2_REQ_FUA)?;
        let disk = guarded.handle.disk();
        match flags & QCOW2_REQ_FUA {
            0 => disk.discard(offset, length)?,
            _ => disk.discard_durably(offset, length)?,
        }
        Ok(0)
    }) as c_int
}

/// Makes everything durable that completed before the call. Flushes of several threads share their work.
/// Returns 0 or -errno: what the host says. A host that is full (ENOSPC, EDQUOT) or refuses a write has lost nothing:
/// call again when it has room. After a failed sync the handle takes no more writes (ENOTRECOVERABLE), for what the host
/// has dropped cannot be written again.
#[no_mangle]
pub unsafe extern "C" fn qcow2_flush(image: *mut qcow2_image) -> c_int {
    with(image, |guarded| guarded.handle.disk().flush().map(|()| 0)) as c_int
}

/// Tells where the bytes of a range come from: the first extent of `[offset, offset + length)`, through the
/// chain of backing files unless `flags` has QCOW2_STATUS_TOP_ONLY. A caller walks a disk by adding
/// `extent->length`. What this handle has written since the last call is synced first, for some hosts take it for holes
/// until then; what is written meanwhile counts as data. Returns 0 or -errno: EIO past the end, EINVAL for an empty range.
#[no_mangle]
pub unsafe extern "C" fn qcow2_block_status(
    image: *mut qcow2_image,
    offset: u64,
    length: u64,
    flags: u64,
    extent: *mut qcow2_extent,
) -> c_int {
    with(image, |guarded| {
        check_flags("I/O", flags, QCOW2_STATUS_TOP_ONLY)?;
        let disk = guarded.handle.disk();
        disk.settle_runs()?;
        let status = disk.status(offset, length, flags & QCOW2_STATUS_TOP_ONLY != 0)?;
        let bits = [
            (status.data, QCOW2_EXTENT_DATA),
            (status.zero, QCOW2_EXTENT_ZERO),
            (status.allocated, QCOW2_EXTENT_ALLOCATED),
            (status.compressed, QCOW2_EXTENT_COMPRESSED),
            (status.host.is_some(), QCOW2_EXTENT_HOST_OFFSET),
            (status.in_data_file, QCOW2_EXTENT_IN_DATA_FILE),
        ];
        let found = qcow2_extent {
            struct_size: 0,
            length: status.length,
            host_offset: status.host.unwrap_or(0),
            flags: bits.iter().filter(|b| b.0).fold(0, |all, b| all | b.1),
            depth: status.depth as i32,
        };
        // SAFETY: the caller's struct, checked for NULL.
        unsafe { give(found, extent, "extent") }.map(|()| 0)
    }) as c_int
}

/// Virtual size in bytes, or -errno.
#[no_mangle]
pub unsafe extern "C" fn qcow2_length(image: *mut qcow2_image) -> i64 {
    with(image, |guarded| Ok(guarded.handle.disk().length() as i64))
}

/// Changes the virtual size, a multiple of 512. `preallocation` (QCOW2_PREALLOC_*) is for what is added.
/// Another size drops VM state that no snapshot has. Requests of other threads wait. Returns 0 or -errno: EINVAL, EFBIG
/// (no L1 table within the limit maps it), ENOTSUP (snapshots in version 2; a raw disk on a block device, or on a storage that
/// keeps its length), EROFS, ENOSPC and as qcow2_pwrite.
#[no_mangle]
pub unsafe extern "C" fn qcow2_truncate(image: *mut qcow2_image, size: u64, preallocation: c_int) -> c_int {
    with(image, |guarded| {
        let mode = match preallocation {
            QCOW2_PREALLOC_OFF => Preallocation::Off,
            QCOW2_PREALLOC_METADATA => Preallocation::Metadata,
            QCOW2_PREALLOC_FALLOC => Preallocation::Falloc,
            QCOW2_PREALLOC_FULL => Preallocation::Full,
            other => return Err(Error::invalid(format!("unknown preallocation mode {other}"))),
        };
        resize(&guarded.handle, size, mode).map(|()| 0)
    }) as c_int
}
