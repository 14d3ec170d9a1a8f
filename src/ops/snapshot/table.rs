//! A snapshot table in another place: written whole, then named by the header, then the old one goes (R5, R3).

use crate::alloc::Reserved;
use crate::error::{Error, ErrorKind, Result};
use crate::format::snapshot::{Snapshot, MAX_TABLE_BYTES};
use crate::format::HostOffset;
use crate::image::{Core, ExclusiveImage, Parts};
use crate::meta::guard::Owner;
use crate::meta::snapshot_table::load_snapshots;
use crate::ops::last_steps::reload;
use crate::ops::tree::{keep, let_go, write_unlinked};
use crate::storage::Purpose;

/// The entries as the medium has them. The image is held alone.
pub(in crate::ops) fn load(core: &Core) -> Result<Vec<Snapshot>> {
    Ok(load_snapshots(&**core.storage(), &core.header())?.0)
}

/// Writes a table that nothing points to yet, of an image of `virtual_size` bytes.
pub(super) fn write_new<'a>(
    parts: &Parts<'a>,
    list: &[Snapshot],
    virtual_size: u64,
) -> Result<(Option<Reserved<'a>>, u64)> {
    let mut bytes = Vec::new();
    list.iter().for_each(|s| s.encode(virtual_size, &mut bytes));
    if bytes.len() as u64 > MAX_TABLE_BYTES {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("snapshot table: {} bytes, the limit is {MAX_TABLE_BYTES}", bytes.len()),
        ));
    }
    write_unlinked(parts, Purpose::Snapshots, &bytes)
}

/// Has the header name a table that is written; the old one goes.
pub(super) fn replace(core: &Core, parts: &Parts<'_>, offset: u64, count: usize) -> Result<()> {
    let old = parts.header.header();
    let (_, old_bytes) = load_snapshots(&**core.storage(), &old)?;
    let clusters = parts.geometry.clusters_ceil(old_bytes);
    let first = parts.geometry.cluster_index(HostOffset(old.snapshots_offset));
    parts.guard.check_release(Owner::SNAPSHOT_TABLE, first, clusters)?;
    parts.header.change(|h| {
        h.snapshots_offset = offset;
        h.snapshot_count = count as u32;
    })?;
    let_go(parts, Owner::SNAPSHOT_TABLE, old.snapshots_offset, old_bytes);
    Ok(())
}

/// Writes a table whose entries have all that version 3 asks for. The image is loaded anew.
pub(in crate::ops) fn complete_entries(image: &ExclusiveImage<'_>) -> Result<()> {
    let core = image.core();
    let list = load(&core)?;
    if list.iter().all(|s| s.is_complete()) {
        return Ok(());
    }
    let parts = core.structure_writer()?;
    let (room, offset) = write_new(&parts, &list, core.length())?;
    parts.make_durable()?;
    replace(&core, &parts, offset, list.len())?;
    keep([room]);
    image.complete(reload)
}
