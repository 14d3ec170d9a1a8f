//! Internal snapshots: create, apply, delete.

use super::edge::{take, with};
use super::types::*;
use crate::error::{Error, Result};
use crate::ops::snapshot::{apply, create, delete, NewSnapshot, SnapshotRef};
use std::ffi::{c_char, c_int, CStr};
use std::time::{SystemTime, UNIX_EPOCH};

unsafe fn bytes<'a>(pointer: *const c_char) -> Option<&'a [u8]> {
    // SAFETY: NULL, or the caller's NUL-terminated string, which lives across the call.
    (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) }.to_bytes())
}

fn now() -> qcow2_snapshot_options {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    qcow2_snapshot_options {
        struct_size: 0,
        id: std::ptr::null(),
        date_seconds: since.as_secs(),
        date_nanoseconds: since.subsec_nanos(),
        reserved: 0,
        vm_clock_nanoseconds: 0,
        icount: u64::MAX,
        vm_state_size: 0,
    }
}

/// Takes an internal snapshot of the disk as it is. Requests of other threads wait meanwhile. `name` need not be
/// unique. `options` may be NULL: now, the next free number as ID. The snapshot is durable when the call returns; a
/// crash before leaves the image without it. VM state that was written before belongs to it; where vm_state_size
/// says how much that is, it has gone from the image then.
///
/// Returns 0 or -errno: EINVAL (a count would not fit into refcount_bits; the ID is in use; the name or the ID is longer
/// than 65,535 bytes; there is no room for so much VM state, so that it cannot have been written), EFBIG (65,536
/// snapshots, or a table over 64 MiB), EROFS, ENOTSUP (a raw disk, an external data file), ENOSPC, EIO.
/// Specification: "Snapshots".
#[no_mangle]
pub unsafe extern "C" fn qcow2_snapshot_create(
    image: *mut qcow2_image,
    name: *const c_char,
    options: *const qcow2_snapshot_options,
) -> c_int {
    with(image, |guarded| -> Result<i64> {
        let Some(name) = (unsafe { bytes(name) }) else { return Err(Error::invalid("name is NULL")) };
        let now = now();
        let mut given = match options.is_null() {
            true => now,
            false => unsafe { take(options, now, "options") }?,
        };
        if (given.date_seconds, given.date_nanoseconds) == (0, 0) {
            (given.date_seconds, given.date_nanoseconds) = (now.date_seconds, now.date_nanoseconds);
        }
        let Ok(date_seconds) = u32::try_from(given.date_seconds) else {
            return Err(Error::invalid(format!("date_seconds {}: has 32 bits at most", given.date_seconds)));
        };
        if given.date_nanoseconds >= 1_000_000_000 || given.reserved != 0 {
            return Err(Error::invalid("date_nanoseconds is a second or more, or reserved is not 0"));
        }
        let new = NewSnapshot {
            id: unsafe { bytes(given.id) }.map(<[u8]>::to_vec),
            name: name.to_vec(),
            date_seconds,
            date_nanoseconds: given.date_nanoseconds,
            guest_clock_nanoseconds: given.vm_clock_nanoseconds,
            icount: given.icount,
            vm_state_bytes: given.vm_state_size,
        };
        create(&guarded.handle, &new).map(|()| 0)
    }) as c_int
}

/// Makes the disk what it was when the snapshot was taken, its size too; what was written since is lost. The
/// snapshot stays. The first one with this `id` and this `name` is meant; either may be NULL, then only the
/// other counts. Requests of other threads wait meanwhile. A crash leaves the old disk or the new one.
///
/// Returns 0 or -errno: ENOENT (no such snapshot), EINVAL (neither given, or a count would not fit), EROFS,
/// ENOTSUP (a raw disk, an external data file), ENOSPC, EIO. Specification: "Snapshots".
#[no_mangle]
pub unsafe extern "C" fn qcow2_snapshot_apply(
    image: *mut qcow2_image,
    id: *const c_char,
    name: *const c_char,
) -> c_int {
    with(image, |guarded| {
        let wanted = unsafe { SnapshotRef { id: bytes(id), name: bytes(name) } };
        apply(&guarded.handle, wanted).map(|()| 0)
    }) as c_int
}

/// Deletes an internal snapshot; which one, as for qcow2_snapshot_apply. Clusters that only it referred to become
/// free. Requests of other threads wait meanwhile. A crash leaves the image with the snapshot or without it.
///
/// Returns 0 or -errno as qcow2_snapshot_apply. Specification: "Snapshots".
#[no_mangle]
pub unsafe extern "C" fn qcow2_snapshot_delete(
    image: *mut qcow2_image,
    id: *const c_char,
    name: *const c_char,
) -> c_int {
    with(image, |guarded| {
        let wanted = unsafe { SnapshotRef { id: bytes(id), name: bytes(name) } };
        delete(&guarded.handle, wanted).map(|()| 0)
    }) as c_int
}
