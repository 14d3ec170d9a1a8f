//! The snapshot table as the medium has it: read for listings, for structure changes and for the overlap index.

use super::guard::{OverlapGuard, Owner};
use crate::error::{zeroed, Error, ErrorKind, Result};
use crate::format::be64;
use crate::format::entries::L1Entry;
use crate::format::geometry::{MAX_HOST_OFFSET, MAX_L1_BYTES};
use crate::format::header::{snapshot_fields, SNAPSHOT_FIELDS_AT, SNAPSHOT_FIELDS_BYTES};
use crate::format::snapshot::{parse_table, Snapshot, FIXED_BYTES, MAX_ENTRY_BYTES, MAX_TABLE_BYTES};
use crate::format::Header;
use crate::storage::{read_exact, Purpose, Storage};

/// First guess at the length of a table, bytes.
const FIRST_BYTES: u64 = 64 << 10;

/// Most clusters of snapshots' L1 tables that the overlap index takes: some 32 MiB of memory.
const MAX_INDEXED_CLUSTERS: u64 = 1 << 20;

/// Reads all entries, with the length of the table in bytes. Past the end of the file there are zeroes.
pub(crate) fn load_snapshots(storage: &dyn Storage, header: &Header) -> Result<(Vec<Snapshot>, u64)> {
    let count = header.snapshot_count;
    if count == 0 {
        return Ok((Vec::new(), 0));
    }
    let length = storage.length().map_err(|e| Error::host("length of the image file", &e))?;
    // An entry of zeroes is its fixed part.
    let stored = length.saturating_sub(header.snapshots_offset);
    let room = (stored + MAX_ENTRY_BYTES + u64::from(count) * FIXED_BYTES as u64).min(MAX_TABLE_BYTES);
    let mut bytes = FIRST_BYTES.min(room);
    loop {
        let mut table = zeroed("snapshot table", bytes)?;
        read_exact(storage, Purpose::Snapshots, header.snapshots_offset, &mut table)?;
        match parse_table(&table, count) {
            Err(e) if e.kind() == ErrorKind::Corrupt && bytes < room => bytes = (bytes * 4).min(room),
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                let detail = format!("{count} entries in more than {room} bytes");
                return Err(Error::new(ErrorKind::TooLarge, "Snapshot table is too big").detail(detail));
            }
            done => return done,
        }
    }
}

/// Looks at a table that somebody else changes again and again, before that is given up.
const MOST_LOOKS: u32 = 100;

/// The header with the snapshot table that is in force now, and its entries: of an image that somebody else may be
/// writing. A table that the header still names after it was read has been whole all the time, or has gone and come back
/// in a place that was empty meanwhile: so two looks in a row must see the same.
pub(crate) fn load_current_snapshots(
    storage: &dyn Storage,
    mut header: Header,
) -> Result<(Header, Vec<Snapshot>)> {
    let mut before: Option<Vec<Snapshot>> = None;
    for _ in 0..MOST_LOOKS {
        (header.snapshot_count, header.snapshots_offset) = table_now(storage)?;
        header.check_tables(true)?;
        let loaded = load_snapshots(storage, &header);
        if table_now(storage)? != (header.snapshot_count, header.snapshots_offset) {
            continue;
        }
        let (list, _) = loaded?;
        if list.is_empty() || before.as_ref() == Some(&list) {
            return Ok((header, list));
        }
        before = Some(list);
    }
    Err(Error::new(ErrorKind::Locked, "snapshot table: another program keeps changing it"))
}

/// Entries and offset of the snapshot table, as the header on the medium has them.
fn table_now(storage: &dyn Storage) -> Result<(u32, u64)> {
    let mut fields = [0; SNAPSHOT_FIELDS_BYTES];
    read_exact(storage, Purpose::Header, SNAPSHOT_FIELDS_AT, &mut fields)?;
    Ok(snapshot_fields(&fields))
}

/// Adds the snapshot table and the snapshots' tables to the overlap index.
pub(crate) fn index_snapshots(guard: &OverlapGuard, storage: &dyn Storage, header: &Header) -> Result<()> {
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
        let readable = l1_bytes <= MAX_L1_BYTES
            && geometry.in_cluster(snapshot.l1_table_offset) == 0
            && snapshot.l1_table_offset < MAX_HOST_OFFSET;
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

#[cfg(test)]
mod tests;
