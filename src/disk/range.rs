//! Ranges of a disk and lists of buffers for them.

use crate::error::{Error, ErrorKind, Result};

/// Fails when `[offset, offset + length)` is not inside a disk of `disk_bytes`.
#[inline]
pub(crate) fn check_range(disk_bytes: u64, offset: u64, length: u64) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= disk_bytes => Ok(()),
        _ => Err(past_end(disk_bytes, offset, length)),
    }
}

#[cold]
fn past_end(disk_bytes: u64, offset: u64, length: u64) -> Error {
    Error::new(
        ErrorKind::PastEnd,
        format!("request of {length} bytes at offset {offset} ends past the disk's {disk_bytes} bytes"),
    )
}

/// Total bytes of a list of buffers; `None` past 2^63.
pub(crate) fn total(lengths: impl Iterator<Item = usize>) -> Option<u64> {
    let mut sum = 0u64;
    for length in lengths {
        sum = sum.checked_add(length as u64)?;
    }
    (sum <= i64::MAX as u64).then_some(sum)
}
