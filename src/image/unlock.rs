//! From a secret to the key of an image: the encryption header, its slots, or the older AES.

use super::cipher::{Cipher, Key};
use crate::crypto::luks::{self, HEADER_BYTES};
use crate::crypto::{legacy_aes, wipe_stack, Sectors};
use crate::disk::luks::master_key;
use crate::disk::{Encryption, Secret, Unlocking};
use crate::error::{Error, ErrorKind, Result};
use crate::format::extensions::EncryptionPointer;
use crate::format::geometry::MAX_HOST_OFFSET;
use crate::format::{extensions, Header};
use crate::meta::guard::{OverlapGuard, Owner};
use crate::storage::{read_exact, Purpose, Storage};
use std::sync::Arc;

/// Longest header that is looked after. With the longest keys they have 2 MiB; an image may claim any length.
const MAX_HEADER_BYTES: u64 = 4 << 20;

/// Why there is no guest I/O on an encrypted image.
pub(super) fn no_secret() -> Error {
    Secret::missing("encrypt.key-secret")
}

/// What encrypts the guest data of an image; `None`: nothing does.
pub(super) fn encryption(header: &Header) -> Result<Option<Encryption>> {
    match header.crypt_method {
        0 => Ok(None),
        1 => Ok(Some(Encryption::Aes)),
        2 => Ok(Some(Encryption::Luks)),
        method => Err(Error::invalid(format!("Unsupported encryption method {method}"))),
    }
}

/// Where the encryption header of an image is; refused where it is not what its method needs.
fn pointer_of(header: &Header) -> Result<Option<EncryptionPointer>> {
    let luks = encryption(header)? == Some(Encryption::Luks);
    let pointer = match (header.extension(extensions::ENCRYPTION), luks) {
        (None, false) => return Ok(None),
        (None, true) => return Err(Error::invalid("Missing CRYPTO header for crypt method 2")),
        (Some(_), false) => {
            let text = "CRYPTO header extension only expected with LUKS encryption method";
            return Err(Error::invalid(text));
        }
        (Some(data), true) => extensions::encryption(data)?,
    };
    if header.geometry().in_cluster(pointer.offset) != 0 {
        let cluster = header.geometry().cluster_bytes();
        return Err(Error::invalid(format!(
            "Encryption header offset '{}' is not a multiple of cluster size '{cluster}'",
            pointer.offset
        )));
    }
    Ok(Some(pointer))
}

/// Fails where `[offset, offset + bytes)` of the encryption header is not in it.
fn check_inside(pointer: &EncryptionPointer, offset: u64, bytes: u64) -> Result<()> {
    match offset.checked_add(bytes).is_some_and(|end| end <= pointer.bytes) {
        true => Ok(()),
        false => Err(Error::invalid("Request for data outside of extension header").detail(format!(
            "{bytes} bytes at {offset:#x} of an encryption header of {:#x} bytes",
            pointer.bytes
        ))),
    }
}

/// The LUKS header of an image and where it is; `None`: the image has none.
pub(crate) fn encryption_header(
    header: &Header,
    storage: &dyn Storage,
) -> Result<Option<(EncryptionPointer, luks::Header)>> {
    let Some(pointer) = pointer_of(header)? else { return Ok(None) };
    check_inside(&pointer, 0, HEADER_BYTES as u64)?;
    let mut bytes = [0; HEADER_BYTES];
    if pointer.offset > MAX_HOST_OFFSET {
        let error = std::io::Error::from_raw_os_error(libc::EIO);
        return Err(Error::host("Could not read encryption header", &error));
    }
    read_exact(storage, Purpose::Encryption, pointer.offset, &mut bytes)
        .map_err(|e| e.within("Could not read encryption header"))?;
    Ok(Some((pointer, luks::Header::parse(&bytes)?)))
}

/// Fails where nobody could make out how an image is encrypted. No secret is needed.
pub(super) fn check_header(header: &Header, storage: &dyn Storage) -> Result<()> {
    encryption_header(header, storage).map(drop)
}

/// Adds the encryption header with its key material to the overlap index.
pub(super) fn index_header(guard: &OverlapGuard, header: &Header) -> Result<()> {
    if let Some(pointer) = pointer_of(header)? {
        guard.add(Owner::ENCRYPTION, pointer.offset, pointer.bytes.min(MAX_HEADER_BYTES));
    }
    Ok(())
}

/// Whether the key of `cipher` is the one that an image has now.
fn is_same(cipher: Option<&Cipher>, header: &Header, storage: &dyn Storage) -> Result<bool> {
    Ok(match (encryption(header)?, cipher) {
        (None, cipher) => cipher.is_none(),
        (Some(_), None) => false,
        (Some(Encryption::Luks), Some(cipher)) => {
            cipher.origin == encryption_header(header, storage)?.map(|(_, luks)| (luks.spec, luks.digest))
        }
        (Some(Encryption::Aes), Some(cipher)) => cipher.origin.is_none(),
    })
}

/// Refuses an image that is loaded again and has become one under another key, or under none: somebody has made it anew.
pub(super) fn check_same(cipher: &Cipher, header: &Header, storage: &dyn Storage) -> Result<()> {
    match is_same(Some(cipher), header, storage)? {
        true => Ok(()),
        false => Err(Error::invalid("the image is encrypted in another way than before: open it anew")),
    }
}

/// The key of an image that is loaded again: `cipher`, or, where the image has come to have another one, what a secret
/// opens. One that was encrypted does not go on in plain bytes.
pub(super) fn unlock_again(
    cipher: Option<Arc<Cipher>>,
    storage: &dyn Storage,
    unlocking: &mut Unlocking<'_>,
) -> Result<Option<Arc<Cipher>>> {
    let (header, _) = crate::meta::read_header(storage)?;
    if is_same(cipher.as_deref(), &header, storage)? {
        return Ok(cipher);
    }
    if let (None, Some(cipher)) = (encryption(&header)?, &cipher) {
        check_same(cipher, &header, storage)?;
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
    let luks = encryption_header(header, storage)?;
    if let Some((_, parsed)) = &luks {
        parsed.spec.check()?;
    }
    let secret = Secret::ask(|room| (unlocking.ask)(method, room))?.ok_or_else(no_secret)?;
    let key = match &luks {
        None => legacy_aes(&secret).map(Key::ByGuest),
        Some((pointer, parsed)) => master_key(
            parsed,
            &secret,
            &mut |at, out| {
                check_inside(pointer, at, out.len() as u64)?;
                read_exact(storage, Purpose::Encryption, pointer.offset + at, out)
            },
            unlocking,
        )
        .and_then(|key| Sectors::new(&parsed.spec, &key[..parsed.spec.key_bytes]).map(Key::ByHost)),
    };
    let cipher = Cipher::new(key?, luks.map(|(_, parsed)| (parsed.spec, parsed.digest)));
    wipe_stack();
    cipher.map(|cipher| Some(Arc::new(cipher)))
}
