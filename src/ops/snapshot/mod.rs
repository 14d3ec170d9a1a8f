//! Internal snapshots of an open disk: taking, applying and deleting them.
//!
//! The image is held alone; everything is on the medium before the first step, and the image is loaded anew after the
//! last one. In version 3 the dirty bit brackets the steps of take and delete (R6), so that a power cut between them
//! ends in a repair. Version 2 has no such bit: there a cut leaves leaks, or COPIED flags that do not fit the counts,
//! which costs space or a copy and no data: a flag is never set on a cluster that two tables refer to. A cut while applying leaves leaks.
//!
//! ```text
//! take     room for the L1 copy and the new table -> both written -> counts of the whole tree rise, durable
//!          -> COPIED flags of the active tree cleared -> header names the new table -> old table goes
//!          -> VM state whose size is told goes from the active table
//! apply    room for a new L1 table -> counts of the snapshot's tree rise, durable -> L1 table written
//!          -> header names it, with the size -> loaded anew -> counts of the old tree fall
//! delete   new table written, its counts durable -> header names it -> counts of the snapshot's tree fall, durable
//!          -> COPIED flags of the active tree set where a count has become one
//! ```

mod apply;
mod delete;
pub(super) mod table;
mod take;

pub use crate::image::SnapshotRef;
pub use take::NewSnapshot;

use super::handle::Handle;
use crate::error::{Error, ErrorKind, Result};
use crate::format::snapshot::Snapshot;
use crate::image::{Core, Image, Parts};

fn image_of(handle: &Handle) -> Result<&Image> {
    let image = Image::of(handle.disk(), "internal snapshots")?;
    if image.core().is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly, "the image is open read-only"));
    }
    image.core().refuse_data_file("internal snapshots")?;
    Ok(image)
}

/// Takes a snapshot. Requests wait meanwhile.
pub fn create(handle: &Handle, new: &NewSnapshot) -> Result<()> {
    take::take(&image_of(handle)?.exclusive(), new)
}

/// Makes the disk what it was when the snapshot was taken; what was written since is lost.
pub fn apply(handle: &Handle, wanted: SnapshotRef<'_>) -> Result<()> {
    let image = image_of(handle)?.exclusive();
    let index = find(&image.core(), wanted)?;
    apply::apply(&image, index)
}

/// Deletes a snapshot.
pub fn delete(handle: &Handle, wanted: SnapshotRef<'_>) -> Result<()> {
    let image = image_of(handle)?.exclusive();
    let index = find(&image.core(), wanted)?;
    delete::delete(&image, index)
}

fn find(core: &Core, wanted: SnapshotRef<'_>) -> Result<usize> {
    wanted.index_in(&core.snapshots()?)
}

fn entry_of(list: &[Snapshot], index: usize) -> Result<&Snapshot> {
    list.get(index)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no snapshot number {index}")))
}

/// Sets the dirty bit around the steps of one operation.
fn bracket(parts: &Parts<'_>) -> Result<()> {
    match parts.geometry.version {
        2 => Ok(()),
        _ => parts.header.mark_dirty(),
    }
}
