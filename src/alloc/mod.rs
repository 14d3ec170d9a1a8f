//! Who owns which host cluster: the refcount table and blocks, free clusters, and when a count may fall.
//!
//! Called by `map` (tables) and `image` (guest data). Knows no guests.
//!
//! * Between barriers the count of anything pointed to only rises (R1): `reserve` raises in memory, and the
//!   ticket that it hands out is past once the raised counts are durable. Where barriers come often, counts are
//!   raised ahead (`ahead`), so that only the pointer is left to write.
//! * A count falls when the page that dropped the pointer is durable (R3) and every reader that could still
//!   hold the pointer has left (R4); until then the cluster is not free, because its count is not zero.
//! * Lazy images: a barrier skips refcount blocks, and tickets do not wait for counts; the dirty bit is
//!   durable before the first count is outrun.
//! * The file grows ahead of the clusters handed out, and their ticket waits for the new length, so that a
//!   power cut never leaves a pointer past the end of the file.

mod ahead;
mod bulk;
mod end;
mod entries;
mod grow;
mod ledger;
mod packed;
pub(crate) mod plan;
mod reserved;
mod table;
#[cfg(test)]
mod tests;
mod width;

pub use bulk::{ClusterRun, Freed};
pub use ledger::Ledger;
pub use reserved::{Filled, Reserved};

use crate::error::Result;
use crate::format::HostCluster;
use crate::meta::{HeaderPage, OverlapGuard, Release, Settler};
use crate::planted::{planted, Plant};
use crate::storage::event::Event;
use crate::storage::gate::Readers;
use crate::storage::medium::{Medium, Ticket};
use crate::sync::locked;
use reserved::Run;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use table::RefcountTable;

/// Parts that allocation shares with the rest of an image.
#[derive(Clone)]
pub struct Shared {
    /// Storages, clock, latch.
    pub medium: Arc<Medium>,
    /// Who is inside.
    pub readers: Arc<dyn Readers>,
    /// Overlap check.
    pub guard: Arc<OverlapGuard>,
    /// The header.
    pub header: Arc<HeaderPage>,
}

/// Clusters that wait for R3 and R4.
struct Pending {
    ticket: Ticket,
    release: Release,
}

/// The allocator of one image.
pub struct Allocator {
    shared: Shared,
    ledger: Mutex<Ledger>,
    pending: Mutex<VecDeque<Pending>>,
    /// Clusters in `pending`, and of these the ones that others refer to.
    pending_clusters: AtomicU64,
    pending_shared: AtomicU64,
    /// Nobody allocates any more until `settle_all`: room for later would be for nobody.
    settling: AtomicBool,
    /// Counts are not written at barriers.
    lazy: bool,
    pass: Pass,
}

/// Which freed clusters are given back to the host.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Those that the guest discarded or zeroed (`pass-discard-request`).
    pub requests: bool,
    /// Those that a snapshot operation frees (`pass-discard-snapshot`).
    pub snapshots: bool,
    /// All others (`pass-discard-other`).
    pub others: bool,
}

impl Allocator {
    /// The allocator of an open writable image. `cache_blocks`: refcount blocks kept in memory. `ahead_after`:
    /// barriers with counts to write before counts are raised ahead, `None` for never.
    pub fn open(
        shared: Shared,
        lazy: bool,
        pass: Pass,
        cache_blocks: usize,
        ahead_after: Option<u32>,
    ) -> Result<Self> {
        let table = RefcountTable::load(&shared, cache_blocks)?;
        let ledger = Ledger::new(table, &shared, ahead_after)?;
        Ok(Allocator {
            shared,
            ledger: Mutex::new(ledger),
            pending: Mutex::default(),
            pending_clusters: AtomicU64::new(0),
            pending_shared: AtomicU64::new(0),
            settling: AtomicBool::new(false),
            lazy,
            pass,
        })
    }

    /// Whether counts may lag behind.
    pub fn is_lazy(&self) -> bool {
        self.lazy
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        locked(self.ledger.lock())
    }

