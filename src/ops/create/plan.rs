//! Where everything of a new image goes. Pure arithmetic, no I/O.
//!
//! Clusters are handed out in order and none is left over, so every count of the new image is 1 up to the end of
//! the file and 0 behind it. The order is the reference implementation's, as long as one cluster holds the
//! refcount table:
//!
//! ```text
//! off        header | refcount table | block 0 | L1 | blocks
//! metadata   header | refcount table | block 0 | L1 | L2, its data | L2, its data | ...   blocks where they are needed
//! falloc,    header | first L2       | block 0 | L1 | blocks | refcount table | data of the whole disk | other L2s
//! full
//! ```
//!
//! An encryption header is the last of it; its length is a number of clusters.
//!
//! With an external data file every preallocation is `metadata` without the data, which is there at its guest offset.
//!
//! A larger refcount table gets its final size at once (the reference implementation moves it when it is full).
//!
//! A block that counts a cluster past the blocks so far is the next free cluster, and may count itself (`alloc::plan`).

use crate::alloc::plan::{self, Room, Row};
use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::{round_up, MAX_HOST_OFFSET};
use crate::format::Geometry;
use crate::options::Preallocation;

/// An L2 table with the clusters that it points to, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct L2Table {
    /// Cluster index of the table.
    pub(super) at: u64,
    /// Cluster index of its first data cluster, in the data file where there is one.
    pub(super) data_at: u64,
    /// Data clusters.
    pub(super) data_clusters: u64,
}

/// The places of all structures, as cluster indices.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) geometry: Geometry,
    /// First cluster of the refcount table.
    pub(super) table_at: u64,
    /// Clusters of the refcount table.
    pub(super) table_clusters: u64,
    /// The refcount blocks, in the order of the table.
    pub(super) blocks: Vec<u64>,
    /// First cluster of the L1 table; 0 when there is none.
    pub(super) l1_at: u64,
    /// Entries of the L1 table.
    pub(super) l1_entries: u64,
    /// The L2 tables, in the order of the L1 table; empty without preallocation.
    pub(super) l2: Vec<L2Table>,
    /// First cluster of the encryption header; 0 when there is none.
    pub(super) encryption_at: u64,
    /// Clusters of the encryption header.
    pub(super) encryption_clusters: u64,
    /// One past the last cluster.
    pub(super) end: u64,
    /// Bytes at the end of the last data cluster that are past the disk, and need not be in the file.
    unused_bytes: u64,
}

/// Hands out clusters and keeps every one of them counted.
struct Placer {
    geometry: Geometry,
    /// With a cursor that is the next cluster to hand out.
    refcounts: plan::Plan,
    /// Clusters below this one are counted.
    covered: u64,
}

/// A new file: everything from the cursor on is free.
struct Rest;

impl Room for Rest {
    fn next_free(&mut self, from: u64) -> Result<u64> {
        Ok(from)
    }

    fn take(&mut self, _first: u64, _count: u64) -> Result<()> {
        Ok(())
    }

    fn give_back(&mut self, _first: u64, _count: u64) -> Result<()> {
        Ok(())
    }
}

impl Placer {
    /// The header has cluster 0, and the refcount table `table_clusters` behind it.
    fn new(geometry: Geometry, table_clusters: u64) -> Placer {
        let refcounts = plan::Plan::with_table(geometry, 1, table_clusters, 1 + table_clusters);
        Placer { geometry, refcounts, covered: 0 }
    }

    /// The next cluster to hand out.
    fn next(&self) -> u64 {
        self.refcounts.cursor()
    }

    /// The next `count` clusters, without a look at their counts.
    fn take(&mut self, count: u64) -> u64 {
        self.refcounts.skip(count)
    }

    /// The next clusters for an encryption header, if there is one.
    fn take_encryption(&mut self, count: u64) -> u64 {
        match count {
            0 => 0,
            _ => self.take(count),
        }
    }

    /// Places the blocks that count what was handed out since the last call.
    fn cover(&mut self) -> Result<()> {
        let (first, end) = (self.covered, self.next());
        if first < end {
            let within = |e: Error| e.within(TOO_LARGE);
            self.refcounts.need_for(first, end - first).map_err(within)?;
            self.refcounts.place(&mut Rest).map_err(within)?;
            // A block is counted by itself, or by one that was placed with it.
            self.covered = self.next();
        }
        Ok(())
    }

    /// The blocks placed, all up to the last one.
    fn blocks(&self) -> Vec<u64> {
        self.refcounts.blocks().map(|(_, cluster)| cluster).collect()
    }
}

const TOO_LARGE: &str = "The image size is too large for preallocation";

fn too_large(rule: &str) -> Error {
    Error::new(ErrorKind::TooLarge, format!("{TOO_LARGE}: {rule}"))
}

