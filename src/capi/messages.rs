//! Messages for the caller.

use super::types::*;
use crate::ops::check::MessageKind;
use std::ffi::{c_char, c_int, c_void, CStr, CString};

/// Takes a message: QCOW2_MSG_* and a text without a newline, valid during the call.
pub type qcow2_message_fn =
    Option<unsafe extern "C" fn(opaque: *mut c_void, kind: c_int, text: *const c_char)>;

/// A function of the caller that takes messages, with its opaque value.
pub(super) struct Receiver {
    pub(super) function: qcow2_message_fn,
    pub(super) opaque: *mut c_void,
}

/// QCOW2_MSG_* of a kind.
pub(super) fn message_code(kind: MessageKind) -> c_int {
    match kind {
        MessageKind::Info => QCOW2_MSG_INFO,
        MessageKind::Leak => QCOW2_MSG_LEAK,
        MessageKind::Error => QCOW2_MSG_ERROR,
        MessageKind::Repair => QCOW2_MSG_REPAIR,
    }
}

/// Hands a message to the caller.
pub(super) fn send_message(function: qcow2_message_fn, opaque: *mut c_void, kind: MessageKind, text: &str) {
    let text = CString::new(text.replace('\0', "")).unwrap_or_default();
    send_c_text(function, opaque, kind, &text);
}

/// As `send_message`.
pub(super) fn send_c_text(function: qcow2_message_fn, opaque: *mut c_void, kind: MessageKind, text: &CStr) {
    let Some(function) = function else { return };
    // SAFETY: the caller's function with the caller's opaque pointer, as it asked for.
    unsafe { function(opaque, message_code(kind), text.as_ptr()) }
}
