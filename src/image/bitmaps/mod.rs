//! Dirty bitmaps of an open image: which parts of the disk have changed since some point in time.
//!
//! They are loaded when the image is opened for writing, and go from one state to the next with the session. Every
//! change of the guest's contents comes by `Core::begin_change`, which marks its range in every enabled bitmap before
//! anything is written; the bit stays set when the write fails, for some of it may be on the medium.
//!
//! R7: a bitmap that is believed covers every write that is on the medium. One that is in use is not believed. So the
//! in-use flags are durable before the first change after the bitmaps were loaded or stored, on enabled bitmaps
//! only: the **announcement**. They go when the bits are durable (`store`). A session that changes nothing
//! announces nothing, and leaves every byte as it is.
//!
//! A write looks at a bit first, and sets it only if it is not set: a line of memory that all share is read by all.

mod bits;
mod owners;
mod store;

pub(crate) use bits::Bits;
pub(crate) use owners::Listed;

use crate::alloc::{Allocator, Shared};
use crate::error::{room, Error, ErrorKind, Result};
use crate::format::bitmap::{table_entries, Bitmap, ENTRY_ZEROES, FLAGS_AT, FLAG_IN_USE};
use crate::format::features::AUTOCLEAR_BITMAPS;
use crate::format::geometry::SECTOR_BYTES;
use crate::format::{Geometry, Header};
use crate::meta::bitmap_directory::{load_directory, load_table};
use crate::meta::read_header;
use crate::options::OpenOptions;
use crate::planted::{planted, Plant};
use crate::storage::{Purpose, Storage};
use crate::sync::locked;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Most table entries of all bitmaps of an image together: bounds the memory that they take.
pub(crate) const MAX_ENTRIES: u64 = 1 << 22;

/// How often bitmaps that another program changes are read.
const READ_ATTEMPTS: u32 = 3;

/// Least granularity of what is remembered of all bitmaps: most writes are as long at least.
const COVERED_GRANULARITY: u64 = 4096;

/// One bitmap of the directory.
pub(crate) struct Tracked {
    /// As it was loaded.
    pub(crate) entry: Bitmap,
    /// Where its entry is in the directory.
    at: usize,
    /// `None`: it is inconsistent.
    bits: Option<Arc<Bits>>,
}

/// The bitmaps of an image.
pub(crate) struct Tracker {
    /// Of the disk, whatever a handle shows of it.
    virtual_size: u64,
    list: Vec<Tracked>,
    /// Those that changes are marked in.
    enabled: Box<[Arc<Bits>]>,
    covered: Option<Covered>,
    /// The medium says that the enabled bitmaps are in use, durably, or there are none: changes may come.
    announced: AtomicBool,
    /// The medium may say that bitmaps are in use.
    unstored: AtomicBool,
    directory: Mutex<DirectoryBytes>,
}

/// The directory as the medium has it, or may have it.
struct DirectoryBytes {
    offset: u64,
    bytes: Vec<u8>,
}

impl Tracker {
    /// Loads the bitmaps of a disk; `None`: it has none that are in force.
    /// With `alloc` it is to be written.
    pub(crate) fn load(
        shared: &Shared,
        header: &Header,
        alloc: Option<&Allocator>,
    ) -> Result<Option<Tracker>> {
        let storage = &**shared.medium.storage();
        let Some(directory) = load_directory(storage, header)? else { return Ok(None) };
        let geometry = header.geometry();
        let (mut list, mut at, mut entries) = (Vec::with_capacity(directory.list.len()), 0, 0);
        for entry in directory.list {
            let bits = match entry.is_inconsistent() {
                true => None,
                false => {
                    entries += u64::from(entry.table_entries);
                    if entries > MAX_ENTRIES {
                        let text = format!("the bitmap tables have more than {MAX_ENTRIES} entries together");
                        return Err(Error::new(ErrorKind::TooLarge, text));
                    }
                    let table = load_table(storage, &entry, &geometry, header.virtual_size)?;
                    let bits = Bits::new(&geometry, entry.granularity_bits, header.virtual_size, &table)?;
                    Some(Arc::new(bits))
                }
            };
            let bytes = entry.stored_bytes();
            list.push(Tracked { entry, at, bits });
            at += bytes;
        }
        owners::check_owners(&list, &directory.pointer, &geometry, &shared.guard)?;
        if let Some(alloc) = alloc {
            owners::check_counts(&list, &directory.pointer, &geometry, alloc)?;
        }
        let enabled: Box<[_]> = list.iter().filter_map(Tracked::tracking).cloned().collect();
        let covered = Covered::of(&enabled, &geometry, header.virtual_size)?;
        let bytes = DirectoryBytes { offset: directory.pointer.directory_offset, bytes: directory.bytes };
        Ok(Some(Tracker {
            virtual_size: header.virtual_size,
            list,
            enabled,
            covered,
            announced: AtomicBool::new(false),
            unstored: AtomicBool::new(false),
            directory: Mutex::new(bytes),
        }))
    }

