//! Internal snapshots of an open disk: which one is meant, and what the image layer does with it.

use super::handle::Handle;
use crate::error::{Error, ErrorKind, Result};
pub use crate::image::Wanted;
use crate::image::{Core, Image, NewSnapshot};

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
    image_of(handle)?.alone().create_snapshot(new)
}

/// Makes the disk what it was when the snapshot was taken; what was written since is lost.
pub fn apply(handle: &Handle, wanted: Wanted<'_>) -> Result<()> {
    let alone = image_of(handle)?.alone();
    let index = find(&alone.core(), wanted)?;
    alone.apply_snapshot(index)
}

/// Deletes a snapshot.
pub fn delete(handle: &Handle, wanted: Wanted<'_>) -> Result<()> {
    let alone = image_of(handle)?.alone();
    let index = find(&alone.core(), wanted)?;
    alone.delete_snapshot(index)
}

fn find(core: &Core, wanted: Wanted<'_>) -> Result<usize> {
    wanted.index_in(&core.snapshots()?)
}
