//! Changing the virtual size.
//!
//! Growing: the new L1 table, if one is needed, is whole and durable before the header names it; the old
//! table's clusters go afterwards (R5, R3); what a longer backing file would show is zeroed durably; then
//! the size changes. Shrinking: entries past the new end go first, then the size. A power cut leaves the
//! old size, or the new one, with leaks at most.

use crate::error::{Error, ErrorKind, Result};
use crate::image::Disk;
use crate::ops::handle::Handle;
use crate::options::Preallocation;

/// Bytes of zeroes written at once by full preallocation.
const CHUNK_BYTES: u64 = 1 << 20;

/// Sets the virtual size of an open disk.
pub fn resize(handle: &Handle, size: u64, preallocation: Preallocation) -> Result<()> {
    let old = match handle.disk() {
        Disk::Raw(raw) => {
            if preallocation == Preallocation::Metadata {
                return Err(Error::unsupported("Unsupported preallocation mode: metadata"));
            }
            let old = raw.length();
            raw.resize(size)?;
            old
        }
        Disk::Qcow2(image) => {
            if size % 512 != 0 {
                return Err(Error::invalid("The new size must be a multiple of 512"));
            }
            let alone = image.alone();
            if alone.core().is_read_only() {
                return Err(Error::new(ErrorKind::ReadOnly, "the image is open read-only"));
            }
            alone.resize(size, preallocation == Preallocation::Off)?
        }
    };
    if size <= old {
        return Ok(());
    }
    preallocate(handle.disk(), old, size, preallocation)?;
    handle.disk().flush()
}

fn preallocate(disk: &Disk, old: u64, size: u64, preallocation: Preallocation) -> Result<()> {
    match (disk, preallocation) {
        (_, Preallocation::Off) => Ok(()),
        (Disk::Qcow2(image), mode) => {
            let image_core = image.core();
            image_core.preallocate(old, size, mode == Preallocation::Falloc)?;
            if mode == Preallocation::Full {
                write_zero_bytes(disk, old, size)?;
            }
            Ok(())
        }
        (Disk::Raw(raw), Preallocation::Falloc) => raw
            .storage()
            .preallocate(old, size - old)
            .map_err(|e| Error::host("preallocating the raw file", &e)),
        (Disk::Raw(_), _) => write_zero_bytes(disk, old, size),
    }
}

fn write_zero_bytes(disk: &Disk, from: u64, to: u64) -> Result<()> {
    let zeroes = vec![0; CHUNK_BYTES as usize];
    let mut at = from;
    while at < to {
        let bytes = (to - at).min(CHUNK_BYTES);
        disk.write(at, &[std::io::IoSlice::new(&zeroes[..bytes as usize])], false)?;
        at += bytes;
    }
    Ok(())
}
