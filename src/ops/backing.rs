//! Another backing file name in the header, and an image that holds nothing itself.

use super::handle::Handle;
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::MAX_BACKING_NAME_BYTES;
use crate::image::{Alone, Disk, Image};
use crate::options::CreateOptions;

/// The writable image behind `handle`.
pub(super) fn writable(handle: &Handle) -> Result<&Image> {
    let Disk::Qcow2(image) = handle.disk() else {
        return Err(Error::unsupported("a raw disk has no backing file"));
    };
    if image.core().is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly, "the image is open read-only"));
    }
    Ok(image)
}

/// Fails unless the header of `image` may record these.
pub(super) fn check_names(image: &Image, name: Option<&[u8]>, format: Option<&str>) -> Result<()> {
    match (name, format) {
        (Some(_), _) if image.core().has_raw_data_file() => {
            Err(Error::invalid("Backing file and data-file-raw cannot be used at the same time"))
        }
        (None, None) => Ok(()),
        (None, Some(_)) => Err(Error::invalid("Backing format cannot be used without backing file")),
        (Some([]), _) => Err(Error::invalid("Expected backing file name, got empty string")),
        (Some(name), _) if name.len() > MAX_BACKING_NAME_BYTES as usize => {
            let detail = format!("{} bytes, the limit is {MAX_BACKING_NAME_BYTES}", name.len());
            Err(Error::invalid("Backing file name too long").detail(detail))
        }
        (Some(_), None) => Err(Error::invalid("backing format must be specified")),
        (Some(_), Some(format)) => CreateOptions::check_backing_format(format),
    }
}

/// Records another backing file, whatever it holds; `None`: none. The chain that is open stays.
pub fn change_backing_file(handle: &Handle, name: Option<&[u8]>, format: Option<&str>) -> Result<()> {
    let image = writable(handle)?;
    check_names(image, name, format)?;
    change_names(handle, &image.alone(), name, format)
}

/// Records the names; without a backing file its handle is let go of.
pub(super) fn change_names(
    handle: &Handle,
    alone: &Alone<'_>,
    name: Option<&[u8]>,
    format: Option<&str>,
) -> Result<()> {
    alone.change_backing(name, format.map(str::as_bytes))?;
    if name.is_none() {
        handle.put_below(None);
    }
    Ok(())
}

/// Lets go of everything that the image holds.
pub fn make_empty(handle: &Handle) -> Result<()> {
    let alone = writable(handle)?.alone();
    alone.settle()?;
    alone.make_empty()
}
