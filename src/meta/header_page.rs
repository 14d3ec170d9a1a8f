//! The header of an open image: feature bits and table positions, changed in place.
//!
//! Every change rewrites sector 0 only, which the medium writes whole or not at all; extensions, names and
//! unknown fields stay as they are, byte for byte. Only `names` changes names, extensions and the version.
//!
//! A write that fails may have been carried out all the same: the file holds the sector before or the one after, which
//! is **undecided** until the sector before has been written and synced again. H1: while it is undecided no cluster
//! is handed out, no count is written, nothing of the guest's is changed and no sync of the clock runs, so that both
//! headers stay true.

mod names;

use crate::error::{zeroed, Error, ErrorKind, Result};
use crate::format::features::*;
use crate::format::geometry::SECTOR_BYTES;
use crate::format::Header;
use crate::planted::{planted, Plant};
use crate::storage::medium::Medium;
use crate::storage::{read_exact, Purpose, Storage};
use crate::sync::locked;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// As much of the first cluster as is read at once: nearly every header is in it.
const START_BYTES: u64 = 4096;

/// Reads and parses the header cluster: the header, and the first sector as it is.
pub fn read_header(storage: &dyn Storage) -> Result<(Header, Vec<u8>)> {
    let length = storage.length().map_err(|e| Error::host("length of the image file", &e))?;
    let mut cluster = vec![0; length.min(START_BYTES) as usize];
    read_exact(storage, Purpose::Header, 0, &mut cluster)?;
    let stored = length.min(Header::peek_cluster_bytes(&cluster)?);
    if stored <= cluster.len() as u64 {
        cluster.truncate(stored as usize);
    } else if !Header::lies_in(&cluster) {
        cluster = zeroed("header cluster", stored)?;
        read_exact(storage, Purpose::Header, 0, &mut cluster)?;
    }
    let header = Header::parse(&cluster)?;
    cluster.resize(SECTOR_BYTES as usize, 0);
    Ok((header, cluster))
}

/// The header of an image that is open.
pub struct HeaderPage {
    medium: Arc<Medium>,
    header: Mutex<(Header, Vec<u8>)>,
    dirty: AtomicBool,
    corrupt: AtomicBool,
    /// Some autoclear bit is set, but for that of a raw data file.
    autoclear_pending: AtomicBool,
    /// What is to be done before a cluster is taken: [`UNDECIDED`], [`LISTENED`].
    waiting: AtomicU8,
}

/// The file may hold another sector than `header` has.
const UNDECIDED: u8 = 1;
/// The storage wants to hear of it.
const LISTENED: u8 = 2;

