//! Counts of many clusters at once: everything that a table tree refers to, given in batches of runs. A batch is
//! sorted by host offset, so that each refcount block is loaded once for it, whatever the order of the guest.

use super::{Allocator, Shared};
use crate::error::{Error, Result};
use crate::format::HostCluster;
use crate::meta::guard::Owner;
use crate::meta::Release;

/// Host clusters `[first, first + count)`, referred to once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterRun {
    /// First cluster.
    pub first: HostCluster,
    /// Clusters in the run.
    pub count: u64,
}

/// Why a tree goes, which says whether its clusters are given back to the host.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::enum_variant_names)] // "freed by a snapshot"
pub enum Freed {
    /// A snapshot was applied or deleted.
    BySnapshot,
    /// The caller does not want what it holds any more.
    ByRequest,
    /// It is held in another way.
    ByChange,
}

impl Allocator {
    /// Raises the counts of all runs by one, or of none: a count that cannot rise is an error. In memory; a
    /// barrier of an eager image, or `settle_all`, writes them.
    pub fn raise_all(&self, runs: &mut [ClusterRun]) -> Result<()> {
        self.raise_by(runs, 1)
    }

    /// As `raise_all`, by `times`.
    pub fn raise_by(&self, runs: &mut [ClusterRun], times: u64) -> Result<()> {
        runs.sort_unstable();
        let mut ledger = self.lock();
        for (index, run) in runs.iter().enumerate() {
            if let Err((raised, e)) = ledger.raise_run(&self.shared, *run, times) {
                for done in &runs[..index] {
                    ledger.unraise(&self.shared, *done, times)?;
                }
                ledger.unraise(&self.shared, ClusterRun { count: raised, ..*run }, times)?;
                return Err(e);
            }
        }
        Ok(())
    }

    /// Takes back what `raise_by` has done.
    pub fn unraise(&self, runs: &mut [ClusterRun], times: u64) -> Result<()> {
        runs.sort_unstable();
        let mut ledger = self.lock();
        runs.iter().try_for_each(|run| ledger.unraise(&self.shared, *run, times))
    }

    /// Least and largest count of a run.
    pub fn count_bounds(&self, run: ClusterRun) -> Result<(u64, u64)> {
        self.lock().table.bounds(&self.shared, run.first.0, run.count)
    }

    /// Lowers the counts of all runs by one, L2 tables and guest data; nothing on the medium refers to them any
    /// more, and no reader is inside. `true`: some count has become one.
    pub fn lower_all(&self, runs: &mut [ClusterRun], freed: Freed) -> Result<bool> {
        self.lower_all_by(runs, 1, freed)
    }

    /// As `lower_all`, by `times`.
    pub fn lower_all_by(&self, runs: &mut [ClusterRun], times: u64, freed: Freed) -> Result<bool> {
        let discard = match freed {
            Freed::BySnapshot => self.pass.snapshots,
            Freed::ByRequest => self.pass.requests,
            Freed::ByChange => self.pass.others,
        };
        runs.sort_unstable();
        let mut ledger = self.lock();
        let mut single = false;
        // In a damaged image one cluster may be referred to by millions of entries.
        for same in runs.chunk_by(|a, b| a == b) {
            let run = same[0];
            self.shared.guard.check_release(Owner::ANY_L2, run.first, run.count)?;
            let release = Release::of(Owner::ANY_L2, run.first, run.count);
            single |=
                ledger.lower_by(&self.shared, release, times.saturating_mul(same.len() as u64), discard)?;
        }
        ledger.punch(&self.shared)?;
        Ok(single)
    }
}

impl super::Ledger {
    /// Raises a run; a failure says how many clusters of it have been raised.
    fn raise_run(
        &mut self,
        shared: &Shared,
        run: ClusterRun,
        times: u64,
    ) -> std::result::Result<(), (u64, Error)> {
        let max = self.geometry().refcount_max();
        self.table.shift_run(shared, run.first.0, run.count, &mut |clusters, least, most| match least {
            1.. if max - most >= times => Ok(Some(0i64.wrapping_add_unsigned(times))),
            _ if least != most => Ok(None),
            0 => {
                let rule = "a table refers to the cluster";
                Err(Error::corrupt("refcount of cluster", clusters.start, 0, rule))
            }
            _ => {
                let summary =
                    format!("refcount of cluster {}: {most} is the largest that fits", clusters.start);
                Err(Error::invalid(summary).detail("refcount_bits"))
            }
        })
    }

    fn unraise(&mut self, shared: &Shared, run: ClusterRun, times: u64) -> Result<()> {
        self.lower_by(shared, Release::new(run.first, run.count, false), times, false).map(drop)
    }
}
