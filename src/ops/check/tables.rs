//! References of the guest's tables: L1 tables, and which L2 tables they name.
//!
//! An L2 table may be shared by many snapshots. It is read with the first L1 entry that names it; later
//! entries only add up, and one more look at the end counts its references as often as it was named. A table
//! with findings is looked at each time, because each time is a finding, up to a limit.

use super::finding::{Finding, What};
use super::look_ahead::{LookAhead, PlainRuns};
use super::no_memory;
use super::pass::Pass;
use super::seen::{Stats, ACTIVE_L1, INACTIVE_L1};
use crate::error::Result;
use crate::format::entries::{L1Entry, COPIED, L1_RESERVED, OFFSET_MASK};
use crate::format::{be64s, snapshot::Snapshot};
use crate::storage::{read_exact, Purpose};
use std::collections::HashMap;

/// How often a table with findings is looked at before its findings are only added up.
const MAX_LOOKS: u64 = 64;
/// Bytes of an L1 table read at once.
const L1_CHUNK_BYTES: u64 = 1 << 20;

impl Pass<'_> {
    /// Counts header, active tables, snapshots' tables, snapshot table, encryption header and bitmaps.
    pub fn count_guest_references(&mut self) -> Result<()> {
        self.count_header()?;
        let (offset, size) = (self.header.l1_table_offset, self.header.l1_size);
        self.count_region(offset, u64::from(size) * 8, 1)?;
        self.note_region(ACTIVE_L1, offset, u64::from(size) * 8);
        self.count_l1(offset, size, true)?;
        let snapshots = self.snapshots.list.len();
        if self.geometry.external_data && snapshots > 0 {
            self.corruption(Finding::new(What::SnapshotsWithDataFile, [0, 0, snapshots as u64]));
        }
        for index in 0..self.snapshots.list.len() {
            self.count_snapshot(index)?;
        }
        self.count_pending()?;
        self.count_snapshot_table()?;
        self.count_encryption()?;
        self.count_bitmaps()
    }

    fn count_snapshot(&mut self, index: usize) -> Result<()> {
        let snapshot = &self.snapshots.list[index];
        let (offset, size) = (snapshot.l1_table_offset, snapshot.l1_size);
        if self.geometry.in_cluster(offset) != 0 {
            let who = printable(snapshot);
            let numbers = [index as u64, offset, 0];
            self.corruption(Finding::new(What::SnapshotL1Unaligned, numbers).with_name(&who));
            return Ok(());
        }
        if u64::from(size) * 8 > crate::format::geometry::MAX_L1_BYTES {
            let who = printable(snapshot);
            let numbers = [index as u64, u64::from(size), 0];
            self.corruption(Finding::new(What::SnapshotL1TooLarge, numbers).with_name(&who));
            return Ok(());
        }
        self.count_region(offset, u64::from(size) * 8, 1)?;
        self.note_region(INACTIVE_L1, offset, u64::from(size) * 8);
        self.count_l1(offset, size, false)
    }

    /// Looks at the L2 tables of one L1 table; its own clusters have been counted.
    fn count_l1(&mut self, offset: u64, size: u32, active: bool) -> Result<()> {
        let bytes = u64::from(size) * 8;
        // What is past the end of the file is zeroes, and zeroes are no entries.
        let inside = bytes.min(self.file_length.saturating_sub(offset)).div_ceil(8) * 8;
        let mut at = 0;
        while at < inside {
            let mut chunk = vec![0; (inside - at).min(L1_CHUNK_BYTES) as usize];
            read_exact(self.storage, Purpose::L1, offset + at, &mut chunk)?;
            self.count_l1_entries(&chunk, offset + at, active)?;
            at += chunk.len() as u64;
        }
        self.advance((bytes - inside) / 8)
    }

    fn count_l1_entries(&mut self, entries: &[u8], offset: u64, active: bool) -> Result<()> {
        let mut at = offset;
        let workers = self.options.workers.max(1) as usize;
        let (storage, geometry) = (self.storage, self.geometry);
        let ahead = LookAhead { storage, geometry: &geometry, file_length: self.file_length, workers };
        for batch in entries.chunks(ahead.batch_entries() * 8) {
            let helps = workers > 1 && !self.unsynced;
            let mut plain_tables = match helps {
                true => ahead.plain_tables(batch, |table| self.visits.contains_key(&table)),
                false => HashMap::new(),
            };
            for entry in be64s(batch) {
                self.count_l1_entry(entry, at, active, &mut plain_tables)?;
                at += 8;
            }
        }
        Ok(())
    }

    fn count_l1_entry(
        &mut self,
        entry: u64,
        at: u64,
        active: bool,
        plain_tables: &mut HashMap<u64, PlainRuns>,
    ) -> Result<()> {
        self.done += 1;
        if entry == 0 {
            return Ok(());
        }
        self.any_not_copied |= active && entry & COPIED == 0;
        if entry & L1_RESERVED & !OFFSET_MASK != 0 {
            self.corruption(Finding::new(What::L1Reserved, [at, entry, 0]));
        }
        let l2_offset = L1Entry(entry).table_offset();
        if l2_offset == 0 {
            // COPIED alone is no table; the look at COPIED flags tells it.
            self.any_not_copied = true;
            return Ok(());
        }
        self.count_region(l2_offset, self.geometry.cluster_bytes(), 1)?;
        if self.geometry.in_cluster(l2_offset) != 0 {
            self.corruption(Finding::new(What::L2TableUnaligned, [at, l2_offset, 0]));
        }
        if l2_offset < self.file_length {
            let runs = plain_tables.remove(&l2_offset).filter(|_| !self.unsynced);
            self.count_l2(l2_offset, active, runs)?;
        }
        self.advance(0)
    }

    /// Counts what an L2 table refers to, or remembers to do so.
    fn count_l2(&mut self, l2_offset: u64, active: bool, runs: Option<PlainRuns>) -> Result<()> {
        let known = self.visits.get(&l2_offset).copied();
        if let Some(mut visits) = known {
            visits.named += 1;
            if visits.stats.corruptions == 0 || visits.looks >= MAX_LOOKS {
                visits.pending += 1;
                self.report.corruptions += visits.stats.corruptions;
                if active {
                    self.add_stats(&visits.stats);
                }
                self.visits.insert(l2_offset, visits);
                return Ok(());
            }
        }
        let look = match runs {
            Some(runs) => self.look_at_runs(&runs, active)?,
            None => self.look_at_l2(l2_offset, 1, active, false)?,
        };
        let mut visits = known.unwrap_or_default();
        visits.named += 1;
        visits.looks += 1;
        // A repair may have mended the table; then the next look finds less.
        visits.stats = look.stats;
        if active {
            self.add_stats(&look.stats);
        }
        self.visits.try_reserve(1).map_err(|_| no_memory())?;
        self.visits.insert(l2_offset, visits);
        Ok(())
    }

    fn add_stats(&mut self, stats: &Stats) {
        self.report.allocated_clusters += stats.allocated;
        self.report.fragmented_clusters += stats.fragmented;
        self.report.compressed_clusters += stats.compressed;
    }

    /// Counts the references of shared tables as often as they were named again.
    fn count_pending(&mut self) -> Result<()> {
        let mut pending: Vec<(u64, u64)> =
            self.visits.iter().filter(|(_, v)| v.pending > 0).map(|(at, v)| (*at, v.pending)).collect();
        pending.sort_unstable();
        for (l2_offset, times) in pending {
            let corruptions = self.report.corruptions;
            self.look_at_l2(l2_offset, times, false, true)?;
            self.report.corruptions = corruptions;
            self.advance(0)?;
        }
        for visits in self.visits.values_mut() {
            visits.pending = 0;
        }
        Ok(())
    }
}

/// "snapshot ID (name)" without control characters, which must not reach a terminal.
fn printable(snapshot: &Snapshot) -> String {
    let clean = |bytes: &[u8]| -> String {
        String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
    };
    format!("snapshot {} ({})", clean(&snapshot.id), clean(&snapshot.name))
}
