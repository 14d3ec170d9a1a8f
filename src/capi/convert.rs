//! Convert.

use super::callbacks::*;
use super::edge::{take, with, Guarded};
use super::flags::check_flags;
use super::messages::*;
use super::types::*;
use crate::error::{Error, Result};
use crate::ops::check::MessageKind;
use crate::ops::convert::{convert_telling, ConvertOptions};
use std::ffi::{c_int, c_void};

/// How qcow2_convert copies.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_convert_params {
    /// sizeof(qcow2_convert_params), set by the caller.
    pub struct_size: usize,
    /// QCOW2_CONVERT_*.
    pub flags: u64,
    /// Aligned parts of so many bytes that are zero become holes: a multiple of 512 up to 16 MiB; 0: the data is not
    /// looked at. With QCOW2_CONVERT_COMPRESSED the parts are clusters, whatever the number. Where the host copies, one
    /// part in five is looked at after 64 MiB of data, until one is zero.
    pub sparse_bytes: u64,
    /// Threads, the caller's among them: 1 to 64. Memory is about 1 MiB for each, or two clusters.
    pub workers: u32,
    /// 0.
    pub reserved: u32,
    /// Where in the target the source begins, a multiple of 512: several disks one after another make one.
    pub target_offset: u64,
    /// With QCOW2_CONVERT_SALVAGE: told each sector that became zeroes, as QCOW2_MSG_ERROR. May be NULL.
    pub message: qcow2_message_fn,
    /// Passed to `message`.
    pub message_opaque: *mut c_void,
}

impl qcow2_convert_params {
    fn usual() -> Self {
        let usual = ConvertOptions::default();
        let (sparse_bytes, workers) = (usual.sparse_bytes, usual.workers);
        qcow2_convert_params {
            struct_size: 0,
            flags: 0,
            sparse_bytes,
            workers,
            reserved: 0,
            target_offset: 0,
            message: None,
            message_opaque: std::ptr::null_mut(),
        }
    }

    fn options(&self) -> Result<ConvertOptions> {
        const KNOWN: u64 = QCOW2_CONVERT_COMPRESSED
            | QCOW2_CONVERT_TOP_ONLY
            | QCOW2_CONVERT_TARGET_ZERO
            | QCOW2_CONVERT_ALLOCATE
            | QCOW2_CONVERT_ANY_ORDER
            | QCOW2_CONVERT_SALVAGE;
        check_flags("convert", self.flags, KNOWN)?;
        if self.reserved != 0 {
            return Err(Error::invalid("reserved is not 0"));
        }
        let has = |flag: u64| self.flags & flag != 0;
        Ok(ConvertOptions {
            compressed: has(QCOW2_CONVERT_COMPRESSED),
            top_only: has(QCOW2_CONVERT_TOP_ONLY),
            target_zero: has(QCOW2_CONVERT_TARGET_ZERO),
            allocate: has(QCOW2_CONVERT_ALLOCATE),
            any_order: has(QCOW2_CONVERT_ANY_ORDER),
            sparse_bytes: self.sparse_bytes,
            workers: self.workers,
            target_offset: self.target_offset,
            salvage: has(QCOW2_CONVERT_SALVAGE),
        })
    }
}

/// Copies what `source` shows to the start of `target`, or to the place in it that `params` name: another open disk, qcow2
/// or raw, that is at least as long; what is outside the copied range stays. Each guest byte of the range is read and written
/// once, in time proportional to what is allocated; other requests on the handles go on meanwhile, and a target that somebody
/// else writes holds a mixture. `params` may be NULL: no flags, holes of 4096 bytes, one worker. `progress` is called on the
/// caller's thread; the functions of a caller's storage on those of the workers, too. Nothing is durable before a qcow2_flush or
/// qcow2_close of `target`.
///
/// Returns 0 or -errno: EINVAL (parameters, the same disk twice, a target that is too short), EROFS, ENOTSUP (a raw
/// disk has no compressed clusters), ECANCELED (`progress` returned non-zero), EIO (QCOW2_CONVERT_COMPRESSED over
/// allocated clusters), ENOMEM, and as qcow2_pread and qcow2_pwrite; qcow2_last_error names the place. What was
/// copied before a failure stays.
#[no_mangle]
pub unsafe extern "C" fn qcow2_convert(
    source: *mut qcow2_image,
    target: *mut qcow2_image,
    params: *const qcow2_convert_params,
    progress: qcow2_progress_fn,
    progress_opaque: *mut c_void,
) -> c_int {
    with(target, |to| {
        if source.is_null() {
            return Err(Error::invalid("source is NULL"));
        }
        if source == target {
            return Err(Error::invalid("convert: source and target are the same"));
        }
        // SAFETY: the caller passes a pointer from an open that has not been closed.
        let from = unsafe { &*source.cast::<Guarded>() };
        from.check()?;
        let params = match params.is_null() {
            true => qcow2_convert_params::usual(),
            // SAFETY: the caller's struct.
            false => unsafe { take(params, qcow2_convert_params::usual(), "params") }?,
        };
        let mut lost = |_: u64, error: &Error| {
            send_message(params.message, params.message_opaque, MessageKind::Error, error.parts().summary);
        };
        convert_telling(
            from.handle.disk(),
            to.handle.disk(),
            &params.options()?,
            &mut lost,
            &mut |done, total| send_progress(progress, progress_opaque, done, total),
        )?;
        Ok(0)
    }) as c_int
}
