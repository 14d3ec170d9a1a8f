//! Guest clusters past an end: their entries go.

use super::Core;
use crate::error::Result;
use crate::format::entries::{L2Entry, Mapping};
use crate::format::GuestOffset;
use crate::map::{NewEntry, Source};

/// Guest clusters that one claim covers.
const STEP_CLUSTERS: u64 = 4096;
/// Clusters and runs of them that wait to be free before a barrier is asked for: some 8 MiB of memory.
const MAX_PENDING_RUNS: u64 = 64 << 10;

impl Core {
    /// Drops the entries of whole clusters past `size`.
    pub(crate) fn cut(&self, size: u64) -> Result<()> {
        let (io, alloc) = self.begin_change(GuestOffset(size), self.virtual_size.saturating_sub(size))?;
        let geometry = &self.geometry;
        let end = geometry.cluster_after(self.disk_end());
        let mut at = geometry.cluster_after(GuestOffset(size));
        while at < end {
            let from = geometry.cluster_offset(at);
            let extent = io.map.resolve(from, (self.disk_end() - from).max(1))?;
            let hole = extent.source == Source::Hole && extent.host.is_none();
            let clusters = geometry.clusters_ceil(extent.length).max(1);
            let step_end = (at + clusters.min(STEP_CLUSTERS)).min(end);
            if hole {
                at += clusters;
                continue;
            }
            let claim = io.map.claim(at, step_end);
            for cluster in at.to(step_end) {
                let old = io.map.entry(&claim, cluster)?;
                if old == L2Entry::Plain(Mapping::default()) {
                    continue;
                }
                io.map.own_table(&claim, cluster)?;
                let dropped = self.dropped_by(&old, true);
                let entry = NewEntry { new: Mapping::default().into(), dropped };
                io.map.unmap(&claim, cluster, entry, None)?;
            }
            drop(claim);
            // Each of them may wait by itself, in a page and then in the ledger.
            if alloc.pending_runs() as u64 + io.map.held_clusters() > MAX_PENDING_RUNS {
                self.flush()?;
            }
            at = step_end;
        }
        Ok(())
    }
}
