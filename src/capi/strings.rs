//! What a handle keeps for the caller.

use std::ffi::{c_char, CString};

/// Strings that a handle has handed out, so that they live as long as the contract says.
#[derive(Default)]
pub(super) struct Strings {
    pub(super) info: Vec<CString>,
    pub(super) extension: Vec<u8>,
    pub(super) node: Vec<CString>,
    pub(super) snapshots: Vec<CString>,
    pub(super) bitmaps: Vec<CString>,
    pub(super) encryption: Vec<CString>,
}

/// Keeps a text; as C sees it, up to its first zero byte.
pub(super) fn keep(list: &mut Vec<CString>, text: Option<&[u8]>) -> *const c_char {
    let Some(text) = text else { return std::ptr::null() };
    let bytes = text.split(|b| *b == 0).next().unwrap_or_default();
    list.push(CString::new(bytes).unwrap_or_default());
    list.last().map_or(std::ptr::null(), |c| c.as_ptr())
}
