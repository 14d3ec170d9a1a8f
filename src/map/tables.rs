//! The L1 table, and the birth of L2 tables.

use super::{Claim, Map};
use crate::alloc::{Filled, Reserved};
use crate::error::{stock_hex, zeroed, Error, ErrorKind, Result};
use crate::format::entries::{L1Entry, RawL2};
use crate::format::{GuestCluster, HostCluster};
use crate::meta::guard::Owner;
use crate::meta::page::Change;
use crate::meta::Release;
use crate::storage::event::Event;
use crate::storage::medium::Ticket;
use crate::storage::Purpose;
use crate::sync::locked;
use std::sync::atomic::Ordering;

impl Map {
    /// The L1 entry `index`, checked.
    pub(super) fn l1_entry(&self, index: u64) -> Result<L1Entry> {
        if index >= self.l1_entries {
            return Ok(L1Entry(0));
        }
        let entry = L1Entry(self.l1.entry(index as usize).descriptor);
        let table = entry.table_offset();
        // Reserved bits are ignored, as the stock driver does, so that such an image can be read; a check
        // reports them.
        if self.geometry.in_cluster(table) != 0 {
            let rule = "L2 table offset must be a multiple of the cluster size";
            let stock = format!("L2 table offset {table:#x} unaligned (L1 index: {})", stock_hex(index));
            return Err(self.broken(Error::corrupt("L1 entry", index, entry.0, rule).in_stock_words(stock)));
        }
        Ok(entry)
    }

    /// Makes sure that the L2 table of a claimed cluster exists and is this L1 table's alone.
    pub fn own_table(&self, _claim: &Claim<'_>, cluster: GuestCluster) -> Result<()> {
        let l1_index = cluster.0 / self.geometry.l2_entry_count();
        if self.owns_table(l1_index)? && self.copied_table.load(Ordering::SeqCst) != l1_index + 1 {
            return Ok(());
        }
        let _birth = locked(self.birth.lock());
        if self.copied_table.load(Ordering::SeqCst) != 0 {
            // The barrier behind the last copy has failed.
            self.settle_copy()?;
        }
        let old = self.l1_entry(l1_index)?;
        if old.table_offset() != 0 && old.copied() {
            return Ok(());
        }
        if old.table_offset() == 0 {
            return self.make_table(l1_index, old);
        }
        // What changes in the copy let go of is counted down once the copy is durable. Until the L1 table leads
        // there after a power cut, too, the shared table still refers to it for this disk (R3).
        self.copied_table.store(l1_index + 1, Ordering::SeqCst);
        if let Err(e) = self.make_table(l1_index, old) {
            self.copied_table.store(0, Ordering::SeqCst);
            return Err(e);
        }
        self.settle_copy()
    }

    /// Makes the copy of a table durable, with the L1 entry that leads there. Called with `birth` held.
    fn settle_copy(&self) -> Result<()> {
        self.barrier()?;
        self.copied_table.store(0, Ordering::SeqCst);
        Ok(())
    }

    fn owns_table(&self, l1_index: u64) -> Result<bool> {
        let entry = self.l1_entry(l1_index)?;
        Ok(entry.table_offset() != 0 && entry.copied())
    }

