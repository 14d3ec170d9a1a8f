//! Bytes on disk and the values they stand for. No I/O, no policy.
//!
//! Everything read from an image is untrusted until a function of this layer has accepted it.
//! Section numbers in comments are those of the published format specification.

pub mod bitmap;
pub mod entries;
pub mod extensions;
pub mod features;
pub mod geometry;
pub mod header;
mod offset;
pub mod refcount;
pub mod snapshot;
pub mod structure;

pub use geometry::Geometry;
pub use header::Header;
pub use offset::{GuestCluster, GuestOffset, HostCluster, HostOffset, Offset};
pub use structure::Structure;

use crate::error::{room, Result};

/// A number from an image as an index into memory. One that this machine's memory cannot have is past every end, not
/// another one.
#[inline(always)]
pub(crate) fn index_in_memory(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Big-endian 16-bit value at `at`; the caller has checked the length.
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Big-endian 32-bit value at `at`; the caller has checked the length.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(word)
}

/// Big-endian 64-bit value at `at`; the caller has checked the length.
pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(word)
}

/// The big-endian 64-bit values of `bytes`, whose length is a multiple of 8.
pub(crate) fn be64s(bytes: &[u8]) -> impl ExactSizeIterator<Item = u64> + '_ {
    bytes.chunks_exact(8).map(|word| be64(word, 0))
}

/// Puts a big-endian 64-bit value at `at`; the caller has checked the length.
pub(crate) fn put_be64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// A table of 64-bit entries as its bytes.
pub(crate) fn table_bytes(what: &str, entries: &[u64]) -> Result<Vec<u8>> {
    let mut bytes = room(what, entries.len() as u64 * 8)?;
    entries.iter().for_each(|entry| bytes.extend_from_slice(&entry.to_be_bytes()));
    Ok(bytes)
}
