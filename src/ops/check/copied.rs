//! COPIED flags of the active tables: set exactly where the stored refcount is one.

use super::finding::{Finding, What};
use super::pass::Pass;
use super::seen::{ACTIVE_L1, ACTIVE_L2};
use crate::error::Result;
use crate::format::entries::{L1Entry, COMPRESSED, COPIED, OFFSET_MASK};
use crate::format::{be64, put_be64};
use crate::storage::{read_exact, write_all, Purpose};

/// Bytes of the L1 table read at once.
const L1_CHUNK_BYTES: u64 = 1 << 20;

impl Pass<'_> {
    /// Compares, and mends if errors may be mended, or if there are none and leaks may.
    pub fn check_copied(&mut self) -> Result<()> {
        // With each count as counted, none above one, and the flag everywhere, there is nothing to find.
        let nothing_wrong = self.report.corruptions == 0 && self.report.leaks == 0;
        if nothing_wrong && !self.any_not_copied && !self.counts.any_shared() {
            return self.advance(u64::from(self.header.l1_size));
        }
        let mends = self.options.repair_errors || (self.options.repair_leaks && self.report.corruptions == 0);
        let bytes = u64::from(self.header.l1_size) * 8;
        let offset = self.header.l1_table_offset;
        let mut may_write = None;
        let inside = bytes.min(self.file_length.saturating_sub(offset)).div_ceil(8) * 8;
        let mut at = 0;
        while at < inside {
            let mut chunk = vec![0; (inside - at).min(L1_CHUNK_BYTES) as usize];
            read_exact(self.storage, Purpose::L1, offset + at, &mut chunk)?;
            let changed = self.check_l1_chunk(&mut chunk, at / 8, mends, &mut may_write)?;
            if let Some((first, end)) = changed {
                write_all(self.storage, Purpose::L1, offset + at + first as u64, &chunk[first..end])?;
                self.unsynced = true;
            }
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// Looks at one piece of the L1 table; answers the range of its bytes that has changed.
    fn check_l1_chunk(
        &mut self,
        chunk: &mut [u8],
        first_index: u64,
        mends: bool,
        may_write: &mut Option<bool>,
    ) -> Result<Option<(usize, usize)>> {
        let (l1_offset, l1_bytes) = (self.header.l1_table_offset, u64::from(self.header.l1_size) * 8);
        let mut changed = None;
        for at in (0..chunk.len()).step_by(8) {
            let entry = be64(chunk, at);
            if entry == 0 {
                continue;
            }
            let l2_offset = L1Entry(entry).table_offset();
            let count = if l2_offset == 0 { Some(0) } else { self.stored_count(l2_offset)? };
            let index = first_index + (at / 8) as u64;
            if let Some(count) = count.filter(|c| (*c == 1) != (entry & COPIED != 0)) {
                let mends = mends
                    && *may_write.get_or_insert_with(|| self.guard(ACTIVE_L1, l1_offset, l1_bytes).is_ok());
                self.tell_copied(Finding::new(What::L1Copied, [index, entry, count]), mends);
                if mends {
                    put_be64(chunk, at, entry ^ COPIED);
                    changed = Some((changed.map_or(at, |c: (usize, usize)| c.0), at + 8));
                }
            }
            if l2_offset != 0 && l2_offset < self.file_length {
                self.check_l2_copied(l2_offset, mends)?;
            }
            self.advance(0)?;
        }
        self.done += (chunk.len() / 8) as u64;
        Ok(changed)
    }

    fn check_l2_copied(&mut self, l2_offset: u64, mends: bool) -> Result<()> {
        let cluster_bytes = self.geometry.cluster_bytes();
        let mut table = vec![0; cluster_bytes as usize];
        read_exact(self.storage, Purpose::L2, l2_offset, &mut table)?;
        let mut changed = None;
        let mut may_write = None;
        for at in (0..table.len()).step_by(self.geometry.l2_entry_bytes() as usize) {
            let entry = be64(&table, at);
            let offset = entry & OFFSET_MASK;
            if entry & COMPRESSED != 0 || (offset == 0 && !self.geometry.external_data) {
                continue;
            }
            let assigned = offset != 0 || entry & COPIED != 0;
            let count = match (self.geometry.external_data, assigned) {
                (true, true) => Some(1),
                (true, false) => None,
                _ => self.stored_count(offset)?,
            };
            if let Some(count) = count.filter(|c| (*c == 1) != (entry & COPIED != 0)) {
                let mends = mends
                    && *may_write.get_or_insert_with(|| {
                        self.is_only_table(l2_offset)
                            && self.guard(ACTIVE_L2, l2_offset, cluster_bytes).is_ok()
                    });
                let place = l2_offset + at as u64;
                self.tell_copied(Finding::new(What::L2Copied, [place, entry, count]), mends);
                if mends {
                    put_be64(&mut table, at, entry ^ COPIED);
                    changed = Some((changed.map_or(at, |c: (usize, usize)| c.0), at + 8));
                }
            }
        }
        if let Some((first, end)) = changed {
            write_all(self.storage, Purpose::L2, l2_offset + first as u64, &table[first..end])?;
            self.unsynced = true;
        }
        Ok(())
    }

    fn stored_count(&mut self, offset: u64) -> Result<Option<u64>> {
        let cluster = self.geometry.cluster_index(offset);
        self.stored.get(self.storage, cluster)
    }

    /// Tells and counts one wrong flag.
    fn tell_copied(&mut self, finding: Finding<'_>, mends: bool) {
        match mends {
            true => self.report.corruptions_fixed += 1,
            false => self.report.corruptions += 1,
        }
        self.tell(finding.mended(mends));
    }
}
