//! Where new refcount blocks and a new refcount table go. Pure arithmetic: no I/O, no counts of its own.
//!
//! What is new takes clusters, which have to be counted too, perhaps by one more new block: a fixed point. Two shapes of
//! it are planned here, for everybody who makes refcount structures:
//!
//! ```text
//! scattered  a block for everything that is counted, each in the first free cluster, and the table in
//! (Plan)     the first free run that is long enough: create, a repair, refcounts of another width
//! row        blocks | table | what follows: past everything that is counted so far, in one run:
//! (Row)      create with all data preallocated, a table that has become too short
//! ```
//!
//! Rules of the scattered shape, whatever the order in which blocks are asked for:
//!
//! 1. Of the blocks without a place the one with the lowest index comes first. If nobody counts its cluster, the block
//!    that does is the next one, and so on; it ends because a block may count itself.
//! 2. The table is placed when all blocks are. It asks for the blocks that count it; where these make it too short it
//!    gives its place back and looks for a longer one.
//! 3. A block that has its place keeps it. What the table gives back may become a place again.
//!
//! The plan knows no counts. A [`Room`] says which clusters are free and takes note of those that are used.

use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::MAX_REFCOUNT_TABLE_BYTES;
use crate::format::{index_in_memory, Geometry};
use std::collections::BTreeSet;

/// Most blocks that a table within its limit can name.
const MAX_BLOCKS: u64 = MAX_REFCOUNT_TABLE_BYTES / 8;

/// Free host clusters, by index.
pub(crate) trait Room {
    /// The first free cluster at or after `from`.
    fn next_free(&mut self, from: u64) -> Result<u64>;

    /// `count` free clusters from `first` on are used from now on.
    fn take(&mut self, first: u64, count: u64) -> Result<()>;

    /// Clusters that were taken are free again.
    fn give_back(&mut self, first: u64, count: u64) -> Result<()>;
}

/// First cluster of the first run of `count` free clusters at or after `from`.
pub(crate) fn find_run(room: &mut dyn Room, from: u64, count: u64) -> Result<u64> {
    let mut first = room.next_free(from)?;
    let mut end = first + 1;
    while end - first < count {
        let free = room.next_free(end)?;
        if free != end {
            first = free;
        }
        end = free + 1;
    }
    Ok(first)
}

/// Refcount blocks wherever there is room, and a table.
#[derive(Debug)]
pub(crate) struct Plan {
    geometry: Geometry,
    /// Host cluster of each block, by index in the table; 0 for none.
    blocks: Vec<u64>,
    /// Blocks that are needed and may have no place yet.
    missing: BTreeSet<u64>,
    /// First cluster of the table.
    table_cluster: u64,
    /// Clusters of the table.
    table_clusters: u64,
    /// No cluster before this one is for a block.
    cursor: u64,
}

impl Plan {
    /// Nothing needed yet; no cluster before `from` will be used.
    pub(crate) fn new(geometry: Geometry, from: u64) -> Plan {
        Plan::with_table(geometry, 0, 0, from)
    }

    /// As `new`, with the table where the caller has put it.
    pub(crate) fn with_table(geometry: Geometry, table_cluster: u64, table_clusters: u64, from: u64) -> Plan {
        let (blocks, missing) = (Vec::new(), BTreeSet::new());
        Plan { geometry, blocks, missing, table_cluster, table_clusters, cursor: from }
    }

