//! A table tree as the medium has it: an L1 table, what it refers to ([`walk`]), its COPIED flags ([`flags`]), and the
//! counts of all of it ([`counts`]). The caller is alone and has brought everything to the medium; caches are not used
//! and not filled.

mod counts;
mod flags;
mod walk;

pub(super) use flags::{match_flags, Flags};
pub(super) use walk::Walk;

use crate::alloc::Reserved;
use crate::error::{room, stock_hex, zeroed, Error, Result};
use crate::format::be64;
use crate::format::entries::L1Entry;
use crate::format::geometry::{MAX_HOST_OFFSET, MAX_L1_BYTES};
use crate::format::snapshot::Snapshot;
use crate::format::{Geometry, HostOffset};
use crate::image::Parts;
use crate::meta::guard::Owner;
use crate::meta::{Release, Settler};
use crate::storage::medium::Ticket;
use crate::storage::Purpose;

/// Bytes of an L1 table that are read at once.
const PIECE_BYTES: usize = 16 << 10;

/// An L1 table as it is on the medium.
pub(super) struct L1Table {
    pub(super) offset: u64,
    pub(super) entries: Vec<u64>,
}

impl L1Table {
    /// The image's own.
    pub(super) fn active(parts: &Parts<'_>) -> Result<L1Table> {
        let header = parts.header.header();
        L1Table::read(parts, "of the image", header.l1_table_offset, header.l1_size)
    }

    pub(super) fn of_snapshot(parts: &Parts<'_>, snapshot: &Snapshot) -> Result<L1Table> {
        let id = String::from_utf8_lossy(&snapshot.id);
        L1Table::read(parts, &format!("of snapshot '{id}'"), snapshot.l1_table_offset, snapshot.l1_size)
    }

    /// `whose` names it in errors.
    fn read(parts: &Parts<'_>, whose: &str, offset: u64, entries: u32) -> Result<L1Table> {
        let bytes = u64::from(entries) * 8;
        if bytes > MAX_L1_BYTES {
            let rule = "the table may have 32 MiB at most";
            return Err(Error::corrupt("L1 entries", whose, u64::from(entries), rule));
        }
        if bytes != 0 && (parts.geometry.in_cluster(offset) != 0 || offset >= MAX_HOST_OFFSET) {
            let rule = "offset must be a multiple of the cluster size below 2^56";
            return Err(Error::corrupt("L1 table", whose, offset, rule));
        }
        let mut table = L1Table { offset, entries: room("L1 table", bytes / 8)? };
        let mut piece = [0; PIECE_BYTES];
        for at in (0..bytes).step_by(PIECE_BYTES) {
            let part = &mut piece[..(bytes - at).min(PIECE_BYTES as u64) as usize];
            parts.medium.read_table(Purpose::L1, offset + at, part)?;
            table.entries.extend(part.chunks_exact(8).map(|c| be64(c, 0)));
        }
        Ok(table)
    }

    /// A table of `count` entries: these, as `change` makes them, and zeroes.
    pub(super) fn copied(&self, count: usize, change: impl Fn(usize, u64) -> u64) -> Result<Vec<u64>> {
        let mut copy = room("L1 table", count as u64)?;
        copy.extend(self.entries.iter().take(count).enumerate().map(|(index, entry)| change(index, *entry)));
        copy.resize(count, 0);
        Ok(copy)
    }

    /// Writes a table that nothing points to yet.
    pub(super) fn write_new<'a>(
        parts: &Parts<'a>,
        entries: Vec<u64>,
    ) -> Result<(Option<Reserved<'a>>, L1Table)> {
        let mut bytes = room("L1 table", entries.len() as u64 * 8)?;
        entries.iter().for_each(|e| bytes.extend_from_slice(&e.to_be_bytes()));
        let (room, offset) = write_unlinked(parts, Purpose::L1, &bytes)?;
        Ok((room, L1Table { offset, entries }))
    }

    /// The host offset of the L2 table of an entry, checked; 0 for none.
    pub(super) fn l2_table(&self, geometry: &Geometry, index: usize) -> Result<u64> {
        let entry = self.entries[index];
        let table = L1Entry(entry).table_offset();
        if geometry.in_cluster(table) != 0 || table >= MAX_HOST_OFFSET {
            let rule = "L2 table offset must be a multiple of the cluster size below 2^56";
            let stock =
                format!("L2 table offset {table:#x} unaligned (L1 index: {})", stock_hex(index as u64));
            return Err(Error::corrupt("L1 entry", index, entry, rule).in_stock_words(stock));
        }
        Ok(table)
    }
}

/// Writes a table that nothing points to yet, in whole clusters of its own; none for no bytes.
pub(super) fn write_unlinked<'a>(
    parts: &Parts<'a>,
    purpose: Purpose,
    bytes: &[u8],
) -> Result<(Option<Reserved<'a>>, u64)> {
    if bytes.is_empty() {
        return Ok((None, 0));
    }
    let clusters = parts.geometry.clusters_ceil(bytes.len() as u64);
    let room = parts.alloc.reserve_contiguous(clusters)?;
    let offset = parts.geometry.cluster_offset(room.first_cluster()).0;
    let mut padded = zeroed("table", clusters << parts.geometry.cluster_bits)?;
    padded[..bytes.len()].copy_from_slice(bytes);
    parts.medium.write_unlinked(purpose, offset, &padded)?;
    Ok((Some(room), offset))
}

/// Keeps the clusters of tables that something points to now.
pub(super) fn keep<const N: usize>(rooms: [Option<Reserved<'_>>; N]) {
    rooms.into_iter().flatten().for_each(Reserved::keep);
}

/// Has the clusters of a table freed that nothing durable refers to any more, and that hold `owner`.
pub(super) fn let_go(parts: &Parts<'_>, owner: Owner, offset: u64, bytes: u64) {
    let clusters = parts.geometry.clusters_ceil(bytes);
    if offset != 0 && clusters != 0 {
        let release = Release::of(owner, parts.geometry.cluster_index(HostOffset(offset)), clusters);
        parts.alloc.settle_after(Ticket::PAST, vec![release]);
    }
}
