//! From a secret to the master key of a LUKS header.

use crate::crypto::luks::{self, Header};
use crate::disk::Unlocking;
use crate::error::{Error, ErrorKind, Result};
use zeroize::Zeroizing;

/// The master key that `secret` opens in a header; `read` fills a buffer from an offset from its start.
#[inline(never)]
pub(crate) fn master_key(
    header: &Header,
    secret: &[u8],
    read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    unlocking: &mut Unlocking<'_>,
) -> Result<Zeroizing<Vec<u8>>> {
    let mut read = |at: u64, out: &mut [u8]| read(at, out).map_err(|e| e.within("key material"));
    let mut progress = |done, total| match (unlocking.progress)(done, total) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Cancelled, "unlocking: the caller asked to stop")),
    };
    match luks::unlock(header, secret, &mut read, &mut progress)? {
        Some((_, key)) => Ok(key),
        None => Err(wrong_secret()),
    }
}

/// Why a secret opens nothing.
pub(crate) fn wrong_secret() -> Error {
    Error::new(ErrorKind::WrongSecret, "Invalid password, cannot unlock any keyslot")
}
