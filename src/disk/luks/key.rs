//! From a secret to the master key of a LUKS header.

use crate::crypto::luks::{self, Header};
use crate::disk::Unlocking;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{read_exact, Purpose, Storage};
use zeroize::Zeroizing;

/// The master key that `secret` opens in the header at `header_at` of a file.
#[inline(never)]
pub(crate) fn master_key(
    header_at: u64,
    header: &Header,
    storage: &dyn Storage,
    secret: &[u8],
    unlocking: &mut Unlocking<'_>,
) -> Result<Zeroizing<Vec<u8>>> {
    let mut read = |at: u64, out: &mut [u8]| {
        read_exact(storage, Purpose::Encryption, header_at + at, out).map_err(|e| e.within("key material"))
    };
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
