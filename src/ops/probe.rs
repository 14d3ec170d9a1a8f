//! Which format a file has, by its first bytes. What its guest has written there may say so, too: who opens what
//! is found this way lets the guest choose.

use super::formats::Driver;
use super::open::files::storage_at;
use super::open::Origin;
use crate::error::{Error, Result};
use crate::storage::access::FileOptions;
use crate::storage::{Purpose, Storage};
use std::io::IoSliceMut;

/// The format that the file begins as, where there is one that can be told so.
pub fn probe(origin: &Origin) -> Result<Option<Driver>> {
    let storage = storage_at(origin, FileOptions::default())?;
    let found = format_of(&*storage);
    found.map_err(|e| {
        let shown = origin.shown();
        Error::host(format_args!("Could not open '{shown}'"), &e).about_file(shown)
    })
}

fn format_of(storage: &dyn Storage) -> std::io::Result<Option<Driver>> {
    let mut start = vec![0; storage.length()?.min(Driver::START_BYTES as u64) as usize];
    storage.read(Purpose::Header, 0, &mut [IoSliceMut::new(&mut start)])?;
    Ok(Driver::by_start(&start))
}
