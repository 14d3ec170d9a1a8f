//! Tables that another version of the format reads as this one does: the active L2 tables and those of snapshots.
//!
//! Version 2 has no zero flag. An entry with one becomes a hole where nothing is below the image, else a new cluster of
//! zeroes. A table that several L1 tables share is changed in place, and what it gets or lets go of is counted once
//! for each of them.
//!
//! ```text
//! each table   clusters reserved, zeroed, counted -> durable -> the entries -> durable -> counts fall
//! ```
//!
//! Contents stay what they are after any part of this: a power cut leaves some entries with their flag, and leaks.

use crate::alloc::{Allocator, ClusterRun, Freed, Reserved};
use crate::error::{room, zeroed, Error, ErrorKind, Result};
use crate::format::be64;
use crate::format::entries::{COMPRESSED, COPIED, OFFSET_MASK, ZERO};
use crate::format::geometry::SECTOR_BYTES;
use crate::format::HostOffset;
use crate::image::{Core, ExclusiveImage, Parts};
use crate::meta::guard::Owner;
use crate::ops::last_steps::reload;
use crate::ops::snapshot::table;
use crate::ops::tree::L1Table;
use crate::storage::Purpose;
use std::collections::HashSet;

/// Called with each table's offset and bytes, and with how many L1 entries of how many have been seen.
type EachTable<'a> = &'a mut dyn FnMut(u64, &mut [u8], (u64, u64)) -> Result<()>;

/// The L2 tables that have had their turn, and how many L1 entries of how many.
struct Seen {
    tables: HashSet<u64>,
    done: u64,
    total: u64,
}

/// What the L2 tables hold that another version or compression type would read otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    /// Bit 0 of a standard entry is set somewhere.
    pub(super) zero_flag: bool,
    /// There are compressed clusters.
    pub(super) compressed: bool,
}

/// Gives each L2 table of the image and its snapshots to `each`, once, as the medium has it.
fn each_table(core: &Core, parts: &Parts<'_>, each: EachTable<'_>) -> Result<()> {
    let snapshots = table::load(core)?;
    let entries = snapshots.iter().map(|s| u64::from(s.l1_size));
    let total = entries.sum::<u64>() + u64::from(parts.header.header().l1_size);
    let mut seen = Seen { tables: HashSet::new(), done: 0, total };
    each_table_of(parts, &L1Table::active(parts)?, &mut seen, each)?;
    // One at a time: together they may be larger than memory.
    for snapshot in &snapshots {
        each_table_of(parts, &L1Table::of_snapshot(parts, snapshot)?, &mut seen, each)?;
    }
    Ok(())
}

fn each_table_of(parts: &Parts<'_>, tree: &L1Table, seen: &mut Seen, each: EachTable<'_>) -> Result<()> {
    let mut bytes = zeroed("L2 table", parts.geometry.cluster_bytes())?;
    for index in 0..tree.entries.len() {
        let table = tree.l2_table(parts.geometry, index)?;
        seen.done += 1;
        if table == 0 {
            continue;
        }
        let more = seen.tables.try_reserve(1);
        more.map_err(|_| Error::new(ErrorKind::NoMemory, "list of the L2 tables: no memory"))?;
        if seen.tables.insert(table) {
            parts.medium.read_table(Purpose::L2, table, &mut bytes)?;
            each(table, &mut bytes, (seen.done, seen.total))?;
        }
    }
    Ok(())
}

/// Looks at all L2 tables, standard entries only. The caller is alone and has settled everything.
pub(super) fn look_at_tables(core: &Core, parts: &Parts<'_>) -> Result<Found> {
    let mut found = Found::default();
    each_table(core, parts, &mut |_, bytes, _| {
        for raw in bytes.chunks_exact(8) {
            let entry = be64(raw, 0);
            found.compressed |= entry & COMPRESSED != 0;
            found.zero_flag |= entry & (COMPRESSED | ZERO) == ZERO;
        }
        Ok(())
    })?;
    Ok(found)
}

/// Leaves no entry with a zero flag. The image is loaded anew.
pub(super) fn expand_zeroes(
    image: &ExclusiveImage<'_>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<()> {
    let core = image.core();
    let parts = core.structure_writer()?;
    image.settle()?;
    let backed = core.header().backing_file.is_some();
    let done = each_table(&core, &parts, &mut |table, bytes, (done, total)| {
        if !progress(done, total) {
            return Err(Error::new(ErrorKind::Cancelled, "compat: the caller asked to stop"));
        }
        expand_table(&parts, table, bytes, backed, total)
    });
    // Tables have changed behind the cache's back, also before a failure.
    let loaded = image.complete(reload);
    done.and(loaded)
}

