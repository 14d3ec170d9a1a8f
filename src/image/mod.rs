//! A disk: read, write, copy-on-write, zero, discard, flush, backing. Called by `ops` and `capi`.
//!
//! A [`Disk`] is a qcow2 image or a raw file; a chain is disks that hold their backing disk. An open image
//! is a [`Core`] behind a gate: requests enter shared and use the core as it is; structure changes enter
//! alone, bring everything to the medium and put a new core, loaded afresh, in its place. They are in `ops`: to them an
//! [`ExclusiveImage`] and its core hand out their parts (`structure.rs`) and what guest I/O can do.

mod buffers;
mod chain;
mod compressed;
mod copy;
mod core;
mod cut;
mod data_file;
mod flush;
mod inflate;
mod payload;
mod pool;
mod preallocate;
mod qcow2;
mod raw;
mod read;
mod session;
mod snapshot;
mod status;
mod stream;
mod structure;
mod unfinished;
mod vm_state;
mod write;
mod zero;

pub use compressed::PackedClusters;
pub(crate) use core::{inactive_error, validate};
pub use core::{Core, CoreSettings, Io};
#[cfg(all(loom, test))]
pub(crate) use flush::Flusher;
pub use qcow2::{ExclusiveImage, Image};
pub use raw::RawDisk;
pub use snapshot::SnapshotRef;
pub use status::Status;
pub(crate) use stream::no_layer;
pub use stream::StreamScope;
pub(crate) use structure::Parts;

use crate::error::{Error, ErrorKind, Result};
use std::io::{IoSlice, IoSliceMut};

/// How a write-zeroes may be carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// Host clusters may be given back.
    pub unmap: bool,
    /// Fail with `ENOTSUP` rather than write zero bytes.
    pub no_fallback: bool,
}

/// One disk, whatever its format.
pub enum Disk {
    /// A qcow2 image.
    Qcow2(Box<Image>),
    /// A raw file.
    Raw(RawDisk),
}

