//! The refcount table and the blocks that are in memory. Every function is called with the ledger held.

use super::entries::Entries;
use super::Shared;
use crate::codec::is_zero;
use crate::error::{stock_hex, zeroed, Error, Result};
use crate::format::entries::REFCOUNT_TABLE_RESERVED;
use crate::format::geometry::{MAX_HOST_OFFSET, SECTOR_BYTES};
use crate::format::{be64s, refcount, Geometry};
use crate::meta::guard::Owner;
use crate::planted::{planted, Plant};
use crate::storage::Purpose;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The table is read in such pieces.
const READ_BYTES: usize = 8 << 10;

/// Most bytes of blocks that are kept because they cannot be written.
const MAX_HELD_BYTES: u64 = 64 << 20;

/// A refcount block in memory.
pub(super) struct Block {
    bytes: Vec<u8>,
    /// Dirty bytes `[from, to)`, sector-aligned; empty when equal.
    dirty: (usize, usize),
    used: u64,
}

impl Block {
    fn mark_dirty(&mut self, byte: u64) {
        let sector = byte as usize / SECTOR_BYTES as usize * SECTOR_BYTES as usize;
        let end = sector + SECTOR_BYTES as usize;
        self.dirty = match self.dirty {
            (from, to) if from == to => (sector, end),
            (from, to) => (from.min(sector), to.max(end)),
        };
    }
}

/// The table with its cache of blocks.
pub(super) struct RefcountTable {
    pub(super) geometry: Geometry,
    pub(super) entries: Entries,
    pub(super) offset: u64,
    blocks: BTreeMap<u64, Block>,
    /// Sectors of the table, by number, that the file may not have as they are here.
    dirty_sectors: BTreeSet<u64>,
    /// What dirty sectors lead to has been written and not synced since.
    unsynced: bool,
    capacity: usize,
    clock: u64,
}

impl RefcountTable {
    /// Reads the table; its size has been checked with the header.
    pub(super) fn load(shared: &Shared, capacity: usize) -> Result<Self> {
        let header = shared.header.header();
        let geometry = header.geometry();
        let bytes = u64::from(header.refcount_table_clusters) << header.cluster_bits;
        let mut entries = Entries::zeroes(bytes / 8)?;
        let mut piece = [0; READ_BYTES];
        for at in (0..bytes).step_by(READ_BYTES) {
            let part = &mut piece[..(bytes - at).min(READ_BYTES as u64) as usize];
            shared.medium.read_table(Purpose::RefcountTable, header.refcount_table_offset + at, part)?;
            if !is_zero(part) {
                entries.set_all(at / 8, be64s(part));
            }
        }
        shared.guard.add(Owner::REFCOUNT_TABLE, header.refcount_table_offset, bytes);
        let blocks =
            entries.stored().iter().map(|e| e & !REFCOUNT_TABLE_RESERVED).filter(|offset| *offset != 0);
        shared.guard.add_all(Owner::REFCOUNT_BLOCK, blocks, geometry.cluster_bytes());
        Ok(RefcountTable {
            geometry,
            entries,
            offset: header.refcount_table_offset,
            blocks: BTreeMap::new(),
            dirty_sectors: BTreeSet::new(),
            unsynced: false,
            capacity: capacity.max(2),
            clock: 0,
        })
    }

    /// Host offset of the block that counts `cluster_index`; `None` when there is none. An image whose entry is not
    /// aligned is marked corrupt.
    #[inline]
    pub(super) fn block_offset(&self, shared: &Shared, cluster_index: u64) -> Result<Option<u64>> {
        let index = self.geometry.refcount_table_index(cluster_index);
        let Some(entry) = self.entries.get(index) else { return Ok(None) };
        let offset = entry & !REFCOUNT_TABLE_RESERVED;
        if offset == 0 {
            return Ok(None);
        }
        if self.geometry.in_cluster(offset) != 0 || offset >= MAX_HOST_OFFSET {
            return Err(self.misplaced(shared, index, entry));
        }
        Ok(Some(offset))
    }

    #[cold]
    fn misplaced(&self, shared: &Shared, index: u64, entry: u64) -> Error {
        let rule = "block offset is not a multiple of the cluster size below 2^56";
        let block = stock_hex(entry & !REFCOUNT_TABLE_RESERVED);
        let stock = format!("Refblock offset {block} unaligned (reftable index: {})", stock_hex(index));
        let found = Error::corrupt("refcount table entry", index, entry, rule).in_stock_words(stock);
        match self.geometry.in_cluster(entry & !REFCOUNT_TABLE_RESERVED) {
            // A place that no file has is an error of the host's to the reference implementation.
            0 => found,
            _ => shared.header.mark_corrupt(found),
        }
    }

