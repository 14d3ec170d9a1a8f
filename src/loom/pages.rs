//! Table pages between memory and the file: changes, write-outs, flushes and evictions at the same time.
//!
//! Page `key` is words `2 key` and `2 key + 1` of the disk; a word holds its number at first.

use super::disk::Disk;
use super::explore;
use crate::error::Result;
use crate::format::entries::RawL2;
use crate::meta::page::Change;
use crate::meta::{Access, DirtyPages, OverlapGuard, Page, Release, Settler, SliceCache, WriteOut};
use crate::storage::gate::Gate;
use crate::storage::medium::{Medium, Ticket};
use crate::storage::Purpose;
use ::loom::thread;
use std::sync::Arc;

/// What a change writes.
const VALUE: u64 = 700;

struct Parts {
    disk: Arc<Disk>,
    medium: Medium,
    guard: OverlapGuard,
    gate: Gate<()>,
    list: DirtyPages,
    cache: SliceCache,
}

/// Only syncs: nothing is let go of in the models.
struct Syncs<'a>(&'a Medium);

impl Settler for Syncs<'_> {
    fn advance(&self) -> Result<()> {
        self.0.finish_sync(self.0.begin_sync())
    }
    fn settle_after(&self, _: Ticket, _: Vec<Release>) {}
}

impl Parts {
    fn new() -> Arc<Parts> {
        let disk = Disk::new(6);
        let cache = SliceCache::new(2, false);
        cache.make_slots();
        Arc::new(Parts {
            medium: Medium::new(disk.clone()),
            disk,
            guard: OverlapGuard::off(),
            gate: Gate::new(()),
            list: DirtyPages::default(),
            cache,
        })
    }