impl Plan {
    /// The plan for a disk of `virtual_size` bytes, which the L1 table can map.
    pub(super) fn new(
        geometry: Geometry,
        virtual_size: u64,
        preallocation: Preallocation,
        encryption_clusters: u64,
    ) -> Result<Plan> {
        let with_data = virtual_size > 0 && preallocation != Preallocation::Off;
        let in_a_row = matches!(preallocation, Preallocation::Falloc | Preallocation::Full);
        let plan = match with_data && in_a_row && !geometry.external_data {
            true => Plan::contiguous(geometry, virtual_size, encryption_clusters)?,
            false => Plan::interleaved(geometry, virtual_size, with_data, encryption_clusters)?,
        };
        if plan.end > geometry.cluster_index(MAX_HOST_OFFSET) {
            return Err(too_large("the file would exceed 2^56 bytes"));
        }
        Ok(plan)
    }

    /// Tables with their data behind them, in guest order.
    fn interleaved(
        geometry: Geometry,
        virtual_size: u64,
        with_data: bool,
        encryption_clusters: u64,
    ) -> Result<Plan> {
        let mut table_clusters = 1;
        // A larger table never makes the file smaller: each round raises the size until it suffices.
        loop {
            let plan = Plan::interleaved_with(
                geometry,
                virtual_size,
                with_data,
                encryption_clusters,
                table_clusters,
            )?;
            let needed = geometry.clusters_ceil(plan.blocks.len() as u64 * 8);
            if needed <= table_clusters {
                return Ok(plan);
            }
            table_clusters = needed;
        }
    }

    fn interleaved_with(
        geometry: Geometry,
        virtual_size: u64,
        with_data: bool,
        encryption_clusters: u64,
        table_clusters: u64,
    ) -> Result<Plan> {
        let mut placer = Placer::new(geometry, table_clusters);
        placer.cover()?;
        let (l1_at, l1_entries) = place_l1(&mut placer, virtual_size)?;
        let mut l2 = Vec::new();
        if with_data {
            l2.reserve(l1_entries as usize);
            let mut guest_cluster = 0;
            for data_clusters in data_runs(&geometry, virtual_size) {
                let at = placer.take(1);
                placer.cover()?;
                let data_at = match geometry.external_data {
                    true => guest_cluster,
                    false => placer.take(data_clusters),
                };
                placer.cover()?;
                l2.push(L2Table { at, data_at, data_clusters });
                guest_cluster += data_clusters;
            }
        }
        let encryption_at = placer.take_encryption(encryption_clusters);
        placer.cover()?;
        let (table_at, blocks, end) = (1, placer.blocks(), placer.next());
        // As the reference implementation: of the last cluster, the subclusters that the disk has.
        let used = geometry.in_cluster(round_up(virtual_size, geometry.subcluster_bytes()));
        let unused_bytes = if used == 0 { 0 } else { geometry.cluster_bytes() - used };
        Ok(Plan {
            geometry,
            table_at,
            table_clusters,
            blocks,
            l1_at,
            l1_entries,
            l2,
            encryption_at,
            encryption_clusters,
            end,
            unused_bytes,
        })
    }

    /// All counts first, then all data in one run, which takes one call to reserve.
    fn contiguous(geometry: Geometry, virtual_size: u64, encryption_clusters: u64) -> Result<Plan> {
        let mut placer = Placer::new(geometry, 0);
        let first_l2_at = placer.take(1);
        placer.cover()?;
        let (l1_at, l1_entries) = place_l1(&mut placer, virtual_size)?;
        let guest_clusters = geometry.clusters_ceil(virtual_size);
        let mut blocks = placer.blocks();
        let more = guest_clusters + (l1_entries - 1) + encryption_clusters;
        let row = Row::new(&geometry, placer.next(), more, blocks.len() as u64, 1);
        let Row { blocks: new_blocks, table_clusters } = row.map_err(|e| e.within(TOO_LARGE))?;
        let first_new = placer.take(new_blocks);
        blocks.extend(first_new..first_new + new_blocks);
        let table_at = placer.take(table_clusters);
        let data_start = placer.take(guest_clusters);
        let mut data_at = data_start;
        let mut l2 = Vec::with_capacity(l1_entries as usize);
        for data_clusters in data_runs(&geometry, virtual_size) {
            let at = if l2.is_empty() { first_l2_at } else { placer.take(1) };
            l2.push(L2Table { at, data_at, data_clusters });
            data_at += data_clusters;
        }
        let encryption_at = placer.take_encryption(encryption_clusters);
        let end = placer.next();
        Ok(Plan {
            geometry,
            table_at,
            table_clusters,
            blocks,
            l1_at,
            l1_entries,
            l2,
            encryption_at,
            encryption_clusters,
            end,
            unused_bytes: 0,
        })
    }

    /// Length of the file in bytes. A last L1 table ends with its last entry, as in the reference implementation.
    pub(super) fn file_bytes(&self) -> u64 {
        let l1_end = self.l1_at + self.geometry.clusters_ceil(self.l1_entries * 8);
        if self.l1_entries > 0 && l1_end == self.end {
            return self.geometry.cluster_offset(self.l1_at) + self.l1_entries * 8;
        }
        let ends_with_data = !self.geometry.external_data
            && self.l2.last().is_some_and(|l2| l2.data_at + l2.data_clusters == self.end);
        self.geometry.cluster_offset(self.end) - if ends_with_data { self.unused_bytes } else { 0 }
    }
}

