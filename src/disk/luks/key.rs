//! From a secret to the master key of a LUKS header.

use crate::crypto::luks::{self, Header, Work};
use crate::disk::Unlocking;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::file::KeyPages;

/// The master key that `secret` opens in a header, at the start of what is returned; `read` fills a buffer from an offset from its start.
#[inline(never)]
pub(crate) fn master_key(
    header: &Header,
    secret: &[u8],
    read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    unlocking: &mut Unlocking<'_>,
) -> Result<KeyPages<Work>> {
    let mut read = |at: u64, out: &mut [u8]| read(at, out).map_err(|e| e.within("key material"));
    let mut progress = |done, total| match (unlocking.progress)(done, total) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Cancelled, "unlocking: the caller asked to stop")),
    };
    let mut work = work()?;
    match luks::unlock(header, secret, &mut work, &mut read, &mut progress)? {
        Some(_) => Ok(work),
        None => Err(wrong_secret()),
    }
}

/// Room for keys.
pub(crate) fn work() -> Result<KeyPages<Work>> {
    KeyPages::zeroed().map_err(|e| Error::host("memory for a key", &e))
}

/// Why a secret opens nothing.
pub(crate) fn wrong_secret() -> Error {
    Error::new(ErrorKind::WrongSecret, "Invalid password, cannot unlock any keyslot")
}
