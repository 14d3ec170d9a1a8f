//! Sizes of the metadata caches from the options, with the reference implementation's meaning and limits.

use super::OpenOptions;
use crate::error::{Error, Result};
use crate::format::geometry::{round_up, SECTOR_BYTES};
use crate::format::Geometry;

/// Most memory of an L2 cache whose size nobody gave, bytes.
const DEFAULT_L2_CACHE_BYTES: u64 = 32 << 20;
/// Entry size of an L2 cache that does not hold the whole disk, bytes.
const DEFAULT_SLICE_BYTES: u64 = 4 << 10;
/// An operation may hold two L2 slices at once.
const MIN_L2_SLICES: u64 = 2;
/// An operation may hold this many refcount blocks at once.
const MIN_REFCOUNT_BLOCKS: u64 = 4;
/// The reference implementation counts entries in an `int`.
const MAX_ENTRIES: u64 = i32::MAX as u64;

/// What the caches may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSizes {
    /// Memory for L2 slices, bytes; a multiple of `l2_slice_bytes`, at least two of them.
    pub l2_cache_bytes: u64,
    /// Bytes of one cached part of an L2 table; a power of two from 512 to the cluster size.
    pub l2_slice_bytes: u64,
    /// Memory for refcount blocks, bytes; a multiple of the cluster size, at least four of them.
    pub refcount_cache_bytes: u64,
}

/// Bytes of all L2 entries of a disk, in whole clusters: more L2 cache is never of use.
pub fn l2_bytes_for(geometry: &Geometry, virtual_size: u64) -> u64 {
    let entries = geometry.clusters_ceil(virtual_size);
    round_up(entries.saturating_mul(geometry.l2_entry_bytes()), geometry.cluster_bytes())
}

/// The cache sizes for an image.
///
/// * At most two of the three sizes may be given; with `cache-size` and one other, the rest is the third.
/// * `cache-size` alone: the L2 cache grows until it holds the whole disk, then the refcount cache.
/// * Otherwise the L2 cache is as large as the whole disk needs, at most its given size or 32 MiB, and the refcount
///   cache is as given or as small as possible.
/// * An entry is 4 KiB, at most a cluster; or a whole table, when the L2 cache holds the whole disk.
pub fn cache_sizes(options: &OpenOptions, geometry: &Geometry, virtual_size: u64) -> Result<CacheSizes> {
    let cluster_bytes = geometry.cluster_bytes();
    let min_refcount_bytes = MIN_REFCOUNT_BLOCKS * cluster_bytes;
    let whole_disk_bytes = l2_bytes_for(geometry, virtual_size);
    let (l2_bytes, refcount_bytes) =
        match (options.cache_size, options.l2_cache_size, options.refcount_cache_size) {
            (Some(_), Some(_), Some(_)) => {
                return Err(Error::invalid(
                    "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
                ))
            }
            (Some(both), Some(l2), None) => {
                let rest = both.checked_sub(l2);
                (l2, rest.ok_or_else(|| Error::invalid("l2-cache-size may not exceed cache-size"))?)
            }
            (Some(both), None, Some(refcount)) => {
                let rest = both.checked_sub(refcount);
                (
                    rest.ok_or_else(|| Error::invalid("refcount-cache-size may not exceed cache-size"))?,
                    refcount,
                )
            }
            (Some(both), None, None) => {
                let l2 = both.saturating_sub(min_refcount_bytes).min(whole_disk_bytes);
                (l2, both - l2)
            }
            (None, l2, refcount) => {
                (l2.unwrap_or(DEFAULT_L2_CACHE_BYTES), refcount.unwrap_or(min_refcount_bytes))
            }
        };
    let l2_bytes = l2_bytes.min(whole_disk_bytes);
    let l2_slice_bytes = slice_bytes(options, geometry, l2_bytes >= whole_disk_bytes)?;
    if refcount_bytes / cluster_bytes > MAX_ENTRIES {
        return Err(Error::invalid("Refcount cache size too big"));
    }
    if l2_bytes / l2_slice_bytes > MAX_ENTRIES {
        return Err(Error::invalid("L2 cache size too big"));
    }
    Ok(CacheSizes {
        l2_cache_bytes: (l2_bytes / l2_slice_bytes).max(MIN_L2_SLICES) * l2_slice_bytes,
        l2_slice_bytes,
        refcount_cache_bytes: (refcount_bytes / cluster_bytes).max(MIN_REFCOUNT_BLOCKS) * cluster_bytes,
    })
}

