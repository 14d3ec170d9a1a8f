//! VM state that needs a longer L1 table.

use super::handle::Handle;
use super::l1_table::make_l1_room;
use crate::error::Result;
use crate::format::geometry::MAX_L1_BYTES;
use crate::image::{ExclusiveImage, Image};

/// Writes `bytes` at `offset` of the VM state. The L1 table grows where it has to; requests wait meanwhile.
pub fn write(handle: &Handle, offset: u64, bytes: &[u8]) -> Result<()> {
    let image = Image::of(handle.disk(), "VM state")?;
    image.after_steps(|| {
        while !image.write_vm_state(offset, bytes)? {
            make_room(&image.exclusive(), offset + bytes.len() as u64)?;
        }
        Ok(())
    })
}

/// Has the L1 table map `bytes` of VM state, and some more: each growth loads the image anew.
fn make_room(image: &ExclusiveImage<'_>, bytes: u64) -> Result<()> {
    let core = image.core();
    let parts = core.structure_writer()?;
    let needed = parts.geometry.l1_entries_for(core.vm_state_end(bytes)?);
    let ample = u64::from(core.header().l1_size) * 3 / 2;
    make_l1_room(image, needed.max(ample.min(MAX_L1_BYTES / 8)))
}
