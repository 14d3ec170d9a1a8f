//! Check, repair, commit, checksum.

use super::callbacks::*;
use super::edge::{give, with};
use super::findings::*;
use super::flags::check_flags;
use super::messages::*;
use super::types::*;
use crate::error::{Error, Result};
use crate::ops::check::{CheckOptions, CheckReport, Finding, Words};
use crate::ops::checksum::checksum;
use crate::ops::commit::commit_to;
use std::ffi::{c_int, c_void};

fn result_of(report: &CheckReport) -> qcow2_check_result {
    qcow2_check_result {
        struct_size: 0,
        corruptions: report.corruptions,
        leaks: report.leaks,
        check_errors: report.check_errors,
        corruptions_fixed: report.corruptions_fixed,
        leaks_fixed: report.leaks_fixed,
        total_clusters: report.total_clusters,
        allocated_clusters: report.allocated_clusters,
        fragmented_clusters: report.fragmented_clusters,
        compressed_clusters: report.compressed_clusters,
        image_end_offset: report.image_end_offset,
    }
}

fn options_of(flags: u64, workers: u32) -> Result<CheckOptions> {
    check_flags("check", flags, QCOW2_CHECK_REPAIR_LEAKS | QCOW2_CHECK_REPAIR_ERRORS)?;
    Ok(CheckOptions {
        repair_leaks: flags & QCOW2_CHECK_REPAIR_LEAKS != 0,
        repair_errors: flags & QCOW2_CHECK_REPAIR_ERRORS != 0,
        workers,
    })
}

/// Compares every reference in the image with the refcounts. `flags`: QCOW2_CHECK_REPAIR_LEAKS,
/// QCOW2_CHECK_REPAIR_ERRORS (needs a writable handle). Each finding goes to `message`. One call is one pass;
/// after a repair a second call without flags shows that nothing is left. Requests of other threads wait. With the
/// open option check-threads, more threads read tables, which end with the call.
///
/// Returns 0 when the check ran, whatever it found, or -errno: ECANCELED, EROFS, ENOTSUP (a raw disk), EIO
/// and what the host says. `result` is filled on success.
#[no_mangle]
pub unsafe extern "C" fn qcow2_check(
    image: *mut qcow2_image,
    flags: u64,
    result: *mut qcow2_check_result,
    message: qcow2_message_fn,
    message_opaque: *mut c_void,
    progress: qcow2_progress_fn,
    progress_opaque: *mut c_void,
) -> c_int {
    with(image, |guarded| {
        if result.is_null() {
            return Err(Error::invalid("result is NULL"));
        }
        let options = options_of(flags, guarded.handle.check_workers())?;
        let mut words = Words::default();
        let mut say = |finding: &Finding<'_>| {
            send_c_text(message, message_opaque, finding.kind, words.of(finding));
        };
        let report = guarded.handle.find(
            options,
            message.is_some().then_some(&mut say as _),
            &mut |done, total| send_progress(progress, progress_opaque, done, total),
        )?;
        // SAFETY: the caller's struct, checked for NULL.
        unsafe { give(result_of(&report), result, "result") }.map(|()| 0)
    }) as c_int
}

/// As qcow2_check, for programs that count or sort what is found: `find` gets each finding as numbers, and no text is
/// made. NULL: none is told.
#[no_mangle]
pub unsafe extern "C" fn qcow2_check_findings(
    image: *mut qcow2_image,
    flags: u64,
    result: *mut qcow2_check_result,
    find: qcow2_finding_fn,
    find_opaque: *mut c_void,
    progress: qcow2_progress_fn,
    progress_opaque: *mut c_void,
) -> c_int {
    with(image, |guarded| {
        if result.is_null() {
            return Err(Error::invalid("result is NULL"));
        }
        let options = options_of(flags, guarded.handle.check_workers())?;
        let mut tell = |finding: &Finding<'_>| send_finding(find, find_opaque, finding);
        let report =
            guarded.handle.find(options, find.is_some().then_some(&mut tell as _), &mut |done, total| {
                send_progress(progress, progress_opaque, done, total)
            })?;
        // SAFETY: the caller's struct, checked for NULL.
        unsafe { give(result_of(&report), result, "result") }.map(|()| 0)
    }) as c_int
}

/// Writes what the image holds into its backing file, then empties the image unless `flags` has
/// QCOW2_COMMIT_KEEP. The backing file is opened writable for the time of the call, repaired when it is
/// dirty, grown when it is shorter, and durable before the image changes.
///
/// Returns 0 or -errno: ENOTSUP (no backing file), EROFS, EAGAIN (the backing file is in use), ECANCELED and
/// as qcow2_pwrite.
#[no_mangle]
pub unsafe extern "C" fn qcow2_commit(
    image: *mut qcow2_image,
    flags: u64,
    progress: qcow2_progress_fn,
    progress_opaque: *mut c_void,
) -> c_int {
    with(image, |guarded| -> Result<i64> {
        check_flags("commit", flags, QCOW2_COMMIT_KEEP)?;
        let keep = flags & QCOW2_COMMIT_KEEP != 0;
        commit_to(&guarded.handle, 1, keep, None, &mut |done, total| {
            send_progress(progress, progress_opaque, done, total)
        })?;
        Ok(0)
    }) as c_int
}

/// As qcow2_commit, into the layer `depth` below the image (1: its backing file): what the image and all layers above
/// that one show is written there. With a depth above 1 nothing is emptied: the image and the layers in between stay
/// as they are, and show what they showed as long as the layer is not written otherwise.
///
/// Returns 0 or -errno: EINVAL (depth is 0, or the chain ends before), and as qcow2_commit.
#[no_mangle]
pub unsafe extern "C" fn qcow2_commit_to(
    image: *mut qcow2_image,
    depth: u32,
    flags: u64,
    progress: qcow2_progress_fn,
    progress_opaque: *mut c_void,
) -> c_int {
    with(image, |guarded| -> Result<i64> {
        check_flags("commit", flags, QCOW2_COMMIT_KEEP)?;
        let keep = flags & QCOW2_COMMIT_KEEP != 0;
        commit_to(&guarded.handle, depth, keep, None, &mut |done, total| {
            send_progress(progress, progress_opaque, done, total)
        })?;
        Ok(0)
    }) as c_int
}

/// The CRC-32 (IEEE) of all guest bytes, in time proportional to what is allocated. Equal before and after a
/// copy, a repair or a crash recovery that changed nothing. With the open option check-threads, more threads read, which
/// end with the call; `progress` is called on the caller's. Returns 0 or -errno as qcow2_pread, ECANCELED.
#[no_mangle]
pub unsafe extern "C" fn qcow2_checksum(
    image: *mut qcow2_image,
    crc: *mut u32,
    progress: qcow2_progress_fn,
    progress_opaque: *mut c_void,
) -> c_int {
    with(image, |guarded| {
        if crc.is_null() {
            return Err(Error::invalid("crc is NULL"));
        }
        let digest = checksum(guarded.handle.disk(), guarded.handle.check_workers(), &mut |done, total| {
            send_progress(progress, progress_opaque, done, total)
        })?;
        // SAFETY: checked for NULL; the caller's pointer is writable.
        unsafe { *crc = digest };
        Ok(0)
    }) as c_int
}
