//! Refcounts of another width: a new table with new blocks beside the old ones, put in force by one header write.
//!
//! ```text
//! 1. choose clusters that are free for a block wherever anything is counted, and a run for the table; they count
//!    themselves, which may ask for more blocks, until nothing is missing
//! 2. write blocks and table: counts as they are, one more for each new cluster, one less for each old one
//! 3. sync, header with table and width in one sector, sync
//! ```
//!
//! The old structures know nothing of the new ones and the new ones nothing of the old: a power cut leaves either,
//! without a leak, and at most a longer file. The caller is alone, has settled everything, and loads the image anew.

use super::ledger::{refuse_header, Ledger};
use super::{Allocator, Shared};
use crate::error::{room, zeroed, Error, ErrorKind, Result};
use crate::format::entries::REFCOUNT_TABLE_RESERVED;
use crate::format::geometry::MAX_REFCOUNT_TABLE_BYTES;
use crate::format::{index_in_memory, refcount, Geometry};
use crate::meta::guard::Owner;
use crate::storage::Purpose;
use std::ops::Range;

/// `false`: the caller asks to stop.
type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

impl Allocator {
    /// Gives every refcount 2^`order` bits. Refused where a count does not fit; a failure leaves the old width.
    pub fn change_width(&self, order: u32, progress: Progress<'_>) -> Result<()> {
        let mut ledger = self.lock();
        let storage = self.shared.medium.storage();
        let length = storage.length().map_err(|e| Error::host("length of the image file", &e))?;
        let mut plan = Plan::new(&ledger, &self.shared, order)?;
        let done = plan.carry_out(&mut ledger, &self.shared, progress);
        // Whatever becomes of it: there may be bytes in these clusters.
        ledger.note_written(plan.new.last().map_or(0, |last| last + 1));
        let longer = storage.length().is_ok_and(|now| now > length);
        let shared = &self.shared;
        let decided = || shared.medium.latch().check().and_then(|()| shared.header.decide()).is_ok();
        if done.is_err() && longer && decided() {
            // What has been written belongs to nobody; whether it stays is no reason for another failure.
            let _ = storage.set_length(length);
        }
        done
    }
}

/// Where the new structures go.
struct Plan {
    geometry: Geometry,
    /// Clusters of the old structures; the blocks' in order.
    old_blocks: Vec<u64>,
    old_table: Range<u64>,
    /// Clusters of the new ones, in order.
    new: Vec<u64>,
    /// Host cluster of each new block, by index in the table; 0 for none.
    blocks: Vec<u64>,
    /// Blocks that may have no cluster yet.
    missing: Vec<u64>,
    table_cluster: u64,
    table_clusters: u64,
    /// No cluster before this one is free.
    cursor: u64,
}

impl Plan {
    /// Fails where the old structures are not the table's own: their counts are going to fall.
    fn new(ledger: &Ledger, shared: &Shared, order: u32) -> Result<Plan> {
        let old = ledger.geometry();
        let mut clusters = room("list of the refcount blocks", ledger.table.entries.len() as u64)?;
        for entry in &ledger.table.entries {
            let block = entry & !REFCOUNT_TABLE_RESERVED;
            if block != 0 {
                shared.guard.check_release(Owner::REFCOUNT_BLOCK, old.cluster_index(block), 1)?;
                clusters.push(old.cluster_index(block));
            }
        }
        clusters.sort_unstable();
        let table = old.cluster_index(ledger.table.offset);
        let table_end = table + old.clusters_ceil(ledger.table.entries.len() as u64 * 8);
        shared.guard.check_release(Owner::REFCOUNT_TABLE, table, table_end - table)?;
        Ok(Plan {
            geometry: Geometry { refcount_order: order, ..old },
            old_blocks: clusters,
            old_table: table..table_end,
            new: Vec::new(),
            blocks: Vec::new(),
            missing: Vec::new(),
            table_cluster: 0,
            table_clusters: 0,
            cursor: 0,
        })
    }

    fn carry_out(&mut self, ledger: &mut Ledger, shared: &Shared, progress: Progress<'_>) -> Result<()> {
        self.find_blocks(ledger, shared)?;
        self.place(ledger, shared)?;
        let blocks = self.blocks.iter().enumerate().filter(|(_, cluster)| **cluster != 0);
        let total = blocks.clone().count() as u64 + 1;
        let mut table = zeroed("refcount table", self.table_clusters << self.geometry.cluster_bits)?;
        let mut bytes = zeroed("refcount block", self.geometry.cluster_bytes())?;
        for (done, (index, cluster)) in blocks.enumerate() {
            if !progress(done as u64, total) {
                return Err(Error::new(ErrorKind::Cancelled, "refcount_bits: the caller asked to stop"));
            }
            let offset = self.geometry.cluster_offset(*cluster);
            self.render(ledger, shared, index as u64, &mut bytes)?;
            shared.medium.write_unlinked(Purpose::RefcountBlock, offset, &bytes)?;
            table[index * 8..][..8].copy_from_slice(&offset.to_be_bytes());
        }
        let table_offset = self.geometry.cluster_offset(self.table_cluster);
        shared.medium.write_unlinked(Purpose::RefcountTable, table_offset, &table)?;
        shared.header.change(|h| {
            h.refcount_table_offset = table_offset;
            h.refcount_table_clusters = self.table_clusters as u32;
            h.refcount_order = self.geometry.refcount_order;
        })
    }

