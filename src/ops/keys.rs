//! What makes encrypted disks: their secrets, and LUKS headers for new ones.
//!
//! A header and the material of its slot are made before anything is written, so that a secret that is not there, or a
//! caller who stops the derivation, changes nothing.

use super::secrets::{SecretKind, SecretRequest, Secrets};
use crate::crypto::luks::{self, Header, Work};
use crate::crypto::{wipe_stack, Spec};
use crate::disk::luks::work;
use crate::disk::{Encryption, Secret};
use crate::error::{Error, ErrorKind, Result};
use crate::options::{NewEncryption, NewLuks, NewMethod};
use crate::storage::file::thread_time;

/// Bytes of a digest that its iterations are counted for.
const DIGEST_BYTES: usize = luks::DIGEST_BYTES;

/// What a new image is encrypted with.
pub enum NewKeys {
    /// The older AES, which stores nothing of its key.
    Aes,
    /// A LUKS header.
    Luks(Box<NewVolume>),
}

/// A LUKS header that is going to be written, with one slot that a secret opens. It has no `Debug`.
pub struct NewVolume {
    /// With its first slot active.
    pub(in crate::ops) header: Header,
    /// Of the first slot.
    pub(in crate::ops) material: Vec<u8>,
}

/// Fills `out` from the host's source of randomness.
pub(in crate::ops) fn random(out: &mut [u8]) -> Result<()> {
    let failed = |e: getrandom::Error| {
        let error = std::io::Error::from_raw_os_error(e.raw_os_error().unwrap_or(libc::EIO));
        Error::host("random bytes", &error)
    };
    getrandom::fill(out).map_err(failed)
}

/// A random UUID (RFC 9562, version 4) as text.
fn uuid() -> Result<String> {
    let mut bytes = [0u8; 16];
    random(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

/// An error where progress says stop.
pub(in crate::ops) fn go_on(secrets: &mut Secrets<'_>, done: u64, total: u64) -> Result<()> {
    match secrets.tell(done, total) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Cancelled, "deriving a key: the caller asked to stop")),
    }
}

/// Fails where stripes of this key are no whole sectors, which nobody could write or read.
pub(in crate::ops) fn check_material(spec: &Spec) -> Result<()> {
    let bytes = spec.key_bytes * luks::STRIPES as usize;
    match bytes % crate::crypto::SECTOR_BYTES {
        0 => Ok(()),
        _ => Err(Error::unsupported(format!(
            "Algorithm '{}-{}' in mode '{}' is not supported: key material of {bytes} bytes is no whole sectors",
            spec.algorithm.name(),
            spec.cipher_key_bytes() * 8,
            spec.mode.name(),
        ))
        .about_option("cipher-alg")),
    }
}

impl NewKeys {
    /// What there is to write.
    pub(in crate::ops) fn volume(&self) -> Option<&NewVolume> {
        match self {
            NewKeys::Aes => None,
            NewKeys::Luks(volume) => Some(volume),
        }
    }

    /// Asks for the secret of a new image called `file`, and makes what is to be stored of its key.
    pub fn make(encryption: &NewEncryption, file: &str, secrets: &mut Secrets<'_>) -> Result<NewKeys> {
        let method = match &encryption.method {
            NewMethod::Aes => Encryption::Aes,
            NewMethod::Luks(luks) => {
                check_material(&luks.spec)?;
                Encryption::Luks
            }
        };
        let secret = new_secret(method, file, &encryption.secret, secrets)?;
        let secret = secret.ok_or_else(|| Secret::missing(encryption.secret_option))?;
        match &encryption.method {
            NewMethod::Aes => Ok(NewKeys::Aes),
            NewMethod::Luks(luks) => Ok(NewKeys::Luks(Box::new(NewVolume::make(luks, &secret, secrets)?))),
        }
    }
}

fn new_secret(
    encryption: Encryption,
    file: &str,
    name: &Option<String>,
    secrets: &mut Secrets<'_>,
) -> Result<Option<Secret>> {
    let request = SecretRequest {
        kind: SecretKind::New,
        encryption,
        depth: 0,
        file: file.to_owned(),
        name: name.clone(),
    };
    Secret::ask(|room| secrets.ask(&request, room))
}

impl NewVolume {
    /// A header for a new master key, which `secret` opens.
    pub(in crate::ops) fn make(
        luks: &NewLuks,
        secret: &[u8],
        secrets: &mut Secrets<'_>,
    ) -> Result<NewVolume> {
        let mut work = work()?;
        random(&mut work[..luks.spec.key_bytes])?;
        let made = Self::around(luks, secret, &mut work, secrets);
        wipe_stack();
        made
    }

    fn around(
        luks: &NewLuks,
        secret: &[u8],
        work: &mut Work,
        secrets: &mut Secrets<'_>,
    ) -> Result<NewVolume> {
        let (hash, time) = (luks.hash, luks.iter_time_ms);
        // No time is the fewest iterations on any host.
        let speed = match time {
            0 => 0,
            _ => luks::speed(hash, &mut thread_time, &mut |_| go_on(secrets, 0, 1))?,
        };
        // The digest of the master key costs an eighth of a slot's key of the same length.
        let of_digest = luks::iterations_for(speed / 8, hash, DIGEST_BYTES, time)?;
        let of_slot = luks::iterations_for(speed, hash, luks.spec.key_bytes, time)?;
        let total = u64::from(of_digest) + luks::iterations_of(hash, of_slot, luks.spec.key_bytes);
        let mut told = |done| go_on(secrets, done, total);
        let key = &work[..luks.spec.key_bytes];
        let mut header = luks::new_header(luks.spec, hash, key, of_digest, uuid()?, &mut random, &mut told)?;
        header.iv_hash = luks.iv_hash;
        let mut told = |done, _| go_on(secrets, u64::from(of_digest) + done, total);
        let material = luks::seal(&mut header, 0, work, secret, of_slot, &mut random, &mut told)?;
        Ok(NewVolume { header, material })
    }

    /// Bytes from the header's start to where its material ends.
    pub(in crate::ops) fn bytes(&self) -> u64 {
        self.header.data_offset()
    }
}
