//! Refcounts ahead: a barrier of an eager image that writes counts in any case raises those of clusters that will
//! be needed soon, in the sector that has the count of the next free cluster.
//!
//! A guest that flushes after each allocating write would otherwise pay a write and a sync for each count. Raised
//! counts are always safe: a crash leaves them as leaks, at most one sector of counts. So it begins only once
//! some barriers of this handle had counts to write: a handle that is used for a few writes, and then killed,
//! leaks nothing. And it raises no more than half of what the handle has used already: those who are killed again and
//! again leak in proportion to what they write. What is not used is given back when the image settles.
//!
//! A1: the clusters ahead are free in all but their count: nothing refers to them, nobody has reserved them.
//! A2: they lie in a row, in one refcount block.

use super::ledger::Ledger;
use super::reserved::Run;
use super::Shared;
use crate::error::Result;
use crate::format::geometry::SECTOR_BYTES;
use crate::format::HostCluster;
use crate::meta::Release;

/// Most host bytes that a crash may leak.
const MAX_AHEAD_BYTES: u64 = 64 << 20;

/// Clusters that are raised ahead at least.
const LEAST_AHEAD: u64 = 8;

impl Ledger {
    /// Before a barrier of an eager image writes the counts: raises some more, in the sector of the next free cluster.
    pub(super) fn raise_ahead(&mut self, shared: &Shared) -> Result<()> {
        if !std::mem::take(&mut self.ahead.raised) {
            return Ok(());
        }
        let Some(wait) = self.ahead.wait else { return Ok(()) };
        self.ahead.wait = Some(wait.saturating_sub(1));
        if wait > 0 || self.ahead.count > 0 {
            return Ok(());
        }
        let geometry = self.geometry();
        // Not where a block is missing: making one takes a cluster and two syncs.
        let first = self.hint();
        if first == 0 || self.table.block_offset(shared, first)?.is_none() {
            return Ok(());
        }
        let per_sector = (SECTOR_BYTES * 8) >> geometry.refcount_order;
        let most = (MAX_AHEAD_BYTES >> geometry.cluster_bits).clamp(1, per_sector);
        let most = most.min((self.ahead.used / 2).max(LEAST_AHEAD));
        let limit = first + most.min(per_sector - first % per_sector);
        let Some(first) = self.table.first_free_in_block(shared, first, limit)? else { return Ok(()) };
        let mut end = first;
        while end < limit && self.table.get(shared, end)? == 0 {
            end += 1;
        }
        let count = end - first;
        if let Err((done, e)) = self.table.change_run(shared, first, count, &mut |_, _| Ok(1)) {
            self.lower(shared, Release::new(HostCluster(first), done, false), false)?;
            return Err(e);
        }
        // The sync that is about to be numbered covers them.
        (self.ahead.first, self.ahead.count, self.ahead.ticket) = (first, count, shared.medium.ticket());
        Ok(())
    }

    /// Up to `count` of the clusters ahead; `None` when there are none.
    pub(super) fn take_ahead(&mut self, shared: &Shared, count: u64) -> Result<Option<Run>> {
        let (first, count) = (self.ahead.first, count.min(self.ahead.count));
        if count == 0 {
            return Ok(None);
        }
        let (fresh, length_ticket) = self.make_ready(shared, first, count)?;
        self.ahead.used += count;
        self.ahead.first += count;
        self.ahead.count -= count;
        Ok(Some(Run { first, count, fresh, ticket: self.ahead.ticket.max(length_ticket) }))
    }

    /// The first of the clusters ahead, when there are any.
    pub(super) fn next_ahead(&self) -> Option<u64> {
        (self.ahead.count > 0).then_some(self.ahead.first)
    }

    /// Gives back what has not been used.
    pub(super) fn drop_ahead(&mut self, shared: &Shared) -> Result<()> {
        let (first, count) = (self.ahead.first, std::mem::take(&mut self.ahead.count));
        if count == 0 {
            return Ok(());
        }
        self.lower(shared, Release::new(HostCluster(first), count, false), false).map(drop)
    }
}
