//! Amend: the caller's list of options and its progress function become one call of `ops`.

use super::callbacks::*;
use super::edge::{option_list, take, with, Guarded};
use super::flags::check_flags;
use super::types::*;
use crate::error::Result;
use crate::ops::amend::amend_with;
use std::ffi::{c_char, c_int, c_void};

/// Everything that an amend can be given; begin with QCOW2_AMEND_PARAMS_INIT, or with zeroes and `struct_size`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_amend_params {
    /// sizeof(qcow2_amend_params), set by the caller.
    pub struct_size: usize,
    /// "key=value" strings, NULL at the end; may be NULL. See qcow2_option_list.
    pub options: *const *const c_char,
    /// QCOW2_AMEND_*; unknown bits are -EINVAL.
    pub flags: u64,
    /// Takes the progress: of deriving keys first, then of the changes. May be NULL.
    pub progress: qcow2_progress_fn,
    /// Handed to `progress`.
    pub progress_opaque: *mut c_void,
    /// Has the secrets for changes of key slots, of each QCOW2_SECRET_* that is needed. May be NULL.
    pub secret: qcow2_secret_fn,
    /// Handed to `secret`.
    pub secret_opaque: *mut c_void,
}

impl qcow2_amend_params {
    fn empty() -> Self {
        qcow2_amend_params {
            struct_size: std::mem::size_of::<qcow2_amend_params>(),
            options: std::ptr::null(),
            flags: 0,
            progress: None,
            progress_opaque: std::ptr::null_mut(),
            secret: None,
            secret_opaque: std::ptr::null_mut(),
        }
    }
}

fn change(guarded: &Guarded, p: &qcow2_amend_params) -> Result<i64> {
    check_flags("amend", p.flags, QCOW2_AMEND_FORCE)?;
    // SAFETY: the caller's list, as the contract says.
    let options = unsafe { option_list(p.options) }?;
    let callbacks = SecretCallbacks {
        secret: p.secret,
        secret_opaque: p.secret_opaque,
        progress: p.progress,
        progress_opaque: p.progress_opaque,
    };
    let force = p.flags & QCOW2_AMEND_FORCE != 0;
    let mut told = |done, total| send_progress(p.progress, p.progress_opaque, done, total);
    callbacks.with(|secrets| amend_with(&guarded.handle, &options, force, secrets, &mut told)).map(|()| 0)
}

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
/// encrypt.*: see qcow2_amend_with. `flags`: QCOW2_AMEND_*. Requests of other threads wait. What cannot be is refused before anything changes, but for counts that
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
    let params =
        qcow2_amend_params { options, flags, progress, progress_opaque, ..qcow2_amend_params::empty() };
    with(image, |guarded| change(guarded, &params)) as c_int
}

/// The general form of amend, for the key slots of a LUKS header, too. Otherwise as qcow2_amend.
///
/// encrypt.state: "active" fills a slot, "inactive" erases. encrypt.keyslot: which, 0 to 7; a fill takes the first free
/// one otherwise. encrypt.new-secret: needed to fill; `secret` is asked for QCOW2_SECRET_CURRENT, which opens the image,
/// then for QCOW2_SECRET_NEW. encrypt.iter-time: milliseconds that opening by the new one is to take here, 2000 if not
/// said. encrypt.old-secret: erases the slots that QCOW2_SECRET_OLD opens. The values of new-secret and old-secret are
/// names that `secret` gets to know them by, never secrets. What is overwritten, or would leave no secret that opens the
/// image, needs QCOW2_AMEND_FORCE. A failure or a power cut leaves the secrets that opened the image before, or those
/// that open it afterwards; an erased slot's contents are overwritten with random bytes. Where all 8 slots are in use and
/// one is overwritten, there is a moment in which neither its old secret nor its new one opens the image, but the others
/// do. To erase a slot no secret is asked for but the one that encrypt.old-secret names.
/// Requests of other threads go on while secrets are asked for and keys derived, and wait while the header is written.
/// The session goes on with the key that it has.
///
/// Returns 0 or -errno as qcow2_amend, and ENOKEY (a secret that is needed is not given), EKEYREJECTED (the current one
/// opens no slot), EAGAIN (the LUKS header has changed while secrets were asked for), EIO (something else in the image
/// leads to the clusters of a slot; or, without QCOW2_AMEND_FORCE, the image is too damaged to tell). Specification: "Full disk encryption header pointer".
#[no_mangle]
pub unsafe extern "C" fn qcow2_amend_with(
    image: *mut qcow2_image,
    params: *const qcow2_amend_params,
) -> c_int {
    with(image, |guarded| {
        // SAFETY: the caller's struct.
        change(guarded, &unsafe { take(params, qcow2_amend_params::empty(), "params") }?)
    }) as c_int
}