fn slice_bytes(options: &OpenOptions, geometry: &Geometry, whole_disk_fits: bool) -> Result<u64> {
    let cluster_bytes = geometry.cluster_bytes();
    match options.l2_cache_entry_size {
        None if whole_disk_fits => Ok(cluster_bytes),
        None => Ok(DEFAULT_SLICE_BYTES.min(cluster_bytes)),
        Some(bytes) if bytes.is_power_of_two() && (SECTOR_BYTES..=cluster_bytes).contains(&bytes) => Ok(bytes),
        Some(_) => Err(Error::invalid(format!(
            "L2 cache entry size must be a power of two between {SECTOR_BYTES} and the cluster size ({cluster_bytes})"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = 1 << 10;
    const M: u64 = 1 << 20;
    const G: u64 = 1 << 30;

    fn geometry(cluster_bits: u32) -> Geometry {
        Geometry { version: 3, cluster_bits, refcount_order: 4, extended_l2: false, external_data: false }
    }

    fn sizes(options: &[&str], cluster_bits: u32, virtual_size: u64) -> (u64, u64, u64) {
        let options = OpenOptions::parse(options).unwrap();
        let s = cache_sizes(&options, &geometry(cluster_bits), virtual_size).unwrap();
        (s.l2_cache_bytes, s.l2_slice_bytes, s.refcount_cache_bytes)
    }

    fn refused(options: &[&str], cluster_bits: u32) -> String {
        let options = OpenOptions::parse(options).unwrap();
        cache_sizes(&options, &geometry(cluster_bits), 64 * G).unwrap_err().to_string()
    }

    #[test]
    fn defaults_cover_the_disk_up_to_32_mib() {
        assert_eq!(sizes(&[], 16, 64 * G), (8 * M, 64 * K, 256 * K));
        assert_eq!(sizes(&[], 16, 256 * G), (32 * M, 64 * K, 256 * K));
        assert_eq!(sizes(&[], 16, 512 * G), (32 * M, 4 * K, 256 * K));
        assert_eq!(sizes(&[], 16, 0), (128 * K, 64 * K, 256 * K));
        assert_eq!(sizes(&[], 9, 64 * G), (32 * M, 512, 2 * K));
        assert_eq!(sizes(&[], 21, 1), (4 * M, 2 * M, 8 * M));
    }

    #[test]
    fn given_sizes_and_their_minimum() {
        assert_eq!(sizes(&["l2-cache-size=7M"], 16, 64 * G), (7 * M, 4 * K, 256 * K));
        assert_eq!(sizes(&["l2-cache-size=8M"], 16, 64 * G), (8 * M, 64 * K, 256 * K));
        assert_eq!(sizes(&["l2-cache-size=1T"], 16, 64 * G), (8 * M, 64 * K, 256 * K));
        assert_eq!(sizes(&["l2-cache-size=0"], 16, 64 * G), (8 * K, 4 * K, 256 * K));
        assert_eq!(sizes(&["l2-cache-size=0", "l2-cache-entry-size=64k"], 16, 64 * G).0, 128 * K);
        assert_eq!(sizes(&["refcount-cache-size=1M"], 16, 64 * G).2, M);
        assert_eq!(sizes(&["refcount-cache-size=0"], 16, 64 * G).2, 256 * K);
    }

    #[test]
    fn a_combined_size_goes_to_l2_first() {
        assert_eq!(sizes(&["cache-size=1M"], 16, 64 * G), (768 * K, 4 * K, 256 * K));
        assert_eq!(sizes(&["cache-size=16M"], 16, 64 * G), (8 * M, 64 * K, 8 * M));
        assert_eq!(sizes(&["cache-size=0"], 16, 64 * G), (8 * K, 4 * K, 256 * K));
        assert_eq!(sizes(&["cache-size=2M", "l2-cache-size=1M"], 16, 64 * G), (M, 4 * K, M));
        assert_eq!(sizes(&["cache-size=2M", "refcount-cache-size=1M"], 16, 64 * G), (M, 4 * K, M));
    }

    #[test]
    fn refusals_in_the_words_of_the_stock_tool() {
        assert_eq!(
            refused(&["l2-cache-size=1M", "cache-size=512k"], 16),
            "l2-cache-size may not exceed cache-size"
        );
        assert_eq!(
            refused(&["refcount-cache-size=1M", "cache-size=512k"], 16),
            "refcount-cache-size may not exceed cache-size"
        );
        assert_eq!(
            refused(&["refcount-cache-size=256k", "l2-cache-size=1M", "cache-size=2M"], 16),
            "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time"
        );
        assert_eq!(refused(&["refcount-cache-size=8E"], 16), "Refcount cache size too big");
        assert_eq!(refused(&["cache-size=8E"], 16), "Refcount cache size too big");
        for (entry, bits) in [("3000", 16), ("256", 16), ("128k", 16), ("0", 16), ("1k", 9)] {
            assert_eq!(
                refused(&[&format!("l2-cache-entry-size={entry}")], bits),
                format!(
                    "L2 cache entry size must be a power of two between 512 and the cluster size ({})",
                    1 << bits
                )
            );
        }
    }
}
