//! One L2 table: what it refers to, and what in it can be mended.

use super::finding::{Finding, What};
use super::look_ahead::PlainRuns;
use super::pass::Pass;
use super::seen::{Stats, ACTIVE_L2};
use crate::error::Result;
use crate::format::be64;
use crate::format::entries::{plain_run, CompressedSpan, RawL2};
use crate::format::entries::{COMPRESSED, COPIED, L2_RESERVED, OFFSET_MASK, ZERO};
use crate::storage::{read_exact, write_all, Purpose};

/// One L2 table being looked at.
pub(super) struct Look {
    /// Times that each reference counts.
    times: u64,
    /// Part of the active tables, whose statistics are told.
    active: bool,
    /// Only counts: findings have been told.
    quiet: bool,
    /// Entries of this table may be mended.
    mends: bool,
    /// Host offset of the entry being looked at.
    entry_at: u64,
    /// Where the next host cluster of a contiguous file would be; 0 before the first.
    next_contiguous: u64,
    pub(super) stats: Stats,
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
            entry_at: 0,
            next_contiguous: 0,
            stats: Stats::default(),
            changed: None,
        }
    }
}

impl Pass<'_> {
    /// Counts what `look_at_l2` would in a table that has been read and has plain runs only.
    pub(super) fn look_at_runs(&mut self, runs: &PlainRuns, active: bool) -> Result<Look> {
        let before = self.report.corruptions;
        let mut look = Look::new(1, active, false);
        for (first, count) in runs {
            self.count_plain_run(&mut look, *first, *count)?;
        }
        look.stats.corruptions = self.report.corruptions - before;
        Ok(look)
    }

    /// Reads an L2 table and counts each of its references `times`.
    pub(super) fn look_at_l2(
        &mut self,
        l2_offset: u64,
        times: u64,
        active: bool,
        quiet: bool,
    ) -> Result<Look> {
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
            let (entry, index) = (RawL2::read(&self.geometry, raw), (at / entry_bytes) as u64);
            look.entry_at = l2_offset + at as u64;
            at += entry_bytes;
            if entry == RawL2::default() {
                continue;
            }
            if let Some(descriptor) = self.count_l2_entry(&mut look, index, entry)? {
                RawL2 { descriptor, ..entry }.put(raw);
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
            self.finding(look, What::L2Reserved, entry.descriptor, 0);
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
                let numbers = [look.entry_at, offset, 0];
                self.tell(Finding::new(What::PreallocatedUnaligned, numbers).mended(true));
                return Ok(Some(if self.geometry.extended_l2 { 0 } else { ZERO }));
            }
            let what = if holds_data { What::DataUnaligned } else { What::PreallocatedUnaligned };
            self.finding(look, what, offset, 0);
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
            self.finding(look, What::SubclustersWithout, entry.bitmap, 0);
        } else if alloc & zero != 0 {
            self.finding(look, What::SubclustersTwice, entry.descriptor & OFFSET_MASK, entry.bitmap);
        }
        alloc != 0
    }

    fn count_compressed(&mut self, look: &mut Look, index: u64, entry: RawL2) -> Result<()> {
        let descriptor = entry.descriptor & !COPIED;
        let CompressedSpan { host_offset: host, bytes } = entry.compressed_span(&self.geometry);
        if entry.descriptor & COPIED != 0 {
            self.finding(look, What::CompressedCopied, host.0, 0);
        }
        if self.geometry.external_data {
            self.finding(look, What::CompressedInDataFile, descriptor, index);
            return Ok(());
        }
        if entry.bitmap != 0 {
            self.finding(look, What::CompressedSubclusters, descriptor, index);
            // The stock tool does not count such a cluster, and a repair frees it. The data can be read, so
            // here it keeps its clusters.
            return self.count_region_quietly(host.0, bytes, look.times);
        }
        look.stats.allocated += 1;
        look.stats.compressed += 1;
        look.stats.fragmented += 1;
        self.count_region_of(look, host.0, bytes)
    }

    fn count_region_of(&mut self, look: &Look, offset: u64, bytes: u64) -> Result<()> {
        if look.quiet {
            return self.count_region_quietly(offset, bytes, look.times);
        }
        self.count_region(offset, bytes, look.times)
    }

    /// Tells a finding in an entry of an L2 table, unless it has been told.
    fn finding(&mut self, look: &Look, what: What, value: u64, count: u64) {
        if !look.quiet {
            self.corruption(Finding::new(what, [look.entry_at, value, count]));
        }
    }
}
