//! What changes let go of.

use super::guard::Owner;
use crate::format::HostCluster;

/// Host clusters that lost one reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// First cluster.
    pub first_cluster: HostCluster,
    /// Clusters in the run; the count of each falls by one.
    pub cluster_count: u64,
    /// Readers that entered up to this epoch may still use them (rule R4).
    pub epoch: u64,
    /// Give the space back to the host when nobody refers to them any more.
    pub discard: bool,
    /// The entry did not say that it was the only one: somebody else has a reference, most likely, and nothing gets free.
    pub shared: bool,
    /// What the clusters may hold; guest data holds nothing that the overlap check knows.
    pub owner: Owner,
}

impl Release {
    /// A release of guest data, whose epoch the page fills in.
    pub fn new(first_cluster: HostCluster, cluster_count: u64, discard: bool) -> Self {
        Release { first_cluster, cluster_count, epoch: 0, discard, shared: false, owner: Owner::NOBODY }
    }

    /// As `new`, of clusters that hold `owner`.
    pub fn of(owner: Owner, first_cluster: HostCluster, cluster_count: u64) -> Self {
        Release { owner, ..Release::new(first_cluster, cluster_count, false) }
    }
}
