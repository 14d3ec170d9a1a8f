//! VM state: the bytes after the guest disk, which a snapshot takes along.

use super::edge::with;
use super::io::{check_count, slice_of, slice_to_fill};
use super::types::*;
use crate::ops::vm_state;
use libc::ssize_t;
use std::ffi::c_void;

/// Writes `count` bytes at `offset` of the VM state: what a machine has beside its disk, stored in the image past the
/// end of the disk, where the guest cannot see it. All of them or an error. It belongs to the image as it is, as after
/// qcow2_snapshot_apply, and to each snapshot that is taken. A new snapshot that says how long it is (vm_state_size)
/// takes it out of the image; with an external data file, which snapshots do not go with, it is stored there, past the
/// end of the disk. qcow2_truncate to another size and qcow2_make_empty drop it.
/// Requests of other threads go on; they wait where the L1 table must grow. Durable after the next qcow2_flush or
/// with the snapshot.
///
/// Returns `count`, or -errno: EFBIG (past what an L1 table can map), ENOTSUP (a raw disk) and
/// as qcow2_pwrite.
/// Specification: "Snapshots", size of the VM state.
#[no_mangle]
pub unsafe extern "C" fn qcow2_vmstate_write(
    image: *mut qcow2_image,
    buffer: *const c_void,
    count: usize,
    offset: u64,
) -> ssize_t {
    with(image, |guarded| {
        check_count(count)?;
        vm_state::write(&guarded.handle, offset, unsafe { slice_of(buffer, count) }?)?;
        Ok(count as i64)
    }) as ssize_t
}

/// Reads `count` bytes at `offset` of the VM state: that of the snapshot on a handle that was opened with the option
/// snapshot.id or snapshot.name, else that of the image as it is, as qcow2_snapshot_apply has left it. What nobody has
/// written reads as zeroes, past the end too: vm_state_size of qcow2_get_snapshot tells how long it is.
///
/// Returns `count`, or -errno: EFBIG (past what an L1 table can map), ENOTSUP (a raw disk) and
/// as qcow2_pread.
/// Specification: "Snapshots", size of the VM state.
#[no_mangle]
pub unsafe extern "C" fn qcow2_vmstate_read(
    image: *mut qcow2_image,
    buffer: *mut c_void,
    count: usize,
    offset: u64,
) -> ssize_t {
    with(image, |guarded| {
        check_count(count)?;
        guarded.handle.disk().read_vm_state(offset, unsafe { slice_to_fill(buffer, count) }?)?;
        Ok(count as i64)
    }) as ssize_t
}
