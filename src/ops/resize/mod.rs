//! Changing the virtual size.
//!
//! Growing: the new L1 table, if one is needed, is whole and durable before the header names it; the old
//! table's clusters go afterwards (R5, R3); what a longer backing file or the last cluster would show is zeroed
//! durably; then the size changes, and what is added is preallocated. Shrinking: entries past the new end go
//! first, then the size. A power cut leaves the old size, or the new one, with leaks at most. Requests wait.

pub(super) mod image;
mod prepare;

use super::handle::Handle;
use crate::error::{Error, ErrorKind, Result};
use crate::options::Preallocation;

/// Sets the virtual size of an open disk.
pub fn resize(handle: &Handle, size: u64, preallocation: Preallocation) -> Result<()> {
    let disk = handle.disk();
    if disk.is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly, "the disk is open read-only"));
    }
    let resize = handle.format().resize.ok_or_else(|| {
        Error::unsupported(format!("Format driver '{}' does not support resize", disk.name()))
    })?;
    resize(disk, size, preallocation)
}
