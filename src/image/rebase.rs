//! What a change of the backing file needs of an image: contents that are there whatever is below.

use super::core::CoreSettings;
use super::{Alone, Core};
use crate::error::Result;
use crate::format::extensions::BACKING_FORMAT;
use crate::format::{Geometry, Header};
use std::io::IoSlice;
use std::sync::Arc;

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
            true => core.write_compressed(offset, &buffers),
            false => core.write(offset, &buffers),
        }
    }

    /// Makes the image itself say that a range is zeroes, also where what is below reads as zeroes today.
    pub(crate) fn hold_zeroes(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let core = self.core();
        if core.geometry.version < 3 {
            // No zero flag: a hole shows what will be below.
            return core.write(offset, &[IoSlice::new(bytes)]);
        }
        core.write_zeroes(offset, bytes.len() as u64, Default::default())
    }

    /// The backing file that is open is not the one that the header means: nothing may become a hole.
    pub fn leave_chain(&self) {
        self.image().session.leave_chain(true);
    }

    /// Records another backing file, after everything is on the medium. Without one, holes are zeroes from now on;
    /// with another one, what is open below stays until the image is opened anew.
    pub fn change_backing(&self, name: Option<&[u8]>, format: Option<&[u8]>) -> Result<()> {
        self.settle()?;
        let core = self.core();
        core.structure_writer()?;
        let before = names(&core.header());
        let done = core.shared.header.change_backing(name, format);
        // Some of it may be in force after a failure.
        if names(&core.header()) == before {
            return done;
        }
        self.leave_chain();
        done?;
        if name.is_none() {
            self.reload_from(
                Arc::clone(core.storage()),
                CoreSettings { backing: None, ..core.settings.clone() },
            )?;
            self.image().session.leave_chain(false);
        }
        Ok(())
    }
}

/// The backing file that a header records, and its format.
pub(crate) fn names(header: &Header) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let format = header.extensions.iter().find(|e| e.kind == BACKING_FORMAT);
    (header.backing_file.clone(), format.map(|e| e.data.clone()))
}
