//! Who leads to clusters that something damaged claims: a look at everything in an image, for the few that ask.
//!
//! Called by whoever is inside alone and is about to free or overwrite what one structure names. The walk reads all tables
//! once; memory is that of the clusters asked for, and of one table.

use crate::error::{room, ErrorKind, Result};
use crate::format::bitmap::BitmapCluster;
use crate::format::entries::REFCOUNT_TABLE_RESERVED;
use crate::format::features::AUTOCLEAR_BITMAPS;
use crate::format::{be64, extensions, Header, HostCluster, HostOffset};
use crate::image::{Core, Parts};
use crate::meta::bitmap_directory::{each_entry, load_bitmaps};
use crate::meta::snapshot_table::load_snapshots;
use crate::ops::tree::{L1Table, Walk};
use crate::storage::Purpose;

/// Bytes of the refcount table that are read at once.
const PIECE_BYTES: usize = 16 << 10;

/// Whose clusters are asked about, and do not count as somebody else's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Besides {
    Bitmaps,
    Encryption,
}

/// Clusters, and whether something leads to them.
pub(in crate::ops) struct Owners {
    /// In order.
    clusters: Vec<u64>,
    used: Vec<bool>,
    besides: Besides,
}

impl Owners {
    /// Looks at everything but `besides`. What breaks a rule of the format is an error: nobody can tell then.
    pub(in crate::ops) fn find(
        core: &Core,
        parts: &Parts<'_>,
        mut clusters: Vec<u64>,
        besides: Besides,
    ) -> Result<Owners> {
        clusters.sort_unstable();
        clusters.dedup();
        let mut used: Vec<bool> = room("clusters whose owners are looked for", clusters.len() as u64)?;
        used.resize(clusters.len(), false);
        let mut owners = Owners { clusters, used, besides };
        owners.look(core, parts)?;
        Ok(owners)
    }

    /// Each cluster, and whether it is used.
    pub(in crate::ops) fn all(&self) -> impl Iterator<Item = (u64, bool)> + '_ {
        self.clusters.iter().copied().zip(self.used.iter().copied())
    }

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

    fn look(&mut self, core: &Core, parts: &Parts<'_>) -> Result<()> {
        let header = parts.header.header();
        self.note(HostCluster(0), 1);
        self.note_bytes(parts, header.l1_table_offset, u64::from(header.l1_size) * 8);
        match self.besides {
            Besides::Bitmaps => self.find_encryption(parts, &header)?,
            Besides::Encryption => self.find_bitmaps(core, parts, &header)?,
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

    fn find_encryption(&mut self, parts: &Parts<'_>, header: &Header) -> Result<()> {
        if let Some(data) = header.extension(extensions::ENCRYPTION) {
            let pointer = extensions::encryption(data)?;
            self.note_bytes(parts, pointer.offset, pointer.bytes);
        }
        Ok(())
    }

    /// Bitmaps that are void lead nowhere: a repair has given their clusters to others, or will.
    fn find_bitmaps(&mut self, core: &Core, parts: &Parts<'_>, header: &Header) -> Result<()> {
        let in_force = header.autoclear & AUTOCLEAR_BITMAPS != 0;
        let Some(data) = header.extension(extensions::BITMAPS).filter(|_| in_force) else { return Ok(()) };
        let pointer = extensions::bitmaps(data)?;
        self.note_bytes(parts, pointer.directory_offset, pointer.directory_bytes);
        let storage = &**core.storage();
        for bitmap in load_bitmaps(storage, header)? {
            self.note_bytes(parts, bitmap.table_offset, u64::from(bitmap.table_entries) * 8);
            let noted = each_entry(storage, &bitmap, parts.geometry, &mut |clusters| {
                for cluster in clusters {
                    if let BitmapCluster::Host(offset) = cluster {
                        self.note_bytes(parts, *offset, 1);
                    }
                }
                Ok(())
            });
            match noted {
                // Nobody believes it.
                Err(e) if bitmap.is_inconsistent() && e.kind() == ErrorKind::Corrupt => {}
                noted => noted?,
            }
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
