//! Encryption of sectors, and the header that keeps its key: LUKS1, and the older AES of qcow2.
//!
//! Pure: buffers to buffers, bytes to values. What is read, written or asked of the host (randomness, time) comes in by the
//! caller, as do passphrases. Called by `image` (guest bytes) and `ops` (headers, key slots).
//!
//! ```text
//! hash       digests and PBKDF2, which says how far it is and can be stopped
//! cbc        AES-256-CBC of any length, by which secrets are kept under others
//! cipher     block ciphers, whole slices of blocks at once
//! sectors    a cipher in its mode, with its IV generator: sectors of 512 bytes, by the offset that they are numbered by
//! luks       the header, the anti-forensic split, key slots
//! ```
//!
//! Secrets are in buffers that are wiped when they are dropped, and in values that have no `Debug`; digests of keys are
//! compared in constant time. A key that stays in memory belongs into pages of its own, which is the caller's part
//! (`storage/file/key_pages.rs`).

mod cbc;
mod cipher;
mod hash;
pub mod luks;
mod sectors;
#[cfg(test)]
mod vectors;

pub use cbc::{unpad, AesCbc};
pub use cipher::Algorithm;
pub use hash::{pbkdf2, Hash};
pub use sectors::{IvGenerator, Mode, Sectors, Spec, SECTOR_BYTES};

use zeroize::Zeroize;

/// Bytes of stack that a call of this module may have left secrets in.
const STACK_BYTES: usize = 32 << 10;

/// Overwrites what calls before this one have left on the stack.
#[inline(never)]
pub fn wipe_stack() {
    let mut left = [0xffu8; STACK_BYTES];
    left.zeroize();
}

/// Bytes of stack that sectors may have left round keys in.
const SECTORS_STACK_BYTES: usize = 16 << 10;

/// Overwrites what sectors that were just done have left on the stack: a cipher spills round keys for which there are no
/// registers.
#[inline(never)]
pub fn wipe_after_sectors() {
    let mut left = [0u8; SECTORS_STACK_BYTES];
    std::hint::black_box(&mut left);
}

/// The cipher of `crypt_method` 1: AES-128-CBC, sectors numbered at the guest. The key is the start of the passphrase.
pub fn legacy_aes<O: crate::format::Offset>(passphrase: &[u8]) -> crate::error::Result<Sectors<O>> {
    let mut key = zeroize::Zeroizing::new([0u8; 16]);
    let used = passphrase.len().min(16);
    key[..used].copy_from_slice(&passphrase[..used]);
    let spec = Spec { algorithm: Algorithm::Aes, key_bytes: 16, mode: Mode::Cbc, iv: IvGenerator::Plain64 };
    Sectors::new(&spec, &*key)
}
