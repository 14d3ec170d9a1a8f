//! What encrypts an image.

use super::edge::{give, with, Guarded};
use super::strings::keep;
use super::types::*;
use crate::crypto::{luks, IvGenerator};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use std::ffi::c_int;

/// The LUKS header of an image.
fn header_of(guarded: &Guarded) -> Result<luks::Header> {
    let none = |text: String| Error::new(ErrorKind::NotFound, text);
    let image = Image::of(guarded.handle.disk(), "encryption header").map_err(|e| none(e.to_string()))?;
    image.core().encryption_header()?.ok_or_else(|| none("the image has no encryption header".into()))
}

/// What the LUKS header of an image says; no secret is needed for that. Returns 0, -ENOENT (there is none: the image is not
/// encrypted, or by the older AES), EINVAL or EIO (the header is damaged), or another -errno. The strings are valid until
/// the next call of this function.
#[no_mangle]
pub unsafe extern "C" fn qcow2_get_encryption(
    image: *mut qcow2_image,
    info: *mut qcow2_encryption_info,
) -> c_int {
    with(image, |guarded| {
        let header = header_of(guarded)?;
        let spec = &header.spec;
        let mut strings = locked_list(guarded);
        let list = &mut strings.encryption;
        list.clear();
        let cipher = format!("{}-{}", spec.algorithm.name(), spec.cipher_key_bytes() * 8);
        let iv_hash = match spec.iv {
            IvGenerator::Essiv(hash) => Some(hash.name().as_bytes()),
            _ => None,
        };
        let answer = qcow2_encryption_info {
            struct_size: 0,
            cipher: keep(list, Some(cipher.as_bytes())),
            mode: keep(list, Some(spec.mode.name().as_bytes())),
            iv_generator: keep(list, Some(spec.iv.name().as_bytes())),
            iv_hash: keep(list, iv_hash),
            hash: keep(list, Some(header.hash.name().as_bytes())),
            uuid: keep(list, Some(header.uuid.as_bytes())),
            payload_offset: header.data_offset(),
            digest_iterations: header.digest_iterations,
            slot_count: luks::SLOTS as u32,
        };
        // SAFETY: the caller's struct, checked for NULL.
        unsafe { give(answer, info, "info") }.map(|()| 0)
    }) as c_int
}

fn locked_list(guarded: &Guarded) -> std::sync::MutexGuard<'_, super::strings::Strings> {
    crate::sync::locked(guarded.strings.lock())
}

/// Key slot number `index` of an image's LUKS header, counted from 0. Returns 0, -ENOENT past the last one, or what
/// qcow2_get_encryption does.
#[no_mangle]
pub unsafe extern "C" fn qcow2_get_key_slot(
    image: *mut qcow2_image,
    index: usize,
    slot: *mut qcow2_key_slot,
) -> c_int {
    with(image, |guarded| {
        let header = header_of(guarded)?;
        let Some(found) = header.slots.get(index) else {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no key slot number {index}")));
        };
        let answer = qcow2_key_slot {
            struct_size: 0,
            key_offset: header.material_offset(index),
            iterations: found.iterations,
            stripes: luks::STRIPES,
            active: u32::from(found.active),
            reserved: 0,
        };
        // SAFETY: the caller's struct, checked for NULL.
        unsafe { give(answer, slot, "slot") }.map(|()| 0)
    }) as c_int
}
