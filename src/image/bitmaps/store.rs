//! Bitmaps to the medium, where the medium says that they are in use.
//!
//! ```text
//! bits to new clusters and into those that they have -> counts and bits durable -> tables -> durable
//!   -> no longer in use (R7) -> durable -> clusters that are not needed any more go
//! ```
//!
//! Power cut before the last step: the bitmaps are in use, which says that they are not to be believed; their structure
//! is valid after each step (R1, R2), and clusters leak at most.

use super::{Bits, Listed, Tracker};
use crate::alloc::{Allocator, Reserved, Shared};
use crate::error::{zeroed, Result};
use crate::format::bitmap::{ENTRY_ONES, FLAG_IN_USE};
use crate::format::{Geometry, HostOffset};
use crate::meta::guard::Owner;
use crate::meta::{Release, Settler};
use crate::planted::{planted, Plant};
use crate::storage::medium::Ticket;
use crate::storage::Purpose;
use crate::sync::locked;
use std::sync::atomic::Ordering;

/// Entries of a table in one sector.
const SECTOR_ENTRIES: u64 = 64;

/// A chunk that has been written, and what its entry becomes.
struct Placed<'a> {
    index: u64,
    entry: u64,
    room: Option<Reserved<'a>>,
}

impl Tracker {
    /// Brings everything to the medium; afterwards nothing is in use. The caller is alone.
    pub(in crate::image) fn store(&self, shared: &Shared, alloc: &Allocator) -> Result<()> {
        if !self.unstored.load(Ordering::Relaxed) {
            return Ok(());
        }
        shared.medium.latch().check()?;
        if planted(Plant::BitmapsInUseTooShort) {
            self.settle_flags(shared)?;
        }
        let geometry = &shared.header.header().geometry();
        let mut gone = Vec::new();
        for tracked in self.list.iter().filter(|t| t.tracking().is_some()) {
            if let Ok(bits) = tracked.bits() {
                store_bits(bits, tracked.entry.table_offset, geometry, (shared, alloc), &mut gone)?;
            }
        }
        self.settle_flags(shared)?;
        self.keep_listed(&mut gone, geometry, shared);
        alloc.settle_after(Ticket::PAST, gone);
        Ok(())
    }

    /// What a bitmap that is not believed leads to, too, leaks: with that one it would go a second time.
    fn keep_listed(&self, gone: &mut Vec<Release>, geometry: &Geometry, shared: &Shared) {
        let mut unbelieved =
            self.list.iter().map(|tracked| &tracked.entry).filter(|e| e.is_inconsistent()).peekable();
        if gone.is_empty() || unbelieved.peek().is_none() {
            return;
        }
        let listed = Listed::of(unbelieved, geometry, &**shared.medium.storage());
        gone.retain(|release| !listed.has(release.first_cluster, release.cluster_count));
    }

    fn settle_flags(&self, shared: &Shared) -> Result<()> {
        shared.header.decide()?;
        let mut directory = locked(self.directory.lock());
        // First: whatever becomes of the write, the next change says again that they are in use.
        self.announced.store(false, Ordering::Relaxed);
        self.write_flags(&mut directory, shared, |flags| flags & !FLAG_IN_USE)?;
        shared.medium.sync_step()?;
        self.unstored.store(false, Ordering::Relaxed);
        Ok(())
    }
}

/// Stores the changed chunks of one bitmap, durably; clusters that it lets go of come to `gone`.
fn store_bits(
    bits: &Bits,
    table_offset: u64,
    geometry: &Geometry,
    (shared, alloc): (&Shared, &Allocator),
    gone: &mut Vec<Release>,
) -> Result<()> {
    let mut placed = Vec::new();
    for index in (0..bits.chunk_count()).filter(|index| bits.chunk(*index).is_changed()) {
        placed.push(place_chunk(bits, index, geometry, (shared, alloc))?);
    }
    if placed.is_empty() {
        return Ok(());
    }
    alloc.write_counts()?;
    alloc.advance()?;
    let cluster = |entry: u64| geometry.cluster_index(HostOffset(entry));
    let mut changed = Vec::new();
    for Placed { index, entry, room } in placed {
        let chunk = bits.chunk(index);
        let before = chunk.stored();
        if before > ENTRY_ONES && before != entry {
            shared.guard.check_release(Owner::NOBODY, cluster(before), 1)?;
            gone.push(Release::of(Owner::NOBODY, cluster(before), 1));
        }
        // From here on the medium may lead to it, and the entry is written again until it does.
        chunk.note_stored(entry);
        room.into_iter().for_each(Reserved::keep);
        changed.push(index);
    }
    write_entries(bits, table_offset, &changed, shared)?;
    shared.medium.sync_step()?;
    changed.iter().for_each(|index| bits.chunk(*index).note_unchanged());
    Ok(())
}

/// Writes a chunk to its cluster, or to a new one where it needs one.
fn place_chunk<'a>(
    bits: &Bits,
    index: u64,
    geometry: &Geometry,
    (shared, alloc): (&Shared, &'a Allocator),
) -> Result<Placed<'a>> {
    let granules = bits.chunk_granules(index);
    let content = bits.content(index, &shared.medium)?;
    if let Some(entry) = bits.plain_entry(index, &content) {
        return Ok(Placed { index, entry, room: None });
    }
    let bytes = content.encode(granules, geometry.cluster_bytes())?;
    let before = bits.chunk(index).stored();
    // Where a repair has counted another owner the bits move.
    if before > ENTRY_ONES && alloc.count(geometry.cluster_index(HostOffset(before)).0)? <= 1 {
        shared.guard.check(Owner::NOBODY, HostOffset(before), bytes.len() as u64)?;
        shared.medium.write_live(Purpose::Bitmaps, before, &bytes)?;
        return Ok(Placed { index, entry: before, room: None });
    }
    let room = alloc.reserve(1)?;
    let entry = geometry.cluster_offset(room.first_cluster()).0;
    shared.medium.write_unlinked(Purpose::Bitmaps, entry, &bytes)?;
    Ok(Placed { index, entry, room: Some(room) })
}

/// Writes the sectors of a table that have these entries, in order.
fn write_entries(bits: &Bits, table_offset: u64, changed: &[u64], shared: &Shared) -> Result<()> {
    let (Some(first), Some(last)) = (changed.first(), changed.last()) else { return Ok(()) };
    let from = first / SECTOR_ENTRIES * SECTOR_ENTRIES;
    let to = (last + 1).next_multiple_of(SECTOR_ENTRIES).min(bits.chunk_count());
    let mut table = zeroed("bitmap table", (to - from) * 8)?;
    for (raw, index) in table.chunks_exact_mut(8).zip(from..) {
        raw.copy_from_slice(&bits.chunk(index).stored().to_be_bytes());
    }
    let at = table_offset + from * 8;
    shared.guard.check(Owner::NOBODY, HostOffset(at), table.len() as u64)?;
    shared.medium.write_live(Purpose::Bitmaps, at, &table)
}
