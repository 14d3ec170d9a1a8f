//! Deletes a snapshot: its entry goes, then what only it referred to is given back.
//!
//! The shorter snapshot table is durable before a refcount is lowered (R3): a power cut between leaves a leak. Clusters
//! that one table alone refers to now get their flag back in the active tables, the last step.

use super::{bracket, entry_of, table};
use crate::error::Result;
use crate::image::ExclusiveImage;
use crate::meta::guard::Owner;
use crate::ops::last_steps::{reload, reload_with_flags};
use crate::ops::tree::{keep, L1Table};

/// Deletes snapshot number `index`.
pub(super) fn delete(image: &ExclusiveImage<'_>, index: usize) -> Result<()> {
    let core = image.core();
    let parts = core.structure_writer()?;
    image.settle()?;
    let mut list = table::load(&core)?;
    let tree = L1Table::of_snapshot(&parts, entry_of(&list, index)?)?;
    tree.check_release(&parts, Owner::INACTIVE_L1)?;
    list.remove(index);
    let (table_room, table_offset) = table::write_new(&parts, &list, core.length())?;

    bracket(&parts)?;
    parts.make_durable()?;
    table::replace(&core, &parts, table_offset, list.len())?;
    keep([table_room]);
    // What cannot be counted down leaks.
    match tree.lower(&parts, Owner::INACTIVE_L1).unwrap_or(true) {
        true => image.complete_later(reload_with_flags),
        false => image.complete_later(reload),
    }
}
