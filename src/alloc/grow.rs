//! New refcount blocks and larger refcount tables. What is new counts itself and is durable before anything
//! points to it (R5): a block at the next barrier that writes counts, a table at once.

use super::end::spare_after;
use super::entries::Entries;
use super::ledger::{refuse_header, Ledger};
use super::plan::Row;
use super::Shared;
use crate::error::{room, zeroed, Result};
use crate::format::{refcount, HostCluster};
use crate::meta::guard::Owner;
use crate::meta::Release;
use crate::storage::event::Event;
use crate::storage::Purpose;

/// Bytes of the file that new blocks count at least.
const LEAST_COUNTED_BYTES: u64 = 1 << 20;

impl Ledger {
    /// Makes the block that counts `cluster`, in `cluster` itself, which is free and the first without a count; and
    /// behind it those of the next clusters, as far as the file grows at once: blocks of small clusters count so few
    /// that one sync for each would be most of the work.
    pub(super) fn add_block(&mut self, shared: &Shared, cluster: u64) -> Result<()> {
        let geometry = self.geometry();
        shared.medium.storage().event(Event::RefcountBlockAlloc);
        if !self.table.has_entry_for(cluster) {
            return self.grow_table(shared, cluster);
        }
        let (index, slot) = (geometry.refcount_table_index(cluster), geometry.refcount_block_index(cluster));
        let per_block = geometry.refcount_block_entries();
        let ample = spare_after(&geometry, geometry.cluster_offset(cluster)).max(LEAST_COUNTED_BYTES);
        let most = (ample / geometry.cluster_bytes() / per_block).clamp(1, per_block - slot);
        let count = 1 + (1..most).take_while(|more| self.table.is_unused(index + more)).count() as u64;
        self.claim_for_metadata(shared, cluster, count)?;
        let mut bytes = zeroed("refcount blocks", count << geometry.cluster_bits)?;
        for own in slot..slot + count {
            refcount::set(&mut bytes, geometry.refcount_order, own, 1);
        }
        self.write_blocks_at(shared, cluster, cluster, bytes)
    }

    /// Makes the block that counts `cluster`, for which the table has an entry, in `home`: free, and counted by another
    /// block. A failure leaks it at most.
    pub(super) fn add_block_at(&mut self, shared: &Shared, cluster: u64, home: u64) -> Result<()> {
        self.raise(shared, home, 1, false)?;
        self.write_dirty(shared)?;
        let bytes = zeroed("refcount block", self.geometry().cluster_bytes())?;
        self.write_blocks_at(shared, cluster, home, bytes)
    }

    fn write_blocks_at(
        &mut self,
        shared: &Shared,
        cluster: u64,
        home: u64,
        mut bytes: Vec<u8>,
    ) -> Result<()> {
        let geometry = self.geometry();
        let length = bytes.len() as u64;
        let (table_index, offset) = (geometry.refcount_table_index(cluster), geometry.cluster_offset(home));
        shared.medium.storage().event(Event::RefcountBlockAllocWrite);
        shared.medium.write_unlinked(Purpose::RefcountBlock, offset, &bytes)?;
        shared.medium.storage().event(Event::RefcountBlockHookup);
        // The others are read when they are needed.
        bytes.truncate(geometry.cluster_bytes() as usize);
        self.table.adopt(shared, table_index, bytes)?;
        shared.guard.add(Owner::REFCOUNT_BLOCK, offset, length);
        self.table.link_blocks(table_index, offset, length >> geometry.cluster_bits);
        Ok(())
    }

    fn claim_for_metadata(&mut self, shared: &Shared, first: u64, count: u64) -> Result<()> {
        let geometry = self.geometry();
        shared.guard.check(
            Owner::NOBODY,
            geometry.cluster_offset(HostCluster(first)),
            count << geometry.cluster_bits,
        )?;
        refuse_header(shared, first)?;
        self.extend_file(shared, geometry.cluster_offset(first + count))?;
        self.note_used(first, count);
        Ok(())
    }

    /// Replaces the table by one half as large again, with the blocks that count table and blocks themselves.
    /// `start` is past everything that the old table can count, so all clusters from there on are free.
    fn grow_table(&mut self, shared: &Shared, start: u64) -> Result<()> {
        let geometry = self.geometry();
        shared.medium.storage().event(Event::RefcountTableGrow);
        let first_block = geometry.refcount_table_index(start);
        let least_entries = (self.table.entries.len() * 3 / 2).max(first_block + 2);
        let row = Row::new(&geometry, start, 0, first_block, least_entries)?;
        self.write_grown(shared, start, row)
    }

    fn write_grown(&mut self, shared: &Shared, start: u64, row: Row) -> Result<()> {
        let geometry = self.geometry();
        let per_block = geometry.refcount_block_entries();
        let (Row { blocks, table_clusters }, total) = (row, row.clusters());
        self.claim_for_metadata(shared, start, total)?;
        let length = table_clusters * (geometry.cluster_bytes() / 8);
        let mut entries = Entries::zeroes(length)?;
        entries.set_all(0, self.table.entries.stored().iter().copied());
        let first_index = start / per_block;
        let mut images = room("refcount blocks", blocks)?;
        let tell = |event| shared.medium.storage().event(event);
        tell(Event::RefcountTableBlocks);
        for i in 0..blocks {
            let (from, to) = ((first_index + i) * per_block, (first_index + i + 1) * per_block);
            let mut bytes = zeroed("refcount block", geometry.cluster_bytes())?;
            for cluster in from.max(start)..to.min(start + total) {
                refcount::set(&mut bytes, geometry.refcount_order, cluster - from, 1);
            }
            let offset = geometry.cluster_offset(start + i);
            shared.medium.write_unlinked(Purpose::RefcountBlock, offset, &bytes)?;
            entries.set(first_index + i, offset);
            images.push(bytes);
        }
        let table_offset = geometry.cluster_offset(start + blocks);
        let bytes = entries.bytes(0, length)?;
        tell(Event::RefcountTableWrite);
        shared.medium.write_unlinked(Purpose::RefcountTable, table_offset, &bytes)?;
        tell(Event::RefcountTableSwitch);
        let old = (self.table.offset, self.table.entries.len() * 8);
        shared.header.change(|h| {
            h.refcount_table_offset = table_offset;
            h.refcount_table_clusters = table_clusters as u32;
        })?;
        self.table.replace(entries, table_offset);
        shared.guard.add(
            Owner::REFCOUNT_BLOCK,
            geometry.cluster_offset(start),
            blocks << geometry.cluster_bits,
        );
        shared.guard.add(Owner::REFCOUNT_TABLE, table_offset, length * 8);
        shared.guard.remove(Owner::REFCOUNT_TABLE, old.0, old.1);
        for (i, bytes) in images.into_iter().enumerate() {
            self.table.adopt(shared, first_index + i as u64, bytes)?;
        }
        // The header is durable: nothing refers to the old table any more.
        let (first, count) = (geometry.cluster_index(old.0), geometry.clusters_ceil(old.1));
        let freed = Release::of(Owner::REFCOUNT_TABLE, HostCluster(first), count);
        self.lower(shared, freed, false).map(drop)
    }
}
