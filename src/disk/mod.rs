//! A disk of any format: read, write, status, and what it stands on.
//!
//! A [`Disk`] is a cheap handle of whatever implements [`Format`]; a chain is disks that hold their backing disk. What
//! only some formats can do (compressed clusters, VM state, writes at all) is a method that refuses unless a format has
//! it. Nothing outside a format's own files decides by the format of a disk: who needs a qcow2 image asks for one and is
//! refused otherwise. What differs between formats as files (how one is recognised, opened, made, checked, repaired,
//! given another size) is in the table of `ops::formats`.

pub mod luks;
mod opening;
mod packed;
mod range;
pub mod raw;
mod secret;
mod status;

pub use opening::{Draft, Encryption, Files, Names, Parts, Settings, Stopped, Unlocking};
pub use packed::PackedClusters;
pub(crate) use range::{check_range, total};
pub use secret::Secret;
pub use status::Status;

use crate::error::{Error, ErrorKind, Result};
use crate::storage::access::Identity;
use crate::storage::Storage;
use std::any::Any;
use std::io::{IoSlice, IoSliceMut};
use std::ops::Deref;
use std::sync::Arc;

/// How a write-zeroes may be carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// Host clusters may be given back.
    pub unmap: bool,
    /// Fail with `ENOTSUP` rather than write zero bytes.
    pub no_fallback: bool,
}

/// Takes bytes where a file has them: the storage, the offset in it, and how many; says how many it has used.
pub type UseHost<'a> = &'a mut dyn FnMut(&dyn Storage, u64, u64) -> Result<u64>;

/// What a disk can be asked and told. Offsets and lengths are the guest's, in bytes.
///
/// Every format names itself, reads, tells its status and can be stopped; the rest is there for those that have it.
pub trait Format: Any + Send + Sync {
    /// The format's name, as images record it and users give it.
    fn name(&self) -> &'static str;
    /// The file that makes it a disk.
    fn storage(&self) -> Arc<dyn Storage>;
    /// Virtual size in bytes.
    fn length(&self) -> u64;
    /// Fills `buffers` from `offset`; the range must be inside the disk.
    fn read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()>;
    /// Fills `buffer` from `offset`, if that takes one read of a file; `false`: nothing has been done.
    fn read_short(&self, _offset: u64, _buffer: &mut [u8]) -> Result<bool> {
        Ok(false)
    }
    /// The first extent of a range, through the chain unless `top_only`.
    fn status(&self, offset: u64, length: u64, top_only: bool) -> Result<Status>;
    /// The disk itself, for a caller who knows the type.
    fn as_any(&self) -> &dyn Any;
    /// Keeps every request out while the answer lives.
    fn stop(&self) -> Box<dyn Stopped + '_>;

    /// Which file guest data is in, where that can be told.
    fn data_identity(&self) -> Option<Identity> {
        self.storage().identity()
    }
    /// What holes read from.
    fn backing(&self) -> Option<Disk> {
        None
    }
    /// Whether writes are refused.
    fn is_read_only(&self) -> bool {
        true
    }
    /// Whether this is a snapshot inside an image and not the disk.
    fn is_snapshot(&self) -> bool {
        false
    }
    /// Whether a range certainly reads as zeroes, as far as that can be told without reading data or walking over it.
    fn reads_zero(&self, _offset: u64, _length: u64) -> Result<bool> {
        Ok(false)
    }
    /// Before status is asked for: what this disk has not settled counts as data there, whatever the host says of it.
    /// Disks that are open for reading do so by themselves.
    fn settle_runs(&self) -> Result<()> {
        Ok(())
    }
    /// Hands the start of a range to `use_host` where it lies in a file of this disk or of one below it: as it is,
    /// no zeroes, nothing compressed. Returns how much was used; 0 also where the start does not lie in one.
    fn with_host_bytes(&self, _offset: u64, _length: u64, _use_host: UseHost<'_>) -> Result<u64> {
        Ok(0)
    }
    /// Drops what is kept in memory and has not been used since the last call.
    fn clean_caches(&self) -> Result<()> {
        Ok(())
    }