    /// As `load`, with all bits, of an image that another program may be writing: they are of one moment.
    pub(crate) fn load_all(shared: &Shared) -> Result<Option<Tracker>> {
        let storage = &**shared.medium.storage();
        for _ in 0..READ_ATTEMPTS {
            let header = read_header(storage)?.0;
            let Some(tracker) = Tracker::load(shared, &header, None)? else { return Ok(None) };
            tracker
                .list
                .iter()
                .filter_map(|t| t.bits.as_ref())
                .try_for_each(|b| b.read_all(&shared.medium))?;
            if tracker.is_still(storage, &read_header(storage)?.0)? {
                return Ok(Some(tracker));
            }
        }
        Err(Error::new(ErrorKind::Locked, "the bitmaps change while they are read"))
    }

    /// Whether the medium has the directory and tables that were loaded.
    fn is_still(&self, storage: &dyn Storage, header: &Header) -> Result<bool> {
        let known = locked(self.directory.lock());
        let Some(now) = load_directory(storage, header)? else { return Ok(false) };
        let same = now.pointer.directory_offset == known.offset && now.bytes == known.bytes;
        if !same || header.virtual_size != self.virtual_size {
            return Ok(false);
        }
        for tracked in &self.list {
            let Some(bits) = &tracked.bits else { continue };
            let table = load_table(storage, &tracked.entry, &header.geometry(), self.virtual_size)?;
            if !bits.table().eq(table) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bytes of the disk that they are about.
    pub(crate) fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// All bitmaps, in the order of their directory.
    pub(crate) fn list(&self) -> &[Tracked] {
        &self.list
    }

    /// Notes that guest bytes `[from, to)` are about to change; an error means that they must not. Called inside the
    /// gate.
    #[inline]
    pub(super) fn note_change(&self, shared: &Shared, from: u64, to: u64) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        if !self.announced.load(Ordering::Acquire) {
            self.announce(shared)?;
        }
        if planted(Plant::ChangeNotMarked) || planted(Plant::MarkedAfterWrite) {
            return Ok(());
        }
        self.mark(from, to)
    }

    fn mark(&self, from: u64, to: u64) -> Result<()> {
        self.enabled.iter().try_for_each(|bits| bits.mark(from, to))?;
        match &self.covered {
            Some(covered) if self.enabled.len() > 1 => covered.note(from, to),
            _ => Ok(()),
        }
    }

    /// Whether a look shows that `[from, to)`, which is not empty, needs nothing any more to be changed.
    #[inline(always)]
    pub(super) fn is_noted(&self, from: u64, to: u64) -> bool {
        self.is_announced()
            && self.covered.as_ref().is_some_and(|covered| covered.bits.has(from, to))
            && !planted(Plant::MarkedAfterWrite)
    }

    /// A mistake that a test plants: the mark comes when the write is done.
    #[cold]
    pub(super) fn mark_late(&self, from: u64, to: u64) {
        let _ = self.mark(from, to);
    }

    /// Whether the medium says that they are not to be believed.
    pub(super) fn is_unstored(&self) -> bool {
        self.unstored.load(Ordering::Relaxed)
    }

    /// Whether changes need nothing but their marks.
    #[inline]
    pub(super) fn is_announced(&self) -> bool {
        self.announced.load(Ordering::Acquire)
    }

    #[cold]
    fn announce(&self, shared: &Shared) -> Result<()> {
        // Which directory the file has must be known before its flags are written.
        shared.header.decide()?;
        shared.header.clear_autoclear(AUTOCLEAR_BITMAPS)?;
        let mut directory = locked(self.directory.lock());
        if self.announced.load(Ordering::Acquire) {
            return Ok(());
        }
        if !self.enabled.is_empty() {
            // Whatever becomes of the write: what the medium says is to be put right.
            self.unstored.store(true, Ordering::Relaxed);
            self.write_flags(&mut directory, shared, |flags| flags | FLAG_IN_USE)?;
            if !planted(Plant::InUseNotDurable) {
                shared.medium.sync_step()?;
            }
        }
        self.announced.store(true, Ordering::Release);
        Ok(())
    }

    /// Changes the flags of enabled bitmaps on the medium, in whole sectors.
    fn write_flags(
        &self,
        directory: &mut DirectoryBytes,
        shared: &Shared,
        change: impl Fn(u32) -> u32,
    ) -> Result<()> {
        let mut changed: Option<Range<usize>> = None;
        for tracked in self.list.iter().filter(|t| t.tracking().is_some()) {
            let at = tracked.at + FLAGS_AT;
            directory.bytes[at..at + 4].copy_from_slice(&change(tracked.entry.flags).to_be_bytes());
            changed = Some(changed.map_or(at, |range| range.start)..at + 4);
        }
        let Some(changed) = changed else { return Ok(()) };
        let sector = SECTOR_BYTES as usize;
        let from = changed.start / sector * sector;
        let to = changed.end.next_multiple_of(sector).min(directory.bytes.len());
        let bytes = &directory.bytes[from..to];
        shared.medium.write_live(Purpose::Bitmaps, directory.offset + from as u64, bytes)
    }
}

/// What all enabled bitmaps say is dirty: one look instead of one at each of them.
struct Covered {
    /// Of one bitmap, its own.
    bits: Arc<Bits>,
    /// Of the finest bitmap.
    granularity: u64,
}

impl Covered {
    fn of(enabled: &[Arc<Bits>], geometry: &Geometry, virtual_size: u64) -> Result<Option<Covered>> {
        let Some(granularity) = enabled.iter().map(|bits| bits.granularity()).min() else { return Ok(None) };
        if let [bits] = enabled {
            return Ok(Some(Covered { bits: Arc::clone(bits), granularity }));
        }
        let own = granularity.max(COVERED_GRANULARITY).trailing_zeros() as u8;
        let (_, entries) = table_entries(virtual_size, own, geometry);
        let mut table = room("bitmap", entries)?;
        table.resize(entries as usize, ENTRY_ZEROES);
        let bits = Arc::new(Bits::new(geometry, own, virtual_size, &table)?);
        Ok(Some(Covered { bits, granularity }))
    }

