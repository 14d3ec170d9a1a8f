use super::*;
use crate::format::HostCluster;
use crate::meta::{Access, SliceCache, WriteOut};
use crate::meta::{OverlapGuard, Settler};
use crate::storage::gate::Gate;
use crate::storage::memory::Memory;
use crate::storage::{HostRun, Storage, Traits};
use std::io::{self, IoSlice, IoSliceMut};

#[derive(Default)]
struct Log(Mutex<Vec<(Ticket, Release)>>);
impl Settler for Log {
    fn advance(&self) -> Result<()> {
        Ok(())
    }
    fn settle_after(&self, ticket: Ticket, releases: Vec<Release>) {
        self.0.lock().unwrap().extend(releases.into_iter().map(|r| (ticket, r)));
    }
}

/// A host that takes no bytes while `on`.
struct Full {
    memory: Arc<Memory>,
    on: AtomicBool,
}

impl Storage for Full {
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.memory.read(purpose, offset, buffers)
    }
    fn write(&self, purpose: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        match self.on.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => self.memory.write(purpose, offset, buffers),
        }
    }
    fn sync(&self) -> io::Result<()> {
        self.memory.sync()
    }
    fn length(&self) -> io::Result<u64> {
        self.memory.length()
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        self.memory.set_length(length)
    }
    fn write_zeroes(&self, purpose: Purpose, offset: u64, length: u64) -> io::Result<()> {
        self.memory.write_zeroes(purpose, offset, length)
    }
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.memory.discard(offset, length)
    }
    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.memory.preallocate(offset, length)
    }
    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
        self.memory.host_run(offset)
    }
    fn traits(&self) -> Traits {
        self.memory.traits()
    }
}

fn raw(descriptor: u64) -> RawL2 {
    RawL2 { descriptor, bitmap: 0 }
}

#[test]
fn a_change_is_not_waited_for_before_an_older_one_of_its_entry() {
    let medium = Medium::new(Arc::new(Memory::new(vec![0; 4096])));
    let (gate, list, log, guard) =
        (Gate::new(()), DirtyPages::default(), Log::default(), OverlapGuard::off());
    let page = Arc::new(Page::read(&medium, Purpose::L2, 512, 1, 1024).unwrap());
    let early = medium.ticket();
    let sync = medium.begin_sync();
    let late = medium.ticket();
    for (entry, after) in [(3, late), (3, early), (4, early)] {
        let change = Change { entry, value: raw(7), after, dropped: None };
        assert!(page.update(change, &medium, &gate, &list));
    }
    medium.finish_sync(sync).unwrap();
    // A barrier that began with `early` has nothing to wait for once the page is written.
    assert_eq!(list.take(&list.begin()).len(), 1);
    assert!(!page.write_out(&medium, &guard, &log, &list, &list.begin()).unwrap());
    assert_eq!(list.oldest_waiting(), Some(late));
    let sync = medium.begin_sync();
    medium.finish_sync(sync).unwrap();
    assert_eq!(list.take(&list.begin()).len(), 1);
    assert!(page.write_out(&medium, &guard, &log, &list, &list.begin()).unwrap());
    assert_eq!(list.oldest_waiting(), None);
}

#[test]
fn a_write_out_that_fails_has_done_nothing() {
    let storage = Arc::new(Memory::new(vec![0; 4096]));
    let full = Arc::new(Full { memory: storage.clone(), on: AtomicBool::new(true) });
    let medium = Medium::new(full.clone());
    let (gate, list, log, guard) =
        (Gate::new(()), DirtyPages::default(), Log::default(), OverlapGuard::off());
    let page = Arc::new(Page::read(&medium, Purpose::L2, 512, 1, 1024).unwrap());
    let set = |entry, value, after, dropped| {
        let change = Change { entry, value: raw(value), after, dropped };
        assert!(page.update(change, &medium, &gate, &list));
    };
    let on_disk = |entry: usize| crate::format::be64(&storage.contents(), 512 + entry * 8);
    set(3, 7, Ticket::PAST, Some(Release::new(HostCluster(5), 1, false)));
    // A later change of the same entry that must not be in the file yet, whatever is tried how often.
    set(3, 8, medium.ticket(), Some(Release::new(HostCluster(6), 1, false)));
    set(70, 9, Ticket::PAST, None);
    for _ in 0..3 {
        assert_eq!(list.take(&list.begin()).len(), 1);
        assert!(page.write_out(&medium, &guard, &log, &list, &list.begin()).is_err());
        assert!(log.0.lock().unwrap().is_empty(), "what a write that failed let go of is still referred to");
        assert_eq!(list.held_clusters(), 2);
        assert!(!page.try_evict());
    }
    full.on.store(false, Ordering::SeqCst);
    assert_eq!(list.take(&list.begin()).len(), 1);
    assert!(!page.write_out(&medium, &guard, &log, &list, &list.begin()).unwrap());
    assert_eq!((on_disk(3), on_disk(70)), (7, 9));
    assert_eq!(log.0.lock().unwrap().len(), 1);
    medium.finish_sync(medium.begin_sync()).unwrap();
    assert_eq!(list.take(&list.begin()).len(), 1);
    assert!(page.write_out(&medium, &guard, &log, &list, &list.begin()).unwrap());
    assert_eq!((on_disk(3), list.held_clusters(), list.oldest_waiting()), (8, 0, None));
    assert_eq!(log.0.lock().unwrap().len(), 2);
}