/// Clusters taken for one table, given back unless kept.
struct Taken<'a> {
    alloc: &'a Allocator,
    rooms: Vec<Reserved<'a>>,
    /// References besides the one that `rooms` has, so many for each run.
    raised: Vec<ClusterRun>,
    times: u64,
    kept: bool,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // A failure leaves leaks.
            let _ = self.alloc.unraise(&mut self.raised, self.times);
        }
    }
}

impl Taken<'_> {
    fn keep(mut self) {
        self.kept = true;
        self.rooms.drain(..).for_each(Reserved::keep);
    }
}

/// `most`: L1 entries that there are, of the image and of its snapshots.
fn expand_table(parts: &Parts<'_>, table: u64, bytes: &mut [u8], backed: bool, most: u64) -> Result<()> {
    let (geometry, alloc) = (parts.geometry, parts.alloc);
    let flagged = |at: &usize| be64(bytes, *at) & (COMPRESSED | ZERO) == ZERO;
    let slots: Vec<usize> = (0..bytes.len()).step_by(8).filter(flagged).collect();
    let (Some(&first), Some(&last)) = (slots.first(), slots.last()) else { return Ok(()) };
    let references = alloc.count(geometry.cluster_index(table))?;
    if references == 0 || references > most {
        let rule = "as many as there are L1 entries that may refer to the cluster, and one at least";
        let cluster = geometry.cluster_index(table);
        return Err(Error::corrupt("refcount of cluster", cluster, references, rule));
    }
    let mut taken =
        Taken { alloc, rooms: Vec::new(), raised: Vec::new(), times: references - 1, kept: false };
    let mut dropped = room("clusters of an L2 table", slots.len() as u64)?;
    for &at in &slots {
        let host = be64(bytes, at) & OFFSET_MASK;
        if host != 0 {
            let first = geometry.cluster_index(HostOffset(host));
            parts.guard.check_release(Owner::NOBODY, first, 1)?;
            dropped.push(ClusterRun { first, count: 1 });
        }
        bytes[at..at + 8].fill(0);
    }
    if backed {
        take_zeroes(parts, &mut taken, &slots, references, bytes)?;
        parts.make_durable()?;
    }
    let (from, to) =
        (first as u64 / SECTOR_BYTES * SECTOR_BYTES, (last as u64 / SECTOR_BYTES + 1) * SECTOR_BYTES);
    // A table that a snapshot shares with the active tree is in the index as both.
    parts.guard.check(Owner::ANY_L2, HostOffset(table + from), to - from)?;
    parts.medium.write_live(Purpose::L2, table + from, &bytes[from as usize..to as usize])?;
    taken.keep();
    if dropped.is_empty() {
        return Ok(());
    }
    // The entries are durable before the counts fall (R3).
    parts.make_durable()?;
    alloc.lower_all_by(&mut dropped, references, Freed::ByChange).map(drop)
}

/// A cluster of zeroes for each of the entries `wanted`, counted `references` times.
fn take_zeroes<'a>(
    parts: &Parts<'_>,
    taken: &mut Taken<'a>,
    wanted: &[usize],
    references: u64,
    bytes: &mut [u8],
) -> Result<()> {
    let geometry = parts.geometry;
    let copied = if references == 1 { COPIED } else { 0 };
    let mut left = wanted;
    while !left.is_empty() {
        let room = taken.alloc.reserve(left.len() as u64)?;
        let (first, count) = (room.first_cluster(), room.cluster_count());
        let fresh = room.is_fresh();
        taken.rooms.push(room);
        // What was never written is zeroes of the host, which is not always what a guest reads as zeroes.
        if !fresh || !parts.payload.zeroes_are_zero() {
            let length = count << geometry.cluster_bits;
            parts.payload.zero_unplaced(geometry.cluster_offset(first), length)?;
        }
        if taken.times > 0 {
            taken.alloc.raise_by(&mut [ClusterRun { first, count }], taken.times)?;
            taken.raised.push(ClusterRun { first, count });
        }
        let (now, later) = left.split_at(count as usize);
        for (at, cluster) in now.iter().zip(first.to(first + count)) {
            let entry = geometry.cluster_offset(cluster).0 | copied;
            bytes[*at..*at + 8].copy_from_slice(&entry.to_be_bytes());
        }
        left = later;
    }
    Ok(())
}