    /// All bitmaps have `[from, to)`: so they have what the finest one calls dirty for it.
    fn note(&self, from: u64, to: u64) -> Result<()> {
        let (fine, coarse) = (self.granularity, self.bits.granularity());
        let (from, to) = (from / fine * fine, to.div_ceil(fine).saturating_mul(fine));
        self.bits.mark(from.next_multiple_of(coarse), to / coarse * coarse)
    }
}

/// Whether the image is at fault, rather than the host.
fn is_damage(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Corrupt | ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::TooLarge
    )
}

/// Loads the bitmaps of an image that is opened for writing. A directory that is damaged must not be lost by an open
/// that nobody has told to lose it.
pub(super) fn load(
    shared: &Shared,
    header: &Header,
    alloc: Option<&Allocator>,
    options: &OpenOptions,
) -> Result<Option<Tracker>> {
    match Tracker::load(shared, header, alloc) {
        Err(e) if options.drop_damaged_bitmaps && is_damage(&e) => Ok(None),
        Err(e) => {
            let hint = "\nA read-only open does not need them; drop-damaged-bitmaps=on gives them up";
            Err(e.within("The bitmaps cannot be used").hint(hint))
        }
        loaded => loaded,
    }
}

impl Tracked {
    fn tracking(&self) -> Option<&Arc<Bits>> {
        self.bits.as_ref().filter(|_| self.entry.is_enabled())
    }

    /// Its bits; an error where nobody may believe them.
    pub(crate) fn bits(&self) -> Result<&Arc<Bits>> {
        self.bits.as_ref().ok_or_else(|| inconsistent(&self.entry))
    }
}

/// Why a bitmap is of no use.
pub(crate) fn inconsistent(bitmap: &Bitmap) -> Error {
    let text = format!("Bitmap '{}' is inconsistent and cannot be used", bitmap.printable_name());
    let hint = "\nTry block-dirty-bitmap-remove to delete this bitmap from disk";
    Error::invalid(text).hint(hint)
}
