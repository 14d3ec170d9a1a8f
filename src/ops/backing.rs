//! Another backing file name in the header, and an image that holds nothing itself.

use super::handle::Handle;
use super::l1_table;
use crate::error::{Error, ErrorKind, Result};
use crate::format::extensions::BACKING_FORMAT;
use crate::format::header::MAX_BACKING_NAME_BYTES;
use crate::format::{GuestOffset, Header};
use crate::image::{CoreSettings, ExclusiveImage, Image};
use crate::options::CreateOptions;
use std::sync::Arc;

/// The writable image behind `handle`.
pub(super) fn writable(handle: &Handle) -> Result<&Image> {
    let image = Image::of(handle.disk(), "backing file")?;
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
    change_names(handle, &image.exclusive(), name, format)
}

/// Records the names; without a backing file its handle is let go of.
pub(super) fn change_names(
    handle: &Handle,
    image: &ExclusiveImage<'_>,
    name: Option<&[u8]>,
    format: Option<&str>,
) -> Result<()> {
    change_header(image, name, format.map(str::as_bytes))?;
    if name.is_none() {
        handle.put_below(None);
    }
    Ok(())
}

/// Records another backing file, after everything is on the medium. Without one, holes are zeroes from now on;
/// with another one, what is open below stays until the image is opened anew.
fn change_header(image: &ExclusiveImage<'_>, name: Option<&[u8]>, format: Option<&[u8]>) -> Result<()> {
    image.settle()?;
    let core = image.core();
    let parts = core.structure_writer()?;
    let before = names(&core.header());
    let done = parts.header.change_backing(name, format);
    // Some of it may be in force after a failure.
    if names(&core.header()) == before {
        return done;
    }
    image.leave_chain(true);
    done?;
    if name.is_none() {
        image.reload_from(
            Arc::clone(core.storage()),
            CoreSettings { backing: None, ..core.settings().clone() },
        )?;
        image.leave_chain(false);
    }
    Ok(())
}

/// The backing file that a header records, and its format.
pub(super) fn names(header: &Header) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let format = header.extensions.iter().find(|e| e.kind == BACKING_FORMAT);
    (header.backing_file.clone(), format.map(|e| e.data.clone()))
}

/// Lets go of everything that the image holds.
pub fn make_empty(handle: &Handle) -> Result<()> {
    let image = writable(handle)?.exclusive();
    image.settle()?;
    let core = image.core();
    core.begin_change(GuestOffset(0), core.length())?;
    l1_table::make_empty(&image)
}
