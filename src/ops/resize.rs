//! Changing the virtual size.
//!
//! Growing: the new L1 table, if one is needed, is whole and durable before the header names it; the old
//! table's clusters go afterwards (R5, R3); what a longer backing file or the last cluster would show is zeroed
//! durably; then the size changes, and what is added is preallocated. Shrinking: entries past the new end go
//! first, then the size. A power cut leaves the old size, or the new one, with leaks at most. Requests wait.

use crate::error::{Error, ErrorKind, Result};
use crate::image::Disk;
use crate::ops::handle::Handle;
use crate::options::Preallocation;
use crate::storage::{reserve_range, Purpose};

/// Bytes of zeroes written at once by full preallocation.
const CHUNK_BYTES: u64 = 1 << 20;

/// Sets the virtual size of an open disk.
pub fn resize(handle: &Handle, size: u64, preallocation: Preallocation) -> Result<()> {
    let disk = handle.disk();
    if disk.is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly, "the disk is open read-only"));
    }
    match disk {
        Disk::Raw(_) => resize_raw(disk, size, preallocation),
        Disk::Qcow2(_) if size % 512 != 0 => Err(Error::invalid("The new size must be a multiple of 512")),
        Disk::Qcow2(image) => image.alone().resize(size, preallocation),
    }
}

fn resize_raw(disk: &Disk, size: u64, preallocation: Preallocation) -> Result<()> {
    let Disk::Raw(raw) = disk else { return Ok(()) };
    if preallocation == Preallocation::Metadata {
        return Err(Error::unsupported("Unsupported preallocation mode: metadata"));
    }
    let old = raw.length();
    raw.resize(size)?;
    let preallocated = match preallocation {
        Preallocation::Falloc if size > old => {
            let done = reserve_range(&*raw.storage(), Purpose::Data, old, size - old);
            done.map_err(|e| Error::host("preallocating the raw file", &e))
        }
        Preallocation::Full => write_zero_bytes(disk, old, size),
        _ => Ok(()),
    };
    if let Err(e) = preallocated {
        // A resize that failed has not happened.
        let _ = raw.resize(old);
        return Err(e);
    }
    disk.flush()
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
