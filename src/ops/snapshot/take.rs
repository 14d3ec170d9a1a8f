//! Takes a snapshot: a copy of the active L1 table, one more reference to all that it names, an entry in the table.
//!
//! The copy and the raised refcounts are durable before a flag in the active tables goes (R1, R2), and those before the
//! header names the new snapshot table (R5). A power cut before the header leaves counts that are too high: a leak.

use super::{bracket, table};
use crate::error::{Error, ErrorKind, Result};
use crate::format::entries::COPIED;
use crate::format::header::MAX_SNAPSHOTS;
use crate::format::snapshot::{Snapshot, REQUIRED_EXTRA_BYTES};
use crate::image::ExclusiveImage;
use crate::ops::l1_table::drop_vm_state;
use crate::ops::last_steps::{reload, reload_with_flags};
use crate::ops::tree::{keep, Flags, L1Table};

/// What a new snapshot is called and when it was taken.
#[derive(Clone, Debug)]
pub struct NewSnapshot {
    /// Unique; `None`: one more than the largest number in use.
    pub id: Option<Vec<u8>>,
    /// Need not be unique.
    pub name: Vec<u8>,
    /// Seconds since the epoch.
    pub date_seconds: u32,
    /// And nanoseconds.
    pub date_nanoseconds: u32,
    /// How long the guest has run, nanoseconds.
    pub guest_clock_nanoseconds: u64,
    /// Instructions executed; `u64::MAX` for none.
    pub icount: u64,
    /// Bytes of VM state, as its entry says. With any, the image as it is has none afterwards.
    pub vm_state_bytes: u64,
}

/// Bytes of extra data that a new entry gets: VM state size, virtual size, icount.
const EXTRA_BYTES: u32 = REQUIRED_EXTRA_BYTES + 8;

/// Takes a snapshot of the disk as it is.
pub(super) fn take(image: &ExclusiveImage<'_>, new: &NewSnapshot) -> Result<()> {
    let core = image.core();
    let parts = core.structure_writer()?;
    image.settle()?;
    let mut list = table::load(&core)?;
    if list.len() >= MAX_SNAPSHOTS as usize {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("snapshot table: {} entries is the limit", MAX_SNAPSHOTS),
        ));
    }
    let mut active = L1Table::active(&parts)?;
    core.check_vm_state_room(new.vm_state_bytes)?;
    // All of it: VM state belongs to the snapshot, whether its size is told or not.
    let copy = active.copied(active.entries.len(), |_, entry| entry & !COPIED)?;
    let (l1_room, copy) = L1Table::write_new(&parts, copy)?;
    list.push(describe(new, &list, &copy, core.length())?);
    let (table_room, table_offset) = table::write_new(&parts, &list, core.length())?;

    bracket(&parts)?;
    active.raise(&core, &parts)?;
    // Counts and contents are durable before a flag goes or the header points to them (R1, R2, R5).
    let changed = parts
        .make_durable()
        .and_then(|()| active.set_flags(&parts, true, Flags::Clear))
        .and_then(|()| table::replace(&core, &parts, table_offset, list.len()));
    if let Err(e) = changed {
        active.unraise(&parts);
        drop((l1_room, table_room));
        // Some flags may have gone. This may have to wait, the answer is known.
        let _ = image.complete(reload_with_flags);
        return Err(e);
    }
    keep([l1_room, table_room]);
    image.complete_later(reload)?;
    if new.vm_state_bytes == 0 {
        return Ok(());
    }
    // The disk does not need it any more; keeping it would only have the next one copied.
    match drop_vm_state(image) {
        Err(e) if image.core().check_latch().is_err() => Err(e),
        _ => Ok(()),
    }
}

/// One more than the largest number that an ID starts with.
fn next_id(list: &[Snapshot]) -> Vec<u8> {
    let number = |id: &[u8]| {
        let digits = id.iter().take_while(|b| b.is_ascii_digit());
        digits.fold(0u64, |n, b| n.saturating_mul(10).saturating_add(u64::from(b - b'0')))
    };
    let largest = list.iter().map(|s| number(&s.id)).max().unwrap_or(0);
    largest.saturating_add(1).to_string().into_bytes()
}

/// The new entry, for an image of `virtual_size` bytes.
fn describe(new: &NewSnapshot, list: &[Snapshot], l1: &L1Table, virtual_size: u64) -> Result<Snapshot> {
    let id = new.id.clone().unwrap_or_else(|| next_id(list));
    if list.iter().any(|s| s.id == id) {
        let id = String::from_utf8_lossy(&id).into_owned();
        return Err(Error::invalid(format!("snapshot ID '{id}' is in use")));
    }
    for (what, bytes) in [("ID", &id), ("name", &new.name)] {
        if bytes.len() > usize::from(u16::MAX) {
            return Err(Error::invalid(format!(
                "snapshot {what}: {} bytes, the limit is 65535",
                bytes.len()
            )));
        }
    }
    Ok(Snapshot {
        l1_table_offset: l1.offset,
        l1_size: l1.entries.len() as u32,
        id,
        name: new.name.clone(),
        date_seconds: new.date_seconds,
        date_nanoseconds: new.date_nanoseconds,
        guest_clock_nanoseconds: new.guest_clock_nanoseconds,
        vm_state_bytes: new.vm_state_bytes,
        virtual_size: Some(virtual_size),
        icount: Some(new.icount),
        extra_bytes: EXTRA_BYTES,
        unknown_extra: Vec::new(),
    })
}
