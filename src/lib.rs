//! libqcow2 (documentation follows).
pub mod alloc;
pub mod capi;
pub mod error;
pub mod format;
pub mod image;
pub mod map;
pub mod meta;
pub mod ops;
pub mod options;
pub mod storage;