    /// The count of a cluster; 0 where there is no block.
    pub(super) fn get(&mut self, shared: &Shared, cluster_index: u64) -> Result<u64> {
        let Some(offset) = self.block_offset(shared, cluster_index)? else { return Ok(0) };
        let geometry = self.geometry;
        let block = self.block(shared, geometry.refcount_table_index(cluster_index), offset)?;
        Ok(refcount::get(&block.bytes, geometry.refcount_order, geometry.refcount_block_index(cluster_index)))
    }

    /// Gives each cluster of a run the count that `change` makes of its index and its old count. A failure
    /// says how many were changed before it.
    pub(super) fn change_run(
        &mut self,
        shared: &Shared,
        first: u64,
        cluster_count: u64,
        change: &mut dyn FnMut(u64, u64) -> Result<u64>,
    ) -> std::result::Result<(), (u64, Error)> {
        for (_, part) in self.geometry.by_refcount_block(first, cluster_count) {
            let done = self.change_in_block(shared, part.start, part.end, change);
            done.map_err(|(more, e)| (part.start - first + more, e))?;
        }
        Ok(())
    }

    /// As `change_run`, for clusters `[from, to)` of one block.
    fn change_in_block(
        &mut self,
        shared: &Shared,
        from: u64,
        to: u64,
        change: &mut dyn FnMut(u64, u64) -> Result<u64>,
    ) -> std::result::Result<(), (u64, Error)> {
        let (geometry, order) = (self.geometry, self.geometry.refcount_order);
        let table_index = geometry.refcount_table_index(from);
        let Some(offset) = self.block_offset(shared, from).map_err(|e| (0, e))? else {
            for cluster in from..to {
                if change(cluster, 0).map_err(|e| (cluster - from, e))? != 0 {
                    let rule = "no refcount block for a cluster in use";
                    let e = Error::corrupt("refcount table entry", table_index, 0, rule);
                    return Err((cluster - from, e));
                }
            }
            return Ok(());
        };
        let block = self.block(shared, table_index, offset).map_err(|e| (0, e))?;
        let start = geometry.refcount_block_index(from);
        for cluster in from..to {
            let index = start + (cluster - from);
            let old = refcount::get(&block.bytes, order, index);
            let new = change(cluster, old).map_err(|e| (cluster - from, e))?;
            if new != old {
                refcount::set(&mut block.bytes, order, index, new);
                block.mark_dirty(refcount::byte_of(order, index));
            }
        }
        Ok(())
    }

    /// Changes the counts of a run, as many at once as one answer fits. `change` is asked about clusters `[from, to)`
    /// with their least and largest count; it answers what to add to each, or `None` when they need different
    /// answers: then it is asked about each alone. A failure says how many were changed before it.
    pub(super) fn shift_run(
        &mut self,
        shared: &Shared,
        first: u64,
        cluster_count: u64,
        change: &mut dyn FnMut(Range<u64>, u64, u64) -> Result<Option<i64>>,
    ) -> std::result::Result<(), (u64, Error)> {
        let (order, per_block) = (self.geometry.refcount_order, self.geometry.refcount_block_entries());
        for (index, part) in self.geometry.by_refcount_block(first, cluster_count) {
            let before = part.start - first;
            let failed = |e| (before, e);
            if let Some(offset) = self.block_offset(shared, part.start).map_err(failed)? {
                let block = self.block(shared, index, offset).map_err(failed)?;
                let base = index * per_block;
                let (from, to) = (part.start - base, part.end - base);
                let (least, most) = refcount::bounds(&block.bytes, order, from, to);
                match change(part.clone(), least, most).map_err(failed)? {
                    Some(0) => continue,
                    Some(amount) => {
                        refcount::shift(&mut block.bytes, order, from, to, amount);
                        block.mark_dirty(refcount::byte_of(order, from));
                        block.mark_dirty(refcount::byte_of(order, to - 1));
                        continue;
                    }
                    None => {}
                }
            }
            let mut single = |cluster: u64, old: u64| {
                let amount = change(cluster..cluster + 1, old, old)?;
                Ok(old.wrapping_add_signed(amount.unwrap_or(0)))
            };
            let done = self.change_in_block(shared, part.start, part.end, &mut single);
            done.map_err(|(more, e)| (before + more, e))?;
        }
        Ok(())
    }

