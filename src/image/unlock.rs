//! From a secret to the key of an image: the encryption header, its slots, or the older AES.

use super::cipher::{Cipher, Key};
use crate::crypto::luks::{self, HEADER_BYTES};
use crate::crypto::{legacy_aes, wipe_stack, Sectors};
use crate::disk::luks::master_key;
use crate::disk::{Encryption, Secret, Unlocking};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{extensions, Header};
use crate::storage::{read_exact, Purpose, Storage};
use std::sync::Arc;

/// Why there is no guest I/O on an encrypted image.
pub(super) fn no_secret() -> Error {
    Secret::missing("encrypt.key-secret")
}

/// What encrypts the guest data of an image; `None`: nothing does.
pub(crate) fn encryption(header: &Header) -> Result<Option<Encryption>> {
    match header.crypt_method {
        0 => Ok(None),
        1 => Ok(Some(Encryption::Aes)),
        2 => Ok(Some(Encryption::Luks)),
        method => Err(Error::invalid(format!("Unsupported encryption method {method}"))),
    }
}

/// The LUKS header of an image and where it is.
fn luks_header(header: &Header, storage: &dyn Storage) -> Result<(u64, luks::Header)> {
    let Some(data) = header.extension(extensions::ENCRYPTION) else {
        return Err(Error::invalid("CRYPTO header extension not found"));
    };
    let pointer = extensions::encryption(data)?;
    if header.geometry().in_cluster(pointer.offset) != 0 {
        let cluster = header.geometry().cluster_bytes();
        return Err(Error::invalid(format!(
            "Encryption header offset '{}' is not a multiple of cluster size '{cluster}'",
            pointer.offset
        )));
    }
    let mut bytes = [0; HEADER_BYTES];
    read_exact(storage, Purpose::Encryption, pointer.offset, &mut bytes)
        .map_err(|e| e.within("encryption header"))?;
    let parsed = luks::Header::parse(&bytes)?;
    if parsed.data_offset() > pointer.bytes {
        let text = format!(
            "encryption header of {:#x} bytes, its key slots end at {:#x}",
            pointer.bytes,
            parsed.data_offset()
        );
        return Err(Error::new(ErrorKind::Corrupt, text));
    }
    Ok((pointer.offset, parsed))
}

/// The LUKS header of an image and where it is; `None`: it has none.
pub(crate) fn encryption_header(
    header: &Header,
    storage: &dyn Storage,
) -> Result<Option<(u64, luks::Header)>> {
    match encryption(header)? {
        Some(Encryption::Luks) => luks_header(header, storage).map(Some),
        _ => Ok(None),
    }
}

/// Whether the key of `cipher` is the one that an image has now.
fn is_same(cipher: Option<&Cipher>, header: &Header, storage: &dyn Storage) -> Result<bool> {
    Ok(match (encryption(header)?, cipher) {
        (None, cipher) => cipher.is_none(),
        (Some(_), None) => false,
        (Some(Encryption::Luks), Some(cipher)) => {
            cipher.digest == Some(luks_header(header, storage)?.1.digest)
        }
        (Some(Encryption::Aes), Some(cipher)) => cipher.digest.is_none(),
    })
}

/// Refuses an image that is loaded again and has become one under another key: somebody has made it anew.
pub(super) fn check_same(cipher: &Cipher, header: &Header, storage: &dyn Storage) -> Result<()> {
    match header.crypt_method == 0 || is_same(Some(cipher), header, storage)? {
        true => Ok(()),
        false => Err(Error::invalid("the image is encrypted in another way than before: open it anew")),
    }
}

/// The key of an image that is loaded again: `cipher`, or, where the image has come to have another one, what a secret
/// opens.
pub(super) fn unlock_again(
    cipher: Option<Arc<Cipher>>,
    storage: &dyn Storage,
    unlocking: &mut Unlocking<'_>,
) -> Result<Option<Arc<Cipher>>> {
    let (header, _) = crate::meta::read_header(storage)?;
    if is_same(cipher.as_deref(), &header, storage)? {
        return Ok(cipher);
    }
    let found = unlock(&header, storage, unlocking);
    wipe_stack();
    match (found, &cipher) {
        (Err(e), Some(cipher)) if e.kind() == ErrorKind::NoSecret => {
            check_same(cipher, &header, storage)?;
            Err(e)
        }
        (found, _) => found,
    }
}

/// Asks for the secret of an image, and finds its key; `None`: it is not encrypted.
#[inline(never)]
pub(super) fn unlock(
    header: &Header,
    storage: &dyn Storage,
    unlocking: &mut Unlocking<'_>,
) -> Result<Option<Arc<Cipher>>> {
    let Some(method) = encryption(header)? else { return Ok(None) };
    // What can be said without a secret is said first.
    let luks = match method {
        Encryption::Luks => {
            let (at, parsed) = luks_header(header, storage)?;
            parsed.spec.check()?;
            Some((at, parsed))
        }
        Encryption::Aes => None,
    };
    let secret = Secret::ask(|room| (unlocking.ask)(method, room))?.ok_or_else(no_secret)?;
    let key = match &luks {
        None => legacy_aes(&secret).map(Key::ByGuest),
        Some((at, parsed)) => master_key(*at, parsed, storage, &secret, unlocking)
            .and_then(|key| Sectors::new(&parsed.spec, &key).map(Key::ByHost)),
    };
    let cipher = Cipher::new(key?, luks.map(|(_, parsed)| parsed.digest));
    wipe_stack();
    cipher.map(|cipher| Some(Arc::new(cipher)))
}
