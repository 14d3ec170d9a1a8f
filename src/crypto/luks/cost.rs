//! What deriving a key costs: iterations for a time of this machine.

use crate::crypto::hash::{iterations_of, pbkdf2, Hash};
use crate::error::{Error, Result};
use std::time::Duration;

/// Fewest iterations of a new slot and of a new digest.
pub const MIN_ITERATIONS: u32 = 1000;
/// Shortest measurement.
const MEASURED: Duration = Duration::from_millis(50);

/// Iterations of one block of the hash in a second of `clock`, which is to be the calling thread's own.
pub fn speed(
    hash: Hash,
    clock: &mut dyn FnMut() -> Duration,
    go_on: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let mut key = [0; Hash::MAX_BYTES];
    let key = &mut key[..hash.bytes()];
    let mut iterations = 1u32 << 14;
    loop {
        let start = clock();
        pbkdf2(hash, b"passphrase", b"salt", iterations, key, go_on)?;
        let taken = clock().saturating_sub(start);
        if taken >= MEASURED || iterations >= 1 << 30 {
            let nanoseconds = taken.as_nanos().max(1);
            return Ok((u128::from(iterations) * 1_000_000_000 / nanoseconds) as u64);
        }
        iterations *= 2;
    }
}

/// Iterations with which a key of `key_bytes` takes so many milliseconds, where a second has `speed` of one block.
pub fn iterations_for(speed: u64, hash: Hash, key_bytes: usize, milliseconds: u64) -> Result<u32> {
    let per_second = speed / iterations_of(hash, 1, key_bytes);
    let scaled = per_second.checked_mul(milliseconds).ok_or_else(|| {
        Error::invalid(format!("PBKDF iterations {per_second} too large to scale")).about_option("iter-time")
    })?;
    let iterations = (scaled / 1000).max(MIN_ITERATIONS.into());
    u32::try_from(iterations).map_err(|_| {
        let text = format!("PBKDF iterations {iterations} larger than {}", u32::MAX);
        Error::invalid(text).about_option("iter-time")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_iterations() {
        // A key of two digests takes twice as long.
        assert_eq!(iterations_for(1_000_000, Hash::Sha256, 32, 2000).unwrap(), 2_000_000);
        assert_eq!(iterations_for(1_000_000, Hash::Sha256, 64, 2000).unwrap(), 1_000_000);
        assert_eq!(iterations_for(1_000_000, Hash::Sha1, 64, 2000).unwrap(), 500_000);
        assert_eq!(iterations_for(1_000_000, Hash::Sha256, 64, 0).unwrap(), 1000);
        for too_long in [u64::MAX, 10_000_000] {
            assert!(iterations_for(1_000_000, Hash::Sha256, 32, too_long).is_err());
        }
    }

    #[test]
    fn speed_goes_by_the_clock_that_is_given() {
        let mut calls = 0;
        let mut clock = || {
            calls += 1;
            Duration::from_millis(100 * calls)
        };
        let found = speed(Hash::Sha256, &mut clock, &mut |_| Ok(())).unwrap();
        assert_eq!(found, (1 << 14) * 10);
        let stop = &mut |_| Err(Error::invalid("stop"));
        assert!(speed(Hash::Sha256, &mut || Duration::ZERO, stop).is_err());
    }
}
