//! All index, size and rounding arithmetic of an image.

use super::offset::{Cluster, GuestCluster, GuestOffset, Offset};
use crate::error::{Error, ErrorKind, Result};
use std::ops::Range;

/// Smallest cluster: 512 bytes.
pub const MIN_CLUSTER_BITS: u32 = 9;
/// log2 of the smallest cluster with extended L2 entries, bytes.
pub const MIN_EXTENDED_CLUSTER_BITS: u32 = 14;
/// Largest cluster: 2 MiB.
pub const MAX_CLUSTER_BITS: u32 = 21;
/// Largest L1 table in bytes, the reference implementation's limit.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// Largest refcount table in bytes, the reference implementation's limit.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Host offsets have 56 bits ("L2 table entry": bits 9-55).
pub const MAX_HOST_OFFSET: u64 = 1 << 56;
/// Subclusters of one cluster with extended L2 entries.
pub const EXTENDED_SUBCLUSTERS: u32 = 32;
/// The unit that a medium writes whole or not at all.
pub const SECTOR_BYTES: u64 = 512;

/// The sizes that follow from a header. Copied freely; never changes while an image is open,
/// except `virtual_size`, which lives in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the cluster size in bytes, 9 to 21.
    pub cluster_bits: u32,
    /// log2 of the refcount width in bits, 0 to 6.
    pub refcount_order: u32,
    /// 16-byte L2 entries with 32 subclusters.
    pub extended_l2: bool,
    /// Guest data lives in another file; an L2 entry may then hold host offset 0.
    pub external_data: bool,
}

impl Geometry {
    /// Cluster size in bytes.
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Offset of `offset` inside its cluster.
    #[inline(always)]
    pub fn in_cluster(&self, offset: impl Offset) -> u64 {
        offset.bytes() & (self.cluster_bytes() - 1)
    }

    /// `offset` rounded down to a cluster boundary.
    pub fn cluster_floor<O: Offset>(&self, offset: O) -> O {
        O::at(offset.bytes() & !(self.cluster_bytes() - 1))
    }

    /// `offset` rounded up to a cluster boundary; `None` past 2^64.
    pub fn cluster_ceil<O: Offset>(&self, offset: O) -> Option<O> {
        Some(self.cluster_floor(O::at(offset.bytes().checked_add(self.cluster_bytes() - 1)?)))
    }

    /// Index of the cluster that holds `offset`.
    #[inline(always)]
    pub fn cluster_index<O: Offset>(&self, offset: O) -> O::Cluster {
        Cluster::number(offset.bytes() >> self.cluster_bits)
    }

    /// Offset of the first byte of `cluster`.
    #[inline(always)]
    pub fn cluster_offset<C: Cluster>(&self, cluster: C) -> C::Offset {
        Offset::at(cluster.index() << self.cluster_bits)
    }

    /// The first cluster that begins at or after `offset`.
    pub fn cluster_after<O: Offset>(&self, offset: O) -> O::Cluster {
        Cluster::number(self.clusters_ceil(offset.bytes()))
    }

    /// Clusters that `bytes` need, rounded up.
    pub fn clusters_ceil(&self, bytes: u64) -> u64 {
        (bytes >> self.cluster_bits) + u64::from(self.in_cluster(bytes) != 0)
    }

    /// Bytes of one L2 entry: 8, or 16 with extended entries.
    pub fn l2_entry_bytes(&self) -> u64 {
        if self.extended_l2 {
            16
        } else {
            8
        }
    }

    /// log2 of the entries of one L2 table.
    pub fn l2_entry_bits(&self) -> u32 {
        self.cluster_bits - if self.extended_l2 { 4 } else { 3 }
    }

    /// Entries of one L2 table.
    pub fn l2_entry_count(&self) -> u64 {
        1 << self.l2_entry_bits()
    }

    /// log2 of the guest bytes that one L2 table maps.
    pub fn l1_shift(&self) -> u32 {
        self.cluster_bits + self.l2_entry_bits()
    }

