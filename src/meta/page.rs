//! A table page: a run of table entries in memory, which of its sectors are dirty, and what each change waits for.
//!
//! Life of a change: `update` stores the new entry, so that every reader sees it at once, and records what
//! must be durable first (`after`) and what the change let go of (`dropped`). `write_out` writes the dirty
//! sectors; an entry whose ticket is not past yet is written with the value it had before (rules R1, R2),
//! and makes its sector dirty once it is. What a written change dropped goes to the ledger with the ticket of the next
//! sync (rule R3). A write-out that fails has done nothing: its sectors are dirty again, what it would have let
//! go of is held again, and the page is back on the list for the next attempt.
//!
//! Readers take no lock. P1: an evicted page is clean and never changes again. P2: `held` is in the order of
//! the changes; of one entry, the oldest held change that is not ripe decides what may be on disk.

use super::guard::{OverlapGuard, Owner};
use super::Settler;
use crate::error::{Error, ErrorKind, Result};
use crate::format::be64;
use crate::format::entries::RawL2;
use crate::format::geometry::SECTOR_BYTES;
use crate::planted::{planted, Plant};
use crate::storage::gate::Readers;
use crate::storage::medium::{Medium, Ticket};
use crate::storage::Purpose;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{locked, spin_loop, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const WORDS_PER_SECTOR: usize = SECTOR_BYTES as usize / 8;

/// Looks at an entry of two words before a reader waits for whoever stores one.
const ENTRY_LOOKS: u32 = 64;

/// Bytes of a table that are read at once.
const READ_BYTES: usize = 16 << 10;
/// As much, for what is short: a slice as it usually is.
const SMALL_BYTES: usize = 4 << 10;

fn no_memory(purpose: Purpose, bytes: u64) -> Error {
    Error::new(ErrorKind::NoMemory, format!("{purpose:?} table of {bytes} bytes: no memory"))
}

/// Host clusters that lost one reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// First cluster.
    pub first_cluster: u64,
    /// Clusters in the run; the count of each falls by one.
    pub cluster_count: u64,
    /// Readers that entered up to this epoch may still use them (rule R4).
    pub epoch: u64,
    /// Give the space back to the host when nobody refers to them any more.
    pub discard: bool,
    /// What the clusters may hold; guest data holds nothing that the overlap check knows.
    pub owner: Owner,
}

impl Release {
    /// A release of guest data, whose epoch the page fills in.
    pub fn new(first_cluster: u64, cluster_count: u64, discard: bool) -> Self {
        Release { first_cluster, cluster_count, epoch: 0, discard, owner: Owner::NOBODY }
    }

    /// As `new`, of clusters that hold `owner`.
    pub fn of(owner: Owner, first_cluster: u64, cluster_count: u64) -> Self {
        Release { owner, ..Release::new(first_cluster, cluster_count, false) }
    }
}

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
    dirty: Vec<u64>,
    dirty_sectors: usize,
    held: Vec<Held>,
    /// The latest ticket that a change has waited for.
    latest: Ticket,
    listed: bool,
}

/// Pages that have something to write.
#[derive(Default)]
pub struct DirtyList {
    pages: Mutex<Vec<Arc<Page>>>,
    /// Shared by `InFlight`: between the list and the file nobody may sync and believe that a page is covered.
    in_flight: RwLock<()>,
    /// Clusters in the `dropped` of held changes.
    held_clusters: AtomicU64,
    /// How many changes wait for each ticket, in whatever hands their pages are.
    waiting: Mutex<BTreeMap<Ticket, u64>>,
    /// Counts how often pages have come back to the list because a write failed: who took the list in the meantime
    /// has not seen them.
    failures: AtomicU64,
}

/// Says that pages may be between memory and the file: held from before they leave the list until what was
/// copied from them is written.
pub struct InFlight<'a> {
    _shared: RwLockReadGuard<'a, ()>,
}

