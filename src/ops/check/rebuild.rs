//! New refcount structures from the counted references, beside the old ones.
//!
//! ```text
//! 1. choose free clusters for a block wherever anything is counted, and a contiguous run for the table;
//!    they are counted themselves, which may ask for more blocks, until nothing is missing
//! 2. write blocks and table          nothing points to them
//! 3. sync
//! 4. header: table offset and size   one sector
//! 5. sync
//! ```
//!
//! The counts still hold the references of the old structures, so a crash between 4 and the next step leaks
//! them and no more. Letting go of them is the next comparison's work.

use super::counts::no_memory;
use super::pass::Pass;
use super::stored::Stored;
use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::MAX_REFCOUNT_TABLE_BYTES;
use crate::format::{index_in_memory, Geometry};
use crate::storage::{write_all, Purpose};
use std::collections::{BTreeMap, BTreeSet};

/// Offset of `refcount_table_offset` in the header; `refcount_table_clusters` follows it.
const TABLE_FIELDS_AT: usize = 48;

/// Bytes of new neighbouring blocks that are written at once, if a block is not larger.
const BATCH_BYTES: usize = 256 << 10;

/// Where the new structures go.
#[derive(Default)]
struct Plan {
    /// Host cluster of each new block, by refcount table index.
    blocks: BTreeMap<u64, u64>,
    /// First host cluster of the table.
    table_cluster: u64,
    /// Clusters of the table.
    table_clusters: u64,
    /// Blocks that have no cluster yet.
    missing: BTreeSet<u64>,
    /// No cluster before this one is free.
    cursor: u64,
}

