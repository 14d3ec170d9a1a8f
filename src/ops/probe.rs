//! Whether a file is a qcow2 image, by its first bytes. What its guest has written there may say so, too: who opens what
//! is found this way lets the guest choose.

use super::open::{shown_name, Origin};
use crate::error::{Error, Result};
use crate::storage::file::{FileOptions, FileStorage};
use crate::storage::{Purpose, Storage};
use std::io::IoSliceMut;

/// "QFI\xfb", and a version that is not one of the older format of that name.
pub fn probe(origin: &Origin) -> Result<bool> {
    let failed = |e| {
        let shown = shown_name(origin);
        Error::host(format_args!("Could not open '{shown}'"), &e).about_file(shown)
    };
    let options = FileOptions::default();
    let opened = match origin {
        Origin::Path(path) => FileStorage::open(path, options),
        Origin::Descriptor(fd) => FileStorage::from_fd(*fd, options),
        Origin::Custom(storage) => return begins_as_image(&**storage).map_err(failed),
    };
    opened.and_then(|file| begins_as_image(&file)).map_err(failed)
}

fn begins_as_image(storage: &dyn Storage) -> std::io::Result<bool> {
    let mut start = [0; 8];
    if storage.length()? < start.len() as u64 {
        return Ok(false);
    }
    storage.read(Purpose::Header, 0, &mut [IoSliceMut::new(&mut start)])?;
    let (magic, version) = start.split_at(4);
    Ok(magic == b"QFI\xfb" && version > [0, 0, 0, 1].as_slice())
}
