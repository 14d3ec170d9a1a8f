//! Compare.

use super::callbacks::*;
use super::edge::{give, with, Guarded};
use super::flags::check_flags;
use super::types::*;
use crate::error::Error;
use crate::ops::compare::{compare, Failure, Verdict};
use std::ffi::{c_int, c_void};

/// What qcow2_compare has found.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_compare_result {
    /// sizeof(qcow2_compare_result), set by the caller.
    pub struct_size: usize,
    /// QCOW2_COMPARE_SAME, _CONTENTS, _SIZES or _STATUS. After a failure: what could not be read, _CONTENTS or _STATUS.
    pub verdict: u32,
    /// After a failure: 1 for the first disk, 2 for the second, 0 for neither.
    pub failed_disk: u32,
    /// Guest offset of the first sector that differs, or where the failure was.
    pub offset: u64,
}

impl qcow2_compare_result {
    fn of(verdict: u32, offset: u64) -> qcow2_compare_result {
        qcow2_compare_result { struct_size: 0, verdict, failed_disk: 0, offset }
    }

    fn of_verdict(verdict: Verdict) -> qcow2_compare_result {
        match verdict {
            Verdict::Same => Self::of(QCOW2_COMPARE_SAME, 0),
            Verdict::Sizes => Self::of(QCOW2_COMPARE_SIZES, 0),
            Verdict::Contents(offset) => Self::of(QCOW2_COMPARE_CONTENTS, offset),
            Verdict::Status(offset) => Self::of(QCOW2_COMPARE_STATUS, offset),
        }
    }

    fn of_failure(failure: &Failure) -> qcow2_compare_result {
        let what = if failure.status { QCOW2_COMPARE_STATUS } else { QCOW2_COMPARE_CONTENTS };
        let failed_disk = failure.side.map_or(0, |side| side as u32 + 1);
        qcow2_compare_result { failed_disk, ..Self::of(what, failure.offset) }
    }
}

/// Compares what two open disks show, qcow2 or raw, up to the first difference. What one is longer counts as zeroes
/// on the other. `flags`: QCOW2_COMPARE_STRICT. What both have from the same place of the same file, and what both
/// know to be zeroes, is not read. Nobody should write to either meanwhile. `progress` may be NULL.
///
/// Returns 0 when the comparison has an answer, whatever it is, or -errno: EINVAL, ECANCELED (`progress` returned
/// non-zero), and as qcow2_pread. `result` is filled on success and after a failure to read.
#[no_mangle]
pub unsafe extern "C" fn qcow2_compare(
    image: *mut qcow2_image,
    other: *mut qcow2_image,
    flags: u64,
    result: *mut qcow2_compare_result,
    progress: qcow2_progress_fn,
    progress_opaque: *mut c_void,
) -> c_int {
    with(image, |left| {
        if other.is_null() {
            return Err(Error::invalid("other is NULL"));
        }
        check_flags("compare", flags, QCOW2_COMPARE_STRICT)?;
        // SAFETY: the caller's struct.
        unsafe { give(qcow2_compare_result::of(QCOW2_COMPARE_SAME, 0), result, "result") }?;
        // SAFETY: the caller passes a pointer from an open that has not been closed.
        let right = unsafe { &*other.cast::<Guarded>() };
        right.check()?;
        let strict = flags & QCOW2_COMPARE_STRICT != 0;
        let answer = compare(left.handle.disk(), right.handle.disk(), strict, &mut |done, total| {
            send_progress(progress, progress_opaque, done, total)
        });
        let (found, end) = match answer {
            Ok(verdict) => (qcow2_compare_result::of_verdict(verdict), Ok(0)),
            Err(failure) => (qcow2_compare_result::of_failure(&failure), Err(failure.error)),
        };
        // SAFETY: the caller's struct, which has been filled once.
        unsafe { give(found, result, "result") }?;
        end
    }) as c_int
}
