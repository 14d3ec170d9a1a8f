//! What a handle keeps for the caller.

use std::ffi::CString;

/// Strings that a handle has handed out, so that they live as long as the contract says.
#[derive(Default)]
pub(super) struct Strings {
    pub(super) info: Vec<CString>,
    pub(super) extension: Vec<u8>,
    pub(super) node: Vec<CString>,
    pub(super) snapshots: Vec<CString>,
    pub(super) bitmaps: Vec<CString>,
}
