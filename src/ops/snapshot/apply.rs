//! Applies a snapshot: a copy of its L1 table becomes the active one, and the disk has the snapshot's size.
//!
//! All that can be refused is refused before the first write. The copy, its raised refcounts and cleared flags are
//! durable before the header names it (R1, R5); the old active tree is given back after that (R3).

use super::{entry_of, table};
use crate::error::{Error, Result};
use crate::format::entries::COPIED;
use crate::format::GuestOffset;
use crate::image::ExclusiveImage;
use crate::meta::guard::Owner;
use crate::ops::last_steps::{reload_without, Gone};
use crate::ops::tree::{keep, Flags, L1Table};

/// Makes the disk what it was when snapshot number `index` was taken, its size too.
pub(super) fn apply(image: &ExclusiveImage<'_>, index: usize) -> Result<()> {
    let core = image.core();
    if core.bitmaps()?.is_some() {
        return Err(Error::unsupported("Device has active dirty bitmaps"));
    }
    core.begin_change(GuestOffset(0), 0)?;
    let parts = core.structure_writer()?;
    image.settle()?;
    let list = table::load(&core)?;
    let snapshot = entry_of(&list, index)?;
    let size = snapshot.virtual_size.unwrap_or(core.length());
    parts.geometry.check_virtual_size(size)?;
    let least = parts.geometry.l1_entries_for(size).max(1) as usize;
    let old = L1Table::active(&parts)?;
    old.check_release(&parts, Owner::ACTIVE_L1)?;
    let wanted = L1Table::of_snapshot(&parts, snapshot)?;
    let wanted = wanted.copied(wanted.entries.len().max(least), |_, entry| entry & !COPIED)?;
    let (room, mut wanted) = L1Table::write_new(&parts, wanted)?;

    let (entries, offset) = (wanted.entries.len() as u32, wanted.offset);
    wanted.raise(&core, &parts)?;
    let changed =
        parts.make_durable().and_then(|()| wanted.set_flags(&parts, false, Flags::Clear)).and_then(|()| {
            parts.header.change(|h| {
                h.l1_table_offset = offset;
                h.l1_size = entries;
                h.virtual_size = size;
            })
        });
    if let Err(e) = changed {
        wanted.unraise(&parts);
        return Err(e);
    }
    keep([room]);
    image.complete(reload_without(Gone::tree(old)))?;
    // The disk is what it is to be; what has become free may wait for the next barrier.
    let _ = image.settle();
    Ok(())
}
