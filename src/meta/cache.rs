//! The L2 cache: slices of L2 tables, set-associative. Finding one takes its slot's lock for a moment.
//!
//! A slice is keyed by its guest position (slice number of the disk), so that a cache with a place for each slice of the
//! disk holds all of them: slice `k` lives in set `k mod sets`. Replacement within a set is a clock.
//!
//! Two loads of one slice, or a load and the write-out of its older copy, must not meet: a key under load is
//! on `loading`, and others wait; a page is written while it is still findable and leaves only when clean.

use super::page::Page;
use super::WriteOut;
use crate::error::Result;
use crate::planted::{planted, Plant};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{locked, Condvar, Mutex, MutexGuard};
use std::sync::{Arc, OnceLock};

/// Least slices of one set in a cache with several sets; there are fewer than twice as many.
const MIN_WAYS: usize = 8;

/// What a page is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its entries are looked at, inside one pin.
    Look,
    /// They may be changed.
    Change,
}

/// A page with the slice that it holds.
struct Keyed {
    key: u64,
    page: Arc<Page>,
}

/// A place for a page.
#[derive(Default)]
struct Slot {
    /// Slice number + 1; 0 when empty. A hint: what is under the lock decides.
    hint: AtomicU64,
    /// Held for a look at the page's entries, never across I/O or another lock.
    place: Mutex<Option<Keyed>>,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Option<Keyed>> {
        locked(self.place.lock())
    }

    fn page(&self) -> Option<Arc<Page>> {
        self.lock().as_ref().map(|k| Arc::clone(&k.page))
    }

    fn is_empty(&self) -> bool {
        self.hint.load(Ordering::Acquire) == 0
    }

    fn clear(&self) {
        self.hint.store(0, Ordering::Release);
        *self.lock() = None;
    }
}

/// The slots of one set.
type Set = OnceLock<Box<[Slot]>>;

/// See the module.
pub struct SliceCache {
    /// The sets, made with the first page, and the slots of each, made with the first one that goes there: an open must
    /// not pay for a cache that it does not use.
    sets: OnceLock<Box<[Set]>>,
    ways: usize,
    /// Sets - 1; their number is a power of two.
    set_mask: u64,
    hand: AtomicUsize,
    loading: Mutex<Loading>,
    loaded: Condvar,
}

#[derive(Default)]
struct Loading {
    keys: Vec<u64>,
    /// Threads that wait: nobody is woken, by a system call, when there are none.
    waiting: usize,
}

impl SliceCache {
    /// A cache of `slice_count` slices (2 at least). With `whole`, room for all of them at once is made even
    /// if that takes a few more. Memory is taken as slices are loaded.
    pub fn new(slice_count: usize, whole: bool) -> SliceCache {
        let wanted = slice_count.max(2);
        let sets = match wanted / MIN_WAYS {
            0 => 1,
            n => 1 << n.ilog2(),
        };
        let ways = if whole { wanted.div_ceil(sets) } else { wanted / sets };
        SliceCache {
            sets: OnceLock::new(),
            ways,
            set_mask: sets as u64 - 1,
            hand: AtomicUsize::new(0),
            loading: Mutex::default(),
            loaded: Condvar::new(),
        }
    }

    /// The number of the set of `key`.
    fn set_of(&self, key: u64) -> usize {
        (key & self.set_mask) as usize
    }

    /// The slots of a set.
    fn slots(&self, set: usize) -> &[Slot] {
        let sets = self.sets.get_or_init(|| (0..=self.set_mask).map(|_| OnceLock::new()).collect());
        sets[set].get_or_init(|| (0..self.ways).map(|_| Slot::default()).collect())
    }

    /// Makes all slots. What the standard library's cells order, the models do not see.
    #[cfg(all(test, loom))]
    pub fn make_slots(&self) {
        for set in 0..=self.set_mask {
            self.slots(set as usize);
        }
    }

    /// The slots of a set that has had a page.
    #[inline(always)]
    fn used_slots(&self, set: usize) -> Option<&[Slot]> {
        Some(self.sets.get()?[set].get()?)
    }

    /// Has `look` look at the page of slice `key`, if it is in memory: at its entries only, for its slot is locked.
    #[inline]
    pub fn find<T>(&self, key: u64, look: impl FnOnce(&Arc<Page>) -> T) -> Option<T> {
        for slot in self.used_slots(self.set_of(key))? {
            if slot.hint.load(Ordering::Acquire) != key + 1 {
                continue;
            }
            if let Some(keyed) = slot.lock().as_ref().filter(|k| k.key == key) {
                keyed.page.touch();
                return Some(look(&keyed.page));
            }
        }
        None
    }

    /// The page of slice `key`, loaded by `load` when it is not in memory. A host that takes no writes may leave no room
    /// for it: who only looks gets a page of its own then, which no change can reach.
    pub fn get(
        &self,
        key: u64,
        access: Access,
        out: &WriteOut<'_>,
        load: impl FnOnce() -> Result<Page>,
    ) -> Result<Arc<Page>> {
        if let Some(found) = self.find_arc(key) {
            return Ok(found);
        }
        if let Some(found) = self.begin_load(key) {
            return Ok(found);
        }
        let room = self.make_room(key, out);
        let answer = match (room, access) {
            (Err(e), Access::Look) if e.is_failed_sync() => Err(e),
            (Err(e), Access::Change) => Err(e),
            (Err(_), Access::Look) => load().map(|page| {
                page.try_evict();
                Arc::new(page)
            }),
            (Ok(()), _) => load().map(|page| {
                let page = Arc::new(page);
                self.install(key, Arc::clone(&page));
                page
            }),
        };
        self.end_load(key);
        answer
    }

