//! Changing the size of a qcow2 image.

use super::prepare::prepare;
use crate::error::{Error, ErrorKind, Result};
use crate::image::ExclusiveImage;
use crate::ops::bitmaps::Resized;
use crate::ops::l1_table::{drop_vm_state, make_l1_room};
use crate::options::Preallocation;

/// Sets the virtual size, preallocates what is added, and leaves everything durable. The image is loaded
/// again.
pub(in crate::ops) fn resize_image(
    image: &ExclusiveImage<'_>,
    size: u64,
    preallocation: Preallocation,
) -> Result<()> {
    let core = image.core();
    let (geometry, old) = (*core.geometry(), core.length());
    geometry.check_virtual_size(size).map_err(|e| {
        Error::new(ErrorKind::TooLarge, "Failed to grow the L1 table: File too large").because(e)
    })?;
    let header = core.header();
    if preallocation != Preallocation::Off && header.crypt_method != 0 && header.version < 3 {
        return Err(Error::unsupported("preallocation of an encrypted image needs version 3"));
    }
    if header.snapshot_count > 0 && header.version < 3 {
        return Err(Error::unsupported("Can't resize a v2 image which has snapshots"));
    }
    core.structure_writer()?;
    let bitmaps = Resized::begin(image, size)?;
    let preallocation = match preallocation {
        // A raw data file has no holes that only the tables know of.
        Preallocation::Off if size > old && core.has_raw_data_file() => Preallocation::Metadata,
        asked => asked,
    };
    if size > old {
        image.check_chain()?;
        core.grow_data_file(old, size)?;
    }
    if size < old && preallocation != Preallocation::Off {
        return Err(Error::invalid("Preallocation can't be used for shrinking an image"));
    }
    if size != old {
        // It begins where the disk's L1 entries end: it would be part of the disk, or out of its place.
        drop_vm_state(image)?;
    }
    if size < old {
        image.core().cut(size)?;
    }
    let resized = make_l1_room(image, geometry.l1_entries_for(size))
        .map_err(not_grown)
        .and_then(|()| prepare(image, old, size, preallocation))
        .and_then(|()| put_size(image, &bitmaps, size));
    match resized {
        Ok(()) if size < old => image.core().cut_data_file(size),
        // It may be in force, and what failed came after it.
        Err(e) if size > old && image.core().header().virtual_size != size => {
            // The data file goes back to its length, if it can.
            let _ = image.core().cut_data_file(old);
            Err(e)
        }
        done => done,
    }
}

/// The host's errors in the words of the stock tools.
fn not_grown(error: Error) -> Error {
    let said = error.parts().cause.filter(|_| !error.is_failed_sync());
    match (error.kind(), said) {
        (kind @ ErrorKind::Host(_), Some(said)) => {
            Error::new(kind, format!("Failed to grow the L1 table: {said}")).because(error)
        }
        _ => error,
    }
}

/// Puts another size in force. Everything is on the medium. A failure leaves the old one, but where the header that has
/// it, beside bitmaps, could not be written to its end.
fn put_size(image: &ExclusiveImage<'_>, bitmaps: &Resized, size: u64) -> Result<()> {
    let core = image.core();
    let old = core.length();
    if bitmaps.has_bitmaps() && size != old {
        return bitmaps.put(image, size);
    }
    let header = core.parts()?.header;
    header.change(|h| h.virtual_size = size)?;
    let loaded = image.load_again();
    match &loaded {
        Err(e) if !e.is_failed_sync() && header.change(|h| h.virtual_size = old).is_err() => image.reload(),
        _ => loaded,
    }
}
