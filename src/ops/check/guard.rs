//! Mending one table never writes over another.

use super::pass::Pass;
use super::seen::ACTIVE_L2;
use crate::error::{Error, ErrorKind, Result};
use crate::format::entries::REFCOUNT_TABLE_RESERVED;

impl Pass<'_> {
    /// Refuses a write to `[offset, offset + bytes)` when that is part of a structure other than `own`, or
    /// not in the file. An image may point wherever it likes; a repair must not follow it into its own header.
    pub fn guard(&self, own: &'static str, offset: u64, bytes: u64) -> Result<()> {
        let end = offset.checked_add(bytes).filter(|end| *end <= self.file_end());
        if self.geometry.in_cluster(offset) != 0 || end.is_none() {
            return Err(refused(own, offset, "it is misaligned or past the end of the file"));
        }
        if let Some(hit) = self.regions.iter().find(|r| r.name != own && r.overlaps(offset, bytes)) {
            return Err(refused(own, offset, format_args!("it overlaps with {}", hit.name)));
        }
        let cluster_bytes = self.geometry.cluster_bytes();
        let block = |entry: &u64| {
            let at = entry & !REFCOUNT_TABLE_RESERVED;
            at != 0 && at < offset + bytes && offset < at.saturating_add(cluster_bytes)
        };
        if self.stored.table.iter().any(block) {
            return Err(refused(own, offset, "it overlaps with refcount block"));
        }
        if own != ACTIVE_L2
            && self.visits.keys().any(|at| offset < at + cluster_bytes && *at < offset + bytes)
        {
            return Err(refused(own, offset, "it overlaps with an L2 table"));
        }
        Ok(())
    }

    /// End of the file, rounded up to a cluster.
    pub fn file_end(&self) -> u64 {
        self.geometry.cluster_ceil(self.file_length).unwrap_or(u64::MAX)
    }
}

fn refused(own: &str, offset: u64, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("repair refuses to write {own} at {offset:#x}: {why}"))
}