    /// Least and largest count of a run.
    pub(super) fn bounds(&mut self, shared: &Shared, first: u64, cluster_count: u64) -> Result<(u64, u64)> {
        let geometry = self.geometry;
        let mut both = (u64::MAX, 0);
        for (index, part) in geometry.by_refcount_block(first, cluster_count) {
            let (least, most) = match self.block_offset(shared, part.start)? {
                None => (0, 0),
                Some(offset) => {
                    let block = self.block(shared, index, offset)?;
                    let base = index * geometry.refcount_block_entries();
                    refcount::bounds(
                        &block.bytes,
                        geometry.refcount_order,
                        part.start - base,
                        part.end - base,
                    )
                }
            };
            both = (both.0.min(least), both.1.max(most));
        }
        Ok(both)
    }

    /// One past the last cluster of `[least, end)` whose count is not zero; `least` when there is none. Costs what
    /// the table holds, however long the file is.
    pub(super) fn used_end(&mut self, shared: &Shared, least: u64, end: u64) -> Result<u64> {
        let (order, per_block) = (self.geometry.refcount_order, self.geometry.refcount_block_entries());
        let covered = (self.entries.stored().len() as u64).saturating_mul(per_block);
        let mut end = end.min(covered);
        while end > least {
            let index = (end - 1) / per_block;
            let from = (index * per_block).max(least);
            if let Some(offset) = self.block_offset(shared, end - 1)? {
                let block = self.block(shared, index, offset)?;
                let counted = |c: &u64| refcount::get(&block.bytes, order, *c - index * per_block) != 0;
                if let Some(last) = (from..end).rev().find(counted) {
                    return Ok(last + 1);
                }
            }
            end = from;
        }
        Ok(least)
    }

    /// First cluster at or after `from` (and below `limit`) whose count is zero, within the block of `from`.
    pub(super) fn first_free_in_block(
        &mut self,
        shared: &Shared,
        from: u64,
        limit: u64,
    ) -> Result<Option<u64>> {
        let geometry = self.geometry;
        let Some(offset) = self.block_offset(shared, from)? else { return Ok(Some(from)) };
        let block = self.block(shared, geometry.refcount_table_index(from), offset)?;
        let start = geometry.refcount_block_index(from);
        let base = from - start;
        let end = geometry.refcount_block_entries().min(limit.saturating_sub(base));
        Ok(refcount::first_zero(&block.bytes, geometry.refcount_order, start, end).map(|i| base + i))
    }

    fn block(&mut self, shared: &Shared, table_index: u64, offset: u64) -> Result<&mut Block> {
        self.clock += 1;
        if !self.blocks.contains_key(&table_index) {
            self.make_room(shared)?;
            let mut bytes = zeroed("refcount block", self.geometry.cluster_bytes())?;
            shared.medium.read_table(Purpose::RefcountBlock, offset, &mut bytes)?;
            self.blocks.insert(table_index, Block { bytes, dirty: (0, 0), used: 0 });
        }
        let clock = self.clock;
        let block = self.blocks.entry(table_index).or_insert_with(|| unreachable!("inserted above"));
        block.used = clock;
        Ok(block)
    }

    fn make_room(&mut self, shared: &Shared) -> Result<()> {
        while self.blocks.len() >= self.capacity {
            let Some((&oldest, _)) = self.blocks.iter().min_by_key(|(_, b)| b.used) else { return Ok(()) };
            match self.write_block(shared, oldest) {
                Ok(()) => self.blocks.remove(&oldest),
                Err(e) => return self.hold_dirty(shared, e),
            };
        }
        Ok(())
    }

    /// A host that takes no writes must not keep counts from being changed back: what is dirty stays in memory, beyond
    /// the cache's size, until it can be written.
    #[cold]
    fn hold_dirty(&mut self, shared: &Shared, failure: Error) -> Result<()> {
        shared.medium.latch().check()?;
        let clean = self.blocks.iter().filter(|(_, b)| b.dirty.0 == b.dirty.1).min_by_key(|(_, b)| b.used);
        if let Some((&index, _)) = clean {
            self.blocks.remove(&index);
            return Ok(());
        }
        let most = (MAX_HELD_BYTES >> self.geometry.cluster_bits) as usize;
        match self.blocks.len() < self.capacity.max(most) {
            true => Ok(()),
            false => Err(failure),
        }
    }

