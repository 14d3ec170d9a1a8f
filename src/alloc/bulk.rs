//! Counts of many clusters at once: everything that a table tree refers to, given in batches of runs. A batch is
//! sorted by host offset, so that each refcount block is loaded once for it, whatever the order of the guest.

use super::{Allocator, Shared};
use crate::error::{Error, Result};
use crate::meta::Release;

/// Host clusters `[first, first + count)`, referred to once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterRun {
    /// First cluster.
    pub first: u64,
    /// Clusters in the run.
    pub count: u64,
}

impl Allocator {
    /// Raises the counts of all runs by one, or of none: a count that cannot rise is an error. In memory; a
    /// barrier of an eager image, or `settle_all`, writes them.
    pub fn raise_all(&self, runs: &mut [ClusterRun]) -> Result<()> {
        runs.sort_unstable();
        let mut ledger = self.lock();
        for (index, run) in runs.iter().enumerate() {
            if let Err((raised, e)) = ledger.raise_run(&self.shared, *run) {
                for done in &runs[..index] {
                    ledger.lower(&self.shared, Release::new(done.first, done.count, false), false)?;
                }
                ledger.lower(&self.shared, Release::new(run.first, raised, false), false)?;
                return Err(e);
            }
        }
        Ok(())
    }

    /// Least and largest count of a run.
    pub fn count_bounds(&self, run: ClusterRun) -> Result<(u64, u64)> {
        self.lock().table.bounds(&self.shared, run.first, run.count)
    }

    /// Lowers the counts of all runs by one; nothing on the medium refers to them any more, and no reader is
    /// inside. `true`: some count has become one.
    pub fn lower_all(&self, runs: &mut [ClusterRun]) -> Result<bool> {
        runs.sort_unstable();
        let mut ledger = self.lock();
        let mut single = false;
        for run in runs {
            let release = Release::new(run.first, run.count, false);
            single |= ledger.lower(&self.shared, release, self.pass.snapshots)?;
        }
        ledger.punch(&self.shared)?;
        Ok(single)
    }
}

impl super::Ledger {
    /// Raises a run; a failure says how many clusters of it have been raised.
    fn raise_run(&mut self, shared: &Shared, run: ClusterRun) -> std::result::Result<(), (u64, Error)> {
        let max = self.geometry().refcount_max();
        self.table.shift_run(shared, run.first, run.count, &mut |clusters, least, most| match least {
            1.. if most < max => Ok(Some(1)),
            _ if least != most => Ok(None),
            0 => {
                let rule = "a table refers to the cluster";
                Err(Error::corrupt("refcount of cluster", clusters.start, 0, rule))
            }
            _ => Err(Error::invalid(format!(
                "refcount of cluster {}: {most} is the largest that fits [refcount_bits]",
                clusters.start
            ))),
        })
    }
}
