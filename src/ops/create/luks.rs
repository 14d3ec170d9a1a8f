//! Creating a plain LUKS file.
//!
//! The first sector of the header, without which nobody takes the file for one, is written last, as that of an image is.

use super::{clear, sync, MAX_LENGTH_BYTES, SIZE_FROM_OPTIONS};
use crate::crypto::luks::HEADER_BYTES;
use crate::disk::Secret;
use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::SECTOR_BYTES;
use crate::ops::keys::NewKeys;
use crate::options::{CreateOptions, Preallocation};
use crate::storage::{
    is_not_supported, reserve_range, write_all, write_zero_bytes, zero_range, Purpose, Storage,
};
use std::io;

/// Makes a disk of `virtual_size` bytes, whose contents are anything; `keys` were made for the options.
pub(in crate::ops) fn create_luks(
    storage: &dyn Storage,
    _data_file: Option<&dyn Storage>,
    virtual_size: u64,
    options: &CreateOptions,
    keys: Option<&NewKeys>,
) -> Result<()> {
    let Some(volume) = keys.and_then(NewKeys::volume) else {
        return Err(Secret::missing("key-secret"));
    };
    if storage.traits().read_only {
        return Err(Error::new(ErrorKind::ReadOnly, "a storage takes no writes"));
    }
    let size = match (virtual_size, options.size) {
        (SIZE_FROM_OPTIONS, Some(size)) => size,
        (SIZE_FROM_OPTIONS, None) => return Err(Error::invalid("Image creation needs a size parameter")),
        (size, _) => size,
    };
    let data_at = volume.bytes();
    let length = data_at.checked_add(size).filter(|length| *length <= MAX_LENGTH_BYTES);
    let length =
        length.ok_or_else(|| Error::new(ErrorKind::TooLarge, "The requested file size is too large"))?;
    let could_not = |e: &io::Error| Error::host("Could not resize file", e);
    if length > storage.size_limit() {
        return Err(could_not(&io::Error::from_raw_os_error(libc::EFBIG)));
    }
    let is_blank = clear(storage)?;
    match storage.set_length(length) {
        Err(e) if is_not_supported(&e) && storage.length().is_ok_and(|now| now >= length) => {}
        done => done.map_err(|e| could_not(&e))?,
    }
    match options.preallocation {
        Preallocation::Off | Preallocation::Metadata => {}
        Preallocation::Falloc => reserve_range(storage, Purpose::Data, 0, length)
            .map_err(|e| Error::host("preallocating the file", &e))?,
        Preallocation::Full => write_zero_bytes(storage, Purpose::Data, data_at, size)?,
    }
    if !is_blank {
        zero_range(storage, Purpose::Encryption, SECTOR_BYTES, data_at - SECTOR_BYTES)?;
    }
    let header = volume.header.encode();
    let mut sectors = [0; HEADER_BYTES.next_multiple_of(SECTOR_BYTES as usize)];
    sectors[..HEADER_BYTES].copy_from_slice(&header);
    let (first, rest) = sectors.split_at(SECTOR_BYTES as usize);
    write_all(storage, Purpose::Encryption, volume.header.material_offset(0), &volume.material)?;
    write_all(storage, Purpose::Encryption, SECTOR_BYTES, rest)?;
    sync(storage)?;
    write_all(storage, Purpose::Encryption, 0, first)?;
    sync(storage)
}