    /// Guest bytes that one L2 table maps.
    pub fn l2_table_guest_bytes(&self) -> u64 {
        1 << self.l1_shift()
    }

    /// L1 index of a guest offset.
    pub fn l1_index(&self, guest_offset: GuestOffset) -> u64 {
        guest_offset.0 >> self.l1_shift()
    }

    /// Index inside its L2 table of a guest offset.
    pub fn l2_index(&self, guest_offset: u64) -> u64 {
        (guest_offset >> self.cluster_bits) & (self.l2_entry_count() - 1)
    }

    /// The first guest cluster that the L2 table after that of `cluster` maps.
    pub fn table_end(&self, cluster: GuestCluster) -> GuestCluster {
        GuestCluster((cluster.0 / self.l2_entry_count() + 1) * self.l2_entry_count())
    }

    /// L1 entries that a disk of `virtual_size` bytes needs, rounded up.
    pub fn l1_entries_for(&self, virtual_size: u64) -> u64 {
        (virtual_size >> self.l1_shift()) + u64::from(virtual_size & (self.l2_table_guest_bytes() - 1) != 0)
    }

    /// Subclusters in a cluster: 1, or 32 with extended entries.
    pub fn subcluster_count(&self) -> u32 {
        if self.extended_l2 {
            EXTENDED_SUBCLUSTERS
        } else {
            1
        }
    }

    /// log2 of the subcluster size in bytes.
    pub fn subcluster_bits(&self) -> u32 {
        self.cluster_bits - if self.extended_l2 { 5 } else { 0 }
    }

    /// Subcluster size in bytes; the cluster size without extended entries.
    pub fn subcluster_bytes(&self) -> u64 {
        1 << self.subcluster_bits()
    }

    /// One bit for each subcluster of a cluster.
    pub fn all_subclusters(&self) -> u32 {
        if self.extended_l2 {
            u32::MAX
        } else {
            1
        }
    }

    /// Bits of the subclusters that `[from, to)` inside one cluster touches. `from < to <= cluster_bytes`.
    pub fn subclusters_touched(&self, from: u64, to: u64) -> u32 {
        debug_assert!(from < to && to <= self.cluster_bytes());
        let first = (from >> self.subcluster_bits()) as u32;
        let last = ((to - 1) >> self.subcluster_bits()) as u32;
        let width = last - first + 1;
        let ones = if width == 32 { u32::MAX } else { (1 << width) - 1 };
        ones << first
    }

    /// Bits of one refcount.
    pub fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order
    }

    /// Largest refcount that fits.
    pub fn refcount_max(&self) -> u64 {
        if self.refcount_order == 6 {
            u64::MAX
        } else {
            (1 << self.refcount_bits()) - 1
        }
    }

    /// log2 of the counts in one refcount block.
    pub fn refcount_block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.refcount_order
    }

    /// Counts in one refcount block.
    pub fn refcount_block_entries(&self) -> u64 {
        1 << self.refcount_block_bits()
    }

    /// Refcount table index of a host cluster.
    pub fn refcount_table_index(&self, cluster_index: u64) -> u64 {
        cluster_index >> self.refcount_block_bits()
    }

    /// Index inside its refcount block of a host cluster.
    pub fn refcount_block_index(&self, cluster_index: u64) -> u64 {
        cluster_index & (self.refcount_block_entries() - 1)
    }

    /// The parts of `count` clusters from `first` on that one refcount block counts each: index of the block, and the
    /// clusters.
    pub fn by_refcount_block(
        &self,
        first: u64,
        count: u64,
    ) -> impl Iterator<Item = (u64, Range<u64>)> + 'static {
        let (bits, end) = (self.refcount_block_bits(), first + count);
        let mut at = first;
        std::iter::from_fn(move || {
            let (index, from) = (at >> bits, at);
            at = end.min((index + 1) << bits);
            (from < end).then_some((index, from..at))
        })
    }

    /// Largest virtual size whose L1 table stays within its limit.
    pub fn max_virtual_size(&self) -> u64 {
        let entries = MAX_L1_BYTES / 8;
        entries.checked_mul(self.l2_table_guest_bytes()).map_or(i64::MAX as u64, |b| b.min(i64::MAX as u64))
    }

    /// Refuses a virtual size that no L1 table within the limit can map.
    pub fn check_virtual_size(&self, virtual_size: u64) -> Result<()> {
        if virtual_size > self.max_virtual_size() {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "virtual size {virtual_size}: needs an L1 table of {} entries, the limit is {}",
                    self.l1_entries_for(virtual_size),
                    MAX_L1_BYTES / 8
                ),
            ));
        }
        Ok(())
    }

    /// Bit at which the sector count of a compressed entry starts ("Compressed Clusters Descriptor": x).
    pub fn compressed_shift(&self) -> u32 {
        62 - (self.cluster_bits - 8)
    }
}

