//! The C ABI: turns pointers into references or fails, calls one function of `ops` or `disk`, turns the
//! result into an int. No logic. The doc comments of this layer become `include/qcow2.h`.
//!
//! A new function: here, in the file of its section (a new file is named in `include/generate.rs`, too); the header by
//! `QCOW2_UPDATE_HEADER=1 cargo test --test header`; its line in `c-tests/abi.txt`; its page
//! in `meson/manual/pages.py`; a test in `c-tests`.
//!
//! `unsafe` is what the C caller promises and nothing else: pointers are valid for the call, strings are
//! NUL-terminated, handles came from an open and have not been closed. NULL is an error, never a crash.
#![allow(unsafe_code)]
#![allow(non_camel_case_types)]
// What a caller owes is said once, above; repeating it at each function would not add to it.
#![allow(clippy::missing_safety_doc)]

mod amend;
mod backing;
mod bitmaps;
mod callbacks;
mod check;
mod compare;
mod convert;
mod create;
mod custom_io;
mod edge;
mod encryption;
mod error;
mod findings;
mod flags;
mod info;
mod io;
mod last_error;
mod measure;
mod messages;
mod open;
mod options;
mod secret;
mod snapshot;
mod strings;
mod text;
mod types;
mod vm_state;

pub use amend::*;
pub use backing::*;
pub use bitmaps::*;
pub use callbacks::*;
pub use check::*;
pub use compare::*;
pub use convert::*;
pub use create::*;
pub use custom_io::qcow2_io_ops;
pub use encryption::*;
pub use error::*;
pub use findings::*;
pub use info::*;
pub use io::*;
pub use measure::*;
pub use open::*;
pub use options::*;
pub use secret::*;
pub use snapshot::*;
pub use types::*;
pub use vm_state::*;