    fn find_arc(&self, key: u64) -> Option<Arc<Page>> {
        self.find(key, Arc::clone)
    }

    /// Puts this set under load, waiting for others that load into it. Whoever waited may find the page there.
    fn begin_load(&self, key: u64) -> Option<Arc<Page>> {
        let mut loading = self.lock_loading();
        loop {
            if let Some(found) = self.find_arc(key) {
                return Some(found);
            }
            // One load per set at a time: two loads could otherwise pick one victim.
            if !self.is_owned(&loading, key) || planted(Plant::TwoLoadsIntoOneSet) {
                loading.keys.push(key);
                return None;
            }
            loading = self.wait_loaded(loading);
        }
    }

    /// Keeps loads out of the set of `key` until `end_load`.
    fn own_set(&self, key: u64) {
        let mut loading = self.lock_loading();
        while self.is_owned(&loading, key) {
            loading = self.wait_loaded(loading);
        }
        loading.keys.push(key);
    }

    fn end_load(&self, key: u64) {
        let mut loading = self.lock_loading();
        loading.keys.retain(|k| *k != key);
        if loading.waiting > 0 {
            self.loaded.notify_all();
        }
    }

    fn lock_loading(&self) -> MutexGuard<'_, Loading> {
        locked(self.loading.lock())
    }

    /// Whether somebody has the set of `key`.
    fn is_owned(&self, loading: &Loading, key: u64) -> bool {
        loading.keys.iter().any(|k| (k ^ key) & self.set_mask == 0)
    }

    fn wait_loaded<'a>(&'a self, mut loading: MutexGuard<'a, Loading>) -> MutexGuard<'a, Loading> {
        loading.waiting += 1;
        loading = locked(self.loaded.wait(loading));
        loading.waiting -= 1;
        loading
    }

    /// Empties one slot of the set: a free one, else the first clean page that was not used since the hand
    /// passed, else any clean page, else one that is written out first, with a sync only where every one of them needs it.
    fn make_room(&self, key: u64, out: &WriteOut<'_>) -> Result<()> {
        let slots = self.slots(self.set_of(key));
        // The set is ours: a slot is empty when its hint is.
        if slots.iter().any(Slot::is_empty) {
            return Ok(());
        }
        let start = self.hand.fetch_add(1, Ordering::Relaxed);
        for round in 0..2 {
            for i in 0..slots.len() {
                let slot = &slots[(start + i) % slots.len()];
                let Some(page) = slot.page() else { return Ok(()) };
                let recent = page.take_used() && round == 0;
                if !recent && page.try_evict() {
                    slot.clear();
                    return Ok(());
                }
            }
        }
        // Those that need no sync first. A host that is full may still take the one page or the other. A sync of somebody
        // else's may come at any time: what was not tried is, whatever it needs by then.
        let (mut first, mut tried) = (None, vec![false; slots.len()]);
        for may_sync in [false, true] {
            for i in (0..slots.len()).map(|i| (start + i) % slots.len()) {
                let Some(page) = slots[i].page() else { return Ok(()) };
                let later = match planted(Plant::EvictionAsksTwice) {
                    true => page.waits(out.medium) != may_sync,
                    false => tried[i] || !may_sync && page.waits(out.medium),
                };
                if later {
                    continue;
                }
                tried[i] = true;
                match Self::evict_dirty(&slots[i], out) {
                    Ok(()) => return Ok(()),
                    Err(e) => first = first.or(Some(e)),
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn evict_dirty(slot: &Slot, out: &WriteOut<'_>) -> Result<()> {
        let Some(page) = slot.page() else { return Ok(()) };
        loop {
            // Changes may arrive while it is being written; each round writes what arrived before it.
            let announced = out.list.begin();
            // Off the list before it is written, as whoever takes all of it does: a page that comes back, as each of
            // them does on a host that is full, would be there once more each time.
            out.list.remove(&page, &announced);
            let clean = out.page(&page, &announced)?;
            drop(announced);
            if clean && page.try_evict() {
                slot.clear();
                return Ok(());
            }
            out.medium.latch().check()?;
            if !clean {
                out.settler.advance()?;
            }
        }
    }

    fn install(&self, key: u64, page: Arc<Page>) {
        let empty = self.slots(self.set_of(key)).iter().find(|slot| slot.is_empty());
        debug_assert!(empty.is_some(), "make_room left no room");
        if let Some(slot) = empty {
            *slot.lock() = Some(Keyed { key, page });
            slot.hint.store(key + 1, Ordering::Release);
        }
    }

    /// Drops the page of slice `key`, which must be clean.
    pub fn forget(&self, key: u64) {
        self.own_set(key);
        for slot in self.used_slots(self.set_of(key)).unwrap_or_default() {
            let page = slot.lock().as_ref().filter(|k| k.key == key).map(|k| Arc::clone(&k.page));
            if page.is_some_and(|p| p.try_evict()) {
                slot.clear();
            }
        }
        self.end_load(key);
    }

    /// Drops clean pages that no request has used since the last call (`cache-clean-interval`).
    pub fn forget_unused(&self) {
        let sets = self.sets.get().map_or(&[][..], |sets| sets);
        for slot in sets.iter().filter_map(|set| set.get()).flatten() {
            let unused = slot.lock().as_ref().filter(|k| !k.page.take_used()).map(|k| k.key);
            if let Some(key) = unused {
                self.forget(key);
            }
        }
    }
}
