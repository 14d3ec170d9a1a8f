//! New refcount structures from the counted references, beside the old ones.
//!
//! ```text
//! 1. choose free clusters for a block wherever anything is counted, and for the table (`alloc::plan`)
//! 2. write blocks and table          nothing points to them
//! 3. sync
//! 4. header: table offset and size   one sector
//! 5. sync
//! ```
//!
//! The counts still hold the references of the old structures, so a crash between 4 and the next step leaks
//! them and no more. Letting go of them is the next comparison's work.

use super::pass::Pass;
use super::stored::Stored;
use crate::alloc::plan::{find_run, Plan, Room};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{table_bytes, Geometry};
use crate::storage::{write_all, Purpose};

/// Bytes of new neighbouring blocks that are written at once, if a block is not larger.
const BATCH_BYTES: usize = 256 << 10;

impl Room for Pass<'_> {
    fn next_free(&mut self, from: u64) -> Result<u64> {
        let mut at = self.counts.next_free(from);
        while self.outside.contains_key(&at) {
            at = self.counts.next_free(at + 1);
        }
        Ok(at)
    }

    fn take(&mut self, first: u64, count: u64) -> Result<()> {
        self.counts.grow(first + count)?;
        (first..first + count).try_for_each(|cluster| self.counts.set(cluster, 1))
    }

    fn give_back(&mut self, first: u64, count: u64) -> Result<()> {
        (first..first + count).try_for_each(|cluster| self.counts.set(cluster, 0))
    }
}

impl Pass<'_> {
    /// Writes new refcount structures and points the header to them.
    ///
    /// `only_at_end`: some pointer is broken, so clusters that look free may be what it once pointed to;
    /// the new structures then go behind everything.
    pub fn rebuild(&mut self, only_at_end: bool) -> Result<()> {
        let from = if only_at_end { self.counts.clusters() } else { 0 };
        if self.outside.len() >= super::metadata::MAX_OUTSIDE {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "too many references past the end of the file to build refcount structures there",
            ));
        }
        let mut plan = Plan::new(self.geometry, from);
        self.need_blocks(&mut plan)?;
        plan.place_all(self)?;
        while self.adopt_outside(&mut plan)? {
            plan.place_all(self)?;
        }
        self.write_blocks(&plan)?;
        let table = table_bytes("refcount table", &plan.table_entries()?)?;
        write_all(self.storage, Purpose::RefcountTable, plan.table_offset(), &table)?;
        self.sync()?;
        self.header.refcount_table_offset = plan.table_offset();
        self.header.refcount_table_clusters = plan.table_clusters() as u32;
        self.write_header_fields()?;
        self.sync()
    }

    /// Writes the new blocks, neighbours at once.
    fn write_blocks(&self, plan: &Plan) -> Result<()> {
        let cluster_bytes = self.geometry.cluster_bytes() as usize;
        let (mut start, mut batch) = (0, Vec::new());
        for (block_index, cluster) in plan.blocks() {
            let offset = self.geometry.cluster_offset(cluster);
            if offset != start + batch.len() as u64 || batch.len() + cluster_bytes > BATCH_BYTES {
                self.write_batch(start, &mut batch)?;
                start = offset;
            }
            let used = batch.len();
            batch.resize(used + cluster_bytes, 0);
            self.counts.render(&self.geometry, block_index, &mut batch[used..]);
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
            plan.need_for(*cluster, 1)?;
        }
        Ok(!adopted.is_empty())
    }

    /// Asks for every block that has anything to count.
    fn need_blocks(&mut self, plan: &mut Plan) -> Result<()> {
        let mut next = 0;
        while let Some(block_index) = self.counts.next_block(&self.geometry, next) {
            next = block_index + 1;
            if !self.counts.is_zero(&self.geometry, block_index) {
                plan.need(block_index)?;
            }
        }
        Ok(())
    }

    /// Takes free clusters in a row for `bytes` and stores their counts, not yet written back. Without a
    /// refcount block for them, all refcount structures are built anew.
    pub fn take_clusters(&mut self, bytes: u64) -> Result<u64> {
        let clusters = self.geometry.clusters_ceil(bytes.max(1));
        let first = find_run(self, 0, clusters)?;
        self.take(first, clusters)?;
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
