//! Work on the dirty bitmaps of an image: they come and go, are cleared, merged, handed from one to the next, and listed.
//! What they track is `image/bitmaps`.
//!
//! Each change holds the image alone: a request comes before all of it or after all of it. It begins with bitmaps that
//! are stored, makes another directory ([`mod@change`]), and ends with the image loaded anew.

mod change;
mod doubt;
mod resize;

pub(super) use resize::Resized;

use super::handle::Handle;
use crate::error::{room, Error, ErrorKind, Result};
use crate::format::bitmap::*;
use crate::image::bitmaps::{inconsistent, Bits, Tracked, Tracker};
use crate::image::{Core, ExclusiveImage, Image};
use crate::storage::medium::Medium;
use change::Change;
use std::sync::Arc;

/// What is to be said of a bitmap.
pub struct BitmapStatus {
    /// Its name.
    pub name: Vec<u8>,
    /// Guest bytes that one bit stands for.
    pub granularity: u64,
    /// It may lack changes, and is of no use but to be removed or recovered.
    pub inconsistent: bool,
    /// It tracks changes.
    pub enabled: bool,
    /// Guest bytes that have changed; of an inconsistent one all.
    pub dirty_bytes: u64,
}

fn image_of(handle: &Handle) -> Result<&Image> {
    Image::of(handle.disk(), "dirty bitmaps")
}

/// The image, of somebody who wants to change its bitmaps.
fn writable(handle: &Handle) -> Result<&Image> {
    let image = image_of(handle)?;
    match image.core().is_read_only() {
        true => Err(Error::new(ErrorKind::ReadOnly, "the image is open read-only")),
        false => Ok(image),
    }
}

fn not_found(name: &[u8]) -> Error {
    Error::new(ErrorKind::NotFound, format!("Dirty bitmap '{}' not found", printable(name)))
}

fn position(list: &[Bitmap], name: &[u8]) -> Result<usize> {
    list.iter().position(|bitmap| bitmap.name == name).ok_or_else(|| not_found(name))
}

/// As `position`, of one that is to be believed.
fn consistent(list: &[Bitmap], name: &[u8]) -> Result<usize> {
    let index = position(list, name)?;
    match list[index].is_inconsistent() {
        true => Err(inconsistent(&list[index])),
        false => Ok(index),
    }
}

fn find<'a>(tracker: &'a Option<Arc<Tracker>>, name: &[u8]) -> Result<&'a Tracked> {
    let list = tracker.iter().flat_map(|tracker| tracker.list());
    list.into_iter().find(|tracked| tracked.entry.name == name).ok_or_else(|| not_found(name))
}

