//! Bitmaps of a disk that gets another size: what is added is clean, what is cut off is forgotten. The header gets size
//! and directory in one change, so that a power cut leaves bitmaps that fit the disk.

use super::change::Change;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bitmap::*;
use crate::format::Geometry;
use crate::image::bitmaps::Bits;
use crate::image::{Core, ExclusiveImage};
use crate::meta::bitmap_directory::load_table;

/// What a resize knows of the bitmaps.
pub(in crate::ops) struct Resized(bool);

impl Resized {
    /// Stores the bitmaps of an image that is about to have `size` bytes; fails where they cannot be what they have to.
    pub(in crate::ops) fn begin(image: &ExclusiveImage<'_>, size: u64) -> Result<Resized> {
        let core = image.core();
        let Some(tracker) = core.bitmaps()? else {
            core.give_up_dropped_bitmaps()?;
            return Ok(Resized(false));
        };
        for tracked in tracker.list() {
            tracked.bits()?;
            check_size(size, tracked.entry.granularity_bits, core.geometry())?;
        }
        core.store_bitmaps()?;
        Ok(Resized(true))
    }

    /// Whether there are any.
    pub(in crate::ops) fn has_bitmaps(&self) -> bool {
        self.0
    }

    /// Puts the size that `begin` was told in force, durably, with the bitmaps, and loads the image anew. All of it is on the
    /// medium but what has been marked since `begin`: past the end of the smaller size.
    pub(in crate::ops) fn put(&self, image: &ExclusiveImage<'_>, size: u64) -> Result<()> {
        let core = &*image.core();
        let old = core.length();
        let mut change = Change::begin(core)?;
        for index in 0..change.list.len() {
            let bitmap = &mut change.list[index];
            bitmap.flags &= !FLAG_IN_USE;
            let bitmap = bitmap.clone();
            let table = load_table(&**core.storage(), &bitmap, core.geometry(), old)?;
            let before = Bits::new(core.geometry(), bitmap.granularity_bits, old, &table)?;
            let bits = resized(core, &mut change, bitmap.granularity_bits, (&before, &table), size)?;
            change.put_bits(index, &bits)?;
        }
        change.put(image, size)?.complete(image)
    }
}

/// The bits of a bitmap of another size; clusters that nothing of it is in go.
fn resized(
    core: &Core,
    change: &mut Change<'_>,
    granularity_bits: u8,
    (before, table): (&Bits, &[u64]),
    size: u64,
) -> Result<Bits> {
    let (_, entries) = table_entries(size, granularity_bits, core.geometry());
    let mut next = table.to_vec();
    next.resize(entries as usize, ENTRY_ZEROES);
    for gone in table.iter().skip(entries as usize).filter(|entry| **entry > ENTRY_ONES) {
        change.let_go(*gone, 1)?;
    }
    let whole = |entries: &[u64]| Bits::new(core.geometry(), granularity_bits, size, entries);
    let last = (table.len().min(next.len()) - 1) as u64;
    if next[last as usize] == ENTRY_ZEROES
        || whole(&next)?.chunk_granules(last) == before.chunk_granules(last)
    {
        return whole(&next);
    }
    // The chunk that one of the ends cuts: past the end its bits are clear.
    let cut = std::mem::replace(&mut next[last as usize], ENTRY_ZEROES);
    if cut > ENTRY_ONES {
        change.let_go(cut, 1)?;
    }
    let bits = whole(&next)?;
    let mut at = before.chunk_start(last);
    while let Some((from, to)) = before.next_dirty(at, core.medium())? {
        bits.mark(from, to.min(size))?;
        at = to;
    }
    Ok(bits)
}

fn check_size(size: u64, granularity_bits: u8, geometry: &Geometry) -> Result<()> {
    let (bytes, entries) = table_entries(size, granularity_bits, geometry);
    if bytes > MAX_BITS_BYTES || entries == 0 {
        let text = format!("a disk of {size} bytes cannot have its bitmaps: their granularity does not fit");
        return Err(Error::new(ErrorKind::TooLarge, text));
    }
    Ok(())
}