impl DirtyList {
    /// Announces write-outs.
    pub fn begin(&self) -> InFlight<'_> {
        InFlight { _shared: locked(self.in_flight.read()) }
    }

    /// Takes all pages off the list, to be written while the announcement lasts.
    pub fn take(&self, _announced: &InFlight<'_>) -> Vec<Arc<Page>> {
        std::mem::take(&mut *locked(self.pages.lock()))
    }

    /// Waits until whatever others have taken off the list is in the file, or back on the list because it
    /// waits for a sync. The caller has no announcement of its own.
    pub fn wait_in_flight(&self) {
        drop(locked(self.in_flight.write()));
    }

    /// Changes whenever pages come back because a write failed.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::SeqCst)
    }

    /// Puts pages back that were taken and not written. The caller still has its announcement.
    pub(super) fn put_back(&self, pages: impl IntoIterator<Item = Arc<Page>>) {
        locked(self.pages.lock()).extend(pages);
        self.failures.fetch_add(1, Ordering::SeqCst);
    }

    /// Host clusters that held changes have let go of.
    pub fn held_clusters(&self) -> u64 {
        self.held_clusters.load(Ordering::Relaxed)
    }

    /// The oldest ticket that a change waits for which no write-out has taken yet.
    pub fn oldest_waiting(&self) -> Option<Ticket> {
        locked(self.waiting.lock()).keys().next().copied()
    }

    fn add_waiting(&self, ticket: Ticket) {
        *locked(self.waiting.lock()).entry(ticket).or_default() += 1;
    }

    fn remove_waiting(&self, ticket: Ticket, changes: u64) {
        let mut waiting = locked(self.waiting.lock());
        if let Some(count) = waiting.get_mut(&ticket) {
            *count -= changes;
            if *count == 0 {
                waiting.remove(&ticket);
            }
        }
    }

    /// Takes one page off the list, to be written while the announcement lasts.
    pub(super) fn remove(&self, page: &Arc<Page>, _announced: &InFlight<'_>) {
        locked(self.pages.lock()).retain(|p| !Arc::ptr_eq(p, page));
    }

    fn add(&self, page: &Arc<Page>) {
        locked(self.pages.lock()).push(Arc::clone(page));
    }
}

/// What an update met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Updated {
    /// The change is in the page, which holds as many that wait or have let go of something.
    Done(usize),
    /// The page has been evicted: find it again.
    Evicted,
}

