//! Block devices: they keep their size, and what they held before.

use super::file::sys::Allocate;
use super::file::FileStorage;
use super::{is_not_supported, Purpose, Storage};
use std::io::{self, IoSlice};

/// Multiple of the block of every usual device, bytes.
const DEVICE_BLOCK: u64 = 4096;

/// Zeroes a range of a device: the whole blocks in it by the host's means, the rest by writing.
pub(super) fn zero(device: &FileStorage, offset: u64, length: u64) -> io::Result<()> {
    let end = offset.saturating_add(length);
    let unit = device.traits().alignment.max(DEVICE_BLOCK);
    let (from, to) = (offset.div_ceil(unit).saturating_mul(unit), end / unit * unit);
    let not_supported = || io::Error::from_raw_os_error(libc::EOPNOTSUPP);
    if from >= to {
        return Err(not_supported());
    }
    match device.allocate(Allocate::ZeroInside, from, to - from) {
        Err(e) if is_not_supported(&e) => device.zero_blocks(from, to - from)?,
        // Somebody has the device, a file system perhaps.
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Err(not_supported()),
        done => done?,
    }
    let zeroes = vec![0; unit as usize];
    for (at, bytes) in [(offset, from - offset), (to, end - to)] {
        if bytes > 0 {
            device.write(Purpose::Data, at, &[IoSlice::new(&zeroes[..bytes as usize])])?;
        }
    }
    Ok(())
}