    /// Takes a block that has just been written whole.
    pub(super) fn adopt(&mut self, shared: &Shared, table_index: u64, bytes: Vec<u8>) -> Result<()> {
        self.make_room(shared)?;
        self.clock += 1;
        self.blocks.insert(table_index, Block { bytes, dirty: (0, 0), used: self.clock });
        Ok(())
    }

    fn write_block(&mut self, shared: &Shared, table_index: u64) -> Result<()> {
        let home = self.entries.get(table_index).unwrap_or(0) & !REFCOUNT_TABLE_RESERVED;
        let Some(block) = self.blocks.get(&table_index) else { return Ok(()) };
        let (from, to) = block.dirty;
        if from == to {
            return Ok(());
        }
        // H1: what one of two headers leads to may be counted less in memory already.
        shared.header.decide()?;
        self.unsynced |= !self.dirty_sectors.is_empty();
        let Some(block) = self.blocks.get_mut(&table_index) else { return Ok(()) };
        let at = home + from as u64;
        shared.guard.check_table_write(Purpose::RefcountBlock, at, (to - from) as u64)?;
        shared.medium.write_live(Purpose::RefcountBlock, at, &block.bytes[from..to])?;
        block.dirty = (0, 0);
        Ok(())
    }

    /// Writes every dirty block; counts may be written at any time.
    pub(super) fn write_blocks(&mut self, shared: &Shared) -> Result<()> {
        let mut dirty: Vec<u64> =
            self.blocks.iter().filter(|(_, b)| b.dirty.0 != b.dirty.1).map(|(i, _)| *i).collect();
        dirty.sort_unstable();
        for index in dirty {
            self.write_block(shared, index)?;
        }
        Ok(())
    }

    /// Writes every dirty block and what leads to new ones, which takes a sync in between (R5).
    pub(super) fn write_dirty(&mut self, shared: &Shared) -> Result<()> {
        self.write_blocks(shared)?;
        match self.dirty_sectors.is_empty() {
            true => Ok(()),
            false => self.write_sectors(shared),
        }
    }

    /// Whether the table is long enough for the block that counts `cluster`.
    pub(super) fn has_entry_for(&self, cluster: u64) -> bool {
        self.geometry.refcount_table_index(cluster) < self.entries.len()
    }

    /// Whether the table has an entry for block `table_index`, which is free.
    pub(super) fn is_unused(&self, table_index: u64) -> bool {
        self.entries.get(table_index) == Some(0)
    }

    /// Sets the table entries of `count` blocks that have been written, one after the other from `block_offset` on. They
    /// are in the file once somebody needs the counts there: no allocation waits for a sync.
    pub(super) fn link_blocks(&mut self, table_index: u64, block_offset: u64, count: u64) {
        for number in 0..count {
            let offset = block_offset + (number << self.geometry.cluster_bits);
            self.entries.set(table_index + number, offset);
            self.dirty_sectors.insert((table_index + number) * 8 / SECTOR_BYTES);
        }
        self.unsynced = true;
    }

    #[cold]
    fn write_sectors(&mut self, shared: &Shared) -> Result<()> {
        if std::mem::take(&mut self.unsynced) && !planted(Plant::NewBlockNotSynced) {
            shared.medium.sync_step()?;
        }
        let per_sector = SECTOR_BYTES / 8;
        while let Some(&first) = self.dirty_sectors.first() {
            let mut end = first + 1;
            while self.dirty_sectors.contains(&end) {
                end += 1;
            }
            let bytes = self.entries.bytes(first * per_sector, (end * per_sector).min(self.entries.len()))?;
            let at = self.offset + first * SECTOR_BYTES;
            shared.guard.check_table_write(Purpose::RefcountTable, at, bytes.len() as u64)?;
            shared.medium.write_live(Purpose::RefcountTable, at, &bytes)?;
            (first..end).for_each(|sector| {
                self.dirty_sectors.remove(&sector);
            });
        }
        Ok(())
    }

    /// Takes another table, which the file has.
    pub(super) fn replace(&mut self, entries: Entries, offset: u64) {
        (self.entries, self.offset) = (entries, offset);
        self.dirty_sectors.clear();
        self.unsynced = false;
    }
}