    /// The count that a cluster will have.
    fn count(&self, ledger: &mut Ledger, shared: &Shared, cluster: u64) -> Result<u64> {
        let count = ledger.count(shared, cluster)?;
        let is_old = self.old_table.contains(&cluster) || self.old_blocks.binary_search(&cluster).is_ok();
        let kept = if is_old { count.saturating_sub(1) } else { count };
        Ok(kept + u64::from(self.new.binary_search(&cluster).is_ok()))
    }

    /// Every block that has anything to count.
    fn find_blocks(&mut self, ledger: &mut Ledger, shared: &Shared) -> Result<()> {
        let (per_old, max) = (ledger.geometry().refcount_block_entries(), self.geometry.refcount_max());
        let per_new = self.geometry.refcount_block_entries();
        for index in 0..ledger.table.entries.len() as u64 {
            let (mut at, end) = (index * per_old, (index + 1) * per_old);
            let (_, most) = ledger.table.bounds(shared, at, per_old)?;
            while most > 0 && at < end {
                let count = self.count(ledger, shared, at)?;
                if count > max {
                    return Err(self.does_not_fit(at, count));
                }
                let block = at / per_new;
                if count > 0 && self.missing.last() != Some(&block) {
                    self.ask_for(block)?;
                }
                // Where nothing can be too large, one count for a block is enough.
                let known = most <= max && self.missing.last() == Some(&block);
                at = if known { (at / per_new + 1) * per_new } else { at + 1 };
            }
        }
        Ok(())
    }

    /// Notes that block `index` is needed.
    fn ask_for(&mut self, index: u64) -> Result<()> {
        if (index + 1) * 8 > MAX_REFCOUNT_TABLE_BYTES {
            let text = format!("a refcount table of {} entries is needed, the limit is 2^20", index + 1);
            return Err(Error::new(ErrorKind::TooLarge, text));
        }
        reserve_one(&mut self.missing)?;
        self.missing.push(index);
        Ok(())
    }

    fn does_not_fit(&self, cluster: u64, count: u64) -> Error {
        Error::invalid(format!(
            "Cannot decrease refcount entry width to {} bits: Cluster at offset {:#x} has a refcount of {count}",
            1u64 << self.geometry.refcount_order,
            self.geometry.cluster_offset(cluster)
        ))
    }

    fn has_block(&self, index: u64) -> bool {
        self.blocks.get(index_in_memory(index)).is_some_and(|cluster| *cluster != 0)
    }

    /// Gives all blocks and the table their clusters.
    fn place(&mut self, ledger: &mut Ledger, shared: &Shared) -> Result<()> {
        // The first ones first.
        self.missing.reverse();
        loop {
            while let Some(index) = self.missing.pop() {
                if !self.has_block(index) {
                    let cluster = self.take(ledger, shared, 1)?;
                    let end = index_in_memory(index).saturating_add(1);
                    if end > self.blocks.len() {
                        let more = self.blocks.try_reserve(end - self.blocks.len());
                        more.map_err(|_| no_memory())?;
                        self.blocks.resize(end, 0);
                    }
                    self.blocks[index as usize] = cluster;
                }
            }
            let needed = self.geometry.clusters_ceil(self.blocks.len().max(1) as u64 * 8);
            if needed <= self.table_clusters {
                return Ok(());
            }
            let table = self.table_cluster..self.table_cluster + self.table_clusters;
            self.new.retain(|cluster| !table.contains(cluster));
            self.table_clusters = needed;
            self.table_cluster = self.take(ledger, shared, needed)?;
        }
    }

    /// `count` free clusters in a row, the first that there are, and asks for the blocks that count them.
    fn take(&mut self, ledger: &mut Ledger, shared: &Shared, count: u64) -> Result<u64> {
        let mut first = self.next_free(ledger, shared, self.cursor)?;
        if count == 1 {
            self.cursor = first + 1;
        }
        let mut end = first + 1;
        while end - first < count {
            let free = self.next_free(ledger, shared, end)?;
            first = if free == end { first } else { free };
            end = free + 1;
        }
        let geometry = self.geometry;
        shared.guard.check(Owner(0), geometry.cluster_offset(first), count << geometry.cluster_bits)?;
        refuse_header(shared, first)?;
        for cluster in first..end {
            reserve_one(&mut self.new)?;
            let place = self.new.partition_point(|c| *c < cluster);
            self.new.insert(place, cluster);
            let index = geometry.refcount_table_index(cluster);
            if !self.has_block(index) && self.missing.last() != Some(&index) {
                self.ask_for(index)?;
            }
        }
        Ok(first)
    }

    fn next_free(&self, ledger: &mut Ledger, shared: &Shared, from: u64) -> Result<u64> {
        let mut at = ledger.first_free(shared, from)?;
        while self.new.binary_search(&at).is_ok() {
            at = ledger.first_free(shared, at + 1)?;
        }
        Ok(at)
    }

    fn render(&self, ledger: &mut Ledger, shared: &Shared, index: u64, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        let per_block = self.geometry.refcount_block_entries();
        for slot in 0..per_block {
            let count = self.count(ledger, shared, index * per_block + slot)?;
            if count > 0 {
                refcount::set(bytes, self.geometry.refcount_order, slot, count);
            }
        }
        Ok(())
    }
}

fn no_memory() -> Error {
    Error::new(ErrorKind::NoMemory, "places of new refcount blocks: no memory")
}

fn reserve_one(list: &mut Vec<u64>) -> Result<()> {
    list.try_reserve(1).map_err(|_| no_memory())
}
