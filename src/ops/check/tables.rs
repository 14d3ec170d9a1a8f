//! References of the guest's tables: L1 tables, L2 tables, data and compressed clusters.
//!
//! An L2 table may be shared by many snapshots. It is read with the first L1 entry that names it; later
//! entries only add up, and one more look at the end counts its references as often as it was named. A table
//! with findings is looked at each time, because each time is a finding, up to a limit.

use super::counts::no_memory;
use super::guard::{ACTIVE_L1, ACTIVE_L2, INACTIVE_L1};
use super::pass::Pass;
use super::scout::{Digest, Scout};
use crate::error::Result;
use crate::format::entries::{plain_run, L1Entry, RawL2};
use crate::format::entries::{COMPRESSED, COPIED, L1_RESERVED, OFFSET_MASK, ZERO};
use crate::format::{be64, snapshot::Snapshot};
use crate::storage::{read_exact, write_all, Purpose};
use std::collections::HashMap;

/// Bits 1-8 and 56-61 of a standard L2 entry.
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// How often a table with findings is looked at before its findings are only added up.
const MAX_LOOKS: u64 = 64;
/// Bytes of an L1 table read at once.
const L1_CHUNK_BYTES: u64 = 1 << 20;

/// What is known of an L2 table after the first look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Visits {
    /// Times that L1 entries have named the table.
    named: u64,
    /// References to count once more, for L1 entries that named the table again.
    pending: u64,
    /// Full looks so far.
    looks: u64,
    /// What one look found.
    stats: Stats,
}

/// What one look at an L2 table adds to the report.
#[derive(Clone, Copy, Debug, Default)]
struct Stats {
    corruptions: u64,
    allocated: u64,
    fragmented: u64,
    compressed: u64,
}

/// One L2 table being looked at.
struct Look {
    /// Times that each reference counts.
    times: u64,
    /// Part of the active tables, whose statistics are told.
    active: bool,
    /// Only counts: findings have been told.
    quiet: bool,
    /// Entries of this table may be mended.
    mends: bool,
    /// Where the next host cluster of a contiguous file would be; 0 before the first.
    next_contiguous: u64,
    stats: Stats,
    /// Entries changed, first and one past the last.
    changed: Option<(u64, u64)>,
}

