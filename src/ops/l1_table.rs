//! The active L1 table: a longer place for it, and entries that go with all that they lead to.

use super::last_steps::{reload, reload_without, Gone};
use super::tree::{L1Table, Walk};
use crate::error::{zeroed, Result};
use crate::format::{GuestOffset, HostOffset};
use crate::image::{Core, ExclusiveImage};
use crate::meta::guard::Owner;
use crate::meta::{Release, Settler};
use crate::storage::event::Event;
use crate::storage::medium::Ticket;
use crate::storage::Purpose;

/// Has the L1 table hold `entries` at least.
pub(super) fn make_l1_room(image: &ExclusiveImage<'_>, entries: u64) -> Result<()> {
    // Loading anew is sound only from a medium that has everything, counts of a lazy image too.
    image.settle()?;
    let core = image.core();
    let needed = entries.max(1);
    if needed <= u64::from(core.header().l1_size) {
        return Ok(());
    }
    grow(&core, needed)?;
    // The header names the new table: the core in force writes to the old one and must not go on.
    image.complete(reload)
}

/// Moves the table to a longer place.
fn grow(core: &Core, entries: u64) -> Result<()> {
    let parts = core.structure_writer()?;
    let geometry = parts.geometry;
    let clusters = geometry.clusters_ceil(entries * 8);
    let old = parts.header.header();
    let old_first = geometry.cluster_index(HostOffset(old.l1_table_offset));
    let old_clusters = geometry.clusters_ceil(u64::from(old.l1_size) * 8);
    if old.l1_table_offset != 0 {
        parts.guard.check_release(Owner::ACTIVE_L1, old_first, old_clusters)?;
    }
    let tell = |event| parts.medium.storage().event(event);
    tell(Event::L1GrowAlloc);
    let reserved = parts.alloc.reserve_contiguous(clusters)?;
    let mut bytes = zeroed("L1 table", clusters << geometry.cluster_bits)?;
    parts.map.copy_l1(&mut bytes);
    let offset = geometry.cluster_offset(reserved.first_cluster()).0;
    tell(Event::L1GrowWrite);
    parts.medium.write_unlinked(Purpose::L1, offset, &bytes)?;
    // Counts and contents are durable before the header points to the table (R1, R5).
    parts.alloc.advance()?;
    tell(Event::L1GrowActivate);
    parts.header.change(|h| {
        h.l1_table_offset = offset;
        h.l1_size = entries as u32;
    })?;
    reserved.keep();
    if old.l1_table_offset != 0 && old_clusters > 0 {
        let release = Release::of(Owner::ACTIVE_L1, old_first, old_clusters);
        parts.alloc.settle_after(Ticket::PAST, vec![release]);
    }
    Ok(())
}

/// Lets go of what the entries from number `first` on hold. Everything is on the medium; the image is loaded anew.
/// Entries first, then the counts of all that they led to, in pieces: a power cut leaves leaks.
pub(super) fn drop_tables(image: &ExclusiveImage<'_>, first: u64) -> Result<()> {
    let core = image.core();
    let parts = core.parts()?;
    let old = L1Table::active(&parts)?;
    let part = (first as usize).min(old.entries.len())..old.entries.len();
    old.walk(&parts, part.clone(), Walk::Release, &mut |_| Ok(()))?;
    // Slices of dropped tables are still cached: once the first entry is gone only a reload may go on.
    parts.map.clear_entries(first);
    image.complete(reload_without(Gone::entries(old, part)))
}

/// Lets go of everything that the image holds: afterwards it shows its backing file, or zeroes. Where that is not what
/// it has shown before, the caller has begun the change.
pub(super) fn make_empty(image: &ExclusiveImage<'_>) -> Result<()> {
    let core = image.core();
    core.structure_writer()?;
    core.zero_raw_disk()?;
    // What goes is found on the medium.
    image.settle()?;
    core.parts()?.medium.storage().event(Event::EmptyPrepare);
    drop_tables(image, 0)?;
    core.give_back_data(GuestOffset(0), core.disk_end())?;
    image.settle()?;
    image.core().structure_writer()?.alloc.cut_file()
}

/// Lets go of the VM state in the active table.
pub(super) fn drop_vm_state(image: &ExclusiveImage<'_>) -> Result<()> {
    let core = image.core();
    let first = core.geometry().l1_entries_for(core.length());
    if !core.parts()?.map.has_tables_from(first) {
        return Ok(());
    }
    core.structure_writer()?;
    image.settle()?;
    drop_tables(image, first)
}
