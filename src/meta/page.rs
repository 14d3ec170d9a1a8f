//! A table page: a run of table entries in memory, which of its sectors are dirty, and what each change waits for.
//!
//! Life of a change: `update` stores the new entry, so that every reader sees it at once, and records what
//! must be durable first (`after`) and what the change let go of (`dropped`). `write_out` writes the dirty
//! sectors; an entry whose ticket is not past yet is written with the value it had before (rules R1, R2),
//! and makes its sector dirty once it is. What a written change dropped goes to the ledger with the ticket of the next
//! sync (rule R3). A write-out that fails has done nothing: its sectors are dirty again, what it would have let
//! go of is held again, and the page is back on the list for the next attempt.
//!
//! Most changes link a cluster where nothing was, and nobody flushes for long: these are a bit each (`newborn`), the
//! others an item in `held`.
//!
//! Readers take no lock. P1: an evicted page is clean and never changes again. P2: `held` is in the order of
//! the changes; of one entry, the oldest change that is not ripe decides what may be on disk. P3: a newborn change is
//! older than every held one of its entry, and there is one of an entry at most.

use super::dirty_list::{DirtyList, Listed};
use super::Release;
use crate::error::{Error, ErrorKind, Result};
use crate::format::entries::RawL2;
use crate::format::geometry::SECTOR_BYTES;
use crate::format::{be64, index_in_memory};
use crate::planted::{planted, Plant};
use crate::storage::gate::Readers;
use crate::storage::medium::{Medium, Ticket};
use crate::storage::Purpose;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{locked, spin_loop, Mutex, MutexGuard};
use std::sync::Arc;

mod bits;
mod newborn;
mod write_out;

use bits::Bits;
use newborn::Newborn;

const WORDS_PER_SECTOR: usize = SECTOR_BYTES as usize / 8;

/// Looks at an entry of two words before a reader waits for whoever stores one.
const ENTRY_LOOKS: u32 = 64;

/// Bytes of a table that are read at once.
const READ_BYTES: usize = 8 << 10;
/// As much, for what is short: a slice as it usually is.
const SMALL_BYTES: usize = 4 << 10;

fn no_memory(purpose: Purpose, bytes: u64) -> Error {
    Error::new(ErrorKind::NoMemory, format!("{purpose:?} table of {bytes} bytes: no memory"))
}

/// The pages of one mapping that have something to write.
pub type DirtyPages = DirtyList<Page>;

/// A change that is in memory and waits for `after`, or has let go of `dropped`.
struct Held {
    entry: usize,
    before: RawL2,
    after: Ticket,
    /// It is counted in `DirtyList::waiting`.
    waits: bool,
    dropped: Option<Release>,
}

#[derive(Default)]
struct State {
    dirty: Bits,
    dirty_sectors: usize,
    held: Vec<Held>,
    /// The entries that `held` has; no bits while it has none.
    in_held: Bits,
    newborn: Newborn,
    /// The latest ticket that a change has waited for.
    latest: Ticket,
    listed: bool,
}

impl State {
    /// Adds a change that is younger than all others of its entry.
    fn hold(&mut self, held: Held, entry_count: usize) {
        if self.held.is_empty() {
            self.in_held = Bits::new(entry_count);
        }
        self.in_held.set(held.entry);
        self.held.push(held);
    }

    fn take_held(&mut self) -> Vec<Held> {
        self.in_held = Bits::default();
        std::mem::take(&mut self.held)
    }
}

/// The entries of a page as they are in memory, in the host's byte order.
pub type Words = Arc<[AtomicU64]>;

/// A table page.
pub struct Page {
    purpose: Purpose,
    /// Host offset of the first entry.
    home: u64,
    /// Words of one entry: 1, or 2 for extended L2 entries.
    entry_words: usize,
    words: Words,
    /// Odd while a two-word entry is being stored.
    version: AtomicU64,
    state: Mutex<State>,
    /// Held across a write-out, so that two of them cannot overtake each other.
    writing: Mutex<()>,
    /// On the list of dirty pages.
    place: AtomicUsize,
    /// Set once, with `state` held.
    evicted: AtomicBool,
    /// Set by readers, cleared by the cache's clock hand.
    pub(super) used: AtomicBool,
}

impl Listed for Page {
    fn place(&self) -> &AtomicUsize {
        &self.place
    }
}