    fn out<T>(&self, run: impl FnOnce(&WriteOut<'_>) -> Result<T>) -> T {
        self.try_out(run).unwrap()
    }

    fn try_out<T>(&self, run: impl FnOnce(&WriteOut<'_>) -> Result<T>) -> Result<T> {
        let settler = Syncs(&self.medium);
        let (medium, guard, list) = (&self.medium, &self.guard, &self.list);
        run(&WriteOut { medium, guard, settler: &settler, list })
    }

    fn page(&self, key: u64) -> Arc<Page> {
        let load = || Page::read(&self.medium, Purpose::L2, 16 * key, 1, 16);
        self.out(|out| self.cache.get(key, Access::Change, out, load))
    }

    fn read(&self, key: u64) -> u64 {
        self.page(key).entry(0).descriptor
    }

    /// Changes an entry of page 0.
    fn change(&self, entry: usize, after: Ticket) {
        self.change_on(0, entry, after);
    }

    /// Changes an entry of a page, as `Map::link` does it.
    fn change_on(&self, key: u64, entry: usize, after: Ticket) {
        let change = Change { entry, value: RawL2 { descriptor: VALUE, bitmap: 0 }, after, dropped: None };
        // The cache lets go of an evicted page in a moment.
        while !self.page(key).update(change, &self.medium, &self.gate, &self.list) {
            thread::yield_now();
        }
    }
}

/// Runs `first` and `second` on one page; both have the page in memory.
fn race(name: &str, preemptions: usize, first: fn(&Parts), second: fn(&Parts)) {
    explore(name, preemptions, move || {
        let parts = Parts::new();
        parts.page(0);
        let other = Arc::clone(&parts);
        let other = thread::spawn(move || second(&other));
        first(&parts);
        other.join().unwrap();
    });
}

fn change_and_write_through(parts: &Parts) {
    // A change that waits for a sync, as that of an allocating write.
    parts.change(0, parts.medium.ticket());
    parts.out(|out| out.write_through());
    assert_eq!(parts.disk.word(0), VALUE, "a write-through returned before its change is in the file");
}

fn change_and_flush(parts: &Parts) {
    parts.change(0, parts.medium.ticket());
    parts.out(|out| out.barrier());
    assert_eq!(parts.disk.durable(0), VALUE, "a flush returned before its change is durable");
}

#[test]
fn a_write_through_waits_for_whoever_has_its_page_in_hand() {
    race("write-through beside a write-through", 3, change_and_write_through, |parts| {
        parts.out(|out| out.write_through());
    });
    race("write-through beside a flush", 3, change_and_write_through, |parts| {
        parts.out(|out| out.barrier());
    });
}

#[test]
fn a_flush_waits_for_whoever_has_its_page_in_hand() {
    race("flush beside a write-through", 3, change_and_flush, |parts| {
        parts.out(|out| out.write_through());
    });
    race("flush beside a flush", 3, change_and_flush, |parts| {
        parts.out(|out| out.barrier());
    });
}

/// Whoever has the page in hand finds the host full: the flush beside it tries itself, or fails, and never returns
/// while its change is not durable.
#[test]
fn a_flush_writes_what_comes_back_unwritten() {
    explore("flush beside a write-through that fails", 3, || {
        let parts = Parts::new();
        parts.page(0);
        parts.disk.fail_once();
        let other = Arc::clone(&parts);
        let other = thread::spawn(move || {
            let _ = other.try_out(|out| out.write_through());
        });
        parts.change(0, Ticket::PAST);
        if parts.try_out(|out| out.barrier()).is_ok() {
            assert_eq!(parts.disk.durable(0), VALUE, "a flush returned before its change is durable");
        }
        other.join().unwrap();
        // There is room now, and nothing has been lost.
        parts.out(|out| out.barrier());
        assert_eq!(parts.disk.durable(0), VALUE, "a change was lost with a failed write");
    });
}

/// A change of another entry of the same page has the list and the page's turn in use.
#[test]
fn changes_of_one_page_do_not_overtake_each_other() {
    race("two changes", 3, change_and_write_through, |parts| {
        parts.change(1, Ticket::PAST);
        parts.out(|out| out.write_through());
        assert_eq!(parts.disk.word(1), VALUE);
    });
}

/// Both entries of the page were nothing before: what waits is a bit of each, and the change of one must not take the other
/// from those that a flush waits for.
#[test]
fn a_flush_is_not_misled_by_another_new_entry() {
    explore("flush beside another new entry", 3, || {
        let parts = Parts::new();
        parts.disk.clear(1);
        parts.page(0);
        let other = Arc::clone(&parts);
        let other = thread::spawn(move || other.change(1, other.medium.ticket()));
        change_and_flush(&parts);
        other.join().unwrap();
        parts.out(|out| out.barrier());
        assert_eq!([0, 1].map(|e| parts.disk.durable(e)), [VALUE; 2], "a change was lost");
    });
}

/// The cache has two places: whoever reads two other pages makes it let go of the first one.
fn evict(parts: &Parts) {
    assert_eq!(parts.read(1), 2);
    assert_eq!(parts.read(2), 4);
}

#[test]
fn an_evicted_page_is_read_as_it_was_changed() {
    race(
        "change beside an eviction",
        3,
        |parts| {
            parts.change(0, Ticket::PAST);
            assert_eq!(parts.read(0), VALUE, "an old page was read again");
            parts.out(|out| out.barrier());
            assert_eq!(parts.disk.durable(0), VALUE, "a change was lost with its page");
        },
        evict,
    );
}

/// All pages of the cache wait for a sync, which comes while one of them must leave.
#[test]
fn there_is_room_whenever_a_sync_comes() {
    explore("eviction beside a sync", 3, || {
        let parts = Parts::new();
        let after = parts.medium.ticket();
        (0..2).for_each(|key| parts.change_on(key, 1, after));
        let other = Arc::clone(&parts);
        let other = thread::spawn(move || Syncs(&other.medium).advance().unwrap());
        assert_eq!(parts.read(2), 4);
        assert_eq!([0, 1].map(|key| parts.page(key).entry(1).descriptor), [VALUE; 2], "a change was lost");
        other.join().unwrap();
    });
}

#[test]
fn a_page_in_hand_is_not_evicted() {
    race(
        "write-out beside an eviction",
        3,
        |parts| {
            parts.change(0, Ticket::PAST);
            parts.out(|out| out.write_through());
        },
        |parts| {
            evict(parts);
            let seen = parts.read(0);
            assert!(seen == 0 || seen == VALUE);
            if seen == VALUE {
                evict(parts);
                assert_eq!(parts.read(0), VALUE, "a page was dropped while its bytes were under way");
            }
        },
    );
}

/// One thread has the page in hand, one changes it and flushes, one makes the cache let go of it.
#[test]
fn three_threads_and_one_page() {
    explore("flush beside a write-through and an eviction", 2, || {
        let parts = Parts::new();
        parts.change(1, Ticket::PAST);
        let run = |what: fn(&Parts)| {
            let parts = Arc::clone(&parts);
            thread::spawn(move || what(&parts))
        };
        let others = [run(|parts| parts.out(|out| out.write_through())), run(evict)];
        change_and_flush(&parts);
        others.into_iter().for_each(|o| o.join().unwrap());
        evict(&parts);
        let page = parts.page(0);
        assert_eq!([0, 1].map(|e| page.entry(e).descriptor), [VALUE; 2], "a change was lost");
    });
}

#[test]
fn a_page_is_loaded_once() {
    explore("two loads", 4, || {
        let parts = Parts::new();
        let other = Arc::clone(&parts);
        let other = thread::spawn(move || other.page(0));
        let mine = parts.page(0);
        assert!(Arc::ptr_eq(&mine, &other.join().unwrap()), "two pages of one table");
    });
}