/// Holds the image alone, with bitmaps that are stored, while `edit` makes another list of them.
fn change(handle: &Handle, edit: impl FnOnce(&Core, &mut Change<'_>) -> Result<()>) -> Result<()> {
    let image = writable(handle)?.exclusive();
    change_alone(&image, edit)
}

fn change_alone(
    image: &ExclusiveImage<'_>,
    edit: impl FnOnce(&Core, &mut Change<'_>) -> Result<()>,
) -> Result<()> {
    let core = image.core();
    core.check_active()?;
    if core.header().version < 3 {
        return Err(Error::unsupported("Cannot store dirty bitmaps in qcow2 v2 files"));
    }
    image.settle_with_bitmaps()?;
    core.give_up_dropped_bitmaps()?;
    let mut change = Change::begin(&core)?;
    edit(&core, &mut change)?;
    change.put(image, core.length())?.complete(image)
}

/// Bits of which none are set, with nothing on the medium.
fn clear_bits(core: &Core, granularity_bits: u8) -> Result<Bits> {
    let virtual_size = core.length();
    let (bytes, entries) = table_entries(virtual_size, granularity_bits, core.geometry());
    if bytes > MAX_BITS_BYTES || entries > u64::from(MAX_TABLE_ENTRIES) {
        let text = "Too much space will be occupied by the bitmap. Use larger granularity";
        return Err(Error::new(ErrorKind::TooLarge, text));
    }
    if entries == 0 {
        return Err(Error::invalid("a disk of 0 bytes has nothing that a bitmap could track"));
    }
    Bits::new(core.geometry(), granularity_bits, virtual_size, &vec![ENTRY_ZEROES; entries as usize])
}

/// A bitmap that has no table yet.
fn new_entry(name: &[u8], granularity_bits: u8, enabled: bool) -> Bitmap {
    Bitmap {
        table_offset: 0,
        table_entries: 0,
        flags: if enabled { FLAG_AUTO } else { 0 },
        kind: TYPE_DIRTY_TRACKING,
        granularity_bits,
        extra: Vec::new(),
        name: name.to_vec(),
    }
}

fn check_new_name(list: &[Bitmap], name: &[u8]) -> Result<()> {
    if list.iter().any(|bitmap| bitmap.name == name) {
        return Err(Error::new(
            ErrorKind::Host(libc::EEXIST),
            format!("Bitmap already exists: {}", printable(name)),
        ));
    }
    check_name(name)
}

/// Adds a bitmap with no bit set. `granularity` `None`: a cluster, from 4 to 64 KiB.
pub fn add(handle: &Handle, name: &[u8], granularity: Option<u64>, enabled: bool) -> Result<()> {
    change(handle, |core, change| {
        let granularity = granularity.unwrap_or_else(|| default_granularity(core.geometry()));
        let bits = granularity_bits(granularity)?;
        check_new_name(&change.list, name)?;
        change.list.push(new_entry(name, bits, enabled));
        change.put_bits(change.list.len() - 1, &clear_bits(core, bits)?)
    })
}

/// Removes a bitmap, an inconsistent one too.
pub fn remove(handle: &Handle, name: &[u8]) -> Result<()> {
    change(handle, |_, change| change.remove(position(&change.list, name)?))
}

/// Clears all bits of a bitmap.
pub fn clear(handle: &Handle, name: &[u8]) -> Result<()> {
    change(handle, |core, change| {
        let index = consistent(&change.list, name)?;
        change.replace_bits(index, &clear_bits(core, change.list[index].granularity_bits)?)
    })
}

/// Has a bitmap track changes from now on, or no longer.
pub fn set_enabled(handle: &Handle, name: &[u8], enabled: bool) -> Result<()> {
    change(handle, |_, change| {
        let index = consistent(&change.list, name)?;
        let flags = &mut change.list[index].flags;
        *flags = if enabled { *flags | FLAG_AUTO } else { *flags & !FLAG_AUTO };
        Ok(())
    })
}

/// Makes an inconsistent bitmap usable: all of it is dirty.
pub fn recover(handle: &Handle, name: &[u8]) -> Result<()> {
    change(handle, |core, change| {
        let index = position(&change.list, name)?;
        let bitmap = &change.list[index];
        if !bitmap.is_inconsistent() {
            return Err(Error::invalid(format!("Bitmap '{}' is consistent", bitmap.printable_name())));
        }
        let bits = clear_bits(core, bitmap.granularity_bits)?;
        bits.mark(0, core.length())?;
        change.replace_bits(index, &bits)?;
        change.list[index].flags &= !FLAG_IN_USE;
        Ok(())
    })
}

/// Hands over from a bitmap to one that begins with no bit set, has its name, and tracks on: what there was stays, under
/// the name `frozen`, and tracks no more. Each write is in one of the two.
pub fn rotate(handle: &Handle, name: &[u8], frozen: &[u8]) -> Result<()> {
    change(handle, |core, change| {
        let index = consistent(&change.list, name)?;
        check_new_name(&change.list, frozen)?;
        let bits = change.list[index].granularity_bits;
        if !change.list[index].is_enabled() {
            let text = format!("Bitmap '{}' is disabled: it has nothing to hand over", printable(name));
            return Err(Error::invalid(text));
        }
        let old = Bitmap { name: frozen.to_vec(), flags: 0, ..change.list[index].clone() };
        change.list[index] = new_entry(name, bits, true);
        change.list.push(old);
        change.put_bits(index, &clear_bits(core, bits)?)
    })
}

/// Sets in a bitmap what is set in another one, of this image or of `source`.
pub fn merge(handle: &Handle, target: &[u8], source: Option<&Handle>, source_name: &[u8]) -> Result<()> {
    let image = writable(handle)?;
    let other = match source {
        Some(source) if !std::ptr::eq(source, handle) => Some(copy_of(source, source_name)?),
        _ => None,
    };
    let image = image.exclusive();
    change_alone(&image, |core, change| {
        let index = consistent(&change.list, target)?;
        let tracker = core.bitmaps()?;
        let old = find(&tracker, target)?.bits()?;
        let table: Vec<u64> = old.table().collect();
        let bits = Bits::new(core.geometry(), change.list[index].granularity_bits, core.length(), &table)?;
        check_same_size(core.length(), other.as_ref().map_or(core.length(), |(length, ..)| *length))?;
        match &other {
            Some((_, copy, _)) => mark_all(copy, core.medium(), &bits)?,
            None => mark_all(find(&tracker, source_name)?.bits()?, core.medium(), &bits)?,
        }
        change.put_bits(index, &bits)
    })
}

/// Adds a bitmap that is what another image's bitmap of that name is: granularity, bits, and whether it tracks.
pub fn copy(handle: &Handle, source: &Handle, name: &[u8]) -> Result<()> {
    if std::ptr::eq(source, handle) {
        return Err(Error::invalid("source and target of the copy are one image"));
    }
    let (length, copied, entry) = copy_of(source, name)?;
    change(handle, |core, change| {
        check_same_size(core.length(), length)?;
        check_new_name(&change.list, name)?;
        change.list.push(new_entry(name, entry.granularity_bits, entry.is_enabled()));
        let bits = clear_bits(core, entry.granularity_bits)?;
        mark_all(&copied, core.medium(), &bits)?;
        change.put_bits(change.list.len() - 1, &bits)
    })
}

/// Bytes of the disk that the bitmaps are about, of a handle that shows a snapshot, too.
fn disk_bytes(core: &Core, tracker: &Option<Arc<Tracker>>) -> u64 {
    tracker.as_ref().map_or(core.length(), |tracker| tracker.virtual_size())
}

fn check_same_size(target: u64, source: u64) -> Result<()> {
    match source == target {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "Bitmaps are of different sizes (destination size is {target}, source size is {source}) and can't be \
             merged"
        ))),
    }
}

