//! What a change of the backing file needs of an image: contents that are there whatever is below.

use super::{Alone, Core};
use crate::error::Result;
use crate::format::Geometry;
use std::io::IoSlice;

impl Core {
    /// Sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }
}

impl Alone<'_> {
    /// Writes bytes; `compressed` where they are whole clusters.
    pub(crate) fn hold_data(&self, offset: u64, bytes: &[u8], compressed: bool) -> Result<()> {
        let core = self.core();
        let buffers = [IoSlice::new(bytes)];
        match compressed && core.check_clusters(offset, bytes.len() as u64).is_ok() {
            true => core.write_compressed(offset, &buffers, self.flusher()),
            false => core.write(offset, &buffers, self.flusher()),
        }
    }

    /// Makes the image itself say that a range is zeroes, also where what is below reads as zeroes today.
    pub(crate) fn hold_zeroes(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let core = self.core();
        if core.geometry.version < 3 {
            // No zero flag: a hole shows what will be below.
            return core.write(offset, &[IoSlice::new(bytes)], self.flusher());
        }
        core.write_zeroes(offset, bytes.len() as u64, Default::default(), self.flusher())
    }

    /// Records another backing file, after everything is on the medium. What is open below stays.
    pub fn change_backing(&self, name: Option<&[u8]>, format: Option<&[u8]>) -> Result<()> {
        self.settle()?;
        let core = self.core();
        core.begin_write()?;
        self.image().leave_chain();
        core.shared.header.change_backing(name, format)
    }
}
