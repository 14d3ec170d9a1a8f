//! Room for compressed streams, which share host clusters: each stream counts once in every cluster that it
//! touches, and starts where the one before it ended, as long as counts and neighbours allow.

use super::reserved::Run;
use super::{Allocator, Ledger, Reserved, Shared};
use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::MAX_HOST_OFFSET;
use crate::format::{HostCluster, HostOffset};
use crate::meta::Release;
use crate::storage::event::Event;

impl Allocator {
    /// Room for a stream of `bytes` bytes, fewer than a cluster's, and its host offset. Dropping the result gives
    /// the counts back; the bytes between two streams are lost then.
    pub fn reserve_packed(&self, bytes: u64) -> Result<(Reserved<'_>, HostOffset)> {
        self.shared.medium.latch().check()?;
        if self.is_lazy() {
            self.shared.header.mark_dirty()?;
        }
        let mut ledger = self.lock();
        if !self.shared.header.is_ready() {
            ledger = self.make_ready(ledger, Event::ClusterAllocBytes)?;
        }
        self.settle(&mut ledger)?;
        let (run, host_offset) = ledger.take_packed(&self.shared, bytes, self.is_lazy())?;
        Ok((Reserved::new(self, run), HostOffset(host_offset)))
    }
}

impl Ledger {
    fn take_packed(&mut self, shared: &Shared, bytes: u64, lazy: bool) -> Result<(Run, u64)> {
        let geometry = self.geometry();
        debug_assert!(bytes > 0 && bytes < geometry.cluster_bytes());
        let (run, at) = match self.continue_packing(shared, bytes, lazy)? {
            Some(found) => found,
            None => {
                self.check_nameable(shared)?;
                let run = self.take_run(shared, 1, lazy)?;
                (run, geometry.cluster_offset(run.first))
            }
        };
        self.packing = Some(at + bytes).filter(|end| geometry.in_cluster(*end) != 0);
        Ok((run, at))
    }

    /// Fails when the cluster that comes next is past what the entry of a compressed cluster can name: it has fewer
    /// bits for that than other entries, the fewer the larger the clusters.
    fn check_nameable(&mut self, shared: &Shared) -> Result<()> {
        let geometry = self.geometry();
        let bits = geometry.compressed_shift();
        // Before a refcount block is made, and where that block has taken the cluster.
        for make_block in [false, true] {
            let next = match self.next_ahead() {
                Some(next) => next,
                None if make_block => self.first_covered_free(shared)?,
                None => self.first_free(shared, self.hint())?,
            };
            let host = geometry.cluster_offset(next);
            if host >> bits != 0 {
                return Err(Error::new(
                    ErrorKind::TooLarge,
                    format!(
                        "compressed cluster: the next free cluster is at host offset {host:#x}, \
                         and an entry names offsets below 2^{bits}"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Room behind the last stream: in its cluster, and in the next one where that is free.
    fn continue_packing(&mut self, shared: &Shared, bytes: u64, lazy: bool) -> Result<Option<(Run, u64)>> {
        let geometry = self.geometry();
        let Some(at) = self.packing else { return Ok(None) };
        let cluster = geometry.cluster_index(at);
        if self.count(shared, cluster)? >= geometry.refcount_max() {
            return Ok(None);
        }
        let spills = geometry.in_cluster(at) + bytes > geometry.cluster_bytes();
        let next = cluster + 1;
        let is_free = self.next_ahead() == Some(next)
            || (geometry.cluster_offset(next) < MAX_HOST_OFFSET
                && self.table.block_offset(shared, next)?.is_some()
                && self.count(shared, next)? == 0);
        if spills && !is_free {
            return Ok(None);
        }
        let mut ticket = self.ticket_now(shared, lazy);
        if spills {
            let run = match self.next_ahead() == Some(next) {
                true => self.take_ahead(shared, 1)?,
                false => Some(self.raise(shared, next, 1, lazy)?),
            };
            ticket = run.map_or(ticket, |r| ticket.max(r.ticket));
        }
        if let Err((_, e)) = self.table.change_run(shared, cluster, 1, &mut |_, old| Ok(old + 1)) {
            if spills {
                let _ = self.lower(shared, Release::new(HostCluster(next), 1, false), false);
            }
            return Err(e);
        }
        let count = 1 + u64::from(spills);
        Ok(Some((Run { first: cluster, count, fresh: false, ticket }, at)))
    }
}