    /// The blocks that have a place, index in the table and host cluster, in the order of the table.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (u64, u64)> + Clone + '_ {
        (0..)
            .zip(&self.blocks)
            .filter(|(_, cluster)| **cluster != 0)
            .map(|(index, cluster)| (index, *cluster))
    }

    /// Clusters of the table.
    pub(crate) fn table_clusters(&self) -> u64 {
        self.table_clusters
    }

    /// Host offset of the table.
    pub(crate) fn table_offset(&self) -> u64 {
        self.geometry.cluster_offset(self.table_cluster)
    }

    /// Entries of the whole table.
    pub(crate) fn table_entries(&self) -> Result<Vec<u64>> {
        let count = self.table_clusters * self.geometry.cluster_bytes() / 8;
        debug_assert!(self.blocks.len() as u64 <= count);
        let mut entries = crate::error::room("refcount table", count)?;
        entries.extend(self.blocks.iter().map(|cluster| self.geometry.cluster_offset(*cluster)));
        entries.resize(count as usize, 0);
        Ok(entries)
    }

    /// Clusters that a table of all blocks so far has.
    pub(crate) fn needed_table_clusters(&self) -> u64 {
        self.geometry.clusters_ceil(self.blocks.len().max(1) as u64 * 8)
    }

    /// No cluster before this one is for a block.
    pub(crate) fn cursor(&self) -> u64 {
        self.cursor
    }

    /// The next `count` clusters are the caller's.
    pub(crate) fn skip(&mut self, count: u64) -> u64 {
        let first = self.cursor;
        self.cursor = first.saturating_add(count);
        first
    }

    /// Block `index` has something to count.
    pub(crate) fn need(&mut self, index: u64) -> Result<()> {
        if index >= MAX_BLOCKS {
            return Err(too_many(index + 1));
        }
        if !self.has(index) {
            self.missing.insert(index);
        }
        Ok(())
    }

    /// Clusters `[first, first + count)` are counted.
    pub(crate) fn need_for(&mut self, first: u64, count: u64) -> Result<()> {
        let last = self.geometry.refcount_table_index(first + count - 1);
        (self.geometry.refcount_table_index(first)..=last).try_for_each(|index| self.need(index))
    }

    /// Gives every block that is needed a place.
    pub(crate) fn place(&mut self, room: &mut dyn Room) -> Result<()> {
        while let Some(first) = self.missing.pop_first() {
            let mut index = first;
            while !self.has(index) {
                let cluster = room.next_free(self.cursor)?;
                room.take(cluster, 1)?;
                self.cursor = cluster + 1;
                self.put(index, cluster)?;
                index = self.geometry.refcount_table_index(cluster);
            }
        }
        Ok(())
    }

    /// Gives every block that is needed a place, and the table one that is long enough for all of them.
    pub(crate) fn place_all(&mut self, room: &mut dyn Room) -> Result<()> {
        loop {
            self.place(room)?;
            let needed = self.needed_table_clusters();
            if needed <= self.table_clusters {
                return Ok(());
            }
            if self.table_clusters > 0 {
                room.give_back(self.table_cluster, self.table_clusters)?;
            }
            self.table_cluster = find_run(room, self.cursor, needed)?;
            self.table_clusters = needed;
            room.take(self.table_cluster, needed)?;
            self.need_for(self.table_cluster, needed)?;
        }
    }

    fn has(&self, index: u64) -> bool {
        self.blocks.get(index_in_memory(index)).is_some_and(|cluster| *cluster != 0)
    }

    fn put(&mut self, index: u64, cluster: u64) -> Result<()> {
        if index >= MAX_BLOCKS {
            return Err(too_many(index + 1));
        }
        let index = index as usize;
        if index >= self.blocks.len() {
            let more = index + 1 - self.blocks.len();
            let no_memory = |_| Error::new(ErrorKind::NoMemory, "places of new refcount blocks: no memory");
            self.blocks.try_reserve(more).map_err(no_memory)?;
            self.blocks.resize(index + 1, 0);
        }
        self.blocks[index] = cluster;
        Ok(())
    }
}

/// Blocks, the table behind them, and what follows, in one run of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Blocks of the row.
    pub(crate) blocks: u64,
    /// Clusters of the table.
    pub(crate) table_clusters: u64,
}

impl Row {
    /// The smallest row from cluster `start` on that counts itself and `more` clusters behind it: block `first_block` is
    /// the first that is not there yet, and the table has room for `least_entries` at least.
    pub(crate) fn new(
        geometry: &Geometry,
        start: u64,
        more: u64,
        first_block: u64,
        least_entries: u64,
    ) -> Result<Row> {
        let mut row = Row { blocks: 0, table_clusters: geometry.clusters_ceil(least_entries.max(1) * 8) };
        // Neither number ever falls, so this ends: at the smallest ones that do, or at the limit.
        loop {
            let end = start + row.blocks + row.table_clusters + more;
            let entries = end.div_ceil(geometry.refcount_block_entries());
            let table_clusters = geometry.clusters_ceil(entries * 8).max(row.table_clusters);
            if table_clusters * geometry.cluster_bytes() > MAX_REFCOUNT_TABLE_BYTES {
                return Err(too_many(entries.max(least_entries)));
            }
            let next = Row { blocks: entries.saturating_sub(first_block).max(row.blocks), table_clusters };
            if next == row {
                return Ok(row);
            }
            row = next;
        }
    }

    /// Clusters of blocks and table.
    pub(crate) fn clusters(&self) -> u64 {
        self.blocks + self.table_clusters
    }
}

fn too_many(entries: u64) -> Error {
    let text = format!("a refcount table of {entries} entries is needed, the limit is 2^20");
    Error::new(ErrorKind::TooLarge, text)
}

#[cfg(test)]
mod tests;
