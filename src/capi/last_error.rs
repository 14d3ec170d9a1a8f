//! What each thread keeps of its last failure.

use crate::error::{Error, ErrorKind};
use std::cell::RefCell;
use std::ffi::c_char;

/// Longest text that a thread keeps, with its NUL, bytes.
const TEXT_BYTES: usize = 2048;
/// Room for the parts of the text, each with its NUL, bytes.
const PARTS_BYTES: usize = 4096;

/// The parts, in the order in which they get room.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Summary,
    Hint,
    File,
    Option,
    Structure,
    Index,
    Rule,
    Cause,
    Detail,
}

const PARTS: usize = Part::Detail as usize + 1;

/// A thread's last failure. Its memory stays where it is and is never freed in the thread's life: a text that is read
/// too late is a wrong text.
pub(super) struct LastError {
    text: [u8; TEXT_BYTES],
    parts: [u8; PARTS_BYTES],
    /// Where in `parts` each part begins.
    starts: [usize; PARTS],
    pub(super) kind: Option<ErrorKind>,
    pub(super) value: u64,
}

thread_local! {
    static LAST_ERROR: RefCell<Box<LastError>> = RefCell::new(Box::new(LastError {
        text: [0; TEXT_BYTES],
        parts: [0; PARTS_BYTES],
        starts: [0; PARTS],
        kind: None,
        value: 0,
    }));
}

/// Copies what has room, and a NUL; answers the bytes that it took. `room` is not empty.
fn put(room: &mut [u8], text: &str) -> usize {
    let mut at = 0;
    for character in text.chars().filter(|c| *c != '\0') {
        if at + character.len_utf8() >= room.len() {
            break;
        }
        at += character.encode_utf8(&mut room[at..]).len();
    }
    room[at] = 0;
    at + 1
}

impl LastError {
    fn set(&mut self, error: &Error) {
        put(&mut self.text, &error.to_string());
        let parts = error.parts();
        let broken = |text: fn(&crate::error::Broken) -> &str| parts.broken.map(text).unwrap_or_default();
        let texts: [&str; PARTS] = [
            parts.summary,
            parts.hint,
            parts.file.unwrap_or_default(),
            parts.option.unwrap_or_default(),
            broken(|b| &b.structure),
            broken(|b| &b.index),
            broken(|b| &b.rule),
            parts.cause.as_deref().unwrap_or_default(),
            &parts.detail,
        ];
        let mut at = 0;
        for (start, text) in self.starts.iter_mut().zip(texts) {
            // The last byte is a NUL that parts without room share.
            *start = at.min(PARTS_BYTES - 1);
            at = *start + put(&mut self.parts[*start..], text);
        }
        self.kind = Some(error.kind());
        self.value = parts.broken.map_or(0, |b| b.value);
    }

    pub(super) fn part(&self, part: Part) -> *const c_char {
        self.parts[self.starts[part as usize]..].as_ptr().cast()
    }
}

pub(super) fn set_last_error(error: &Error) {
    // A destroyed thread-local (a call from a thread's own destructors) has nowhere to keep it.
    let _ = LAST_ERROR.try_with(|last| last.borrow_mut().set(error));
}

/// Where the C library has no destructors of threads (musl), a process's first such thread-local makes a key, with a
/// system call that a program may have forbidden by the time something fails.
pub(super) fn prepare_last_error() {
    if cfg!(not(target_env = "gnu")) {
        let _ = LAST_ERROR.try_with(|_| ());
    }
}

/// The thread's text; valid until the next failure on this thread.
pub(super) fn last_text() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().text.as_ptr().cast()).unwrap_or(c"".as_ptr())
}

/// What `look` makes of the thread's last failure; `None` where nothing is kept any more.
pub(super) fn with_last<T>(look: impl FnOnce(&LastError) -> T) -> Option<T> {
    LAST_ERROR.try_with(|last| look(&last.borrow())).ok()
}
