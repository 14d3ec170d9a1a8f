//! Clusters of bitmaps that nobody believes. Their tables may lead anywhere, and a count says how many have a cluster and
//! not who: what may go is what nothing else in the image leads to. The rest stays as it is; at most it leaks.

use crate::alloc::ClusterRun;
use crate::error::{ErrorKind, Result};
use crate::format::HostCluster;
use crate::image::{Core, Parts};
use crate::ops::owners::{Besides, Owners};

/// Of these clusters, those that nothing but a bitmap leads to and that are counted. Of an image in which that cannot be
/// told, none.
pub(super) fn unused(core: &Core, parts: &Parts<'_>, clusters: Vec<u64>) -> Result<Vec<ClusterRun>> {
    if clusters.is_empty() {
        return Ok(Vec::new());
    }
    let owners = match Owners::find(core, parts, clusters, Besides::Bitmaps) {
        Err(e) if e.kind() == ErrorKind::Corrupt => return Ok(Vec::new()),
        found => found?,
    };
    let mut unused = Vec::new();
    for (cluster, _) in owners.all().filter(|(_, used)| !used) {
        match parts.alloc.count(cluster) {
            Ok(0) => {}
            Ok(_) => unused.push(ClusterRun { first: HostCluster(cluster), count: 1 }),
            Err(e) if e.kind() == ErrorKind::Corrupt => {}
            Err(e) => return Err(e),
        }
    }
    Ok(unused)
}
