//! C strings of the caller.

use crate::error::{Error, Result};
use std::ffi::{c_char, CStr, OsStr};
use std::os::unix::ffi::OsStrExt;

/// A C string as text, or `None` for NULL.
pub(super) unsafe fn optional_text<'a>(pointer: *const c_char, name: &str) -> Result<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller passes a NUL-terminated string that lives across the call.
    let bytes = unsafe { CStr::from_ptr(pointer) };
    match bytes.to_str() {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(Error::invalid(format!("{name} is not UTF-8"))),
    }
}

/// A path from a C string; paths are bytes.
pub(super) unsafe fn path(pointer: *const c_char) -> Result<std::path::PathBuf> {
    if pointer.is_null() {
        return Err(Error::invalid("path is NULL"));
    }
    // SAFETY: as above.
    let bytes = unsafe { CStr::from_ptr(pointer) }.to_bytes();
    Ok(OsStr::from_bytes(bytes).into())
}