impl HeaderPage {
    /// The page of a parsed header; `sector` holds the first 512 bytes of the image.
    pub fn new(medium: Arc<Medium>, header: Header, sector: Vec<u8>) -> Self {
        debug_assert_eq!(sector.len(), SECTOR_BYTES as usize);
        let waiting = if medium.storage().listens() { LISTENED } else { 0 };
        HeaderPage {
            medium,
            dirty: AtomicBool::new(header.incompatible & INCOMPAT_DIRTY != 0),
            corrupt: AtomicBool::new(header.incompatible & INCOMPAT_CORRUPT != 0),
            autoclear_pending: AtomicBool::new(header.autoclear & !AUTOCLEAR_RAW_DATA != 0),
            header: Mutex::new((header, sector)),
            waiting: AtomicU8::new(waiting),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Header, Vec<u8>)> {
        locked(self.header.lock())
    }

    /// A copy of the header as it stands.
    pub fn header(&self) -> Header {
        self.lock().0.clone()
    }

    /// Whether the dirty bit is set.
    pub fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::SeqCst)
    }

    /// Whether the corrupt bit is set.
    pub fn is_corrupt(&self) -> bool {
        self.corrupt.load(Ordering::SeqCst)
    }

    /// Whether a change of the guest's contents has to clear autoclear bits first, or has bitmaps to tell.
    #[inline]
    pub fn autoclear_pending(&self) -> bool {
        self.autoclear_pending.load(Ordering::Relaxed)
    }

    /// Changes fixed fields on the medium; durable when it returns. Everything written before is synced
    /// first, so the new header never points to something that is not there.
    pub fn change(&self, edit: impl FnOnce(&mut Header)) -> Result<()> {
        let mut guard = self.lock();
        let (header, sector) = &mut *guard;
        let mut next = header.clone();
        edit(&mut next);
        self.write(header, sector, next)
    }

    fn write(&self, header: &mut Header, sector: &mut Vec<u8>, next: Header) -> Result<()> {
        let mut bytes = sector.clone();
        next.put_fixed_fields(&mut bytes);
        if planted(Plant::ExtensionsDropped) {
            let encoded = Header { extensions: Vec::new(), ..next.clone() }.encode()?;
            let end = encoded.len().min(bytes.len());
            bytes[..end].copy_from_slice(&encoded[..end]);
        }
        self.replace_sector(header, sector, &bytes)?;
        self.dirty.store(next.incompatible & INCOMPAT_DIRTY != 0, Ordering::SeqCst);
        *sector = bytes;
        *header = next;
        self.note_autoclear(header);
        Ok(())
    }

    fn note_autoclear(&self, header: &Header) {
        let pending = header.autoclear & !AUTOCLEAR_RAW_DATA != 0;
        self.autoclear_pending.store(pending, Ordering::Relaxed);
    }

    /// Puts `new` in the place of the sector `old`, which `header` has, durably, after everything that was written before.
    fn replace_sector(&self, header: &Header, old: &[u8], new: &[u8]) -> Result<()> {
        if !planted(Plant::HeaderBeforeItsTables) {
            self.medium.sync_step()?;
        }
        if let Err(e) = self.medium.write_live(Purpose::Header, 0, new) {
            self.waiting.fetch_or(UNDECIDED, Ordering::SeqCst);
            // A change in place must look, too: the file may name bitmaps that it is not marked in.
            self.autoclear_pending.store(true, Ordering::SeqCst);
            // What cannot be done now is done before anything that depends on it.
            let _ = self.write_again(header, old);
            return Err(e);
        }
        if !planted(Plant::HeaderNotSynced) {
            self.medium.sync_step()?;
        }
        self.waiting.fetch_and(!UNDECIDED, Ordering::SeqCst);
        Ok(())
    }

    fn write_again(&self, header: &Header, sector: &[u8]) -> Result<()> {
        self.medium.write_live(Purpose::Header, 0, sector)?;
        self.medium.sync_step()?;
        self.waiting.fetch_and(!UNDECIDED, Ordering::SeqCst);
        self.note_autoclear(header);
        Ok(())
    }

    /// Has the file hold the header that is in memory, durably, after a write of another one has failed (H1).
    #[inline]
    pub fn decide(&self) -> Result<()> {
        match self.waiting.load(Ordering::Relaxed) & UNDECIDED {
            0 => Ok(()),
            _ => self.decide_now(),
        }
    }

    /// Whether nothing is to be done before a cluster is taken.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    #[cold]
    fn decide_now(&self) -> Result<()> {
        let guard = self.lock();
        match self.waiting.load(Ordering::SeqCst) & UNDECIDED {
            0 => Ok(()),
            _ => self.write_again(&guard.0, &guard.1),
        }
    }

    /// Sets the dirty bit before the first reference that outruns its count; durable when it returns.
    pub fn mark_dirty(&self) -> Result<()> {
        if self.is_dirty() {
            return Ok(());
        }
        let mut guard = self.lock();
        let (header, sector) = &mut *guard;
        if header.incompatible & INCOMPAT_DIRTY != 0 {
            return Ok(());
        }
        let mut next = header.clone();
        next.incompatible |= INCOMPAT_DIRTY;
        self.write(header, sector, next)
    }

    /// Clears the dirty bit; the caller has made every refcount durable.
    pub fn mark_clean(&self) -> Result<()> {
        if !self.is_dirty() {
            return Ok(());
        }
        self.change(|h| h.incompatible &= !INCOMPAT_DIRTY)
    }

    /// Clears the autoclear bits that this writer does not maintain, before the first change of the image. A raw data
    /// file stays one whatever is done.
    pub fn clear_autoclear(&self, kept: u64) -> Result<()> {
        if !self.autoclear_pending() {
            return Ok(());
        }
        let mut guard = self.lock();
        let (header, sector) = &mut *guard;
        let kept = kept | AUTOCLEAR_RAW_DATA;
        if header.autoclear & !kept != 0 {
            let mut next = header.clone();
            next.autoclear &= kept;
            self.write(header, sector, next)?;
        }
        Ok(())
    }

    /// Sets the corrupt bit and closes the latch with `found`, which is handed back: nothing more is written.
    pub fn mark_corrupt(&self, found: Error) -> Error {
        if self.corrupt.swap(true, Ordering::SeqCst) {
            return found;
        }
        let found = found.restated(ErrorKind::MarkedCorrupt, |what| {
            format!("Marking image as corrupt: {what}; further corruption events will be suppressed")
        });
        let version = self.lock().0.version;
        if version >= 3 && !self.medium.storage().traits().read_only {
            let _ = self.change(|h| h.incompatible |= INCOMPAT_CORRUPT);
        }
        self.medium.latch().close(found)
    }
}