    /// Finds up to `cluster_count` free clusters in a row, at least one, and raises their counts.
    ///
    /// The run starts at the first free cluster. Dropping the result gives the clusters back.
    pub fn reserve(&self, cluster_count: u64) -> Result<Reserved<'_>> {
        self.reserve_by(|ledger| ledger.take_run(&self.shared, cluster_count, self.is_lazy()))
    }

    /// As `reserve`, but exactly `cluster_count` clusters, for a table that must be contiguous.
    pub fn reserve_contiguous(&self, cluster_count: u64) -> Result<Reserved<'_>> {
        self.reserve_by(|ledger| ledger.take_contiguous(&self.shared, cluster_count, self.is_lazy()))
    }

    fn reserve_by(&self, take: impl FnOnce(&mut Ledger) -> Result<Run>) -> Result<Reserved<'_>> {
        self.shared.medium.latch().check()?;
        if self.is_lazy() && !planted(Plant::DirtyBitAfterEntry) {
            self.shared.header.mark_dirty()?;
        }
        let mut ledger = self.lock();
        if !self.shared.header.is_ready() {
            ledger = self.make_ready(ledger, Event::ClusterAlloc)?;
        }
        self.settle(&mut ledger)?;
        Ok(Reserved::new(self, take(&mut ledger)?))
    }

    /// Before clusters are taken. Who listens may wait, and others may take clusters meanwhile.
    #[cold]
    fn make_ready<'a>(
        &'a self,
        ledger: MutexGuard<'a, Ledger>,
        event: Event,
    ) -> Result<MutexGuard<'a, Ledger>> {
        drop(ledger);
        self.shared.medium.storage().event(event);
        // Counted in a block that is there, or asks for one: the stock engine tells both alike.
        self.shared.medium.storage().event(Event::RefcountBlockAlloc);
        let ledger = self.lock();
        self.shared.header.decide()?;
        Ok(ledger)
    }

    /// Writes all counts, and what leads to new blocks. The next sync makes them durable, in a lazy image too.
    pub fn write_counts(&self) -> Result<()> {
        let mut ledger = self.lock();
        self.shared.header.decide()?;
        ledger.write_dirty(&self.shared)
    }

    /// Writes dirty refcount blocks without a sync: after the birth of a table, whose count should be in the
    /// file before anybody can look.
    pub fn write_blocks(&self) -> Result<()> {
        let mut ledger = self.lock();
        self.shared.header.decide()?;
        ledger.table.write_blocks(&self.shared)
    }

    /// Runs a barrier of a caller who is alone and about to settle everything: it does not make the file longer than it
    /// need be.
    pub fn settling<T>(&self, barrier: impl FnOnce() -> T) -> T {
        self.settling.store(true, Ordering::Relaxed);
        let answer = barrier();
        self.settling.store(false, Ordering::Relaxed);
        answer
    }

    /// Makes every count durable and the file no longer than it need be; called before the dirty bit goes.
    /// The caller is alone: nothing waits for readers.
    pub fn settle_all(&self) -> Result<()> {
        let mut ledger = self.lock();
        self.settle(&mut ledger)?;
        ledger.drop_ahead(&self.shared)?;
        ledger.write_dirty(&self.shared)?;
        ledger.trim(&self.shared)
    }

    /// Lowers the counts that a barrier has made due and writes them, without a sync of its own.
    pub fn settle_due(&self) -> Result<()> {
        if self.pending_clusters() == 0 {
            return Ok(());
        }
        let mut ledger = self.lock();
        self.settle(&mut ledger)?;
        ledger.write_dirty(&self.shared)
    }

    /// Cuts the file after the last cluster in use. The caller is alone and has settled everything.
    pub fn cut_file(&self) -> Result<()> {
        self.lock().cut_file(&self.shared)
    }

    /// Clusters whose counts fall once barriers and readers allow.
    pub fn pending_clusters(&self) -> u64 {
        self.pending_clusters.load(Ordering::Relaxed)
    }

    /// Of these, the ones that become free.
    pub fn pending_to_free(&self) -> u64 {
        self.pending_clusters().saturating_sub(self.pending_shared.load(Ordering::Relaxed))
    }

    fn count_pending(&self, release: &Release) {
        if release.shared {
            self.pending_shared.fetch_add(release.cluster_count, Ordering::Relaxed);
        }
        self.pending_clusters.fetch_add(release.cluster_count, Ordering::Relaxed);
    }

    /// Whether a write should have what waits, `bytes` here and in table pages, made free before it takes more.
    pub fn would_grow(&self, bytes: u64) -> bool {
        self.lock().would_grow(bytes)
    }

    /// Runs of clusters that wait for it.
    pub fn pending_runs(&self) -> usize {
        locked(self.pending.lock()).len()
    }

    /// Lowers the counts whose time has come.
    fn settle(&self, ledger: &mut Ledger) -> Result<()> {
        if self.pending_clusters() == 0 {
            return Ok(());
        }
        let oldest = self.shared.readers.oldest();
        let mut due = Vec::new();
        {
            let mut pending = locked(self.pending.lock());
            while let Some(head) = pending.front() {
                let durable = self.shared.medium.is_past(head.ticket) || planted(Plant::CountLoweredAtOnce);
                let unread = head.release.epoch < oldest || planted(Plant::FreedClusterReusedAtOnce);
                if !durable || !unread {
                    break;
                }
                let clusters = head.release.cluster_count;
                self.pending_clusters.fetch_sub(clusters, Ordering::Relaxed);
                if head.release.shared {
                    self.pending_shared.fetch_sub(clusters, Ordering::Relaxed);
                }
                due.push((head.ticket, head.release));
                pending.pop_front();
            }
        }
        if planted(Plant::PunchedLate) {
            ledger.punch(&self.shared)?;
        }
        let mut due = due.into_iter();
        while let Some((_, release)) = due.next() {
            let pass = if release.discard { self.pass.requests } else { self.pass.others };
            if let Err(e) = ledger.lower(&self.shared, release, pass) {
                // What of this one is left leaks; the others are due another time.
                self.put_back(due);
                ledger.punch(&self.shared)?;
                return Err(e);
            }
        }
        if planted(Plant::PunchedLate) {
            return Ok(());
        }
        ledger.punch(&self.shared)
    }

    fn put_back(&self, due: impl DoubleEndedIterator<Item = (Ticket, Release)>) {
        let mut pending = locked(self.pending.lock());
        for (ticket, release) in due.rev() {
            self.count_pending(&release);
            pending.push_front(Pending { ticket, release });
        }
    }

    fn give_back(&self, first_cluster: u64, cluster_count: u64) {
        let mut ledger = self.lock();
        // Nothing ever pointed to them, so the count may fall at once. A failure leaves a leak.
        let _ =
            ledger.lower(&self.shared, Release::new(HostCluster(first_cluster), cluster_count, false), false);
    }

    /// Looks one count up.
    pub fn count(&self, cluster_index: u64) -> Result<u64> {
        self.lock().count(&self.shared, cluster_index)
    }
}