    /// Overwrites a range where it is, if that is all there is to do; `false`: nothing has been done. Meets no
    /// cancellation point on a file.
    fn overwrite(&self, _offset: u64, _bytes: &[u8]) -> Result<bool> {
        Ok(false)
    }
    /// Writes `buffers` at `offset`; the range must be inside the disk.
    fn write(&self, _offset: u64, _buffers: &[IoSlice<'_>], _fua: bool) -> Result<()> {
        Err(read_only())
    }
    /// Makes a range read as zeroes.
    fn write_zeroes(&self, _offset: u64, _length: u64, _flags: ZeroFlags, _fua: bool) -> Result<()> {
        Err(read_only())
    }
    /// The guest does not need the range any more. What it reads afterwards is what it was or zeroes, never
    /// the backing file's bytes.
    fn discard(&self, _offset: u64, _length: u64) -> Result<()> {
        Err(read_only())
    }
    /// Copies bytes of another file to the start of a range, whole clusters that hold nothing yet. Returns how much
    /// was copied, less than asked for where it cannot be done so; `ENOTSUP` where the hosts never can.
    fn write_from(&self, _offset: u64, _length: u64, _source: &dyn Storage, _at: u64) -> Result<u64> {
        Err(read_only())
    }
    /// Everything completed before the call is durable when it returns.
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// Bytes of the clusters that compressed writes are made of; `None`: there are no such writes.
    fn compressed_unit(&self) -> Option<u64> {
        None
    }
    /// Writes `buffers` at `offset` as compressed clusters.
    fn write_compressed(&self, _offset: u64, _buffers: &[IoSlice<'_>], _fua: bool) -> Result<()> {
        Err(has_no(self.name(), COMPRESSED))
    }
    /// Compresses whole clusters, which nobody sees before `write_packed`.
    fn pack(&self, _offset: u64, _data: &[u8]) -> Result<PackedClusters> {
        Err(has_no(self.name(), COMPRESSED))
    }
    /// Writes what `pack` has made of `data` for the same offset.
    fn write_packed(&self, _packed: &PackedClusters, _offset: u64, _data: &[u8]) -> Result<()> {
        Err(has_no(self.name(), COMPRESSED))
    }

    /// Bytes of its bitmaps in an image with clusters of so many bytes, where it can have some: 0 of one that has none.
    fn bitmaps_bytes(&self, _cluster_bytes: u64) -> Option<u64> {
        None
    }

    /// Fills `buffer` from `offset` of the VM state.
    fn read_vm_state(&self, _offset: u64, _buffer: &mut [u8]) -> Result<()> {
        Err(has_no(self.name(), VM_STATE))
    }
}

const COMPRESSED: &str = "compressed clusters";
const VM_STATE: &str = "VM state";

/// Why a disk of the format called `name` does not do what is asked.
#[cold]
fn has_no(name: &str, what: &str) -> Error {
    Error::unsupported(format!("a {name} disk has no {what}"))
}

#[cold]
fn read_only() -> Error {
    Error::new(ErrorKind::ReadOnly, "the disk is open read-only")
}

/// Why an inactive disk is not used.
#[cold]
pub(crate) fn inactive_error() -> Error {
    Error::new(
        ErrorKind::NotAllowed,
        "the image is inactive: another program may have it until it is invalidated",
    )
}

/// One disk, whatever its format.
#[derive(Clone)]
pub struct Disk(
    // In a box: a request then finds format and function without asking for the alignment of what is counted.
    Arc<Box<dyn Format>>,
);

impl Deref for Disk {
    type Target = dyn Format;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &**self.0
    }
}

impl Disk {
    /// A disk of a format.
    pub fn new(format: impl Format) -> Disk {
        Disk(Arc::new(Box::new(format)))
    }

    /// The disk as what a format that its caller knows has made; `None`: it is of another one.
    pub fn find<T: Format>(&self) -> Option<&T> {
        (**self).as_any().downcast_ref()
    }

    /// As `find`, for a caller who wants `what`, which only that format has.
    pub fn need<T: Format>(&self, what: &str) -> Result<&T> {
        self.find().ok_or_else(|| has_no(self.name(), what))
    }

    /// Whether both are the same open disk.
    pub fn is(&self, other: &Disk) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// `discard`, durable when it returns.
    pub fn discard_durably(&self, offset: u64, length: u64) -> Result<()> {
        self.discard(offset, length)?;
        self.flush()
    }

    /// Which file it is, where that can be told.
    pub fn identity(&self) -> Option<Identity> {
        self.storage().identity()
    }

    /// Disks in the chain below this one.
    pub fn backing_depth(&self) -> usize {
        std::iter::successors(self.backing(), |disk| disk.backing()).count()
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