/// What a write-out takes from a page.
struct Ripe {
    /// First sector and bytes of each dirty run.
    runs: Vec<(usize, Vec<u8>)>,
    /// The changes in `runs` that let go of something.
    letting_go: Vec<Held>,
    /// Nothing waits any more.
    clean: bool,
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
    /// Set once, with `state` held.
    evicted: AtomicBool,
    /// Set by readers, cleared by the cache's clock hand.
    pub(super) used: AtomicBool,
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
        room.try_reserve_exact((bytes / 8) as usize).map_err(|_| no_memory(purpose, bytes))?;
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
        let state = State { dirty: vec![0; sectors.div_ceil(64)], ..State::default() };
        Page {
            purpose,
            home,
            entry_words,
            words,
            version: AtomicU64::new(0),
            state: Mutex::new(state),
            writing: Mutex::new(()),
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

    /// Changes entry `index`; on disk not before `after` is past. `dropped` is what the old value referred to.
    pub fn update(
        self: &Arc<Self>,
        change: Change,
        medium: &Medium,
        readers: &dyn Readers,
        list: &DirtyList,
    ) -> Updated {
        let mut after = if planted(Plant::NoBarrierBeforePointer) { Ticket::PAST } else { change.after };
        let mut state = self.lock();
        if !self.is_live() && !planted(Plant::EvictedPageChanged) {
            return Updated::Evicted;
        }
        let before = self.own_entry(change.entry);
        self.store(change.entry, change.value);
        // After the store: a reader that enters from now on cannot see the old value.
        let dropped = change.dropped.map(|d| Release { epoch: readers.retire(), ..d });
        if let Some(release) = dropped {
            list.held_clusters.fetch_add(release.cluster_count, Ordering::Relaxed);
        }
        if !state.listed {
            state.listed = true;
            list.add(self);
        }
        let waits = !medium.is_past(after);
        if waits {
            if after < state.latest {
                // P2: it is not ripe before an older change of its entry, and a barrier must not wait for it sooner.
                let same = state.held.iter().filter(|h| h.entry == change.entry);
                after = same.map(|h| h.after).fold(after, Ticket::max);
            }
            state.latest = state.latest.max(after);
            // Who sees this count finds the page: on the list, or in the hands of an announced write-out.
            list.add_waiting(after);
        } else {
            self.mark_dirty(&mut state, change.entry);
        }
        if dropped.is_some() || waits {
            state.held.push(Held { entry: change.entry, before, after, waits, dropped });
        }
        Updated::Done(state.held.len())
    }

    fn sector_of(&self, entry: usize) -> usize {
        entry * self.entry_words / WORDS_PER_SECTOR
    }

    fn mark_dirty(&self, state: &mut State, entry: usize) {
        self.mark_sector_dirty(state, self.sector_of(entry));
    }

    fn mark_sector_dirty(&self, state: &mut State, sector: usize) {
        let (word, bit) = (sector / 64, 1u64 << (sector % 64));
        if state.dirty[word] & bit == 0 {
            state.dirty[word] |= bit;
            state.dirty_sectors += 1;
        }
    }

    /// Marks a clean page as evicted (P1). `false`: it is dirty.
    pub(super) fn try_evict(&self) -> bool {
        // A write-out in flight has cleaned the page before its bytes are in the file.
        let idle = self.writing.try_lock();
        if idle.is_err() && !planted(Plant::PageInHandEvicted) {
            return false;
        }
        let state = self.lock();
        if state.dirty_sectors != 0 || !state.held.is_empty() {
            return false;
        }
        self.evicted.store(true, Ordering::SeqCst);
        true
    }

    /// Forgets what has not been written: nothing leads to the table any more, or will before the next barrier. Returns
    /// what its changes had let go of. The caller is alone, and takes the page out of the cache.
    pub fn abandon(&self, list: &DirtyList) -> Vec<Release> {
        let _order = locked(self.writing.lock());
        let mut state = self.lock();
        let mut releases = Vec::new();
        for held in std::mem::take(&mut state.held) {
            if held.waits {
                list.remove_waiting(held.after, 1);
            }
            if let Some(release) = held.dropped {
                list.held_clusters.fetch_sub(release.cluster_count, Ordering::Relaxed);
                releases.push(release);
            }
        }
        state.dirty.fill(0);
        state.dirty_sectors = 0;
        releases
    }

    /// Writes what may be written. `Ok(false)`: changes that wait for a later sync are left, and the page is
    /// back on `list`, as it is after a failure.
    pub fn write_out(
        self: &Arc<Self>,
        medium: &Medium,
        guard: &OverlapGuard,
        settler: &dyn Settler,
        list: &DirtyList,
        _announced: &InFlight<'_>,
    ) -> Result<bool> {
        let _order = (!planted(Plant::WriteOutsOvertake)).then(|| locked(self.writing.lock()));
        let ripe = self.take_ripe(medium, list);
        if let Err(e) = self.write_runs(&ripe.runs, medium, guard) {
            if !planted(Plant::UnwrittenPageForgotten) {
                self.take_back(ripe, list);
            }
            return Err(e);
        }
        let releases: Vec<Release> = ripe.letting_go.iter().filter_map(|h| h.dropped).collect();
        if !releases.is_empty() {
            list.held_clusters.fetch_sub(releases.iter().map(|r| r.cluster_count).sum(), Ordering::Relaxed);
            settler.settle_after(medium.ticket(), releases);
        }
        Ok(ripe.clean)
    }

    /// Undoes `take_ripe` after a failed write, which may have left any part of its bytes in the file: all of them may
    /// be there.
    fn take_back(self: &Arc<Self>, ripe: Ripe, list: &DirtyList) {
        let mut state = self.lock();
        for (first, bytes) in &ripe.runs {
            for sector in *first..first + bytes.len().div_ceil(SECTOR_BYTES as usize) {
                self.mark_sector_dirty(&mut state, sector);
            }
        }
        // P2: what was ripe is older than whatever is held of the same entry.
        state.held.splice(0..0, ripe.letting_go);
        let back = (!state.listed).then(|| Arc::clone(self));
        state.listed = true;
        list.put_back(back);
    }

    fn write_runs(&self, runs: &[(usize, Vec<u8>)], medium: &Medium, guard: &OverlapGuard) -> Result<()> {
        for (first_sector, bytes) in runs {
            let at = self.home + *first_sector as u64 * SECTOR_BYTES;
            guard.check_table_write(self.purpose, at, bytes.len() as u64)?;
            medium.write_live(self.purpose, at, bytes)?;
        }
        Ok(())
    }

    /// Copies the dirty sectors with the values that may be on disk now, and what ripe changes let go of.
    fn take_ripe(self: &Arc<Self>, medium: &Medium, list: &DirtyList) -> Ripe {
        let mut state = self.lock();
        let waits_whole = state.dirty_sectors == 0 && !state.held.iter().any(|h| medium.is_past(h.after));
        if waits_whole && !state.held.is_empty() {
            list.add(self);
            return Ripe { runs: Vec::new(), letting_go: Vec::new(), clean: false };
        }
        state.listed = false;
        let mut older = Vec::new();
        let mut blocked = BTreeSet::new();
        let mut letting_go = Vec::new();
        let mut kept = Vec::new();
        // Neighbours mostly wait for the same.
        let mut arrived = (Ticket::PAST, 0);
        for held in std::mem::take(&mut state.held) {
            if medium.is_past(held.after) && !blocked.contains(&held.entry) {
                self.mark_dirty(&mut state, held.entry);
                if held.waits && held.after == arrived.0 {
                    arrived.1 += 1;
                } else if held.waits {
                    list.remove_waiting(arrived.0, arrived.1);
                    arrived = (held.after, 1);
                }
                if held.dropped.is_some() {
                    letting_go.push(Held { waits: false, ..held });
                }
                continue;
            }
            if blocked.insert(held.entry) {
                older.push((held.entry, held.before));
            }
            kept.push(held);
        }
        list.remove_waiting(arrived.0, arrived.1);
        state.held = kept;
        let unit = medium.storage().traits().alignment.max(SECTOR_BYTES) / SECTOR_BYTES;
        let runs = self.copy_dirty(&mut state, unit as usize, &older);
        let clean = older.is_empty();
        if !clean {
            state.listed = true;
            list.add(self);
        }
        Ripe { runs, letting_go, clean }
    }

    /// Copies runs of dirty sectors, widened to `unit` sectors where the page is large enough, and cleans them.
    fn copy_dirty(&self, state: &mut State, unit: usize, older: &[(usize, RawL2)]) -> Vec<(usize, Vec<u8>)> {
        let sectors = self.words.len().div_ceil(WORDS_PER_SECTOR);
        let unit = if sectors % unit == 0 { unit } else { 1 };
        let mut runs: Vec<(usize, Vec<u8>)> = Vec::new();
        let mut from = 0;
        while let Some(dirty) = first_set(&state.dirty, from) {
            let sector = dirty / unit * unit;
            let end = (sector + unit).min(sectors);
            match runs.last_mut() {
                Some((first, run)) if *first + run.len().div_ceil(SECTOR_BYTES as usize) == sector => {
                    self.copy_sectors(sector, end, run)
                }
                _ => {
                    let mut run = Vec::new();
                    self.copy_sectors(sector, end, &mut run);
                    runs.push((sector, run));
                }
            }
            from = end;
        }
        for (first, run) in &mut runs {
            self.put_older(*first, run, older);
        }
        state.dirty.fill(0);
        state.dirty_sectors = 0;
        runs
    }

    fn copy_sectors(&self, from: usize, to: usize, run: &mut Vec<u8>) {
        let words = &self.words[from * WORDS_PER_SECTOR..(to * WORDS_PER_SECTOR).min(self.words.len())];
        let start = run.len();
        run.resize(start + words.len() * 8, 0);
        for (bytes, word) in run[start..].chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.load(Ordering::SeqCst).to_be_bytes());
        }
    }

    /// Replaces entries that may not be on disk yet by the values that may.
    fn put_older(&self, first_sector: usize, run: &mut [u8], older: &[(usize, RawL2)]) {
        let start = first_sector * SECTOR_BYTES as usize;
        for (entry, before) in older {
            let at = entry * self.entry_words * 8;
            if at < start || at >= start + run.len() {
                continue;
            }
            run[at - start..][..8].copy_from_slice(&before.descriptor.to_be_bytes());
            if self.entry_words == 2 {
                run[at - start + 8..][..8].copy_from_slice(&before.bitmap.to_be_bytes());
            }
        }
    }
}

/// The first bit at or after `from` that is set.
fn first_set(bits: &[u64], from: usize) -> Option<usize> {
    let first = bits.get(from / 64)? >> (from % 64);
    if first != 0 {
        return Some(from + first.trailing_zeros() as usize);
    }
    let mut rest = bits.iter().enumerate().skip(from / 64 + 1);
    rest.find(|(_, b)| **b != 0).map(|(i, b)| i * 64 + b.trailing_zeros() as usize)
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