impl Pass<'_> {
    /// Writes new refcount structures and points the header to them.
    ///
    /// `only_at_end`: some pointer is broken, so clusters that look free may be what it once pointed to;
    /// the new structures then go behind everything.
    pub fn rebuild(&mut self, only_at_end: bool) -> Result<()> {
        let mut plan = Plan::default();
        if only_at_end {
            plan.cursor = self.counts.clusters();
        }
        if self.outside.len() >= super::metadata::MAX_OUTSIDE {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "too many references past the end of the file to build refcount structures there",
            ));
        }
        self.plan_blocks(&mut plan)?;
        self.plan_table(&mut plan)?;
        while self.adopt_outside(&mut plan)? {
            self.plan_table(&mut plan)?;
        }
        let table_bytes = index_in_memory(plan.table_clusters << self.geometry.cluster_bits);
        let mut table = Vec::new();
        table.try_reserve_exact(table_bytes).map_err(|_| no_memory())?;
        table.resize(table_bytes, 0);
        for (block_index, cluster) in &plan.blocks {
            let offset = self.geometry.cluster_offset(*cluster);
            table[*block_index as usize * 8..][..8].copy_from_slice(&offset.to_be_bytes());
        }
        self.write_blocks(&plan)?;
        let table_offset = self.geometry.cluster_offset(plan.table_cluster);
        write_all(self.storage, Purpose::RefcountTable, table_offset, &table)?;
        self.sync()?;
        let mut fields = table_offset.to_be_bytes().to_vec();
        fields.extend((plan.table_clusters as u32).to_be_bytes());
        self.write_header_bytes(TABLE_FIELDS_AT, &fields)?;
        self.sync()?;
        self.header.refcount_table_offset = table_offset;
        self.header.refcount_table_clusters = plan.table_clusters as u32;
        Ok(())
    }

    /// Writes the new blocks, neighbours at once.
    fn write_blocks(&self, plan: &Plan) -> Result<()> {
        let cluster_bytes = self.geometry.cluster_bytes() as usize;
        let (mut start, mut batch) = (0, Vec::new());
        for (block_index, cluster) in &plan.blocks {
            let offset = self.geometry.cluster_offset(*cluster);
            if offset != start + batch.len() as u64 || batch.len() + cluster_bytes > BATCH_BYTES {
                self.write_batch(start, &mut batch)?;
                start = offset;
            }
            let used = batch.len();
            batch.resize(used + cluster_bytes, 0);
            self.counts.render(&self.geometry, *block_index, &mut batch[used..]);
        }
        self.write_batch(start, &mut batch)
    }

    fn write_batch(&self, offset: u64, batch: &mut Vec<u8>) -> Result<()> {
        if !batch.is_empty() {
            write_all(self.storage, Purpose::RefcountBlock, offset, batch)?;
            batch.clear();
        }
        Ok(())
    }

    /// Counts the references to clusters that the file grows over. Answers whether there were any.
    fn adopt_outside(&mut self, plan: &mut Plan) -> Result<bool> {
        let end = self.counts.clusters();
        let beyond = self.outside.split_off(&end);
        let adopted = std::mem::replace(&mut self.outside, beyond);
        for (cluster, count) in &adopted {
            self.counts.add(*cluster, *count)?;
            let block_index = self.geometry.refcount_table_index(*cluster);
            if !plan.blocks.contains_key(&block_index) {
                plan.missing.insert(block_index);
            }
        }
        self.place_missing(plan)?;
        Ok(!adopted.is_empty())
    }

    fn is_free(&self, cluster: u64) -> bool {
        self.counts.get(cluster) == 0 && !self.outside.contains_key(&cluster)
    }

    /// Gives every block that has anything to count a cluster.
    fn plan_blocks(&mut self, plan: &mut Plan) -> Result<()> {
        let mut next = 0;
        while let Some(block_index) = self.counts.next_block(&self.geometry, next) {
            next = block_index + 1;
            if !self.counts.is_zero(&self.geometry, block_index) {
                plan.missing.insert(block_index);
            }
        }
        self.place_missing(plan)
    }

    fn place_missing(&mut self, plan: &mut Plan) -> Result<()> {
        while let Some(block_index) = plan.missing.pop_first() {
            if plan.blocks.contains_key(&block_index) {
                continue;
            }
            let cluster = self.take_run(plan, 1)?;
            plan.blocks.insert(block_index, cluster);
        }
        Ok(())
    }

    /// Gives the table a run long enough for all blocks, those for the run itself included.
    fn plan_table(&mut self, plan: &mut Plan) -> Result<()> {
        loop {
            let entries = plan.blocks.keys().next_back().map_or(1, |last| last + 1);
            if entries * 8 > MAX_REFCOUNT_TABLE_BYTES {
                return Err(Error::new(
                    ErrorKind::TooLarge,
                    format!("a refcount table for this file needs {entries} entries, the limit is 2^20"),
                ));
            }
            let needed = self.geometry.clusters_ceil(entries * 8);
            if needed <= plan.table_clusters {
                return Ok(());
            }
            for cluster in plan.table_cluster..plan.table_cluster + plan.table_clusters {
                self.counts.set(cluster, 0)?;
            }
            plan.table_clusters = needed;
            plan.table_cluster = self.take_run(plan, needed)?;
            self.place_missing(plan)?;
        }
    }

    /// Counts `clusters` free clusters in a row, the first that there are, and asks for the blocks they need.
    fn take_run(&mut self, plan: &mut Plan, clusters: u64) -> Result<u64> {
        plan.cursor = self.counts.next_free(plan.cursor);
        while !self.is_free(plan.cursor) {
            plan.cursor = self.counts.next_free(plan.cursor + 1);
        }
        let mut first = plan.cursor;
        let mut end = first;
        while end - first < clusters {
            if !self.is_free(end) {
                end = self.counts.next_free(end + 1) - 1;
                first = end + 1;
            }
            end += 1;
        }
        self.counts.grow(end)?;
        for cluster in first..end {
            self.counts.set(cluster, 1)?;
            let block_index = self.geometry.refcount_table_index(cluster);
            if !plan.blocks.contains_key(&block_index) {
                plan.missing.insert(block_index);
            }
        }
        Ok(first)
    }

    /// Takes free clusters in a row for `bytes` and stores their counts, not yet written back. Without a
    /// refcount block for them, all refcount structures are built anew.
    pub fn take_clusters(&mut self, bytes: u64) -> Result<u64> {
        let mut plan = Plan::default();
        let clusters = self.geometry.clusters_ceil(bytes.max(1));
        let first = self.take_run(&mut plan, clusters)?;
        let offset = self.geometry.cluster_offset(first);
        if self.has_blocks(&self.geometry, first, clusters) {
            for cluster in first..first + clusters {
                self.stored.set(self.storage, cluster, 1)?;
            }
            return Ok(offset);
        }
        let old_table = self.header.refcount_table_offset;
        let old_bytes = u64::from(self.header.refcount_table_clusters) << self.header.cluster_bits;
        let old_blocks: Vec<u64> = self.stored.table.iter().copied().filter(|e| *e != 0).collect();
        self.rebuild(false)?;
        let length = self.storage.length().map_err(|e| Error::host("length of the image", &e))?;
        self.stored = Stored::load(self.storage, &self.header, length)?;
        self.release_clusters(old_table, old_bytes)?;
        for block in old_blocks {
            self.release_clusters(block, self.geometry.cluster_bytes())?;
        }
        Ok(offset)
    }

    fn has_blocks(&self, geometry: &Geometry, first: u64, clusters: u64) -> bool {
        let blocks =
            geometry.refcount_table_index(first)..=geometry.refcount_table_index(first + clusters - 1);
        blocks.into_iter().all(|index| self.stored.entry(index) != 0)
    }

    /// Takes one reference from each cluster of a region, not yet written back.
    pub fn release_clusters(&mut self, offset: u64, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let last = self.geometry.cluster_index(offset.saturating_add(bytes - 1));
        for cluster in self.geometry.cluster_index(offset)..=last.min(self.counts.clusters()) {
            let count = self.counts.get(cluster);
            if count > 0 {
                self.counts.set(cluster, count - 1)?;
                self.stored.set(self.storage, cluster, count - 1)?;
                if count == 1 {
                    self.note_freed(cluster);
                }
            }
        }
        Ok(())
    }
}
