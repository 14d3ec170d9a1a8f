//! Where every change of the guest's contents begins, and what has to know of it.

use super::bitmaps::Tracker;
use super::core::unfinished;
use super::{Core, ExclusiveImage, Io};
use crate::alloc::Allocator;
use crate::error::{Error, ErrorKind, Result};
use crate::format::features::AUTOCLEAR_BITMAPS;
use crate::format::GuestOffset;
use std::sync::Arc;

impl Core {
    /// The way to every change of the guest's contents, in place or not: fails unless `length` bytes at `offset` may be
    /// changed now. Whoever has to know of the change does when it returns (R7).
    pub(crate) fn begin_change(&self, offset: GuestOffset, length: u64) -> Result<(&Io, &Arc<Allocator>)> {
        let io = self.io()?;
        let Some(alloc) = &io.alloc else {
            return Err(Error::new(ErrorKind::ReadOnly, "the image is open read-only"));
        };
        self.check_writable()?;
        if self.shared.header.autoclear_pending() {
            self.note_change(offset, length)?;
        }
        Ok((io, alloc))
    }

    #[inline(never)]
    fn note_change(&self, offset: GuestOffset, length: u64) -> Result<()> {
        // Which bitmaps the file has must be known.
        self.shared.header.decide()?;
        match &self.bitmaps {
            Some(bitmaps) => bitmaps.note_change(&self.shared, offset.0, offset.0.saturating_add(length)),
            // Bitmaps would go stale, so their bit goes first.
            None => self.shared.header.clear_autoclear(0),
        }
    }

    /// A mistake that a test plants.
    pub(super) fn mark_late(&self, offset: GuestOffset, length: u64) {
        if let Some(bitmaps) = &self.bitmaps {
            bitmaps.mark_late(offset.0, offset.0 + length);
        }
    }

    /// As `begin_change`, for a write that looks have cleared; `false`: there is more to it.
    #[inline(never)]
    pub(super) fn note_overwrite(&self, offset: GuestOffset, length: u64) -> Result<bool> {
        self.shared.header.decide()?;
        match &self.bitmaps {
            Some(bitmaps) if bitmaps.is_noted(offset.0, offset.0 + length) => Ok(true),
            Some(bitmaps) if bitmaps.is_announced() => self.note_change(offset, length).map(|()| true),
            _ => Ok(false),
        }
    }

    /// The bitmaps that are in force, `None` where there are none. Of an image that is open read-only they are loaded when
    /// somebody asks. Called inside the gate.
    pub(crate) fn bitmaps(&self) -> Result<Option<Arc<Tracker>>> {
        self.check_active()?;
        match (&self.io, self.is_read_only()) {
            (Some(_), false) => Ok(self.bitmaps.clone()),
            _ => self.session.bitmaps(|| Tracker::load_all(&self.shared)),
        }
    }

    /// Makes bitmaps void that this handle has been told to drop: before others come, or the disk gets another size.
    pub(crate) fn give_up_dropped_bitmaps(&self) -> Result<()> {
        match self.bitmaps {
            Some(_) => Ok(()),
            None => self.shared.header.clear_autoclear(!AUTOCLEAR_BITMAPS),
        }
    }

    /// Brings the bitmaps to the medium, so that they are to be believed. The caller is alone.
    pub(crate) fn store_bitmaps(&self) -> Result<()> {
        match (&self.bitmaps, &self.io) {
            (Some(bitmaps), Some(Io { alloc: Some(alloc), .. })) => bitmaps.store(&self.shared, alloc),
            _ => Ok(()),
        }
    }
}

impl ExclusiveImage<'_> {
    /// As `settle`, with bitmaps that are to be believed.
    pub fn settle_with_bitmaps(&self) -> Result<()> {
        let core = self.core();
        match core.suspended() {
            Some(why) => Err(unfinished(why.clone())),
            None => {
                // What guests have written first: bitmaps that cannot be stored stay in use, and take nothing with them.
                core.settle()?;
                if !core.bitmaps.as_ref().is_some_and(|bitmaps| bitmaps.is_unstored()) {
                    return Ok(());
                }
                let stored = core.store_bitmaps();
                let settled = core.settle();
                stored.and(settled)
            }
        }
    }
}
