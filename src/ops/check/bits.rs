//! Feature bits and pointers of the header: each change is one sector, written and made durable by itself.

use super::pass::Pass;
use crate::error::Result;
use crate::format::features::{INCOMPAT_CORRUPT, INCOMPAT_DIRTY};
use crate::format::geometry::SECTOR_BYTES;
use crate::storage::{read_exact, write_all, Purpose};

/// Most ranges of freed clusters that are given back to the host; more are left allocated.
const MAX_DISCARDS: usize = 1 << 16;

impl Pass<'_> {
    /// Writes the header's fixed fields as they are now, in the first sector. The caller syncs before and after.
    pub fn write_header_fields(&mut self) -> Result<()> {
        let mut sector = vec![0; SECTOR_BYTES as usize];
        read_exact(self.storage, Purpose::Header, 0, &mut sector)?;
        self.header.put_fixed_fields(&mut sector);
        write_all(self.storage, Purpose::Header, 0, &sector)
    }

    /// Clears autoclear bits, durably.
    pub fn clear_autoclear(&mut self, bits: u64) -> Result<()> {
        let cleared = self.header.autoclear & !bits;
        if cleared == self.header.autoclear || self.header.version < 3 {
            return Ok(());
        }
        self.header.autoclear = cleared;
        self.write_header_fields()?;
        self.sync()
    }

    /// The last step of a repair: what the bits stand for is durable, so the bits may go.
    ///
    /// Dirty goes when the refcounts are right, whatever else may be wrong; corrupt goes when nothing is.
    pub fn seal(&mut self) -> Result<()> {
        self.sync_if_needed()?;
        // Whoever writes refuses these bitmaps: their errors keep nobody from the disk.
        let clean = self.report.corruptions == self.shared_bitmaps && self.report.check_errors == 0;
        let mut cleared = self.header.incompatible;
        if self.refcounts_right && self.report.check_errors == 0 {
            cleared &= !INCOMPAT_DIRTY;
        }
        if clean {
            cleared &= !INCOMPAT_CORRUPT;
        }
        if cleared != self.header.incompatible {
            self.sync()?;
            self.header.incompatible = cleared;
            self.write_header_fields()?;
            self.sync()?;
        }
        if clean {
            self.discard_freed();
        }
        Ok(())
    }

    /// Remembers a cluster whose count has fallen to zero.
    pub fn note_freed(&mut self, cluster: u64) {
        let ranges = self.freed.len();
        match self.freed.last_mut() {
            Some((first, count)) if *first + *count == cluster => *count += 1,
            _ if ranges < MAX_DISCARDS => self.freed.push((cluster, 1)),
            _ => {}
        }
    }

    /// Gives freed clusters back to the host. Only from an image without errors: where a pointer is broken,
    /// a leaked cluster may be what it once pointed to, and somebody may want to look at it.
    fn discard_freed(&mut self) {
        for (first, count) in std::mem::take(&mut self.freed) {
            // A cluster may have found a new use since it was freed: a mended snapshot table.
            if (first..first + count).any(|cluster| self.counts.get(cluster) != 0) {
                continue;
            }
            let offset = self.geometry.cluster_offset(first);
            let bytes = self.geometry.cluster_offset(count).min(self.file_length.saturating_sub(offset));
            // Not every host can; nothing depends on it.
            let _ = self.storage.discard(offset, bytes);
        }
    }
}
