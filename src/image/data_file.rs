//! Guest data in an external data file.
//!
//! The image file has the header and the tables, the data file the guest's bytes, each cluster at its guest offset.
//! So nothing is allocated there and nothing is counted: an entry says only whether the bytes in the file count. The
//! allocator, the overlap check and the claims know nothing of its offsets; its clusters are never reused by another
//! guest cluster, and R4 asks nothing of them. Its length is the disk's: nothing is written past the end of the disk.
//!
//! R2 spans both files: a ticket is past once the data file and then the image have been synced
//! ([`crate::storage::medium`]), so an entry that begins to point waits as it does with one file. A failed sync of either
//! closes the latch.
//!
//! A **raw** data file (autoclear bit 1) shows what the disk shows to whoever reads it alone. An entry that says
//! zero is therefore linked once the file has zeroes there, and becomes durable after them. A write in
//! place, which has no claim, looks at the entry again when it is done. Space that the host cannot give back as zeroes is
//! not discarded at all. After a power cut, what was not flushed may be old in one view and new in the other, until it is
//! written again.
//!
//! Elsewhere zeroing and discarding change entries only, and the space goes back to the host at once: a reader by the old
//! entry finds zeroes, which the request asked for. Under a key it would find garbage, and the space stays.

use super::payload::Place;
use super::{Core, Io, ZeroFlags};
use crate::error::{Error, Result};
use crate::format::geometry::SECTOR_BYTES;
use crate::format::{GuestOffset, HostOffset};
use crate::planted::{planted, Plant};
use crate::storage::is_not_supported;
use crate::storage::medium::Written;

/// What entries that are to say zero need of a raw data file.
pub(super) enum RawZeroes {
    /// They may say so once that is durable, if it is there.
    Ready(Option<Written>),
    /// The range is to stay as it is.
    Stays,
}

impl Core {
    /// Fails for an image with an external data file, which cannot have `what`.
    pub(crate) fn refuse_data_file(&self, what: &str) -> Result<()> {
        match self.geometry.external_data {
            true => Err(Error::unsupported(format!("an image with an external data file has no {what}"))),
            false => Ok(()),
        }
    }

    /// Whether the data file shows what the disk shows.
    pub fn has_raw_data_file(&self) -> bool {
        self.raw_data_file
    }

    /// The part of guest bytes `[from, to)` that a data file has.
    fn inside(&self, from: GuestOffset, to: GuestOffset) -> (GuestOffset, u64) {
        let end = to.min(self.disk_end());
        (from.min(end), end - from.min(end))
    }

    /// Zeroes `[from, to)` in a raw data file before entries say so. The caller has claimed it. `give_back`: the host may
    /// take the space.
    pub(super) fn zero_raw_data(
        &self,
        from: GuestOffset,
        to: GuestOffset,
        give_back: bool,
        keep_otherwise: bool,
        flags: ZeroFlags,
    ) -> Result<RawZeroes> {
        if !self.raw_data_file {
            return Ok(RawZeroes::Ready(None));
        }
        let (offset, length) = self.inside(from, to);
        let zeroed = match give_back && self.payload.zeroes_are_zero() {
            true => self.payload.punch(HostOffset(offset.0), length)?,
            false => None,
        };
        let zeroed = match zeroed {
            Some(zeroed) => zeroed,
            None if keep_otherwise => return Ok(RawZeroes::Stays),
            None => self.payload.zero_in_place(Place::apart(offset), length, flags.no_fallback)?,
        };
        Ok(RawZeroes::Ready((!planted(Plant::RawZeroesNotWaitedFor)).then_some(zeroed)))
    }

    /// Whether what was just written in place to a raw data file counts there. Who zeroes the range meanwhile holds its
    /// claim until the entry says so: written once more after that, file and disk are the same again.
    pub(super) fn is_still_in_place(&self, io: &Io, at: GuestOffset, length: u64) -> Result<bool> {
        let geometry = &self.geometry;
        drop(io.map.claim(geometry.cluster_index(at), geometry.cluster_after(at + length)));
        let now = io.map.resolve(at, length)?;
        Ok(now.in_place && now.length == length)
    }

    /// Gives guest bytes `[from, to)`, which read as zeroes by their entries now, back to the host. A courtesy.
    pub(crate) fn give_back_data(&self, from: GuestOffset, to: GuestOffset) -> Result<()> {
        let wanted = self.settings.options.passes_discard_request();
        if self.geometry.external_data && wanted && !self.raw_data_file && self.payload.zeroes_are_zero() {
            let (offset, length) = self.inside(from, to);
            self.payload.give_back(HostOffset(offset.0), length)?;
        }
        Ok(())
    }

    /// Zeroes all of the disk in a raw data file, before entries that let go of it read as zeroes.
    pub(crate) fn zero_raw_disk(&self) -> Result<()> {
        self.zero_raw_data(GuestOffset(0), self.disk_end(), true, false, ZeroFlags::default()).map(drop)
    }

    /// Where a data file of `length` guest bytes may end: a sector under a key is whole or not there.
    fn whole_sectors(&self, length: u64) -> u64 {
        match self.payload.zeroes_are_zero() {
            true => length,
            false => length.next_multiple_of(SECTOR_BYTES),
        }
    }

    /// Makes the data file end with a disk of `size` bytes, with zeroes from `from` on. The header's change, which
    /// comes after it, syncs it.
    pub(crate) fn grow_data_file(&self, from: u64, size: u64) -> Result<()> {
        if !self.geometry.external_data {
            return Ok(());
        }
        let length = self.payload.length()?;
        let (from, size) = (self.whole_sectors(from), self.whole_sectors(size));
        let grow = |e| Error::host("Could not resize the data file", &e);
        // What is there past the end of the disk is nobody's, and must not become the guest's.
        if length > from {
            match self.payload.set_length(from)? {
                Err(e) if !is_not_supported(&e) => return Err(grow(e)),
                _ => {}
            }
            let left = self.payload.length()?;
            if left > from {
                self.payload.zero(Place::apart(GuestOffset(from)), left.min(size) - from)?;
            }
            if left >= size {
                return Ok(());
            }
        }
        match self.payload.set_length(size)? {
            // Past its end it reads as zeroes; a raw one must have the disk's length.
            Err(e) if is_not_supported(&e) && self.raw_data_file => {
                let from = from.min(length);
                self.payload.zero(Place::apart(GuestOffset(from)), size - from).map(drop)
            }
            Err(e) if !is_not_supported(&e) => Err(grow(e)),
            _ => Ok(()),
        }
    }

    /// Cuts the data file to a disk that has become smaller.
    pub(crate) fn cut_data_file(&self, size: u64) -> Result<()> {
        if !self.geometry.external_data {
            return Ok(());
        }
        match self.payload.set_length(self.whole_sectors(size))? {
            Err(e) if !is_not_supported(&e) => Err(Error::host("Could not resize the data file", &e)),
            _ => self.shared.medium.sync_step(),
        }
    }
}
