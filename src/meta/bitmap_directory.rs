//! The bitmap directory and the bitmaps' tables as the medium has them: read for listings, to track changes, and for work
//! on the bitmaps.

use crate::error::{room, zeroed, Error, ErrorKind, Result};
use crate::format::be64;
use crate::format::bitmap::*;
use crate::format::extensions::{self, BitmapsPointer, BITMAPS};
use crate::format::features::AUTOCLEAR_BITMAPS;
use crate::format::{Geometry, Header};
use crate::storage::{read_exact, Purpose, Storage};

/// Bytes of a bitmap table that are read at once.
const PIECE_BYTES: usize = 16 << 10;

/// A directory that is in force.
pub(crate) struct Directory {
    pub(crate) pointer: BitmapsPointer,
    /// As stored.
    pub(crate) bytes: Vec<u8>,
    pub(crate) list: Vec<Bitmap>,
}

/// Reads the directory; none where there is none, or a writer that knew no bitmaps has made them void.
pub(crate) fn load_directory(storage: &dyn Storage, header: &Header) -> Result<Option<Directory>> {
    let void = header.autoclear & AUTOCLEAR_BITMAPS == 0;
    let Some(data) = header.extension(BITMAPS).filter(|_| !void) else { return Ok(None) };
    let geometry = header.geometry();
    let pointer = extensions::bitmaps(data)?;
    check_pointer(&pointer, &geometry)?;
    let length = storage.length().map_err(|e| Error::host("length of the image file", &e))?;
    if length.saturating_sub(pointer.directory_offset) < pointer.directory_bytes {
        let broken = Error::new(ErrorKind::Corrupt, "Broken bitmap directory");
        return Err(broken.detail("it ends past the end of the file"));
    }
    let mut bytes = zeroed("bitmap directory", pointer.directory_bytes)?;
    read_exact(storage, Purpose::Bitmaps, pointer.directory_offset, &mut bytes)?;
    let list = parse_directory(&bytes, pointer.count, &geometry)?;
    Ok(Some(Directory { pointer, bytes, list }))
}

/// The bitmaps of the directory, none where there is none.
pub(crate) fn load_bitmaps(storage: &dyn Storage, header: &Header) -> Result<Vec<Bitmap>> {
    Ok(load_directory(storage, header)?.map(|directory| directory.list).unwrap_or_default())
}

/// Gives the entries of a bitmap's table to `each`, with their numbers, some at a time.
pub(crate) fn each_entry(
    storage: &dyn Storage,
    bitmap: &Bitmap,
    geometry: &Geometry,
    each: &mut dyn FnMut(&[BitmapCluster]) -> Result<()>,
) -> Result<()> {
    let bytes = u64::from(bitmap.table_entries) * 8;
    let mut piece = [0; PIECE_BYTES];
    for at in (0..bytes).step_by(PIECE_BYTES) {
        let part = &mut piece[..(bytes - at).min(PIECE_BYTES as u64) as usize];
        read_exact(storage, Purpose::Bitmaps, bitmap.table_offset + at, part)?;
        let mut clusters = Vec::with_capacity(PIECE_BYTES / 8);
        for (index, raw) in part.chunks_exact(8).enumerate() {
            let entry = be64(raw, 0);
            clusters.push(decode_table_entry(entry, geometry).map_err(|rule| {
                let table = format!("bitmap table of '{}' entry", bitmap.printable_name());
                Error::corrupt(table, at / 8 + index as u64, entry, rule)
            })?);
        }
        each(&clusters)?;
    }
    Ok(())
}

/// Reads the table of a bitmap of a disk of `virtual_size` bytes: its entries, as stored.
pub(crate) fn load_table(
    storage: &dyn Storage,
    bitmap: &Bitmap,
    geometry: &Geometry,
    virtual_size: u64,
) -> Result<Vec<u64>> {
    let (bits_bytes, entries) = table_entries(virtual_size, bitmap.granularity_bits, geometry);
    let stored = u64::from(bitmap.table_entries);
    if stored != entries || bits_bytes > MAX_BITS_BYTES {
        let table = format!("entries of the bitmap table of '{}'", bitmap.printable_name());
        let rule = format!(
            "a disk of {virtual_size} bytes needs {entries}, and {MAX_BITS_BYTES} bytes of bits at most"
        );
        return Err(Error::corrupt("bitmap directory", table, stored, rule));
    }
    let mut table = room("bitmap table", entries)?;
    let length = storage.length().map_err(|e| Error::host("the length of the image file", &e))?;
    each_entry(storage, bitmap, geometry, &mut |clusters| {
        for cluster in clusters {
            if matches!(cluster, BitmapCluster::Host(offset) if *offset >= length) {
                let table = format!("bitmap table of '{}'", bitmap.printable_name());
                let BitmapCluster::Host(offset) = cluster else { continue };
                return Err(Error::corrupt(table, "a cluster of bits", *offset, "inside the image file"));
            }
        }
        table.extend(clusters.iter().map(|cluster| match cluster {
            BitmapCluster::Zeroes => ENTRY_ZEROES,
            BitmapCluster::Ones => ENTRY_ONES,
            BitmapCluster::Host(offset) => *offset,
        }));
        Ok(())
    })?;
    Ok(table)
}
