//! The pages that have something to write, and what their changes wait for.

use super::Release;
use crate::storage::medium::Ticket;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{locked, Mutex, RwLock, RwLockReadGuard};
use std::sync::Arc;

/// What can be on a list.
pub trait Listed {
    /// Where on the list it may be; changed with the list's lock held.
    fn place(&self) -> &AtomicUsize;
}

/// Pages that have something to write.
pub struct DirtyList<P> {
    pages: Mutex<Pages<P>>,
    /// Shared by `InFlight`: between the list and the file nobody may sync and believe that a page is covered.
    in_flight: RwLock<()>,
    /// Clusters in the `dropped` of held changes, and of these the ones that others refer to.
    held_clusters: AtomicU64,
    held_shared: AtomicU64,
    /// Held changes that let go of nothing.
    held_plain: AtomicU64,
    /// How many changes wait for each ticket, in whatever hands their pages are; in the order of the tickets, of which
    /// there are few at a time.
    waiting: Mutex<Vec<(Ticket, u64)>>,
    /// Counts how often pages have come back to the list because a write failed: who took the list in the meantime
    /// has not seen them.
    failures: AtomicU64,
}

struct Pages<P> {
    listed: Vec<Arc<P>>,
    /// Empty, with the memory of a list that has been written.
    spare: Vec<Arc<P>>,
}

impl<P: Listed> Pages<P> {
    /// Puts a page on, once: it may have been in several hands.
    fn push(&mut self, page: Arc<P>) {
        let place = page.place().load(Ordering::Relaxed);
        if self.listed.get(place).is_some_and(|p| Arc::ptr_eq(p, &page)) {
            return;
        }
        page.place().store(self.listed.len(), Ordering::Relaxed);
        self.listed.push(page);
    }

    /// Takes a page off, whatever the length of the list.
    fn remove(&mut self, page: &Arc<P>) {
        let place = page.place().load(Ordering::Relaxed);
        if !self.listed.get(place).is_some_and(|p| Arc::ptr_eq(p, page)) {
            return;
        }
        self.listed.swap_remove(place);
        if let Some(moved) = self.listed.get(place) {
            moved.place().store(place, Ordering::Relaxed);
        }
    }
}

/// Says that pages may be between memory and the file: held from before they leave the list until what was
/// copied from them is written.
pub struct InFlight<'a> {
    _shared: RwLockReadGuard<'a, ()>,
}

impl<P> Default for DirtyList<P> {
    fn default() -> Self {
        DirtyList {
            pages: Mutex::new(Pages { listed: Vec::new(), spare: Vec::new() }),
            in_flight: RwLock::new(()),
            held_clusters: AtomicU64::new(0),
            held_shared: AtomicU64::new(0),
            held_plain: AtomicU64::new(0),
            waiting: Mutex::default(),
            failures: AtomicU64::new(0),
        }
    }
}

impl<P: Listed> DirtyList<P> {
    /// Announces write-outs.
    pub fn begin(&self) -> InFlight<'_> {
        InFlight { _shared: locked(self.in_flight.read()) }
    }

    /// Takes all pages off the list, to be written while the announcement lasts.
    pub fn take(&self, _announced: &InFlight<'_>) -> Vec<Arc<P>> {
        let mut pages = locked(self.pages.lock());
        let spare = std::mem::take(&mut pages.spare);
        std::mem::replace(&mut pages.listed, spare)
    }

    /// Takes the memory of a list whose pages have been written.
    pub(super) fn reuse(&self, written: Vec<Arc<P>>) {
        debug_assert!(written.is_empty());
        locked(self.pages.lock()).spare = written;
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
    pub(super) fn put_back(&self, pages: impl IntoIterator<Item = Arc<P>>) {
        let mut list = locked(self.pages.lock());
        pages.into_iter().for_each(|page| list.push(page));
        drop(list);
        self.failures.fetch_add(1, Ordering::SeqCst);
    }

    /// Host clusters that held changes have let go of.
    pub fn held_clusters(&self) -> u64 {
        self.held_clusters.load(Ordering::Relaxed)
    }

    /// Of these, the ones that become free once the changes are durable.
    pub fn held_to_free(&self) -> u64 {
        self.held_clusters().saturating_sub(self.held_shared.load(Ordering::Relaxed))
    }

    /// Held changes that let go of nothing: they take memory all the same.
    pub fn held_plain(&self) -> u64 {
        self.held_plain.load(Ordering::Relaxed)
    }

    /// So many more and so many less of them are held.
    pub(super) fn count_plain(&self, more: u64, less: u64) {
        self.held_plain.fetch_add(more, Ordering::Relaxed);
        self.held_plain.fetch_sub(less, Ordering::Relaxed);
    }

    /// A change that lets go of clusters is held.
    pub(super) fn hold(&self, release: &Release) {
        if release.shared {
            self.held_shared.fetch_add(release.cluster_count, Ordering::Relaxed);
        }
        self.held_clusters.fetch_add(release.cluster_count, Ordering::Relaxed);
    }

    /// Changes that let go of clusters are held no more.
    pub(super) fn let_go(&self, releases: &[Release]) {
        let clusters =
            |of: &dyn Fn(&&Release) -> bool| releases.iter().filter(of).map(|r| r.cluster_count).sum();
        self.held_clusters.fetch_sub(clusters(&|_| true), Ordering::Relaxed);
        self.held_shared.fetch_sub(clusters(&|r| r.shared), Ordering::Relaxed);
    }

    /// The oldest ticket that a change waits for which no write-out has taken yet.
    pub fn oldest_waiting(&self) -> Option<Ticket> {
        locked(self.waiting.lock()).first().map(|(ticket, _)| *ticket)
    }

    pub(super) fn add_waiting(&self, ticket: Ticket) {
        let mut waiting = locked(self.waiting.lock());
        let end = waiting.iter().rposition(|(t, _)| *t <= ticket).map_or(0, |at| at + 1);
        match end.checked_sub(1).and_then(|at| waiting.get_mut(at)).filter(|(t, _)| *t == ticket) {
            Some((_, count)) => *count += 1,
            None => waiting.insert(end, (ticket, 1)),
        }
    }

    pub(super) fn remove_waiting(&self, ticket: Ticket, changes: u64) {
        let mut waiting = locked(self.waiting.lock());
        if let Some(at) = waiting.iter().position(|(t, _)| *t == ticket) {
            waiting[at].1 -= changes;
            if waiting[at].1 == 0 {
                waiting.remove(at);
            }
        }
    }

    /// Takes one page off the list, to be written while the announcement lasts.
    pub(super) fn remove(&self, page: &Arc<P>, _announced: &InFlight<'_>) {
        locked(self.pages.lock()).remove(page);
    }

    pub(super) fn add(&self, page: &Arc<P>) {
        locked(self.pages.lock()).push(Arc::clone(page));
    }
}
