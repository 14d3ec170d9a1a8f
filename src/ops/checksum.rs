//! A CRC-32 of the guest-visible contents, in time proportional to what is allocated: runs of zeroes are
//! folded in with `combine`, in time logarithmic in their length.

use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::aligned::Aligned;
use crc32fast::Hasher;
use std::io::IoSliceMut;

/// Bytes that are read at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// The digest of a run of `length` zero bytes, built by doubling.
fn zeroes(length: u64) -> Hasher {
    let mut total = Hasher::new();
    let mut power = Hasher::new();
    power.update(&[0]);
    let mut rest = length;
    while rest > 0 {
        if rest & 1 != 0 {
            total.combine(&power);
        }
        let doubled = power.clone();
        power.combine(&doubled);
        rest >>= 1;
    }
    total
}

/// CRC-32 (IEEE) of all guest bytes. `progress(done, total)` in bytes; `false` cancels.
pub fn checksum(disk: &Disk, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<u32> {
    disk.settle_runs()?;
    let length = disk.length();
    let mut digest = Hasher::new();
    let mut buffer = Aligned::default();
    let mut at = 0;
    while at < length {
        if !progress(at, length) {
            return Err(Error::new(ErrorKind::Cancelled, "checksum: the caller asked to stop"));
        }
        let status = disk.status(at, length - at, false)?;
        if status.zero {
            digest.combine(&zeroes(status.length));
            at += status.length;
            continue;
        }
        let bytes = status.length.min(CHUNK_BYTES);
        let part = buffer.first(bytes as usize);
        disk.read(at, &mut [IoSliceMut::new(part)])?;
        digest.update(part);
        at += bytes;
    }
    progress(length, length);
    Ok(digest.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folded_zeroes_equal_hashed_zeroes() {
        for length in [0u64, 1, 2, 511, 65536, 100_001] {
            let mut slow = Hasher::new();
            slow.update(b"head");
            slow.update(&vec![0; length as usize]);
            slow.update(b"tail");
            let mut fast = Hasher::new();
            fast.update(b"head");
            fast.combine(&zeroes(length));
            let mut tail = Hasher::new();
            tail.update(b"tail");
            fast.combine(&tail);
            assert_eq!(fast.finalize(), slow.finalize());
        }
    }
}