impl Settler for Allocator {
    fn advance(&self) -> Result<()> {
        let started = {
            // Under the ledger lock: a count raised after this gets a ticket for the next sync.
            let mut ledger = self.lock();
            self.shared.header.decide()?;
            if !self.settling.load(Ordering::Relaxed) {
                // A courtesy: what fails here is told by those who need it.
                let _ = ledger.grow_ahead(&self.shared);
            }
            if !self.is_lazy() && !planted(Plant::CountsNotWritten) {
                // A courtesy, too.
                let _ = ledger.raise_ahead(&self.shared);
                ledger.write_dirty(&self.shared)?;
            }
            self.shared.medium.begin_sync()
        };
        self.shared.medium.finish_sync(started)
    }

    fn settle_after(&self, ticket: Ticket, releases: Vec<Release>) {
        let mut pending = locked(self.pending.lock());
        for release in releases {
            self.count_pending(&release);
            // Neighbours become one entry: a long discard must not cost memory by the cluster.
            if let Some(last) = pending.back_mut() {
                let r = &mut last.release;
                let end = r.first_cluster + r.cluster_count;
                let same =
                    Release { discard: r.discard, owner: r.owner, shared: r.shared, ..release } == release;
                if last.ticket == ticket && end == release.first_cluster && same {
                    r.cluster_count += release.cluster_count;
                    r.epoch = r.epoch.max(release.epoch);
                    continue;
                }
            }
            pending.push_back(Pending { ticket, release });
        }
    }
}
