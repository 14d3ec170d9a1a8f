//! References of everything but the guest's tables, and the one place that counts a region.

use super::finding::{Finding, What};
use super::pass::Pass;
use super::seen::{Region, ENCRYPTION, HEADER, REFCOUNT_TABLE, SNAPSHOT_TABLE};
use super::MessageKind;
use crate::error::{Error, ErrorKind, Result};
use crate::format::entries::REFCOUNT_TABLE_RESERVED;
use crate::format::extensions;

/// How far a repair lets the file grow for a refcount block past its end: this much and its own length.
const MAX_GROWTH_BYTES: u64 = 64 << 20;

/// How far past the end of the file references to clusters are remembered.
const OUTSIDE_WINDOW_CLUSTERS: u64 = 1 << 20;
/// Most clusters past the end of the file that are remembered.
pub(super) const MAX_OUTSIDE: usize = 1 << 16;

impl Pass<'_> {
    /// Adds `times` references to each cluster that `[offset, offset + bytes)` touches. A region that ends a
    /// cluster or more past the end of the file is a finding and is not counted.
    pub fn count_region(&mut self, offset: u64, bytes: u64, times: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        if !self.is_in_file(offset, bytes) {
            self.corruption(Finding::new(What::RegionOutside, [offset, bytes, 0]));
            self.note_outside(offset, bytes, times);
            return Ok(());
        }
        for cluster in self.clusters_of(offset, bytes)? {
            if self.counts.add(cluster, times)? > 0 {
                let at = self.geometry.cluster_offset(cluster);
                self.corruption(Finding::new(What::Overflow, [at, 0, 0]));
                self.tell(Finding::new(What::HintAmend, [0; 3]).of_kind(MessageKind::Info));
            }
        }
        Ok(())
    }

    /// As `count_region`, of a region whose findings have been told: it tells none again.
    pub fn count_region_quietly(&mut self, offset: u64, bytes: u64, times: u64) -> Result<()> {
        if self.is_in_file(offset, bytes) {
            for cluster in self.clusters_of(offset, bytes)? {
                self.counts.add(cluster, times)?;
            }
        }
        Ok(())
    }

    /// Adds `times` references to each of `count` whole clusters from `first` on, as `count_region` does with one
    /// after the other. Answers how many of them from the first on have been counted; the caller tells what is
    /// wrong with the others.
    pub fn count_run(&mut self, first: u64, count: u64, times: u64) -> Result<u64> {
        let last = self.geometry.cluster_offset(first + count - 1);
        if !self.is_in_file(last, self.geometry.cluster_bytes()) {
            return Ok(0);
        }
        self.counts.grow(first + count)?;
        self.counts.add_run(first, count, times)
    }

    /// Remembers what refers to the clusters just past the end of the file. A rebuild that lets the file grow
    /// must not put its structures where somebody already points to.
    fn note_outside(&mut self, offset: u64, bytes: u64, times: u64) {
        let end_of_file = self.counts.clusters();
        let first = self.geometry.cluster_index(offset).max(end_of_file);
        let last = self.geometry.cluster_index(offset.saturating_add(bytes - 1));
        for cluster in first..=last.min(end_of_file + OUTSIDE_WINDOW_CLUSTERS) {
            if self.outside.len() < MAX_OUTSIDE || self.outside.contains_key(&cluster) {
                let count = self.outside.entry(cluster).or_default();
                *count = count.saturating_add(times);
            }
        }
    }

    pub fn is_in_file(&self, offset: u64, bytes: u64) -> bool {
        let end = offset.checked_add(bytes);
        end.is_some_and(|end| end.saturating_sub(self.file_length) < self.geometry.cluster_bytes())
    }

    /// The clusters of a region that starts in the file; a last one past the end gets a count too.
    fn clusters_of(&mut self, offset: u64, bytes: u64) -> Result<std::ops::Range<u64>> {
        let end = self.geometry.cluster_index(offset + bytes - 1) + 1;
        self.counts.grow(end)?;
        Ok(self.geometry.cluster_index(offset)..end)
    }

    /// Remembers where a structure is.
    pub fn note_region(&mut self, name: &'static str, offset: u64, bytes: u64) {
        self.regions.push(Region { offset, bytes, name });
    }

    /// Counts the header cluster.
    pub fn count_header(&mut self) -> Result<()> {
        self.note_region(HEADER, 0, self.geometry.cluster_bytes());
        self.count_region(0, self.geometry.cluster_bytes(), 1)
    }

    /// Counts the snapshot table.
    pub fn count_snapshot_table(&mut self) -> Result<()> {
        let (offset, bytes) = (self.header.snapshots_offset, self.snapshots.stored_bytes);
        self.note_region(SNAPSHOT_TABLE, offset, bytes);
        self.snapshots.counted = self.is_in_file(offset, bytes.max(1));
        self.count_region(offset, bytes, 1)
    }

    /// Counts the encryption header.
    pub fn count_encryption(&mut self) -> Result<()> {
        let Some(data) = self.header.extension(extensions::ENCRYPTION) else { return Ok(()) };
        let pointer = extensions::encryption(data)?;
        if self.geometry.in_cluster(pointer.offset) != 0 {
            return Err(Error::invalid(format!(
                "Encryption header offset '{}' is not a multiple of cluster size '{}'",
                pointer.offset,
                self.geometry.cluster_bytes()
            )));
        }
        if pointer.bytes == 0 || !self.is_in_file(pointer.offset, pointer.bytes) {
            // The keys are somewhere that nobody can tell; a repair that called them a leak would end them.
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "encryption header at {:#x}, {:#x} bytes: not in the file",
                    pointer.offset, pointer.bytes
                ),
            ));
        }
        self.note_region(ENCRYPTION, pointer.offset, pointer.bytes);
        self.count_region(pointer.offset, pointer.bytes, 1)
    }

    /// Counts the refcount table and its blocks, and finds out whether they can be repaired in place.
    pub fn count_refcount_structures(&mut self) -> Result<()> {
        let offset = self.header.refcount_table_offset;
        let bytes = u64::from(self.header.refcount_table_clusters) << self.header.cluster_bits;
        self.count_region(offset, bytes, 1)?;
        self.note_region(REFCOUNT_TABLE, offset, bytes);
        for index in 0..self.stored.table.len() {
            let entry = self.stored.table[index];
            if entry != 0 {
                self.count_refcount_block(index, entry)?;
            }
        }
        Ok(())
    }

    fn count_refcount_block(&mut self, index: usize, entry: u64) -> Result<()> {
        let offset = entry & !REFCOUNT_TABLE_RESERVED;
        if entry & REFCOUNT_TABLE_RESERVED != 0 {
            self.corruption(Finding::new(What::RefcountTableReserved, [index as u64, entry, 0]));
            self.needs_rebuild = true;
            return Ok(());
        }
        if self.geometry.in_cluster(offset) != 0 {
            self.corruption(Finding::new(What::RefcountBlockUnaligned, [index as u64, offset, 0]));
            self.needs_rebuild = true;
            return Ok(());
        }
        if offset >= self.geometry.cluster_offset(self.counts.clusters())
            && !self.mend_block_outside(index, offset)?
        {
            return Ok(());
        }
        let cluster = self.geometry.cluster_index(offset);
        // One-bit counts cannot say two.
        self.needs_rebuild |= self.counts.get(cluster) != 0;
        self.count_region(offset, self.geometry.cluster_bytes(), 1)?;
        let references = self.counts.get(cluster);
        if references != 1 {
            let numbers = [index as u64, offset, references];
            self.corruption(Finding::new(What::RefcountBlockShared, numbers));
            self.needs_rebuild = true;
        }
        Ok(())
    }

    /// A refcount block past the end of the file: a repair lets the file grow over it, within reason. Answers
    /// whether the block is in the file now.
    fn mend_block_outside(&mut self, index: usize, offset: u64) -> Result<bool> {
        let finding = Finding::new(What::RefcountBlockOutside, [index as u64, offset, 0]);
        if !self.options.repair_errors {
            self.corruption(finding);
            return Ok(false);
        }
        self.tell(finding.mended(true));
        let end = offset.saturating_add(self.geometry.cluster_bytes());
        let limit = self.file_length.saturating_mul(2).saturating_add(MAX_GROWTH_BYTES);
        let grown = if end >= 1 << 63 {
            Err("Invalid argument".to_owned())
        } else if end > limit {
            Err("File too large".to_owned())
        } else {
            self.storage.set_length(end).map_err(|e| Error::host("resize", &e).to_string())
        };
        if let Err(why) = grown {
            self.corruption(Finding::new(What::NotGrown, [end, 0, 0]).with_name(&why));
            self.needs_rebuild = true;
            return Ok(false);
        }
        self.report.corruptions_fixed += 1;
        self.file_length = end;
        self.counts.grow(self.geometry.clusters_ceil(end))?;
        Ok(true)
    }
}
