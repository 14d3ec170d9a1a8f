//! A secret while it is used.

use crate::error::{Error, ErrorKind, Result};
use crate::storage::file::KeyPages;
use std::ops::Deref;

/// Longest secret, bytes.
const MAX_BYTES: usize = 64 << 10;

/// A passphrase, in pages that no core dump and no forked child has, wiped when it is dropped. It has no `Debug`.
pub struct Secret {
    room: KeyPages<[u8; MAX_BYTES]>,
    bytes: usize,
}

impl Secret {
    /// Has `fill` put a secret into memory that is made for it, and say how long it is; `None`: there is none.
    pub fn ask(fill: impl FnOnce(&mut [u8]) -> Result<Option<usize>>) -> Result<Option<Secret>> {
        let room = KeyPages::new([0u8; MAX_BYTES]);
        let mut room = room.map_err(|e| Error::host("memory for a secret", &e))?;
        match fill(&mut *room)? {
            None => Ok(None),
            Some(bytes) if bytes <= MAX_BYTES => Ok(Some(Secret { room, bytes })),
            Some(bytes) => Err(Error::invalid(format!(
                "a secret of {bytes} bytes, more than the {MAX_BYTES} that there is room for"
            ))),
        }
    }

    /// Why a disk is not used for which `option` would have named a secret.
    pub fn missing(option: &'static str) -> Error {
        let text = format!("Parameter '{option}' is required for cipher");
        Error::new(ErrorKind::NoSecret, text).about_option(option)
    }
}

impl Deref for Secret {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.room[..self.bytes]
    }
}
