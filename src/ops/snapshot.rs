//! Internal snapshots of an open disk: which one is meant, and what the image layer does with it.

use super::handle::Handle;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{load_snapshots, Disk, Image, NewSnapshot};

/// Which snapshot: what is given must fit, the first in the table that fits is meant.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Its ID.
    pub id: Option<&'a [u8]>,
    /// Its name.
    pub name: Option<&'a [u8]>,
}

fn image_of(handle: &Handle) -> Result<&Image> {
    match handle.disk() {
        Disk::Qcow2(image) if image.core().is_read_only() => {
            Err(Error::new(ErrorKind::ReadOnly, "the image is open read-only"))
        }
        Disk::Qcow2(image) => Ok(image),
        Disk::Raw(_) => Err(Error::unsupported("a raw disk has no internal snapshots")),
    }
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

fn find(core: &crate::image::Core, wanted: Wanted<'_>) -> Result<usize> {
    if wanted.id.is_none() && wanted.name.is_none() {
        return Err(Error::invalid("neither an ID nor a name of a snapshot is given"));
    }
    let (list, _) = load_snapshots(&**core.storage(), &core.header())?;
    let fits = |given: Option<&[u8]>, stored: &[u8]| given.is_none_or(|g| g == stored);
    let found = list.iter().position(|s| fits(wanted.id, &s.id) && fits(wanted.name, &s.name));
    found.ok_or_else(|| {
        let text = |part: Option<&[u8]>| part.map(|p| String::from_utf8_lossy(p).into_owned());
        let rule = match (text(wanted.id), text(wanted.name)) {
            (Some(id), Some(name)) => format!("there is no snapshot with ID '{id}' and name '{name}'"),
            (Some(id), None) => format!("there is no snapshot with ID '{id}'"),
            (_, name) => format!("there is no snapshot with name '{}'", name.unwrap_or_default()),
        };
        Error::new(ErrorKind::NotFound, rule)
    })
}