#[test]
fn pages_that_cannot_leave_the_cache_are_listed_once() {
    let full = Arc::new(Full { memory: Arc::new(Memory::new(vec![0; 8192])), on: AtomicBool::new(true) });
    let medium = Medium::new(full.clone());
    let (gate, list, log, guard) =
        (Gate::new(()), DirtyPages::default(), Log::default(), OverlapGuard::off());
    let out = WriteOut { medium: &medium, guard: &guard, settler: &log, list: &list };
    let cache = SliceCache::new(2, false);
    let get = |key: u64| {
        cache.get(key, Access::Change, &out, || Page::read(&medium, Purpose::L2, 512 * (key + 1), 1, 512))
    };
    // One may be written, the other waits for a sync besides.
    for (key, after) in [(0, Ticket::PAST), (1, medium.ticket())] {
        for entry in [3, 4] {
            let change = Change { entry, value: raw(7), after, dropped: None };
            get(key).unwrap().update(change, &medium, &gate, &list);
        }
        let change = Change { entry: 5, value: raw(7), after: Ticket::PAST, dropped: None };
        get(key).unwrap().update(change, &medium, &gate, &list);
    }
    for _ in 0..9 {
        assert!(get(2).is_err());
    }
    assert_eq!(list.take(&list.begin()).len(), 2);
}

#[test]
fn a_page_is_taken_off_the_list_from_wherever_it_is() {
    let medium = Medium::new(Arc::new(Memory::new(vec![0; 8192])));
    let list = DirtyPages::default();
    let page = |n: u64| Arc::new(Page::read(&medium, Purpose::L2, 512 * n, 1, 512).unwrap());
    let pages: Vec<_> = (0..5).map(page).collect();
    pages.iter().for_each(|p| list.add(p));
    // Not on the list, and on it no more.
    list.remove(&page(7), &list.begin());
    for n in [1, 4, 1, 0] {
        list.remove(&pages[n], &list.begin());
    }
    list.add(&pages[4]);
    list.remove(&pages[3], &list.begin());
    let left = list.take(&list.begin());
    assert_eq!(left.iter().map(|p| p.home).collect::<Vec<_>>(), [2 * 512, 4 * 512]);
    list.remove(&pages[2], &list.begin());
    assert!(list.take(&list.begin()).is_empty());
}

/// Counts syncs that were asked for.
#[derive(Default)]
struct Asked<'a>(Option<&'a Medium>, AtomicU64);

impl Settler for Asked<'_> {
    fn advance(&self) -> Result<()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        let medium = self.0.unwrap();
        medium.finish_sync(medium.begin_sync())
    }
    fn settle_after(&self, _: Ticket, _: Vec<Release>) {}
}

#[test]
fn a_page_that_needs_no_sync_leaves_the_cache_first() {
    let medium = Medium::new(Arc::new(Memory::new(vec![0; 8192])));
    let (gate, list, guard) = (Gate::new(()), DirtyPages::default(), OverlapGuard::off());
    let asked = Asked(Some(&medium), AtomicU64::new(0));
    let out = WriteOut { medium: &medium, guard: &guard, settler: &asked, list: &list };
    let cache = SliceCache::new(4, false);
    let get = |key: u64| {
        let load = || Page::read(&medium, Purpose::L2, 512 * (key + 1), 1, 512);
        cache.get(key, Access::Change, &out, load).unwrap()
    };
    // Three wait for a sync, the third does not.
    for (key, after) in [(0, medium.ticket()), (1, medium.ticket()), (2, Ticket::PAST), (3, medium.ticket())]
    {
        let change = Change { entry: 3, value: raw(7), after, dropped: None };
        assert!(get(key).update(change, &medium, &gate, &list));
    }
    get(4);
    assert_eq!(asked.1.load(Ordering::SeqCst), 0);
    assert!(cache.find(2, |_| ()).is_none());
    let change = Change { entry: 3, value: raw(7), after: medium.ticket(), dropped: None };
    assert!(get(4).update(change, &medium, &gate, &list));
    // All of them wait now; after the one sync none does.
    (5..9).for_each(|key| drop(get(key)));
    assert_eq!(asked.1.load(Ordering::SeqCst), 1);
}

