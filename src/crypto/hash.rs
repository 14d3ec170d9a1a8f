//! Digests, and keys derived from passphrases.

use crate::error::{Error, Result};
use hmac::digest::Digest;
use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use sm3::Sm3;
use zeroize::{Zeroize, Zeroizing};

/// Iterations between two questions whether to go on: a few milliseconds.
const STEP: u32 = 8192;

/// A digest, as LUKS names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// 16 bytes.
    Md5,
    /// 20 bytes.
    Sha1,
    /// 28 bytes.
    Sha224,
    /// 32 bytes.
    Sha256,
    /// 48 bytes.
    Sha384,
    /// 64 bytes.
    Sha512,
    /// 20 bytes.
    Ripemd160,
    /// 32 bytes.
    Sm3,
}

/// Runs `$body` with `$D` as the type of the digest.
macro_rules! with_type {
    ($hash:expr, $D:ident => $body:expr) => {
        match $hash {
            Hash::Md5 => {
                type $D = Md5;
                $body
            }
            Hash::Sha1 => {
                type $D = Sha1;
                $body
            }
            Hash::Sha224 => {
                type $D = Sha224;
                $body
            }
            Hash::Sha256 => {
                type $D = Sha256;
                $body
            }
            Hash::Sha384 => {
                type $D = Sha384;
                $body
            }
            Hash::Sha512 => {
                type $D = Sha512;
                $body
            }
            Hash::Ripemd160 => {
                type $D = Ripemd160;
                $body
            }
            Hash::Sm3 => {
                type $D = Sm3;
                $body
            }
        }
    };
}

impl Hash {
    /// All of them.
    pub const ALL: [Hash; 8] = [
        Hash::Md5,
        Hash::Sha1,
        Hash::Sha224,
        Hash::Sha256,
        Hash::Sha384,
        Hash::Sha512,
        Hash::Ripemd160,
        Hash::Sm3,
    ];
    /// Longest digest, bytes.
    pub const MAX_BYTES: usize = 64;

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Hash::Md5 => "md5",
            Hash::Sha1 => "sha1",
            Hash::Sha224 => "sha224",
            Hash::Sha256 => "sha256",
            Hash::Sha384 => "sha384",
            Hash::Sha512 => "sha512",
            Hash::Ripemd160 => "ripemd160",
            Hash::Sm3 => "sm3",
        }
    }

    /// The one of a name.
    pub fn from_name(name: &str) -> Option<Hash> {
        Hash::ALL.into_iter().find(|hash| hash.name() == name)
    }

    /// Length of its digest.
    pub fn bytes(self) -> usize {
        with_type!(self, D => <D as Digest>::output_size())
    }

    /// The digest of `parts` one after the other; `out` gets its start, and is at most as long.
    pub fn digest(self, parts: &[&[u8]], out: &mut [u8]) {
        with_type!(self, D => {
            let mut digest = D::new();
            parts.iter().for_each(|part| digest.update(part));
            let mut whole = digest.finalize();
            out.copy_from_slice(&whole[..out.len()]);
            whole.as_mut_slice().zeroize();
        })
    }
}

/// Derives `key` by PBKDF2 (RFC 8018) with HMAC. `go_on` is told how many iterations have been made, of
/// [`iterations_of`], and may stop it by an error.
pub fn pbkdf2(
    hash: Hash,
    passphrase: &[u8],
    salt: &[u8],
    iterations: u32,
    key: &mut [u8],
    go_on: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    if iterations == 0 {
        return Err(Error::invalid("PBKDF2 with 0 iterations"));
    }
    with_type!(hash, D => derive::<Hmac<D>>(passphrase, salt, iterations, key, go_on))
}

/// How many iterations a derivation of `key_bytes` makes.
pub fn iterations_of(hash: Hash, iterations: u32, key_bytes: usize) -> u64 {
    u64::from(iterations) * key_bytes.div_ceil(hash.bytes()) as u64
}

fn derive<M: Mac + KeyInit + Clone>(
    passphrase: &[u8],
    salt: &[u8],
    iterations: u32,
    key: &mut [u8],
    go_on: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let keyed = <M as KeyInit>::new_from_slice(passphrase)
        .map_err(|_| Error::invalid("a passphrase of this length"))?;
    let mut done = 0;
    for (index, block) in key.chunks_mut(M::output_size()).enumerate() {
        let mut first = keyed.clone();
        first.update(salt);
        first.update(&(index as u32 + 1).to_be_bytes());
        let mut round = first.finalize().into_bytes();
        let mut sum = Zeroizing::new([0u8; Hash::MAX_BYTES]);
        sum[..round.len()].copy_from_slice(&round);
        let mut left = iterations - 1;
        while left > 0 {
            go_on(done)?;
            let step = left.min(STEP);
            for _ in 0..step {
                let mut next = keyed.clone();
                next.update(&round);
                round = next.finalize().into_bytes();
                sum.iter_mut().zip(round.iter()).for_each(|(s, r)| *s ^= r);
            }
            left -= step;
            done += u64::from(step);
        }
        block.copy_from_slice(&sum[..block.len()]);
        round.as_mut_slice().zeroize();
        done += 1;
    }
    Ok(())
}
