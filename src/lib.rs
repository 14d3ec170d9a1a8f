//! libqcow2 (documentation follows).
pub mod error;
pub mod format;
pub mod storage;