#[test]
fn an_entry_stays_at_its_old_value_until_its_ticket_is_past() {
    let storage = Arc::new(Memory::new(vec![0; 4096]));
    let medium = Medium::new(storage.clone());
    let (gate, list, log, guard) =
        (Gate::new(()), DirtyPages::default(), Log::default(), OverlapGuard::off());
    let page = Arc::new(Page::read(&medium, Purpose::L2, 512, 1, 1024).unwrap());
    let set = |entry, value, after, dropped| {
        let change = Change { entry, value: raw(value), after, dropped };
        assert!(page.update(change, &medium, &gate, &list));
    };
    let on_disk = |entry: usize| {
        let bytes = storage.contents();
        crate::format::be64(&bytes, 512 + entry * 8)
    };
    set(3, 7, Ticket::PAST, None);
    set(4, 8, medium.ticket(), None);
    set(4, 9, Ticket::PAST, Some(Release::new(HostCluster(5), 1, false)));
    assert_eq!(list.take(&list.begin()).len(), 1);
    assert!(!page.write_out(&medium, &guard, &log, &list, &list.begin()).unwrap());
    assert_eq!((on_disk(3), on_disk(4)), (7, 0));
    assert_eq!(page.entry(4), raw(9));
    assert!(log.0.lock().unwrap().is_empty(), "a drop behind a waiting change must wait too");
    assert!(!page.try_evict());
    let sync = medium.begin_sync();
    medium.finish_sync(sync).unwrap();
    assert_eq!(list.take(&list.begin()).len(), 1);
    assert!(page.write_out(&medium, &guard, &log, &list, &list.begin()).unwrap());
    assert_eq!(on_disk(4), 9);
    assert_eq!(log.0.lock().unwrap().len(), 1);
    assert!(page.try_evict());
    assert_eq!(storage.length().unwrap(), 4096);
}

/// A barrier between its sync and its second write-out asks whether changes still wait: what another change of the page had
/// made ripe was neither in the file nor waited for.
#[test]
fn what_has_become_ripe_is_waited_for_until_it_is_written_out() {
    let medium = Medium::new(Arc::new(Memory::new(vec![0; 4096])));
    let (gate, list, log, guard) =
        (Gate::new(()), DirtyPages::default(), Log::default(), OverlapGuard::off());
    let page = Arc::new(Page::read(&medium, Purpose::L2, 512, 1, 1024).unwrap());
    let early = medium.ticket();
    let set = |entry| {
        let change = Change { entry, value: raw(7), after: medium.ticket(), dropped: None };
        assert!(page.update(change, &medium, &gate, &list));
    };
    set(3);
    medium.finish_sync(medium.begin_sync()).unwrap();
    set(4);
    assert_eq!(list.oldest_waiting(), Some(early));
    assert_eq!(list.take(&list.begin()).len(), 1);
    assert!(!page.write_out(&medium, &guard, &log, &list, &list.begin()).unwrap());
    assert!(list.oldest_waiting() > Some(early));
}

#[test]
fn changes_that_let_go_of_nothing_are_counted_while_they_are_held() {
    let medium = Medium::new(Arc::new(Memory::new(vec![1; 4096])));
    let (gate, list, log, guard) =
        (Gate::new(()), DirtyPages::default(), Log::default(), OverlapGuard::off());
    let page = Arc::new(Page::read(&medium, Purpose::L2, 512, 1, 1024).unwrap());
    for round in 1..=10 {
        let change = Change { entry: 3, value: raw(round), after: medium.ticket(), dropped: None };
        assert!(page.update(change, &medium, &gate, &list));
        assert_eq!(list.held_plain(), round);
    }
    medium.finish_sync(medium.begin_sync()).unwrap();
    assert_eq!(list.take(&list.begin()).len(), 1);
    assert!(page.write_out(&medium, &guard, &log, &list, &list.begin()).unwrap());
    assert_eq!(list.held_plain(), 0);
}
