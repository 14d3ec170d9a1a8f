//! What a change of an image's structure uses of it, beside guest I/O. The changes themselves are in `ops`.

use super::payload::Payload;
use super::Core;
use crate::alloc::Allocator;
use crate::error::{Error, ErrorKind, Result};
use crate::format::features::AUTOCLEAR_BITMAPS;
use crate::format::Geometry;
use crate::map::Map;
use crate::meta::{HeaderPage, OverlapGuard, Settler};
use crate::storage::medium::Medium;

/// The parts of a writable image.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) geometry: &'a Geometry,
    pub(crate) medium: &'a Medium,
    /// Guest bytes.
    pub(crate) payload: &'a Payload,
    pub(crate) header: &'a HeaderPage,
    pub(crate) guard: &'a OverlapGuard,
    pub(crate) map: &'a Map,
    pub(crate) alloc: &'a Allocator,
}

impl Parts<'_> {
    /// Counts, and everything written before, are durable when it returns.
    pub(crate) fn make_durable(&self) -> Result<()> {
        self.alloc.write_counts()?;
        self.alloc.advance()
    }
}

impl Core {
    /// The parts of an image that is open for writing, whether an earlier change is complete or not.
    pub(crate) fn parts(&self) -> Result<Parts<'_>> {
        let io = self.io()?;
        let Some(alloc) = &io.alloc else {
            return Err(Error::new(ErrorKind::ReadOnly, "the image is open read-only"));
        };
        Ok(Parts {
            geometry: &self.geometry,
            medium: &self.shared.medium,
            payload: &self.payload,
            header: &self.shared.header,
            guard: &self.shared.guard,
            map: &io.map,
            alloc,
        })
    }

    /// The parts, for changes that leave the guest's contents as they are, and with them the bitmaps that say what has
    /// changed.
    pub(crate) fn structure_writer(&self) -> Result<Parts<'_>> {
        let parts = self.parts()?;
        self.check_writable()?;
        self.shared.header.clear_autoclear(AUTOCLEAR_BITMAPS)?;
        Ok(parts)
    }
}
