//! What is told of an image's encryption.

use super::edge::{give, with};
use super::strings::keep;
use super::types::*;
use crate::crypto::luks::{Header, SLOTS, STRIPES};
use crate::crypto::IvGenerator;
use crate::disk::Encryption;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::handle::Handle;
use crate::ops::luks::{encryption_of, LuksHeader};
use crate::sync::locked;
use std::ffi::{c_char, c_int, CString};

/// A key slot of a LUKS header.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct qcow2_key_slot {
    /// Whether a secret opens it: 1 or 0.
    pub active: u32,
    /// Iterations of its key derivation; 0 of one that is not active.
    pub iterations: u32,
    /// Where its material is, bytes from the LUKS header's start.
    pub material_offset: u64,
    /// Stripes of its material.
    pub stripes: u32,
    /// 0.
    pub reserved: u32,
}

/// How an image is encrypted. Without a LUKS header only `encryption` means something.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_encryption_info {
    /// sizeof(qcow2_encryption_info), set by the caller.
    pub struct_size: usize,
    /// QCOW2_ENCRYPTION_*; 0: it is not.
    pub encryption: c_int,
    /// Iterations of the digest of the master key.
    pub digest_iterations: u32,
    /// "aes-256".
    pub cipher: *const c_char,
    /// "xts".
    pub mode: *const c_char,
    /// "plain64".
    pub iv_generator: *const c_char,
    /// "sha256"; NULL: the IV generator uses none.
    pub iv_hash: *const c_char,
    /// Hash of key derivation.
    pub hash: *const c_char,
    /// As text.
    pub uuid: *const c_char,
    /// Where the LUKS header is in the file, bytes.
    pub header_offset: u64,
    /// Where material ends and a plain LUKS file has its data, bytes from the LUKS header's start.
    pub payload_offset: u64,
    /// The key slots.
    pub slots: [qcow2_key_slot; 8],
}

fn info_of(
    found: Option<(Encryption, Option<LuksHeader>)>,
    list: &mut Vec<CString>,
) -> qcow2_encryption_info {
    list.clear();
    let mut info = qcow2_encryption_info {
        struct_size: 0,
        encryption: 0,
        digest_iterations: 0,
        cipher: std::ptr::null(),
        mode: std::ptr::null(),
        iv_generator: std::ptr::null(),
        iv_hash: std::ptr::null(),
        hash: std::ptr::null(),
        uuid: std::ptr::null(),
        header_offset: 0,
        payload_offset: 0,
        slots: [qcow2_key_slot::default(); SLOTS],
    };
    let Some((encryption, luks)) = found else { return info };
    info.encryption = match encryption {
        Encryption::Aes => QCOW2_ENCRYPTION_AES,
        Encryption::Luks => QCOW2_ENCRYPTION_LUKS,
    };
    if let Some(LuksHeader { at, header }) = luks {
        info.header_offset = at;
        fill(&mut info, &header, list);
    }
    info
}

fn fill(info: &mut qcow2_encryption_info, header: &Header, list: &mut Vec<CString>) {
    let spec = &header.spec;
    let cipher = format!("{}-{}", spec.algorithm.name(), spec.cipher_key_bytes() * 8);
    info.cipher = keep(list, Some(cipher.as_bytes()));
    info.mode = keep(list, Some(spec.mode.name().as_bytes()));
    info.iv_generator = keep(list, Some(spec.iv.name().as_bytes()));
    if let IvGenerator::Essiv(hash) = spec.iv {
        info.iv_hash = keep(list, Some(hash.name().as_bytes()));
    }
    info.hash = keep(list, Some(header.hash.name().as_bytes()));
    info.uuid = keep(list, Some(header.uuid.as_bytes()));
    info.digest_iterations = header.digest_iterations;
    info.payload_offset = header.data_offset();
    for (index, (slot, out)) in header.slots.iter().zip(&mut info.slots).enumerate() {
        *out = qcow2_key_slot {
            active: slot.active.into(),
            iterations: if slot.active { slot.iterations } else { 0 },
            material_offset: header.material_offset(index),
            stripes: STRIPES,
            reserved: 0,
        };
    }
}

/// How a disk of the chain is encrypted, as its file says now: depth 0 is `image` itself, 1 its backing file, and so on.
/// No secret is needed. The strings are valid until the next call of this function on the handle. Returns 0, -ENOENT below
/// the last disk, or another -errno (EINVAL, ENOTSUP, EIO: a LUKS header that is damaged or not known).
#[no_mangle]
pub unsafe extern "C" fn qcow2_get_encryption_info(
    image: *mut qcow2_image,
    depth: u32,
    info: *mut qcow2_encryption_info,
) -> c_int {
    with(image, |guarded| {
        let look = |handle: &Handle| encryption_of(handle);
        let found = match depth {
            0 => Some(look(&guarded.handle)),
            _ => guarded.handle.node_below(depth).map(|node| look(&node)),
        };
        let none = || Error::new(ErrorKind::NotFound, format!("there is no disk at depth {depth}"));
        let found: Result<_> = found.ok_or_else(none)?;
        let mut strings = locked(guarded.strings.lock());
        let answer = info_of(found?, &mut strings.encryption);
        // SAFETY: the caller's struct, checked for NULL.
        unsafe { give(answer, info, "info") }.map(|()| 0)
    }) as c_int
}
