//! What lies past the old end of a disk, before the disk has it: zeroed, then preallocated.

use crate::disk::ZeroFlags;
use crate::error::{zeroed, Result};
use crate::format::GuestOffset;
use crate::image::{Core, ExclusiveImage};
use crate::map::Source;
use crate::meta::Settler;
use crate::options::Preallocation;
use crate::storage::aligned::Aligned;
use crate::storage::medium::Ticket;
use std::io::IoSlice;

/// Bytes of zeroes written at once by full preallocation.
const CHUNK_BYTES: u64 = 1 << 20;

/// Readies what lies past `old` for a disk of `size` bytes, durably, before the disk says that it has this range: a
/// power cut must not leave the new size with old bytes. Zeroes what a longer backing file, the rest of the last
/// cluster, or entries that somebody has left behind would show there; then preallocates. A failure gives the room
/// back, and what is not given back nobody sees.
pub(super) fn prepare(
    image: &ExclusiveImage<'_>,
    old: u64,
    size: u64,
    preallocation: Preallocation,
) -> Result<()> {
    let core = image.core();
    let below = core.backing().map_or(0, |b| b.length());
    let cluster_end = core.geometry().cluster_ceil(old).unwrap_or(old);
    let hidden_end = below.max(cluster_end).max(core.parts()?.map.tables_end()).min(size);
    if hidden_end <= old && (size <= old || preallocation == Preallocation::Off) {
        return Ok(());
    }
    // The core in force is settled. From the first write on the wide one it knows less than the medium.
    let wide = image.load_sized(size)?;
    let (changed, zeroed) = zero_what_shows(&wide, GuestOffset(old), GuestOffset(hidden_end));
    if !changed && (zeroed.is_err() || preallocation == Preallocation::Off) {
        return zeroed;
    }
    let prepared = zeroed.and_then(|()| match preallocation {
        Preallocation::Off => Ok(()),
        how => preallocate_past(&wide, GuestOffset(old), GuestOffset(size), how),
    });
    if prepared.is_err() && preallocation != Preallocation::Off {
        let _ = give_back_past(&wide, old);
    }
    image.put_sized(wide, old);
    let settled = image.settle();
    if prepared.is_err() && settled.is_ok() {
        let _ = image.core().structure_writer().and_then(|parts| parts.alloc.cut_file());
    }
    prepared.and(settled)
}

/// Preallocates `[from, to)`, durably.
fn preallocate_past(
    core: &Core,
    from: GuestOffset,
    to: GuestOffset,
    preallocation: Preallocation,
) -> Result<()> {
    // The cluster that the old end cuts keeps what it shows before that end, of a backing file too.
    let cut_end = core.geometry().cluster_ceil(from).unwrap_or(to).min(to);
    if from < cut_end && is_hole(core, from)? {
        let zeroes = zeroed("rest of a cluster", cut_end - from)?;
        core.write(from, &[IoSlice::new(&zeroes)])?;
    }
    core.preallocate(from, to, preallocation)?;
    if preallocation == Preallocation::Full {
        fill_what_is_left(core, from, to)?;
    }
    core.barrier()
}

/// Writes zeroes where a preallocation has found entries that hold no data.
fn fill_what_is_left(core: &Core, from: GuestOffset, to: GuestOffset) -> Result<()> {
    let mut zeroes = Aligned::zeroed(CHUNK_BYTES as usize);
    let mut at = from;
    while at < to {
        let extent = core.parts()?.map.resolve(at, to - at)?;
        let bytes = extent.length.min(CHUNK_BYTES);
        if extent.source != Source::Data {
            core.write(at, &[IoSlice::new(zeroes.first(bytes as usize))])?;
        }
        at += bytes;
    }
    Ok(())
}

fn is_hole(core: &Core, offset: GuestOffset) -> Result<bool> {
    Ok(core.parts()?.map.resolve(offset, 1)?.source == Source::Hole)
}

/// Zeroes what does not read as zeroes in `[from, to)`. `true`: something was written, even if it failed.
fn zero_what_shows(core: &Core, from: GuestOffset, to: GuestOffset) -> (bool, Result<()>) {
    let table_bytes = core.geometry().l2_table_guest_bytes();
    let (mut at, mut changed) = (from, false);
    while at < to {
        // The cluster that the old end cuts by itself: what it shows says nothing about those behind it.
        let unit =
            if core.geometry().in_cluster(at) == 0 { table_bytes } else { core.geometry().cluster_bytes() };
        let step = (unit - at.0 % unit).min(to - at);
        match core.reads_zero(at, step) {
            Ok(true) => {}
            Ok(false) => {
                changed = true;
                if let Err(e) = core.write_zeroes(at, step, ZeroFlags::default()) {
                    return (true, Err(e));
                }
            }
            Err(e) => return (changed, Err(e)),
        }
        at += step;
    }
    (changed, Ok(()))
}

/// After a preallocation past `size` that failed: lets go of all that is there, and asks for as little room on the
/// host as can be. What fails of this leaks, where nobody sees it.
fn give_back_past(core: &Core, size: u64) -> Result<()> {
    let parts = core.structure_writer()?;
    let gone = parts.map.abandon_tables(size.div_ceil(core.geometry().l2_table_guest_bytes()))?;
    core.cut(size)?;
    parts.map.barrier()?;
    parts.alloc.settle_after(Ticket::PAST, gone);
    Ok(())
}