impl Page {
    /// Reads `bytes` bytes at `home`, a multiple of 8, as a clean page.
    pub fn read(
        medium: &Medium,
        purpose: Purpose,
        home: u64,
        entry_words: usize,
        bytes: u64,
    ) -> Result<Page> {
        // What there is no memory for is an error, not the end of the process.
        let mut room: Vec<u64> = Vec::new();
        room.try_reserve_exact(index_in_memory(bytes / 8)).map_err(|_| no_memory(purpose, bytes))?;
        drop(std::hint::black_box(room));
        if bytes <= SMALL_BYTES as u64 {
            let mut piece = [0; SMALL_BYTES];
            let part = &mut piece[..bytes as usize];
            medium.read_table(purpose, home, part)?;
            let words = part.chunks_exact(8).map(|c| AtomicU64::new(be64(c, 0))).collect();
            return Ok(Self::from_words(purpose, home, entry_words, words));
        }
        let words: Words = (0..bytes / 8).map(|_| AtomicU64::new(0)).collect();
        // In pieces: a table of the largest size must not be in memory twice.
        for (at, words) in (0..).step_by(READ_BYTES).zip(words.chunks(READ_BYTES / 8)) {
            let mut piece = [0; READ_BYTES];
            let part = &mut piece[..words.len() * 8];
            medium.read_table(purpose, home + at, part)?;
            for (word, bytes) in words.iter().zip(part.chunks_exact(8)) {
                word.store(be64(bytes, 0), Ordering::Relaxed);
            }
        }
        Ok(Self::from_words(purpose, home, entry_words, words))
    }

    fn from_words(purpose: Purpose, home: u64, entry_words: usize, words: Words) -> Page {
        let sectors = words.len().div_ceil(WORDS_PER_SECTOR);
        let state = State { dirty: Bits::new(sectors), ..State::default() };
        Page {
            purpose,
            home,
            entry_words,
            words,
            version: AtomicU64::new(0),
            state: Mutex::new(state),
            writing: Mutex::new(()),
            place: AtomicUsize::new(usize::MAX),
            evicted: AtomicBool::new(false),
            used: AtomicBool::new(true),
        }
    }

    /// Host offset of the first entry.
    pub fn home(&self) -> u64 {
        self.home
    }

    /// Whether the page is still the one that changes go to.
    #[inline]
    pub fn is_live(&self) -> bool {
        !self.evicted.load(Ordering::SeqCst)
    }