/// A bitmap of another disk, with how long that is: nothing of the one disk is held while the other is waited for.
fn copy_of(handle: &Handle, name: &[u8]) -> Result<(u64, Bits, Bitmap)> {
    image_of(handle)?.with_bitmaps(|core, tracker| {
        let tracked = find(&tracker, name)?;
        let source = tracked.bits()?;
        let length = disk_bytes(core, &tracker);
        let mut table = room("bitmap table", source.chunk_count())?;
        table.resize(source.chunk_count() as usize, ENTRY_ZEROES);
        let copy = Bits::new(core.geometry(), tracked.entry.granularity_bits, length, &table)?;
        mark_all(source, core.medium(), &copy)?;
        Ok((length, copy, tracked.entry.clone()))
    })
}

/// Sets in `target` what is set in `source`.
fn mark_all(source: &Bits, medium: &Medium, target: &Bits) -> Result<()> {
    let mut at = 0;
    while let Some((from, to)) = source.next_dirty(at, medium)? {
        target.mark(from, to)?;
        at = to;
    }
    Ok(())
}

/// Brings all bitmaps to the medium, durably: after it, until the next write, a crash costs nothing.
pub fn sync(handle: &Handle) -> Result<()> {
    let image = writable(handle)?.exclusive();
    image.core().check_active()?;
    image.settle_with_bitmaps()
}

/// Name, granularity and flags of all bitmaps, in the order of their directory.
pub fn list(handle: &Handle) -> Result<Vec<BitmapStatus>> {
    image_of(handle)?.with_bitmaps(|core, tracker| {
        let all = tracker.iter().flat_map(|tracker| tracker.list());
        all.map(|tracked| status(core, disk_bytes(core, &tracker), tracked)).collect()
    })
}

/// The bitmap at a place of `list`, by itself.
pub fn status_of(handle: &Handle, index: usize) -> Result<Option<BitmapStatus>> {
    image_of(handle)?.with_bitmaps(|core, tracker| {
        let found = tracker.as_ref().and_then(|tracker| tracker.list().get(index));
        found.map(|tracked| status(core, disk_bytes(core, &tracker), tracked)).transpose()
    })
}

fn status(core: &Core, disk_bytes: u64, tracked: &Tracked) -> Result<BitmapStatus> {
    let entry = &tracked.entry;
    Ok(BitmapStatus {
        name: entry.name.clone(),
        granularity: 1 << entry.granularity_bits,
        inconsistent: entry.is_inconsistent(),
        enabled: entry.is_enabled(),
        dirty_bytes: match tracked.bits() {
            Ok(bits) => bits.dirty_bytes(core.medium())?,
            Err(_) => disk_bytes,
        },
    })
}

/// The first dirty range at or after `offset`: from where to where.
pub fn next_dirty(handle: &Handle, name: &[u8], offset: u64) -> Result<Option<(u64, u64)>> {
    image_of(handle)?
        .with_bitmaps(|core, tracker| find(&tracker, name)?.bits()?.next_dirty(offset, core.medium()))
}