impl Look {
    fn new(times: u64, active: bool, quiet: bool) -> Look {
        Look {
            times,
            active,
            quiet,
            mends: false,
            next_contiguous: 0,
            stats: Stats::default(),
            changed: None,
        }
    }
}

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
            self.corruption(&format!("ERROR {snapshots} snapshots in image with data file"));
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
            self.corruption(&format!(
                "ERROR {who} l1_offset={offset:#x}: L1 table is not cluster aligned; snapshot table entry corrupted"
            ));
            return Ok(());
        }
        if u64::from(size) * 8 > crate::format::geometry::MAX_L1_BYTES {
            let who = printable(snapshot);
            self.corruption(&format!(
                "ERROR {who} l1_size={size:#x}: L1 table is too large; snapshot table entry corrupted"
            ));
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
            self.count_l1_entries(&chunk, active)?;
            at += chunk.len() as u64;
        }
        self.advance((bytes - inside) / 8)
    }

    fn count_l1_entries(&mut self, entries: &[u8], active: bool) -> Result<()> {
        let workers = self.options.workers.max(1) as usize;
        let (storage, geometry) = (self.storage, self.geometry);
        let scout = Scout { storage, geometry: &geometry, file_length: self.file_length, workers };
        for batch in entries.chunks(scout.batch_entries() * 8) {
            let helps = workers > 1 && !self.unsynced;
            let mut digests = match helps {
                true => scout.digests(batch, |table| self.visits.contains_key(&table)),
                false => HashMap::new(),
            };
            for entry_at in (0..batch.len()).step_by(8) {
                self.count_l1_entry(be64(batch, entry_at), active, &mut digests)?;
            }
        }
        Ok(())
    }

    fn count_l1_entry(&mut self, entry: u64, active: bool, digests: &mut HashMap<u64, Digest>) -> Result<()> {
        self.done += 1;
        if entry == 0 {
            return Ok(());
        }
        self.any_not_copied |= active && entry & COPIED == 0;
        if entry & L1_RESERVED & !OFFSET_MASK != 0 {
            self.corruption(&format!("ERROR found L1 entry with reserved bits set: {entry:x}"));
        }
        let l2_offset = L1Entry(entry).table_offset();
        if l2_offset == 0 {
            // COPIED alone is no table; the look at COPIED flags tells it.
            self.any_not_copied = true;
            return Ok(());
        }
        self.count_region(l2_offset, self.geometry.cluster_bytes(), 1)?;
        if self.geometry.in_cluster(l2_offset) != 0 {
            self.corruption(&format!(
                "ERROR l2_offset={l2_offset:x}: Table is not cluster aligned; L1 entry corrupted"
            ));
        }
        if l2_offset < self.file_length {
            let digest = digests.remove(&l2_offset).filter(|_| !self.unsynced);
            self.count_l2(l2_offset, active, digest)?;
        }
        self.advance(0)
    }

    /// Counts what an L2 table refers to, or remembers to do so.
    fn count_l2(&mut self, l2_offset: u64, active: bool, digest: Option<Digest>) -> Result<()> {
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
        let look = match digest {
            Some(digest) => self.look_at_digest(&digest, active)?,
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

    /// Counts what `look_at_l2` would in a table that has been read.
    fn look_at_digest(&mut self, digest: &Digest, active: bool) -> Result<Look> {
        let before = self.report.corruptions;
        let mut look = Look::new(1, active, false);
        for (first, count) in digest {
            self.count_plain_run(&mut look, *first, *count)?;
        }
        look.stats.corruptions = self.report.corruptions - before;
        Ok(look)
    }

    /// Reads an L2 table and counts each of its references `times`.
    fn look_at_l2(&mut self, l2_offset: u64, times: u64, active: bool, quiet: bool) -> Result<Look> {
        let mut table = std::mem::take(&mut self.table);
        table.resize(self.geometry.cluster_bytes() as usize, 0);
        read_exact(self.storage, Purpose::L2, l2_offset, &mut table)?;
        let before = self.report.corruptions;
        let mut look = Look::new(times, active, quiet);
        look.mends = !quiet && self.may_mend(l2_offset, &table);
        let entry_bytes = self.geometry.l2_entry_bytes() as usize;
        let mut at = 0;
        while at < table.len() {
            let run = plain_run(&self.geometry, &table[at..]);
            if run > 0 {
                self.count_plain_run(&mut look, be64(&table, at), run as u64)?;
                at += run * entry_bytes;
                continue;
            }
            let raw = &mut table[at..at + entry_bytes];
            let (descriptor, index) = (be64(raw, 0), (at / entry_bytes) as u64);
            at += entry_bytes;
            let bitmap = if entry_bytes == 16 { be64(raw, 8) } else { 0 };
            if descriptor == 0 && bitmap == 0 {
                continue;
            }
            let entry = RawL2 { descriptor, bitmap };
            if let Some(new) = self.count_l2_entry(&mut look, index, entry)? {
                raw[..8].copy_from_slice(&new.to_be_bytes());
                look.changed = Some((look.changed.map_or(index, |c| c.0), index + 1));
            }
        }
        look.stats.corruptions = self.report.corruptions - before;
        if let Some((first, end)) = look.changed {
            let range = first as usize * entry_bytes..end as usize * entry_bytes;
            write_all(self.storage, Purpose::L2, l2_offset + range.start as u64, &table[range])?;
            self.unsynced = true;
        }
        self.table = table;
        Ok(look)
    }

    /// Counts what `count_l2_entry` would for each entry of a plain run.
    fn count_plain_run(&mut self, look: &mut Look, first: u64, count: u64) -> Result<()> {
        let offset = first & OFFSET_MASK;
        self.any_not_copied |= look.active && first & COPIED == 0;
        look.stats.allocated += count;
        if look.next_contiguous != 0 && offset != look.next_contiguous {
            look.stats.fragmented += 1;
        }
        let cluster_bytes = self.geometry.cluster_bytes();
        look.next_contiguous = offset + count * cluster_bytes;
        let counted = self.count_run(self.geometry.cluster_index(offset), count, look.times)?;
        for index in counted..count {
            self.count_region_of(look, offset + index * cluster_bytes, cluster_bytes)?;
        }
        Ok(())
    }

    /// Whether a cluster is an L2 table and nothing else, now that all references have been counted. A broken L1
    /// entry can name a guest's data as a table; mending "entries" there would destroy the data.
    pub fn is_only_table(&self, l2_offset: u64) -> bool {
        let cluster = self.geometry.cluster_index(l2_offset);
        let named = self.visits.get(&l2_offset).map_or(0, |v| v.named);
        self.counts.get(cluster) <= named && !self.counts.has_overflown(cluster)
    }

    /// Whether a repair may write to an L2 table: it looks like one, and nothing else is known to be there.
    /// A broken L1 table can name any cluster of the guest's as an L2 table.
    fn may_mend(&self, l2_offset: u64, table: &[u8]) -> bool {
        let entry_bytes = self.geometry.l2_entry_bytes() as usize;
        let misaligned = OFFSET_MASK & (self.geometry.cluster_bytes() - 1);
        if table.chunks_exact(entry_bytes).all(|raw| be64(raw, 0) & misaligned == 0) {
            return false; // nothing to mend
        }
        let reserved = |raw: &[u8]| {
            let descriptor = be64(raw, 0);
            descriptor & COMPRESSED == 0 && descriptor & L2_RESERVED != 0
        };
        self.options.repair_errors
            && self.counts.get(self.geometry.cluster_index(l2_offset)) == 1
            && !table.chunks_exact(entry_bytes).any(reserved)
            && self.guard(ACTIVE_L2, l2_offset, self.geometry.cluster_bytes()).is_ok()
    }

    /// Counts one entry; answers a new descriptor when it must be mended.
    fn count_l2_entry(&mut self, look: &mut Look, index: u64, entry: RawL2) -> Result<Option<u64>> {
        if entry.descriptor & COMPRESSED != 0 {
            self.count_compressed(look, index, entry)?;
            return Ok(None);
        }
        if entry.descriptor & L2_RESERVED != 0 {
            self.finding(look, || {
                format!("ERROR found l2 entry with reserved bits set: {:x}", entry.descriptor)
            });
        }
        let offset = entry.descriptor & OFFSET_MASK;
        let copied = entry.descriptor & COPIED != 0;
        let assigned = entry.is_assigned(&self.geometry);
        let holds_data = self.check_bitmap(look, entry, assigned);
        if !assigned {
            return Ok(None);
        }
        if self.geometry.in_cluster(offset) != 0 {
            if !holds_data && look.mends {
                self.report.corruptions_fixed += 1;
                self.repair(&format!(
                    "Repairing offset={offset:x}: Preallocated cluster is not properly aligned; L2 entry corrupted."
                ));
                return Ok(Some(if self.geometry.extended_l2 { 0 } else { ZERO }));
            }
            let what = if holds_data { "Data" } else { "Preallocated" };
            self.finding(look, || {
                format!(
                    "ERROR offset={offset:x}: {what} cluster is not properly aligned; L2 entry corrupted."
                )
            });
        }
        self.any_not_copied |= look.active && !copied;
        look.stats.allocated += 1;
        if look.next_contiguous != 0 && offset != look.next_contiguous {
            look.stats.fragmented += 1;
        }
        look.next_contiguous = offset + self.geometry.cluster_bytes();
        if !self.geometry.external_data {
            self.count_region_of(look, offset, self.geometry.cluster_bytes())?;
        }
        Ok(None)
    }

    /// Checks the subcluster bitmap of a plain entry; answers whether the host cluster holds data.
    fn check_bitmap(&mut self, look: &Look, entry: RawL2, assigned: bool) -> bool {
        if !self.geometry.extended_l2 {
            return entry.descriptor & ZERO == 0;
        }
        let (alloc, zero) = (entry.bitmap as u32, (entry.bitmap >> 32) as u32);
        if !assigned && alloc != 0 {
            self.finding(look, || {
                "ERROR: Unallocated cluster has non-zero subcluster allocation map".to_owned()
            });
        } else if alloc & zero != 0 {
            let offset = entry.descriptor & OFFSET_MASK;
            self.finding(look, || {
                format!(
                    "ERROR offset={offset:x}: Allocated cluster has corrupted subcluster allocation bitmap"
                )
            });
        }
        alloc != 0
    }

    fn count_compressed(&mut self, look: &mut Look, index: u64, entry: RawL2) -> Result<()> {
        let descriptor = entry.descriptor & !COPIED;
        let shift = self.geometry.compressed_shift();
        let host = descriptor & ((1 << shift) - 1);
        if entry.descriptor & COPIED != 0 {
            self.finding(look, || {
                format!("ERROR: coffset={host:#x}: copied flag must never be set for compressed clusters")
            });
        }
        if self.geometry.external_data {
            self.finding(look, || {
                format!("ERROR compressed cluster {index} with data file, entry={descriptor:#x}")
            });
            return Ok(());
        }
        if entry.bitmap != 0 {
            self.finding(look, || {
                format!(
                    "ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, \
                     entry={descriptor:#x}"
                )
            });
        }
        let sector_mask = (1u64 << (self.geometry.cluster_bits - 8)) - 1;
        let sectors = ((descriptor >> shift) & sector_mask) + 1;
        let bytes = sectors * 512 - host % 512;
        if entry.bitmap != 0 {
            // The stock tool does not count such a cluster, and a repair frees it. The data can be read, so
            // here it keeps its clusters.
            return self.count_region_quietly(host, bytes, look.times);
        }
        look.stats.allocated += 1;
        look.stats.compressed += 1;
        look.stats.fragmented += 1;
        self.count_region_of(look, host, bytes)
    }

    fn count_region_of(&mut self, look: &Look, offset: u64, bytes: u64) -> Result<()> {
        if look.quiet {
            return self.count_region_quietly(offset, bytes, look.times);
        }
        self.count_region(offset, bytes, look.times)
    }

    /// Tells a finding in an L2 table, unless it has been told.
    fn finding(&mut self, look: &Look, text: impl FnOnce() -> String) {
        if look.quiet {
            return;
        }
        let text = text();
        self.corruption(&text);
    }
}

/// "snapshot ID (name)" without control characters, which must not reach a terminal.
fn printable(snapshot: &Snapshot) -> String {
    let clean = |bytes: &[u8]| -> String {
        String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
    };
    format!("snapshot {} ({})", clean(&snapshot.id), clean(&snapshot.name))
}