/// `value` rounded up to a multiple of `unit`; saturates.
pub fn round_up(value: u64, unit: u64) -> u64 {
    value.div_ceil(unit).saturating_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometries() -> impl Iterator<Item = Geometry> {
        (9..=21).flat_map(|cluster_bits| {
            (0..=6).flat_map(move |refcount_order| {
                [false, true].into_iter().filter(move |e| !e || cluster_bits >= 14).map(move |extended_l2| {
                    Geometry { version: 3, cluster_bits, refcount_order, extended_l2, external_data: false }
                })
            })
        })
    }

    #[test]
    fn indices_agree_with_division() {
        for g in geometries() {
            let c = g.cluster_bytes();
            for offset in [0, 1, c - 1, c, c + 1, 7 * c + 5, (1 << 40) + 513, (1 << 55) - 1] {
                assert_eq!(g.cluster_index(offset), offset / c);
                assert_eq!(g.in_cluster(offset), offset % c);
                assert_eq!(g.clusters_ceil(offset), offset.div_ceil(c));
                assert_eq!(g.l1_index(GuestOffset(offset)), offset / (c * g.l2_entry_count()));
                assert_eq!(g.l2_index(offset), offset / c % g.l2_entry_count());
                assert_eq!(g.l1_entries_for(offset), offset.div_ceil(c * g.l2_entry_count()));
                let per_block = c * 8 / u64::from(g.refcount_bits());
                assert_eq!(g.refcount_block_entries(), per_block);
                assert_eq!(g.refcount_table_index(offset / c), offset / c / per_block);
                assert_eq!(g.refcount_block_index(offset / c), offset / c % per_block);
            }
            assert_eq!(g.subcluster_bytes() * u64::from(g.subcluster_count()), c);
        }
    }

    #[test]
    fn parts_by_block_are_the_clusters_in_order() {
        for g in geometries() {
            let per_block = g.refcount_block_entries();
            for (first, count) in
                [(0, 0), (5, 1), (per_block - 1, 2), (per_block, per_block), (7, 3 * per_block)]
            {
                let mut at = first;
                for (index, part) in g.by_refcount_block(first, count) {
                    assert!(part.start == at && part.end > at);
                    assert_eq!((index, index), (part.start / per_block, (part.end - 1) / per_block));
                    at = part.end;
                }
                assert_eq!(at, first + count);
            }
        }
    }

    #[test]
    fn touched_subclusters_agree_with_a_loop() {
        let g = Geometry {
            version: 3,
            cluster_bits: 14,
            refcount_order: 4,
            extended_l2: true,
            external_data: false,
        };
        for (from, to) in
            [(0, 1), (0, 16384), (511, 512), (511, 513), (512, 1024), (16383, 16384), (100, 9000)]
        {
            let mut slow = 0;
            for byte in from..to {
                slow |= 1u32 << (byte / g.subcluster_bytes());
            }
            assert_eq!(g.subclusters_touched(from, to), slow);
        }
    }
}
