//! Refcounts of another width: a new table with new blocks beside the old ones, put in force by one header write.
//!
//! ```text
//! 1. choose free clusters for a block wherever anything is counted, and for the table (`plan`)
//! 2. write blocks and table: counts as they are, one more for each new cluster, one less for each old one
//! 3. sync, header with table and width in one sector, sync
//! ```
//!
//! The old structures know nothing of the new ones and the new ones nothing of the old: a power cut leaves either,
//! without a leak, and at most a longer file. The caller is alone, has settled everything, and loads the image anew.

use super::ledger::{refuse_header, Ledger};
use super::plan::{Plan, Room};
use super::{Allocator, Shared};
use crate::error::{room, zeroed, Error, ErrorKind, Result};
use crate::format::entries::REFCOUNT_TABLE_RESERVED;
use crate::format::{refcount, table_bytes, Geometry, HostCluster, HostOffset};
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
        let mut change = WidthChange::new(&mut ledger, &self.shared, order)?;
        let done = change.carry_out(progress);
        let last_new = change.new.last().copied();
        // Whatever becomes of it: there may be bytes in these clusters.
        ledger.note_written(last_new.map_or(0, |last| last + 1));
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

/// The change under way.
struct WidthChange<'a> {
    ledger: &'a mut Ledger,
    shared: &'a Shared,
    /// With the new width.
    geometry: Geometry,
    /// Clusters of the old structures; the blocks' in order.
    old_blocks: Vec<u64>,
    old_table: Range<u64>,
    /// Clusters of the new ones, in order.
    new: Vec<u64>,
}

impl Room for WidthChange<'_> {
    fn next_free(&mut self, from: u64) -> Result<u64> {
        let mut at = self.ledger.first_free(self.shared, from)?;
        while self.new.binary_search(&at).is_ok() {
            at = self.ledger.first_free(self.shared, at + 1)?;
        }
        Ok(at)
    }

    fn take(&mut self, first: u64, count: u64) -> Result<()> {
        let (offset, bytes) = (self.geometry.cluster_offset(first), count << self.geometry.cluster_bits);
        self.shared.guard.check(Owner::NOBODY, HostOffset(offset), bytes)?;
        refuse_header(self.shared, first)?;
        let no_memory = |_| Error::new(ErrorKind::NoMemory, "clusters of new refcount structures: no memory");
        self.new.try_reserve(count as usize).map_err(no_memory)?;
        let place = self.new.partition_point(|cluster| *cluster < first);
        self.new.splice(place..place, first..first + count);
        Ok(())
    }

    fn give_back(&mut self, first: u64, count: u64) -> Result<()> {
        self.new.retain(|cluster| !(first..first + count).contains(cluster));
        Ok(())
    }
}

impl<'a> WidthChange<'a> {
    /// Fails where the old structures are not the table's own: their counts are going to fall.
    fn new(ledger: &'a mut Ledger, shared: &'a Shared, order: u32) -> Result<WidthChange<'a>> {
        let old = ledger.geometry();
        let mut clusters = room("list of the refcount blocks", ledger.table.entries.stored().len() as u64)?;
        for entry in ledger.table.entries.stored() {
            let block = entry & !REFCOUNT_TABLE_RESERVED;
            if block != 0 {
                shared.guard.check_release(
                    Owner::REFCOUNT_BLOCK,
                    HostCluster(old.cluster_index(block)),
                    1,
                )?;
                clusters.push(old.cluster_index(block));
            }
        }
        clusters.sort_unstable();
        let table = old.cluster_index(ledger.table.offset);
        let table_end = table + old.clusters_ceil(ledger.table.entries.len() * 8);
        shared.guard.check_release(Owner::REFCOUNT_TABLE, HostCluster(table), table_end - table)?;
        let geometry = Geometry { refcount_order: order, ..old };
        let old_table = table..table_end;
        Ok(WidthChange { ledger, shared, geometry, old_blocks: clusters, old_table, new: Vec::new() })
    }

    fn carry_out(&mut self, progress: Progress<'_>) -> Result<()> {
        let mut plan = Plan::new(self.geometry, 0);
        self.find_blocks(&mut plan)?;
        plan.place_all(self)?;
        let total = plan.blocks().count() as u64 + 1;
        let mut bytes = zeroed("refcount block", self.geometry.cluster_bytes())?;
        let medium = &self.shared.medium;
        for (done, (index, cluster)) in (0..).zip(plan.blocks()) {
            if !progress(done, total) {
                return Err(Error::new(ErrorKind::Cancelled, "refcount_bits: the caller asked to stop"));
            }
            self.render(index, &mut bytes)?;
            let offset = self.geometry.cluster_offset(cluster);
            medium.write_unlinked(Purpose::RefcountBlock, offset, &bytes)?;
        }
        let table = table_bytes("refcount table", &plan.table_entries()?)?;
        medium.write_unlinked(Purpose::RefcountTable, plan.table_offset(), &table)?;
        self.shared.header.change(|h| {
            h.refcount_table_offset = plan.table_offset();
            h.refcount_table_clusters = plan.table_clusters() as u32;
            h.refcount_order = self.geometry.refcount_order;
        })
    }

    /// The count that a cluster will have.
    fn count(&mut self, cluster: u64) -> Result<u64> {
        let count = self.ledger.count(self.shared, cluster)?;
        let is_old = self.old_table.contains(&cluster) || self.old_blocks.binary_search(&cluster).is_ok();
        let kept = if is_old { count.saturating_sub(1) } else { count };
        Ok(kept + u64::from(self.new.binary_search(&cluster).is_ok()))
    }

    /// Asks for every block that has anything to count.
    fn find_blocks(&mut self, plan: &mut Plan) -> Result<()> {
        let (per_old, max) = (self.ledger.geometry().refcount_block_entries(), self.geometry.refcount_max());
        let per_new = self.geometry.refcount_block_entries();
        let mut asked = None;
        for index in 0..self.ledger.table.entries.stored().len() as u64 {
            let (mut at, end) = (index * per_old, (index + 1) * per_old);
            let (_, most) = self.ledger.table.bounds(self.shared, at, per_old)?;
            while most > 0 && at < end {
                let count = self.count(at)?;
                if count > max {
                    return Err(self.does_not_fit(at, count));
                }
                let block = at / per_new;
                if count > 0 && asked != Some(block) {
                    plan.need(block)?;
                    asked = Some(block);
                }
                // Where nothing can be too large, one count for a block is enough.
                let known = most <= max && asked == Some(block);
                at = if known { (block + 1) * per_new } else { at + 1 };
            }
        }
        Ok(())
    }

    fn does_not_fit(&self, cluster: u64, count: u64) -> Error {
        Error::invalid(format!(
            "Cannot decrease refcount entry width to {} bits: Cluster at offset {:#x} has a refcount of {count}",
            self.geometry.refcount_bits(),
            self.geometry.cluster_offset(cluster)
        ))
    }

    fn render(&mut self, index: u64, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        let per_block = self.geometry.refcount_block_entries();
        for slot in 0..per_block {
            let count = self.count(index * per_block + slot)?;
            if count > 0 {
                refcount::set(bytes, self.geometry.refcount_order, slot, count);
            }
        }
        Ok(())
    }
}
