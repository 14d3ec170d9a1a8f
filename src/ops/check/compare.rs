//! Counted references against stored refcounts, block by block.

use super::finding::{Finding, What};
use super::pass::{Mend, Pass};
use super::stored::Block;
use super::MessageKind;
use crate::error::Result;
use crate::format::{index_in_memory, refcount};

/// Differences held at once. A block of the largest clusters has 16 million counts.
const MAX_BATCH: usize = 512;

/// A cluster whose stored count is not the counted one.
struct Difference {
    cluster: u64,
    /// `None` when the block cannot be read.
    stored: Option<u64>,
    counted: u64,
}

impl Pass<'_> {
    /// Compares all blocks. Differences are told; with `mend` they are also put right in `stored`, which the
    /// caller writes back. Counts of clusters past the end of the file are nobody's business.
    pub fn compare(&mut self, mend: Mend) -> Result<()> {
        self.found = (0, 0);
        self.refcounts_right = true;
        let mut end_cluster = 0;
        let mut next = 0;
        while let Some(block_index) = self.next_block(next) {
            next = block_index + 1;
            if block_index % 64 == 0 || self.geometry.cluster_bits >= 16 {
                self.advance(0)?;
            }
            end_cluster = end_cluster.max(self.last_used(block_index)?);
            if !self.is_block_right(block_index)? {
                self.tell_block(block_index, mend)?;
            }
        }
        self.advance(self.geometry.refcount_table_index(self.counts.clusters()) + 1)?;
        self.report.image_end_offset = (end_cluster + 1) << self.geometry.cluster_bits;
        Ok(())
    }

    /// Leaks and errors that the last comparison has told.
    pub fn compare_found(&self) -> (u64, u64) {
        self.found
    }

    /// First block at or after `from` that stores or counts anything inside the file.
    fn next_block(&self, from: u64) -> Option<u64> {
        let blocks = self.counts.clusters().div_ceil(self.geometry.refcount_block_entries());
        let stored = self.stored.table.iter().skip(index_in_memory(from)).position(|e| *e != 0);
        let stored = stored.map(|i| from + i as u64);
        let counted = self.counts.next_block(&self.geometry, from);
        let next = match (stored, counted) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b)?,
        };
        (next < blocks).then_some(next)
    }

    /// Whether a block can be read and says what has been counted.
    fn is_block_right(&mut self, block_index: u64) -> Result<bool> {
        let stored = match self.stored.block(self.storage, block_index)? {
            Block::Unreadable => return Ok(false),
            Block::Absent => None,
            Block::Bytes(bytes) => Some(bytes),
        };
        Ok(self.counts.is_same(&self.geometry, block_index, stored))
    }

    /// Tells, and mends as asked, where a block differs from what has been counted.
    fn tell_block(&mut self, block_index: u64, mend: Mend) -> Result<()> {
        let mut counted = std::mem::take(&mut self.table);
        counted.resize(self.geometry.cluster_bytes() as usize, 0);
        self.counts.render(&self.geometry, block_index, &mut counted);
        let unheard = !self.is_heard() && mend == Mend::NOTHING;
        if !unheard || !self.add_up_differences(block_index, &counted)? {
            let mut differences = Vec::with_capacity(MAX_BATCH);
            let mut from = 0;
            loop {
                self.find_differences(block_index, from, &counted, &mut differences)?;
                for difference in &differences {
                    self.tell_difference(difference, mend)?;
                }
                let full = differences.len() == MAX_BATCH;
                let Some(last) = differences.last().filter(|_| full) else { break };
                self.advance(0)?;
                from = self.geometry.refcount_block_index(last.cluster) + 1;
            }
        }
        self.table = counted;
        Ok(())
    }

    /// Entries of a block whose clusters are in the file.
    fn entries_of(&self, block_index: u64) -> u64 {
        let first = block_index << self.geometry.refcount_block_bits();
        self.geometry.refcount_block_entries().min(self.counts.clusters() - first)
    }

    /// Differences between `counted` and one block from index `from` on, at most `MAX_BATCH`.
    fn find_differences(
        &mut self,
        block_index: u64,
        from: u64,
        counted: &[u8],
        found: &mut Vec<Difference>,
    ) -> Result<()> {
        let entries = self.entries_of(block_index);
        let (stored, readable) = match self.stored.block(self.storage, block_index)? {
            Block::Unreadable => (None, false),
            Block::Absent => (None, true),
            Block::Bytes(bytes) => (Some(bytes), true),
        };
        let first = block_index << self.geometry.refcount_block_bits();
        let order = self.geometry.refcount_order;
        let difference = |index| Difference {
            cluster: first + index,
            stored: readable.then(|| stored.map_or(0, |b| refcount::get(b, order, index))),
            counted: refcount::get(counted, order, index),
        };
        let differs = |d: &Difference| d.stored != Some(d.counted);
        found.clear();
        found.extend((from..entries).map(difference).filter(differs).take(MAX_BATCH));
        Ok(())
    }

    /// What telling all differences of a block comes to when nobody listens and nothing is mended. `false`: the
    /// block cannot be read.
    fn add_up_differences(&mut self, block_index: u64, counted: &[u8]) -> Result<bool> {
        let entries = self.entries_of(block_index);
        let stored = match self.stored.block(self.storage, block_index)? {
            Block::Unreadable => return Ok(false),
            Block::Absent => None,
            Block::Bytes(bytes) => Some(bytes),
        };
        let order = self.geometry.refcount_order;
        let (mut leaks, mut errors, mut uncounted) = (0, 0, 0);
        for index in 0..entries {
            let counted = refcount::get(counted, order, index);
            let stored = stored.map_or(0, |b| refcount::get(b, order, index));
            leaks += u64::from(stored > counted);
            errors += u64::from(stored < counted);
            uncounted += u64::from(stored == 0 && counted != 0);
        }
        self.needs_rebuild |= uncounted != 0;
        self.refcounts_right &= errors == 0;
        self.found = (self.found.0 + leaks, self.found.1 + errors);
        self.report.leaks += leaks;
        self.report.corruptions += errors;
        Ok(true)
    }

    /// Last cluster of a block that is in use or counted as such; 0 for none.
    fn last_used(&mut self, block_index: u64) -> Result<u64> {
        let geometry = self.geometry;
        let first = block_index << geometry.refcount_block_bits();
        let entries = self.entries_of(block_index);
        let stored = match self.stored.block(self.storage, block_index)? {
            Block::Unreadable => return Ok(0),
            Block::Absent => None,
            Block::Bytes(bytes) => Some(bytes),
        };
        let order = geometry.refcount_order;
        let used = |index: &u64| {
            stored.is_some_and(|b| refcount::get(b, order, *index) != 0)
                || self.counts.get(first + index) != 0
        };
        Ok((0..entries).rev().find(used).map_or(0, |index| first + index))
    }

    fn tell_difference(&mut self, difference: &Difference, mend: Mend) -> Result<()> {
        let Difference { cluster, stored, counted } = *difference;
        let Some(stored) = stored else {
            self.tell_unreadable(cluster);
            return Ok(());
        };
        let leak = stored > counted;
        let mends = if leak { mend.leaks } else { mend.errors };
        let kind = if leak { MessageKind::Leak } else { MessageKind::Error };
        self.tell(Finding::new(What::Refcount, [cluster, stored, counted]).of_kind(kind).mended(mends));
        if stored == 0 {
            self.needs_rebuild = true;
        }
        if mends && self.stored.set(self.storage, cluster, counted)? {
            if leak {
                self.report.leaks_fixed += 1;
            } else {
                self.report.corruptions_fixed += 1;
            }
            if counted == 0 {
                self.note_freed(cluster);
            }
            return Ok(());
        }
        self.refcounts_right &= leak;
        if leak {
            self.found.0 += 1;
            self.report.leaks += 1;
        } else {
            self.found.1 += 1;
            self.report.corruptions += 1;
        }
        Ok(())
    }

    fn tell_unreadable(&mut self, cluster: u64) {
        let block_index = self.geometry.refcount_table_index(cluster);
        if let (0, Some(offset)) = (self.report.check_errors, self.stored.misaligned(block_index)) {
            let finding = Finding::new(What::RefcountBlockUnusable, [block_index, offset, 0]);
            self.tell(finding.of_kind(MessageKind::Info));
        }
        self.refcounts_right = false;
        self.report.check_errors += 1;
        self.tell(Finding::new(What::RefcountUnreadable, [cluster, 0, 0]));
    }
}