impl Disk {
    /// Virtual size in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Disk::Qcow2(image) => image.length(),
            Disk::Raw(raw) => raw.length(),
        }
    }

    /// Fills `buffers` from `offset`; the range must be inside the disk.
    #[inline]
    pub fn read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        match self {
            Disk::Qcow2(image) => image.read(offset, buffers),
            Disk::Raw(raw) => raw.read(offset, buffers),
        }
    }

    /// Writes `buffers` at `offset`; the range must be inside the disk.
    #[inline]
    pub fn write(&self, offset: u64, buffers: &[IoSlice<'_>], fua: bool) -> Result<()> {
        match self {
            Disk::Qcow2(image) => image.write(offset, buffers, fua),
            Disk::Raw(raw) => raw.write(offset, buffers, fua),
        }
    }

    /// Overwrites a range where it is, if that is all there is to do; `false`: nothing has been done. Meets no
    /// cancellation point on a file.
    #[inline]
    pub fn overwrite(&self, offset: u64, bytes: &[u8]) -> Result<bool> {
        match self {
            Disk::Qcow2(image) => image.overwrite(offset, bytes),
            Disk::Raw(_) => Ok(false),
        }
    }

    /// Writes `buffers` at `offset` as compressed clusters.
    pub fn write_compressed(&self, offset: u64, buffers: &[IoSlice<'_>], fua: bool) -> Result<()> {
        match self {
            Disk::Qcow2(image) => image.write_compressed(offset, buffers, fua),
            Disk::Raw(_) => Err(Error::unsupported("a raw disk cannot hold compressed data")),
        }
    }

    /// Compresses whole clusters, which nobody sees before `write_packed`.
    pub fn pack(&self, offset: u64, data: &[u8]) -> Result<PackedClusters> {
        match self {
            Disk::Qcow2(image) => image.pack(offset, data),
            Disk::Raw(_) => Err(Error::unsupported("a raw disk cannot hold compressed data")),
        }
    }

    /// Writes what `pack` has made of `data` for the same offset.
    pub fn write_packed(&self, packed: &PackedClusters, offset: u64, data: &[u8]) -> Result<()> {
        match self {
            Disk::Qcow2(image) => image.write_packed(packed, offset, data),
            Disk::Raw(_) => Err(Error::unsupported("a raw disk cannot hold compressed data")),
        }
    }

    /// Makes a range read as zeroes.
    pub fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags, fua: bool) -> Result<()> {
        match self {
            Disk::Qcow2(image) => image.write_zeroes(offset, length, flags, fua),
            Disk::Raw(raw) => raw.write_zeroes(offset, length, flags, fua),
        }
    }

    /// The guest does not need the range any more. What it reads afterwards is what it was or zeroes, never
    /// the backing file's bytes.
    pub fn discard(&self, offset: u64, length: u64) -> Result<()> {
        match self {
            Disk::Qcow2(image) => image.discard(offset, length),
            Disk::Raw(raw) => raw.discard(offset, length),
        }
    }

    /// The same, durable when it returns.
    pub fn discard_durably(&self, offset: u64, length: u64) -> Result<()> {
        self.discard(offset, length)?;
        self.flush()
    }

    /// Fills `buffer` from `offset` of the VM state.
    pub fn read_vm_state(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self {
            Disk::Qcow2(image) => image.read_vm_state(offset, buffer),
            Disk::Raw(_) => Err(Error::unsupported("a raw disk has no VM state")),
        }
    }

    /// Everything completed before the call is durable when it returns.
    pub fn flush(&self) -> Result<()> {
        match self {
            Disk::Qcow2(image) => image.flush(),
            Disk::Raw(raw) => raw.flush(),
        }
    }

    /// Before status is asked for: what this disk has not settled counts as data there, whatever the host says of it.
    /// Disks that are open for reading do so by themselves.
    pub fn settle_runs(&self) -> Result<()> {
        match self {
            Disk::Qcow2(image) => image.settle_runs(),
            Disk::Raw(raw) => raw.settle_runs(),
        }
    }

    /// The first extent of a range, through the chain unless `top_only`.
    pub fn status(&self, offset: u64, length: u64, top_only: bool) -> Result<Status> {
        check_range(self.length(), offset, length)?;
        match self {
            Disk::Qcow2(image) => image.status(offset, length, top_only),
            Disk::Raw(raw) => raw.status(offset, length),
        }
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        match self {
            Disk::Qcow2(image) => image.core().is_read_only(),
            Disk::Raw(raw) => raw.is_read_only(),
        }
    }

    /// Whether this is a snapshot inside an image and not the disk.
    pub fn is_snapshot(&self) -> bool {
        matches!(self, Disk::Qcow2(image) if image.core().is_snapshot())
    }

    /// Device and inode of the image file, or the number of a device, where there is one.
    pub fn identity(&self) -> Option<(u64, u64)> {
        match self {
            Disk::Qcow2(image) => image.core().storage().identity(),
            Disk::Raw(raw) => raw.storage().identity(),
        }
    }

    /// Device and inode of the file that guest data is in, where there is one.
    pub fn data_identity(&self) -> Option<(u64, u64)> {
        match self {
            Disk::Qcow2(image) => image.core().shared.medium.data_storage().identity(),
            Disk::Raw(raw) => raw.storage().identity(),
        }
    }

    /// Disks in the chain below this one.
    pub fn backing_depth(&self) -> usize {
        match self {
            Disk::Qcow2(image) => image.core().backing().map_or(0, |b| 1 + b.backing_depth()),
            Disk::Raw(_) => 0,
        }
    }

    /// Fills `buffer` from `offset` with zeroes past the end, as a disk above it sees this one.
    pub(crate) fn read_as_backing(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let inside = self.length().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (have, past) = buffer.split_at_mut(inside);
        past.fill(0);
        if have.is_empty() {
            return Ok(());
        }
        self.read(offset, &mut [IoSliceMut::new(have)])
    }
}

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
