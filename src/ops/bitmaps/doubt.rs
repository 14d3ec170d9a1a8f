//! Clusters of bitmaps that nobody believes. Their tables may lead anywhere, and a count says how many have a cluster and
//! not who: what may go is what nothing else in the image leads to. The rest stays as it is; at most it leaks.

use crate::alloc::ClusterRun;
use crate::error::{room, ErrorKind, Result};
use crate::format::entries::REFCOUNT_TABLE_RESERVED;
use crate::format::{be64, extensions, Header, HostCluster, HostOffset};
use crate::image::{Core, Parts};
use crate::meta::snapshot_table::load_snapshots;
use crate::ops::tree::{L1Table, Walk};
use crate::storage::Purpose;

/// Bytes of the refcount table that are read at once.
const PIECE_BYTES: usize = 16 << 10;

/// Of these clusters, those that nothing but a bitmap leads to and that are counted. Of an image in which that cannot be
/// told, none.
pub(super) fn unused(core: &Core, parts: &Parts<'_>, mut clusters: Vec<u64>) -> Result<Vec<ClusterRun>> {
    if clusters.is_empty() {
        return Ok(Vec::new());
    }
    clusters.sort_unstable();
    clusters.dedup();
    let mut used: Vec<bool> = room("clusters of a bitmap", clusters.len() as u64)?;
    used.resize(clusters.len(), false);
    let mut owners = Owners { clusters, used };
    match owners.find(core, parts) {
        Err(e) if e.kind() == ErrorKind::Corrupt => return Ok(Vec::new()),
        found => found?,
    }
    let unused = owners.clusters.iter().zip(owners.used).filter(|(_, used)| !used);
    let runs = unused.map(|(cluster, _)| ClusterRun { first: HostCluster(*cluster), count: 1 });
    Ok(runs.filter(|run| matches!(parts.alloc.count(run.first.0), Ok(count) if count > 0)).collect())
}

struct Owners {
    /// In order.
    clusters: Vec<u64>,
    used: Vec<bool>,
}

impl Owners {
    /// Notes that clusters are used. Called for all that there are, most of which are none of these.
    fn note(&mut self, first: HostCluster, count: u64) {
        let from = self.clusters.partition_point(|cluster| *cluster < first.0);
        let hit = self.clusters[from..].partition_point(|cluster| cluster - first.0 < count);
        self.used[from..from + hit].fill(true);
    }

    fn note_bytes(&mut self, parts: &Parts<'_>, offset: u64, bytes: u64) {
        let count = parts.geometry.clusters_ceil(bytes);
        self.note(parts.geometry.cluster_index(HostOffset(offset)), count);
    }

    /// Everything but bitmaps that an image has clusters for.
    fn find(&mut self, core: &Core, parts: &Parts<'_>) -> Result<()> {
        let header = parts.header.header();
        self.note(HostCluster(0), 1);
        self.note_bytes(parts, header.l1_table_offset, u64::from(header.l1_size) * 8);
        if let Some(data) = header.extension(extensions::ENCRYPTION) {
            let pointer = extensions::encryption(data)?;
            self.note_bytes(parts, pointer.offset, pointer.bytes);
        }
        self.find_counts(parts, &header)?;
        self.find_tree(parts, &L1Table::active(parts)?)?;
        let (snapshots, bytes) = load_snapshots(&**core.storage(), &header)?;
        self.note_bytes(parts, header.snapshots_offset, bytes);
        for snapshot in &snapshots {
            self.note_bytes(parts, snapshot.l1_table_offset, u64::from(snapshot.l1_size) * 8);
            self.find_tree(parts, &L1Table::of_snapshot(parts, snapshot)?)?;
        }
        Ok(())
    }

    /// Refcount table and blocks.
    fn find_counts(&mut self, parts: &Parts<'_>, header: &Header) -> Result<()> {
        let (offset, bytes) =
            (header.refcount_table_offset, u64::from(header.refcount_table_clusters) << header.cluster_bits);
        self.note_bytes(parts, offset, bytes);
        let mut piece = [0; PIECE_BYTES];
        for at in (0..bytes).step_by(PIECE_BYTES) {
            let part = &mut piece[..(bytes - at).min(PIECE_BYTES as u64) as usize];
            parts.medium.read_table(Purpose::RefcountTable, offset + at, part)?;
            for block in part.chunks_exact(8).map(|raw| be64(raw, 0) & !REFCOUNT_TABLE_RESERVED) {
                if block != 0 {
                    self.note_bytes(parts, block, parts.geometry.cluster_bytes());
                }
            }
        }
        Ok(())
    }

    fn find_tree(&mut self, parts: &Parts<'_>, tree: &L1Table) -> Result<()> {
        tree.walk(parts, 0..tree.entries.len(), Walk::Raise, &mut |runs| {
            runs.iter().for_each(|run| self.note(run.first, run.count));
            Ok(())
        })
    }
}
