//! Internal snapshots of an open disk: which one is meant, and what the image layer does with it.

use super::handle::Handle;
use crate::error::{Error, ErrorKind, Result};
pub use crate::image::SnapshotRef;
use crate::image::{Core, Disk, Image, NewSnapshot};

fn image_of(handle: &Handle) -> Result<&Image> {
    match handle.disk() {
        Disk::Qcow2(image) if image.core().is_read_only() => {
            Err(Error::new(ErrorKind::ReadOnly, "the image is open read-only"))
        }
        Disk::Qcow2(image) => {
            image.core().refuse_data_file("internal snapshots")?;
            Ok(image)
        }
        Disk::Raw(_) => Err(Error::unsupported("a raw disk has no internal snapshots")),
    }
}

/// Takes a snapshot. Requests wait meanwhile.
pub fn create(handle: &Handle, new: &NewSnapshot) -> Result<()> {
    image_of(handle)?.exclusive().create_snapshot(new)
}

/// Makes the disk what it was when the snapshot was taken; what was written since is lost.
pub fn apply(handle: &Handle, wanted: SnapshotRef<'_>) -> Result<()> {
    let alone = image_of(handle)?.exclusive();
    let index = find(&alone.core(), wanted)?;
    alone.apply_snapshot(index)
}

/// Deletes a snapshot.
pub fn delete(handle: &Handle, wanted: SnapshotRef<'_>) -> Result<()> {
    let alone = image_of(handle)?.exclusive();
    let index = find(&alone.core(), wanted)?;
    alone.delete_snapshot(index)
}

fn find(core: &Core, wanted: SnapshotRef<'_>) -> Result<usize> {
    wanted.index_in(&core.snapshots()?)
}
