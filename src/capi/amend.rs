//! Amend: the caller's list of options and its progress function become one call of `ops`.

use super::callbacks::*;
use super::edge::{option_list, with};
use super::flags::check_flags;
use super::types::*;
use crate::ops::amend::amend;
use std::ffi::{c_char, c_int, c_void};

/// Changes settings of an open image: "key=value" strings, NULL at the end, of qcow2_option_list(QCOW2_SCOPE_AMEND).
///
/// compat: "1.1" (version 3) or "0.10" (version 2). Version 2 has no zero clusters: they become holes where no backing
/// file is recorded, else clusters of zeroes, in snapshots too; lazy_refcounts goes off. Refused (ENOTSUP) with other
/// than 16 refcount bits, extended L2 entries, an external data file, bitmaps, compressed zstd clusters, and snapshots
/// of a disk of another size.
///
/// refcount_bits: 1, 2, 4, ... 64; EINVAL where a count does not fit. New tables are built beside the old ones.
///
/// lazy_refcounts: what the image says; this session follows, if qcow2_open was not told otherwise.
///
/// size: the virtual size in bytes; a smaller one drops what lies beyond.
///
/// data_file: the name of the external data file to record, "": none; this session goes on with the file that it has
/// open. data_file_raw: "off" only.
///
/// backing_file, backing_fmt: accepted where nothing changes, otherwise ENOTSUP; see qcow2_rebase.
///
/// `flags` is 0. Requests of other threads wait. What cannot be is refused before anything changes, but for counts that
/// do not fit. Then the settings change one after another: data file, version 3, refcount_bits, lazy_refcounts, size,
/// version 2; each is durable before the next one begins. Guest contents stay. A failure, a non-zero answer of
/// `progress` (may be NULL; ECANCELED) or a power cut leaves each setting old or new, and clusters leaked at most.
///
/// Returns 0 or -errno: EINVAL, ENOTSUP, EFBIG (size), EROFS, ECANCELED, ENOSPC, EIO. Specification: "Header",
/// "Refcounts", "Cluster mapping".
#[no_mangle]
pub unsafe extern "C" fn qcow2_amend(
    image: *mut qcow2_image,
    options: *const *const c_char,
    flags: u64,
    progress: qcow2_progress_fn,
    progress_opaque: *mut c_void,
) -> c_int {
    with(image, |guarded| {
        check_flags("amend", flags, 0)?;
        let options = unsafe { option_list(options) }?;
        amend(&guarded.handle, &options, &mut |done, total| {
            send_progress(progress, progress_opaque, done, total)
        })?;
        Ok(0)
    }) as c_int
}