    /// A new table, zero or a copy of the shared one, is whole before the L1 entry points to it (R5).
    fn make_table(&self, l1_index: u64, old: L1Entry) -> Result<()> {
        let Some(allocator) = &self.writer else {
            return Err(Error::new(ErrorKind::ReadOnly, "the image is open read-only"));
        };
        let geometry = &self.geometry;
        let bytes = geometry.cluster_bytes();
        let dropped = (old.table_offset() != 0)
            .then(|| Release::of(Owner::ANY_L2, HostCluster(geometry.cluster_index(old.table_offset())), 1));
        self.check_release(&dropped)?;
        let reserved = allocator.reserve(1)?;
        self.shared.medium.storage().event(Event::L2AllocWrite);
        let offset = geometry.cluster_offset(reserved.first_cluster());
        self.shared.guard.check(Owner(0), offset, bytes)?;
        let filled = self.fill_table(reserved, offset.0, old)?;
        allocator.write_blocks()?;
        self.shared.guard.add(Owner::ACTIVE_L2, offset.0, bytes);
        let first_cluster = GuestCluster(l1_index * geometry.l2_entry_count());
        let value = RawL2 { descriptor: L1Entry::owned(offset.0).0, bitmap: 0 };
        let change = Change { entry: l1_index as usize, value, after: filled.ticket(), dropped };
        let done = self.l1.update(change, &self.shared.medium, &*self.shared.readers, &self.list);
        debug_assert!(done, "the L1 page is never evicted");
        filled.keep();
        if old.table_offset() != 0 {
            // In a damaged image another entry may name it, too.
            if !self.has_table_at(old.table_offset()) {
                self.shared.guard.remove(Owner::ACTIVE_L2, old.table_offset(), bytes);
            }
            // Slices of the shared table are clean, for nobody may change them; the copy is read from now on.
            for slice in 0..geometry.l2_entry_count() >> self.slice_entry_bits {
                self.forget(self.slice_key(first_cluster) + slice);
            }
        }
        Ok(())
    }

    /// Writes a new table: zeroes, or a copy of the one that `old` leads to.
    fn fill_table<'a>(&self, reserved: Reserved<'a>, offset: u64, old: L1Entry) -> Result<Filled<'a>> {
        let (medium, bytes) = (&self.shared.medium, self.geometry.cluster_bytes());
        if old.table_offset() == 0 {
            return match reserved.filled_with_zeroes() {
                Ok(filled) => Ok(filled),
                Err(reserved) => Ok(reserved.filled(medium.zero_unlinked(Purpose::L2, offset, bytes)?)),
            };
        }
        let mut table = zeroed("L2 table", bytes)?;
        medium.read_table(Purpose::L2, old.table_offset(), &mut table)?;
        Ok(reserved.filled(medium.write_unlinked(Purpose::L2, offset, &table)?))
    }

    fn has_table_at(&self, offset: u64) -> bool {
        (0..self.l1_entries).any(|i| L1Entry(self.l1.entry(i as usize).descriptor).table_offset() == offset)
    }

    /// Guest offset past the last L2 table.
    pub fn tables_end(&self) -> u64 {
        let has_table = |i: &u64| L1Entry(self.l1.entry(*i as usize).descriptor).table_offset() != 0;
        let last = (0..self.l1_entries).rev().find(has_table);
        last.map_or(0, |i| (i + 1).saturating_mul(self.geometry.l2_table_guest_bytes()))
    }

    /// The L1 table as it is in memory, into the start of `bytes`, in disk order.
    pub fn copy_l1(&self, bytes: &mut [u8]) {
        for (index, out) in bytes.chunks_exact_mut(8).take(self.l1_entries as usize).enumerate() {
            out.copy_from_slice(&self.l1.entry(index).descriptor.to_be_bytes());
        }
    }

    /// Whether an L1 entry from number `first` on has a table.
    pub fn has_tables_from(&self, first: u64) -> bool {
        self.tables_end() > first.saturating_mul(self.geometry.l2_table_guest_bytes())
    }

    /// Guest bytes that the L1 table can map.
    pub fn room(&self) -> u64 {
        self.l1_entries.saturating_mul(self.geometry.l2_table_guest_bytes())
    }

    /// Clears the L1 entries from number `first` on. The caller is alone, lets go of what they led to once the L1 table
    /// is durable, and loads the image again.
    pub fn clear_entries(&self, first: u64) {
        for index in first..self.l1_entries {
            if self.l1.entry(index as usize) != RawL2::default() {
                let value = RawL2::default();
                let change = Change { entry: index as usize, value, after: Ticket::PAST, dropped: None };
                self.l1.update(change, &self.shared.medium, &*self.shared.readers, &self.list);
            }
        }
    }
}
