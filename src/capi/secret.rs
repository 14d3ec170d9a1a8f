//! The encryption of secrets themselves.

use super::edge::enter;
use crate::crypto::{unpad, wipe_stack, AesCbc};
use crate::error::Error;
use std::ffi::c_void;

/// Decrypts a secret that has been kept under another one, as QEMU's secret objects with `keyid` and `iv` are: AES-256 in
/// CBC mode, the last block filled up with bytes that say how many they are. `key` has `key_bytes` bytes, which must be
/// 32, `iv` has `iv_bytes`, which must be 16; `data` is decrypted in place, and is left as it is where the lengths do not
/// fit, and wiped where the filling does not. Returns the length of the secret, or -EINVAL (a length, or the filling).
/// Keeps no copy of any of them.
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
        wipe_stack();
        let length = unpad(data);
        if length.is_err() {
            zeroize::Zeroize::zeroize(data);
        }
        length.map(|length| length as i64)
    })
}