    /// Notes that a request has used the page.
    #[inline]
    pub fn touch(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a request has used the page since the last call.
    pub fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// Entries in the page.
    pub fn entry_count(&self) -> usize {
        self.words.len() / self.entry_words
    }

    /// Entry `index`, which must be inside the page.
    #[inline]
    pub fn entry(&self, index: usize) -> RawL2 {
        if self.entry_words == 1 {
            return RawL2 { descriptor: self.words[index].load(Ordering::SeqCst), bitmap: 0 };
        }
        for _ in 0..ENTRY_LOOKS {
            let before = self.version.load(Ordering::SeqCst);
            let pair = self.pair(index);
            if before & 1 == 0 && self.version.load(Ordering::SeqCst) == before {
                return pair;
            }
            spin_loop();
        }
        self.entry_in_turn(index)
    }

    /// An entry of two words, while nobody stores one. Whoever stores may have been put aside by the scheduler, for
    /// good if this thread is more urgent and goes on looking.
    #[cold]
    fn entry_in_turn(&self, index: usize) -> RawL2 {
        let _stored = self.lock();
        self.pair(index)
    }

    #[inline]
    fn pair(&self, index: usize) -> RawL2 {
        let descriptor = self.words[2 * index].load(Ordering::SeqCst);
        let bitmap = self.words[2 * index + 1].load(Ordering::SeqCst);
        RawL2 { descriptor, bitmap }
    }

    /// The entries, for those who look at them often.
    pub fn words(&self) -> &Words {
        &self.words
    }

    /// Word `index` of the table, if it is inside the page.
    #[inline]
    pub fn word(&self, index: usize) -> Option<u64> {
        self.words.get(index).map(|w| w.load(Ordering::SeqCst))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        locked(self.state.lock())
    }

    /// Entry `index`, for whoever holds `state` and is the only one to store.
    fn own_entry(&self, index: usize) -> RawL2 {
        match self.entry_words {
            1 => RawL2 { descriptor: self.words[index].load(Ordering::SeqCst), bitmap: 0 },
            _ => self.pair(index),
        }
    }

    fn store(&self, index: usize, entry: RawL2) {
        if self.entry_words == 1 {
            self.words[index].store(entry.descriptor, Ordering::SeqCst);
            return;
        }
        self.version.fetch_add(1, Ordering::SeqCst);
        self.words[2 * index].store(entry.descriptor, Ordering::SeqCst);
        self.words[2 * index + 1].store(entry.bitmap, Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// Changes entry `index`; on disk not before `after` is past. `dropped` is what the old value referred to. `false`: the
    /// page has been evicted; find it again.
    pub fn update(
        self: &Arc<Self>,
        change: Change,
        medium: &Medium,
        readers: &dyn Readers,
        list: &DirtyPages,
    ) -> bool {
        let mut after = if planted(Plant::NoBarrierBeforePointer) { Ticket::PAST } else { change.after };
        let mut state = self.lock();
        if !self.is_live() && !planted(Plant::EvictedPageChanged) {
            return false;
        }
        let before = self.own_entry(change.entry);
        self.store(change.entry, change.value);
        // After the store: a reader that enters from now on cannot see the old value.
        let dropped = change.dropped.map(|d| Release { epoch: readers.retire(), ..d });
        if let Some(release) = dropped {
            list.hold(&release);
        }
        if !state.listed {
            state.listed = true;
            list.add(self);
        }
        if planted(Plant::RipenedByAnotherChange) {
            self.ripen_newborn(&mut state, medium, list);
        }
        let waits = !medium.is_past(after);
        if !waits {
            self.mark_dirty(&mut state, change.entry);
        } else if before == RawL2::default()
            && dropped.is_none()
            && !state.in_held.has(change.entry)
            && state.newborn.add(after, change.entry, self.entry_count())
        {
            state.latest = state.latest.max(after);
            list.add_waiting(after);
            return true;
        } else {
            if after < state.latest {
                // P2: it is not ripe before an older change of its entry, and a barrier must not wait for it sooner.
                let held = if state.in_held.has(change.entry) { &state.held[..] } else { &[] };
                let same = held.iter().filter(|h| h.entry == change.entry).map(|h| h.after);
                after = same.chain(state.newborn.ticket_of(change.entry)).fold(after, Ticket::max);
            }
            state.latest = state.latest.max(after);
            // Who sees this count finds the page: on the list, or in the hands of an announced write-out.
            list.add_waiting(after);
        }
        if dropped.is_some() || waits {
            if dropped.is_none() {
                list.count_plain(1, 0);
            }
            let held = Held { entry: change.entry, before, after, waits, dropped };
            state.hold(held, self.entry_count());
        }
        true
    }

    /// Makes newborn changes whose ticket is past dirty: there is nothing more to them. Only a write-out may do so, for
    /// whoever finds nothing that waits believes it in the file, or in announced hands.
    fn ripen_newborn(&self, state: &mut State, medium: &Medium, list: &DirtyPages) {
        let State { newborn, dirty, dirty_sectors, .. } = state;
        newborn
            .take_past(medium, list, |entry| *dirty_sectors += usize::from(dirty.set(self.sector_of(entry))));
    }

    fn sector_of(&self, entry: usize) -> usize {
        entry * self.entry_words / WORDS_PER_SECTOR
    }

    fn mark_dirty(&self, state: &mut State, entry: usize) {
        self.mark_sector_dirty(state, self.sector_of(entry));
    }

    fn mark_sector_dirty(&self, state: &mut State, sector: usize) {
        if state.dirty.set(sector) {
            state.dirty_sectors += 1;
        }
    }

    /// Whether a change of it may wait for a sync that is still to come.
    pub(super) fn waits(&self, medium: &Medium) -> bool {
        !medium.is_past(self.lock().latest)
    }

    /// Marks a clean page as evicted (P1). `false`: it is dirty.
    pub(super) fn try_evict(&self) -> bool {
        // A write-out in flight has cleaned the page before its bytes are in the file.
        let idle = self.writing.try_lock();
        if idle.is_err() && !planted(Plant::PageInHandEvicted) {
            return false;
        }
        let state = self.lock();
        if state.dirty_sectors != 0 || !state.held.is_empty() || !state.newborn.is_empty() {
            return false;
        }
        self.evicted.store(true, Ordering::SeqCst);
        true
    }
}

/// One change of one entry.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Index in the page.
    pub entry: usize,
    /// The new value.
    pub value: RawL2,
    /// What must be durable before it may be on disk.
    pub after: Ticket,
    /// What the old value referred to and the new one does not.
    pub dropped: Option<Release>,
}

#[cfg(test)]
mod tests;
