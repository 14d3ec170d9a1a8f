//! What encrypts an image, and the encryption of secrets themselves.

use super::edge::{enter, give, with, Guarded};
use super::strings::keep;
use super::types::*;
use crate::crypto::{luks, unpad, AesCbc, IvGenerator};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use std::ffi::{c_int, c_void};

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

/// Decrypts a secret that has been kept under another one, as QEMU's secret objects with `keyid` and `iv` are: AES-256 in
/// CBC mode, the last block filled up with bytes that say how many they are. `key` has `key_bytes` bytes, which must be
/// 32, `iv` has `iv_bytes`, which must be 16; `data` is decrypted in place, and is left as it is where the lengths do not
/// fit. Returns the length of the secret, or -EINVAL (a length, or the filling). Keeps no copy of any of them.
#[no_mangle]
pub unsafe extern "C" fn qcow2_decrypt_secret(
    key: *const c_void,
    key_bytes: usize,
    iv: *const c_void,
    iv_bytes: usize,
    data: *mut c_void,
    data_bytes: usize,
) -> i64 {
    enter(|| {
        if key.is_null() || iv.is_null() || data.is_null() {
            return Err(Error::invalid("key, iv or data is NULL"));
        }
        // SAFETY: the caller's buffers, valid for the call; none is NULL.
        let key = unsafe { std::slice::from_raw_parts(key.cast::<u8>(), key_bytes) };
        // SAFETY: as above.
        let iv = unsafe { std::slice::from_raw_parts(iv.cast::<u8>(), iv_bytes) };
        // SAFETY: as above; nobody else uses it meanwhile.
        let data = unsafe { std::slice::from_raw_parts_mut(data.cast::<u8>(), data_bytes) };
        AesCbc::new(key, iv)?.decrypt(data)?;
        crate::crypto::wipe_stack();
        unpad(data).map(|length| length as i64)
    })
}
