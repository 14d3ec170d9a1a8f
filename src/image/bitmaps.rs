//! The bitmaps that an image names, for listings.

use crate::error::{Error, ErrorKind, Result};
use crate::format::bitmap::{check_pointer, parse_directory, Bitmap};
use crate::format::extensions::{self, BITMAPS};
use crate::format::features::AUTOCLEAR_BITMAPS;
use crate::format::Header;
use crate::storage::{read_exact, Purpose, Storage};

/// Reads the directory; none where a writer that knew no bitmaps has made them void.
pub(crate) fn load_bitmaps(storage: &dyn Storage, header: &Header) -> Result<Vec<Bitmap>> {
    let void = header.autoclear & AUTOCLEAR_BITMAPS == 0;
    let Some(data) = header.extension(BITMAPS).filter(|_| !void) else { return Ok(Vec::new()) };
    let geometry = header.geometry();
    let pointer = extensions::bitmaps(data)?;
    check_pointer(&pointer, &geometry)?;
    let length = storage.length().map_err(|e| Error::host("length of the image file", &e))?;
    if length.saturating_sub(pointer.directory_offset) < pointer.directory_bytes {
        let text = "Broken bitmap directory [it ends past the end of the file]";
        return Err(Error::new(ErrorKind::Corrupt, text));
    }
    let mut directory = vec![0; pointer.directory_bytes as usize];
    read_exact(storage, Purpose::Bitmaps, pointer.directory_offset, &mut directory)?;
    parse_directory(&directory, pointer.count, &geometry)
}
