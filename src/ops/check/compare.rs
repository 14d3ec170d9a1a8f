//! Counted references against stored refcounts, block by block.

use super::pass::Pass;
use super::stored::Block;
use super::MessageKind;
use crate::error::Result;
use crate::format::refcount;

/// Differences held at once. A block of the largest clusters has 16 million counts.
const MAX_BATCH: usize = 4096;

/// What a comparison mends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mend {
    /// Counts that are too high.
    pub leaks: bool,
    /// Counts that are too low.
    pub errors: bool,
}

impl Mend {
    /// Only tells.
    pub const NOTHING: Mend = Mend { leaks: false, errors: false };
}

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
            let mut from = 0;
            loop {
                let differences = self.compare_block(block_index, from)?;
                for difference in &differences {
                    self.tell_difference(difference, mend)?;
                }
                match differences.last() {
                    Some(last) if differences.len() == MAX_BATCH => {
                        self.advance(0)?;
                        from = self.geometry.refcount_block_index(last.cluster) + 1;
                    }
                    _ => break,
                }
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
        let stored = self.stored.table.iter().skip(from as usize).position(|e| *e != 0);
        let stored = stored.map(|i| from + i as u64);
        let counted = self.counts.next_block(&self.geometry, from);
        let next = match (stored, counted) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b)?,
        };
        (next < blocks).then_some(next)
    }

    /// Differences in one block from index `from` on, at most `MAX_BATCH`.
    fn compare_block(&mut self, block_index: u64, from: u64) -> Result<Vec<Difference>> {
        let geometry = self.geometry;
        let first = block_index << geometry.refcount_block_bits();
        let entries = geometry.refcount_block_entries().min(self.counts.clusters() - first);
        let (stored, readable) = match self.stored.block(self.storage, block_index)? {
            Block::Unreadable => (None, false),
            Block::Absent => (None, true),
            Block::Bytes(bytes) => (Some(bytes), true),
        };
        if readable && self.counts.is_same(&geometry, block_index, stored) {
            return Ok(Vec::new());
        }
        let counted = &mut self.table;
        counted.resize(geometry.cluster_bytes() as usize, 0);
        self.counts.render(&geometry, block_index, counted);
        let order = geometry.refcount_order;
        let difference = |index| Difference {
            cluster: first + index,
            stored: readable.then(|| stored.map_or(0, |b| refcount::get(b, order, index))),
            counted: refcount::get(counted, order, index),
        };
        let differs = |d: &Difference| d.stored != Some(d.counted);
        Ok((from..entries).map(difference).filter(differs).take(MAX_BATCH).collect())
    }

    /// Last cluster of a block that is in use or counted as such; 0 for none.
    fn last_used(&mut self, block_index: u64) -> Result<u64> {
        let geometry = self.geometry;
        let first = block_index << geometry.refcount_block_bits();
        let entries = geometry.refcount_block_entries().min(self.counts.clusters() - first);
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
        let word = match (mends, leak) {
            (true, _) => "Repairing",
            (false, true) => "Leaked",
            (false, false) => "ERROR",
        };
        let kind = match (mends, leak) {
            (true, _) => MessageKind::Repair,
            (false, true) => MessageKind::Leak,
            (false, false) => MessageKind::Error,
        };
        self.say(kind, &format!("{word} cluster {cluster} refcount={stored} reference={counted}"));
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
            self.say(
                MessageKind::Info,
                &format!(
                    "qcow2: Image is corrupt: Refblock offset {offset:#x} unaligned (reftable index: \
                     {block_index:#x}); further non-fatal corruption events will be suppressed"
                ),
            );
        }
        self.refcounts_right = false;
        self.report.check_errors += 1;
        self.error(&format!("Can't get refcount for cluster {cluster}: Input/output error"));
    }
}
