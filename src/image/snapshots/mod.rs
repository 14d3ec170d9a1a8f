//! Internal snapshots of an open image: the snapshot table, read for listings and for the overlap index, and
//! what creates, applies and deletes them ([`change`]); and what concerns the tables of all of them ([`expand`]).

mod change;
mod expand;
mod find;
mod walk;

pub(in crate::image) use walk::Walk;

pub use change::NewSnapshot;
pub(in crate::image) use find::snapshot_header;
pub use find::Wanted;
pub(in crate::image) use walk::L1Table;

use crate::error::{zeroed, Error, ErrorKind, Result};
use crate::format::be64;
use crate::format::entries::L1Entry;
use crate::format::snapshot::{parse_table, Snapshot, MAX_TABLE_BYTES};
use crate::format::Header;
use crate::meta::guard::Owner;
use crate::meta::OverlapGuard;
use crate::storage::{read_exact, Purpose, Storage};

/// First guess at the length of a table, bytes.
const FIRST_BYTES: u64 = 64 << 10;

/// Most clusters of snapshots' L1 tables that the overlap index takes: some 32 MiB of memory.
const MAX_INDEXED_CLUSTERS: u64 = 1 << 20;

/// Reads all entries, with the length of the table in bytes.
pub(crate) fn load_snapshots(storage: &dyn Storage, header: &Header) -> Result<(Vec<Snapshot>, u64)> {
    if header.snapshot_count == 0 {
        return Ok((Vec::new(), 0));
    }
    let length = storage.length().map_err(|e| Error::host("length of the image file", &e))?;
    let room = length.saturating_sub(header.snapshots_offset).min(MAX_TABLE_BYTES);
    let mut bytes = FIRST_BYTES.min(room);
    loop {
        let mut table = zeroed("snapshot table", bytes)?;
        read_exact(storage, Purpose::Snapshots, header.snapshots_offset, &mut table)?;
        match parse_table(&table, header.snapshot_count) {
            Err(_) if bytes < room => bytes = (bytes * 4).min(room),
            Err(e) => return Err(Error::new(ErrorKind::Corrupt, format!("snapshot table: {e}"))),
            done => return done,
        }
    }
}

/// Adds the snapshot table and the snapshots' tables to the overlap index.
pub(in crate::image) fn index_snapshots(
    guard: &OverlapGuard,
    storage: &dyn Storage,
    header: &Header,
) -> Result<()> {
    let wanted = [Owner::SNAPSHOT_TABLE, Owner::INACTIVE_L1, Owner::INACTIVE_L2];
    if header.snapshot_count == 0 || !wanted.iter().any(|o| guard.checks(*o)) {
        return Ok(());
    }
    let geometry = header.geometry();
    let (snapshots, bytes) = load_snapshots(storage, header)?;
    guard.add(Owner::SNAPSHOT_TABLE, header.snapshots_offset, bytes);
    let tables = guard.checks(Owner::INACTIVE_L1) || guard.checks(Owner::INACTIVE_L2);
    let mut indexed = 0;
    // Neighbours in the table share most L2 tables: what is where it was in the one before is in the index.
    let mut before = Vec::new();
    for snapshot in snapshots.iter().filter(|_| tables) {
        let l1_bytes = u64::from(snapshot.l1_size) * 8;
        let readable = l1_bytes <= crate::format::geometry::MAX_L1_BYTES
            && geometry.in_cluster(snapshot.l1_table_offset) == 0
            && snapshot.l1_table_offset < crate::format::geometry::MAX_HOST_OFFSET;
        if !readable {
            continue;
        }
        indexed += geometry.clusters_ceil(l1_bytes);
        if indexed > MAX_INDEXED_CLUSTERS {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the L1 tables of {} snapshots have more than {MAX_INDEXED_CLUSTERS} clusters: \
                     they cannot be protected against overlaps (overlap-check.inactive-l1)",
                    snapshots.len()
                ),
            ));
        }
        guard.add(Owner::INACTIVE_L1, snapshot.l1_table_offset, l1_bytes);
        if guard.checks(Owner::INACTIVE_L2) {
            let mut l1 = zeroed("L1 table", l1_bytes)?;
            read_exact(storage, Purpose::L1, snapshot.l1_table_offset, &mut l1)?;
            let table = |l1: &[u8], at| L1Entry(be64(l1, at)).table_offset();
            let known = |at: usize| at < before.len() && table(&before, at) == table(&l1, at);
            let new = (0..l1.len()).step_by(8).filter(|at| !known(*at)).map(|at| table(&l1, at));
            guard.add_all(Owner::INACTIVE_L2, new.filter(|offset| *offset != 0), geometry.cluster_bytes());
            before = l1;
        }
    }
    Ok(())
}