fn place_l1(placer: &mut Placer, virtual_size: u64) -> Result<(u64, u64)> {
    let entries = placer.geometry.l1_entries_for(virtual_size);
    if entries == 0 {
        return Ok((0, 0));
    }
    let at = placer.take(placer.geometry.clusters_ceil(entries * 8));
    placer.cover()?;
    Ok((at, entries))
}

/// Guest clusters of each L2 table.
fn data_runs(geometry: &Geometry, virtual_size: u64) -> impl Iterator<Item = u64> {
    let per_table = geometry.l2_entry_count();
    let clusters = geometry.clusters_ceil(virtual_size);
    (0..clusters.div_ceil(per_table)).map(move |table| per_table.min(clusters - table * per_table))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODES: [Preallocation; 3] = [Preallocation::Off, Preallocation::Metadata, Preallocation::Full];

    fn geometry(cluster_bits: u32, refcount_order: u32) -> Geometry {
        Geometry { version: 3, cluster_bits, refcount_order, extended_l2: false, external_data: false }
    }

    /// Every cluster has one owner, every cluster is counted, and the table holds every block.
    fn check(plan: &Plan) {
        let g = plan.geometry;
        let mut owners = vec![0u8; plan.end as usize];
        let mut own = |at: u64, count: u64| {
            for owner in &mut owners[at as usize..(at + count) as usize] {
                *owner += 1;
            }
        };
        own(0, 1);
        own(plan.table_at, plan.table_clusters);
        plan.blocks.iter().for_each(|at| own(*at, 1));
        own(plan.l1_at, g.clusters_ceil(plan.l1_entries * 8));
        own(plan.encryption_at, plan.encryption_clusters);
        for table in &plan.l2 {
            own(table.at, 1);
            own(table.data_at, table.data_clusters);
        }
        assert!(owners.iter().all(|o| *o == 1), "{g:?} {:?}", owners.iter().position(|o| *o != 1));
        assert_eq!(plan.blocks.len() as u64, plan.end.div_ceil(g.refcount_block_entries()));
        assert!(plan.blocks.len() as u64 * 8 <= plan.table_clusters * g.cluster_bytes());
    }

    #[test]
    fn every_cluster_has_one_owner_and_one_count() {
        for cluster_bits in 9..=21 {
            for order in 0..=6 {
                let g = geometry(cluster_bits, order);
                for clusters in [0, 1, 2, 63, 64, 65, 500, 4096, 100_000] {
                    for mode in MODES {
                        check(&Plan::new(g, clusters << cluster_bits, mode, clusters % 5 * 7).unwrap());
                    }
                }
            }
        }
    }

    #[test]
    fn tables_grow_where_clusters_are_small() {
        let g = geometry(9, 6);
        for mode in MODES {
            let plan = Plan::new(g, 64 << 20, mode, 0).unwrap();
            check(&plan);
            assert_eq!(plan.table_clusters > 1, mode != Preallocation::Off);
        }
        let plan = Plan::new(g, g.max_virtual_size(), Preallocation::Off, 0).unwrap();
        check(&plan);
        assert!(plan.table_clusters > 1);
    }

    #[test]
    fn largest_disks_fit_or_are_refused() {
        for cluster_bits in 9..=21 {
            for order in [0, 4, 6] {
                let g = geometry(cluster_bits, order);
                let plan = Plan::new(g, g.max_virtual_size(), Preallocation::Off, 0).unwrap();
                assert_eq!(plan.l1_entries, 1 << 22);
            }
        }
        for mode in [Preallocation::Metadata, Preallocation::Falloc] {
            let g = geometry(16, 4);
            assert_eq!(Plan::new(g, 2 << 50, mode, 0).unwrap_err().kind(), ErrorKind::TooLarge);
            let g = geometry(21, 4);
            assert_eq!(Plan::new(g, 1 << 56, mode, 0).unwrap_err().kind(), ErrorKind::TooLarge);
        }
    }

    #[test]
    fn layouts_seen_in_the_reference_implementation() {
        let plan = Plan::new(geometry(16, 4), 1 << 40, Preallocation::Metadata, 0).unwrap();
        assert_eq!((plan.table_at, plan.l1_at, plan.end), (1, 3, 16_779_780));
        assert_eq!(plan.blocks[..4], [2, 32776, 65549, 98322]);
        assert_eq!(plan.l2[0], L2Table { at: 4, data_at: 5, data_clusters: 8192 });
        assert_eq!(plan.l2[2047].at, 16_771_586);
        let plan = Plan::new(geometry(9, 6), 1 << 30, Preallocation::Off, 0).unwrap();
        assert_eq!(plan.blocks, [2, 515, 517, 518, 519, 520, 521, 522, 516]);
        let plan = Plan::new(geometry(9, 4), 20 << 20, Preallocation::Full, 0).unwrap();
        assert_eq!((plan.table_at, plan.table_clusters, plan.end), (176, 3, 41778));
        assert_eq!(plan.blocks[..3], [2, 13, 14]);
        assert_eq!(plan.l2[0], L2Table { at: 1, data_at: 179, data_clusters: 64 });
        assert_eq!(plan.l2[1].at, 41139);
    }
}
