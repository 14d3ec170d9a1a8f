//! Guest to host: the L1 table, L2 slices, and the claims that make changes of one guest cluster take turns.
//!
//! `resolve` describes where guest bytes are and performs no data I/O; `image` does that. `link_run` is the only
//! way to an entry that names a host cluster anew, `relink` to any other change of one; both take a claim. Knows no
//! files and no backing chain.

mod abandon;
mod claims;
mod resolve;

pub use claims::{Claim, Claims};
pub use resolve::{Extent, Look, Source};

use crate::alloc::{Allocator, Filled, Reserved, Shared};
use crate::error::{zeroed, Error, ErrorKind, Result};
use crate::format::entries::{L1Entry, L2Entry, Mapping, RawL2};
use crate::format::geometry::{MAX_HOST_OFFSET, SECTOR_BYTES};
use crate::format::Geometry;
use crate::meta::guard::Owner;
use crate::meta::page::{Change, Updated, Words};
use crate::meta::{Access, DirtyList, Page, Release, Settler, SliceCache, WriteOut};
use crate::options::CacheSizes;
use crate::storage::medium::{Ticket, Written};
use crate::storage::Purpose;
use crate::sync::locked;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Held changes in one page from which on a barrier is worth its price.
const HELD_LIMIT: usize = 4096;

/// The mapping of one image.
pub struct Map {
    shared: Shared,
    geometry: Geometry,
    writer: Option<Arc<Allocator>>,
    l1: Arc<Page>,
    l1_entries: u64,
    cache: SliceCache,
    /// For a cache that holds the whole disk, the page of each slice that has been loaded: found with two plain
    /// loads. A page that the cache has let go of (`Page::is_live`) is looked up there again. Empty otherwise.
    front: Box<[OnceLock<Front>]>,
    /// Set before the first page of the front is let go of: until then nobody has to ask whether one is live.
    front_stale: AtomicBool,
    /// A request has used the front since the last look.
    front_used: AtomicBool,
    /// log2 of the L2 entries in a slice.
    slice_entry_bits: u32,
    quick: Quick,
    list: DirtyList,
    claims: Claims,
    /// Held while an L2 table is made; across I/O. After claims, before the ledger.
    birth: Mutex<()>,
    /// L1 index + 1 of the table whose copy is not durable in the L1 table yet; nobody links in it.
    copied_table: AtomicU64,
    clean_interval: Option<Duration>,
    last_clean: Mutex<Instant>,
}

/// A page of the front, and its entries: looking at one must not cost a look at the page.
struct Front {
    words: Words,
    page: Arc<Page>,
}

/// What `look` needs of the geometry, worked out once.
struct Quick {
    /// Entries are of one word, and offset 0 is no cluster.
    plain: bool,
    cluster_bits: u32,
    /// log2 of the guest bytes of a slice.
    slice_guest_bits: u32,
    cluster_mask: u64,
    /// Entries of a slice - 1.
    index_mask: u64,
}

impl Quick {
    fn new(geometry: &Geometry, slice_bytes: u64) -> Quick {
        let entries = slice_bytes / geometry.l2_entry_bytes();
        Quick {
            plain: !geometry.extended_l2 && !geometry.external_data,
            cluster_bits: geometry.cluster_bits,
            slice_guest_bits: geometry.cluster_bits + entries.trailing_zeros(),
            cluster_mask: geometry.cluster_bytes() - 1,
            index_mask: entries - 1,
        }
    }
}

/// For read-only images: pages are never dirty, so nothing is ever asked of it.
struct NoSettler;

impl Settler for NoSettler {
    fn advance(&self) -> Result<()> {
        Ok(())
    }
    fn settle_after(&self, _: Ticket, _: Vec<Release>) {}
}

/// What an entry becomes.
#[derive(Clone, Copy, Debug)]
pub struct NewEntry {
    /// The new entry.
    pub new: L2Entry,
    /// What the old entry referred to and the new one does not.
    pub dropped: Option<Release>,
}

impl Map {
    /// Reads the active L1 table. `writer` is there for a writable image. Slices that no request used for
    /// `clean_interval` are dropped.
    pub fn open(
        shared: Shared,
        writer: Option<Arc<Allocator>>,
        caches: &CacheSizes,
        clean_interval: Option<Duration>,
    ) -> Result<Map> {
        let (slice_bytes, cache_bytes) = (caches.l2_slice_bytes, caches.l2_cache_bytes);
        let header = shared.header.header();
        let geometry = header.geometry();
        let l1_bytes = u64::from(header.l1_size) * 8;
        let padded = l1_bytes.div_ceil(SECTOR_BYTES).max(1) * SECTOR_BYTES;
        let l1 = Arc::new(Page::read(&shared.medium, Purpose::L1, header.l1_table_offset, 1, padded)?);
        let slices = (cache_bytes / slice_bytes).max(2);
        let disk_slices =
            header.virtual_size.div_ceil(slice_bytes / geometry.l2_entry_bytes() * geometry.cluster_bytes());
        let map = Map {
            quick: Quick::new(&geometry, slice_bytes),
            geometry,
            writer,
            l1,
            l1_entries: u64::from(header.l1_size),
            cache: SliceCache::new(slices.min(disk_slices.max(2)) as usize, slices >= disk_slices),
            front: if slices >= disk_slices {
                (0..disk_slices).map(|_| OnceLock::new()).collect()
            } else {
                Box::default()
            },
            front_stale: AtomicBool::new(false),
            front_used: AtomicBool::new(false),
            slice_entry_bits: (slice_bytes / geometry.l2_entry_bytes()).trailing_zeros(),
            list: DirtyList::default(),
            claims: Claims::default(),
            birth: Mutex::new(()),
            copied_table: AtomicU64::new(0),
            clean_interval,
            last_clean: Mutex::new(Instant::now()),
            shared,
        };
        map.index_tables(header.l1_table_offset, l1_bytes);
        Ok(map)
    }

    fn index_tables(&self, l1_offset: u64, l1_bytes: u64) {
        if self.writer.is_none() {
            return;
        }
        let guard = &self.shared.guard;
        guard.add(Owner::HEADER, 0, self.geometry.cluster_bytes());
        guard.add(Owner::ACTIVE_L1, l1_offset, l1_bytes);
        if !guard.checks(Owner::ACTIVE_L2) {
            return;
        }
        let entries = (0..self.l1_entries).map(|index| L1Entry(self.l1.entry(index as usize).descriptor));
        let tables = entries.map(L1Entry::table_offset).filter(|offset| *offset != 0);
        guard.add_all(Owner::ACTIVE_L2, tables, self.geometry.cluster_bytes());
    }

    /// Takes the guest clusters `[first, end)` for a change; waits for whoever has some of them.
    pub fn claim(&self, first_cluster: u64, end_cluster: u64) -> Claim<'_> {
        self.claims.take(first_cluster, end_cluster)
    }

    fn settler(&self) -> &dyn Settler {
        match &self.writer {
            Some(allocator) => &**allocator,
            None => &NoSettler,
        }
    }

    fn write_out(&self) -> WriteOut<'_> {
        WriteOut {
            medium: &self.shared.medium,
            guard: &self.shared.guard,
            settler: self.settler(),
            list: &self.list,
        }
    }

    /// The L1 entry `index`, checked.
    fn l1_entry(&self, index: u64) -> Result<L1Entry> {
        if index >= self.l1_entries {
            return Ok(L1Entry(0));
        }
        let entry = L1Entry(self.l1.entry(index as usize).descriptor);
        let table = entry.table_offset();
        // Reserved bits are ignored, as the stock driver does, so that such an image can be read; a check
        // reports them.
        if self.geometry.in_cluster(table) != 0 {
            let rule = "L2 table offset must be a multiple of the cluster size";
            return Err(self.broken(Error::corrupt("L1 entry", index, entry.0, rule)));
        }
        Ok(entry)
    }

    /// A table that breaks a rule must not be written on: a writable image is marked corrupt.
    #[cold]
    fn broken(&self, found: Error) -> Error {
        match &self.writer {
            Some(_) => self.shared.header.mark_corrupt(found),
            None => found,
        }
    }

    fn slice_key(&self, cluster: u64) -> u64 {
        cluster >> self.slice_entry_bits
    }

    fn index_in_slice(&self, cluster: u64) -> usize {
        (cluster & ((1 << self.slice_entry_bits) - 1)) as usize
    }

    /// The slice that maps guest cluster `cluster` in the L2 table at `table_offset`.
    fn slice(&self, cluster: u64, table_offset: u64, access: Access) -> Result<Arc<Page>> {
        let key = self.slice_key(cluster);
        if let Some(page) = self.front_page(key) {
            return Ok(Arc::clone(page));
        }
        if key as usize >= self.front.len() && !self.front.is_empty() {
            // VM state: a slice past the disk may take the place of one of the front's.
            self.front_stale.store(true, Ordering::SeqCst);
        }
        let mut loaded = false;
        let page = self.cache.get(key, access, &self.write_out(), || {
            loaded = true;
            // The table may have been replaced while we waited for the set; whoever replaces it stores the L1
            // entry before it asks for the set, so now it is the right one.
            let now = self.l1_entry(cluster / self.geometry.l2_entry_count())?.table_offset();
            self.load_slice(cluster, if now == 0 { table_offset } else { now })
        });
        // One that is only to be looked at is not in the cache, where VM state has taken the room.
        let kept = page.as_ref().ok().filter(|page| page.is_live());
        if let (Some(page), Some(place)) = (kept, self.front.get(key as usize)) {
            let _ = place.set(Front { words: Arc::clone(page.words()), page: Arc::clone(page) });
        }
        if loaded {
            self.clean_if_due();
        }
        page
    }

    /// The page of a slice, if the front has it.
    #[inline]
    fn front_page(&self, key: u64) -> Option<&Arc<Page>> {
        let front = self.front.get(key as usize)?.get()?;
        self.note_front_used();
        front.page.is_live().then_some(&front.page)
    }

    #[inline]
    fn note_front_used(&self) {
        if !self.front_used.load(Ordering::Relaxed) {
            self.front_used.store(true, Ordering::Relaxed);
        }
    }

    /// Drops the page of slice `key`, which must be clean.
    fn forget(&self, key: u64) {
        if !self.front.is_empty() {
            self.front_stale.store(true, Ordering::SeqCst);
        }
        self.cache.forget(key);
    }

    /// Runs the clean interval from the calls that load slices: memory only grows there.
    fn clean_if_due(&self) {
        let Some(interval) = self.clean_interval.filter(|_| self.front.is_empty()) else { return };
        let Ok(mut last) = self.last_clean.try_lock() else { return };
        if last.elapsed() >= interval {
            *last = Instant::now();
            drop(last);
            self.cache.forget_unused();
        }
    }

    fn load_slice(&self, cluster: u64, table_offset: u64) -> Result<Page> {
        if table_offset >= MAX_HOST_OFFSET {
            return Err(Error::corrupt(
                "L2 table of guest cluster",
                cluster,
                table_offset,
                "offset is past 2^56",
            ));
        }
        let entry_bytes = self.geometry.l2_entry_bytes();
        let slice_bytes = entry_bytes << self.slice_entry_bits;
        let in_table = cluster & (self.geometry.l2_entry_count() - 1);
        let home = table_offset + (in_table >> self.slice_entry_bits) * slice_bytes;
        Page::read(&self.shared.medium, Purpose::L2, home, (entry_bytes / 8) as usize, slice_bytes)
    }

    fn decode(&self, cluster: u64, raw: RawL2) -> Result<L2Entry> {
        let decoded = match raw.decode(&self.geometry) {
            Ok(L2Entry::Plain(mapping)) if self.geometry.external_data => self.in_data_file(cluster, mapping),
            decoded => decoded,
        };
        decoded.map_err(|rule| {
            let index = format_args!("of guest cluster {cluster}").to_string();
            self.broken(Error::corrupt("L2 entry", index, raw.descriptor, rule))
        })
    }

    /// An entry of an image with an external data file: every guest cluster is at its own offset there, where
    /// nobody else can refer to it.
    fn in_data_file(&self, cluster: u64, mapping: Mapping) -> std::result::Result<L2Entry, &'static str> {
        match mapping.host {
            Some(host) if host != self.geometry.cluster_offset(cluster) => {
                Err("offset in the external data file does not match the guest offset")
            }
            host => Ok(L2Entry::Plain(Mapping { copied: host.is_some(), ..mapping })),
        }
    }

    /// The entry of a claimed cluster.
    pub fn entry(&self, _claim: &Claim<'_>, cluster: u64) -> Result<L2Entry> {
        let l1_index = cluster / self.geometry.l2_entry_count();
        let table = self.l1_entry(l1_index)?.table_offset();
        if table == 0 {
            return Ok(L2Entry::Plain(Mapping::default()));
        }
        let index = self.index_in_slice(cluster);
        let raw = match self.front_page(self.slice_key(cluster)) {
            Some(page) => page.entry(index),
            None => self.slice(cluster, table, Access::Look)?.entry(index),
        };
        if raw == RawL2::default() {
            return Ok(L2Entry::Plain(Mapping::default()));
        }
        self.decode(cluster, raw)
    }

    /// Makes sure that the L2 table of a claimed cluster exists and is this L1 table's alone.
    pub fn own_table(&self, _claim: &Claim<'_>, cluster: u64) -> Result<()> {
        let l1_index = cluster / self.geometry.l2_entry_count();
        if self.owns_table(l1_index)? && self.copied_table.load(Ordering::SeqCst) != l1_index + 1 {
            return Ok(());
        }
        let _birth = locked(self.birth.lock());
        if self.copied_table.load(Ordering::SeqCst) != 0 {
            // The barrier behind the last copy has failed.
            self.settle_copy()?;
        }
        let old = self.l1_entry(l1_index)?;
        if old.table_offset() != 0 && old.copied() {
            return Ok(());
        }
        if old.table_offset() == 0 {
            return self.make_table(l1_index, old);
        }
        // What changes in the copy let go of is counted down once the copy is durable. Until the L1 table leads
        // there after a power cut, too, the shared table still refers to it for this disk (R3).
        self.copied_table.store(l1_index + 1, Ordering::SeqCst);
        if let Err(e) = self.make_table(l1_index, old) {
            self.copied_table.store(0, Ordering::SeqCst);
            return Err(e);
        }
        self.settle_copy()
    }

    /// Makes the copy of a table durable, with the L1 entry that leads there. Called with `birth` held.
    fn settle_copy(&self) -> Result<()> {
        self.barrier()?;
        self.copied_table.store(0, Ordering::SeqCst);
        Ok(())
    }

    fn owns_table(&self, l1_index: u64) -> Result<bool> {
        let entry = self.l1_entry(l1_index)?;
        Ok(entry.table_offset() != 0 && entry.copied())
    }

    /// A new table, zero or a copy of the shared one, is whole before the L1 entry points to it (R5).
    fn make_table(&self, l1_index: u64, old: L1Entry) -> Result<()> {
        let Some(allocator) = &self.writer else {
            return Err(Error::new(ErrorKind::ReadOnly, "the image is open read-only"));
        };
        let geometry = &self.geometry;
        let bytes = geometry.cluster_bytes();
        let dropped = (old.table_offset() != 0)
            .then(|| Release::of(Owner::ANY_L2, geometry.cluster_index(old.table_offset()), 1));
        self.check_release(&dropped)?;
        let reserved = allocator.reserve(1)?;
        let offset = geometry.cluster_offset(reserved.first_cluster());
        self.shared.guard.check(Owner(0), offset, bytes)?;
        let filled = self.fill_table(reserved, offset, old)?;
        allocator.write_counts()?;
        self.shared.guard.add(Owner::ACTIVE_L2, offset, bytes);
        let first_cluster = l1_index * geometry.l2_entry_count();
        let value = RawL2 { descriptor: L1Entry::owned(offset).0, bitmap: 0 };
        let change = Change { entry: l1_index as usize, value, after: filled.ticket(), dropped };
        let done = self.l1.update(change, &self.shared.medium, &*self.shared.readers, &self.list);
        debug_assert_ne!(done, Updated::Evicted, "the L1 page is never evicted");
        filled.keep();
        if old.table_offset() != 0 {
            // In a damaged image another entry may name it, too.
            if !self.has_table_at(old.table_offset()) {
                self.shared.guard.remove(Owner::ACTIVE_L2, old.table_offset(), bytes);
            }
            // Slices of the shared table are clean, for nobody may change them; the copy is read from now on.
            for slice in 0..geometry.l2_entry_count() >> self.slice_entry_bits {
                self.forget(self.slice_key(first_cluster) + slice);
            }
        }
        Ok(())
    }

    /// Writes a new table: zeroes, or a copy of the one that `old` leads to.
    fn fill_table<'a>(&self, reserved: Reserved<'a>, offset: u64, old: L1Entry) -> Result<Filled<'a>> {
        let (medium, bytes) = (&self.shared.medium, self.geometry.cluster_bytes());
        if old.table_offset() == 0 {
            return match reserved.filled_with_zeroes() {
                Ok(filled) => Ok(filled),
                Err(reserved) => Ok(reserved.filled(medium.zero_unlinked(Purpose::L2, offset, bytes)?)),
            };
        }
        let mut table = zeroed("L2 table", bytes)?;
        medium.read_table(Purpose::L2, old.table_offset(), &mut table)?;
        Ok(reserved.filled(medium.write_unlinked(Purpose::L2, offset, &table)?))
    }

    /// Links filled clusters to the `count` claimed guest clusters from `first` on, whose table is owned; `entry_of` says
    /// what each becomes, by its number in the run, which is also the number of its host cluster unless there is one
    /// entry only. After a failure what has been linked stays, with its host clusters, and the others go back.
    #[inline(always)]
    pub fn link_run(
        &self,
        claim: &Claim<'_>,
        first: u64,
        count: u64,
        filled: Filled<'_>,
        mut entry_of: impl FnMut(u64) -> Result<NewEntry>,
    ) -> Result<()> {
        for index in 0..count {
            let linked =
                entry_of(index).and_then(|entry| self.store(claim, first + index, entry, filled.ticket()));
            if let Err(e) = linked {
                filled.keep_first(index);
                return Err(e);
            }
        }
        filled.keep();
        Ok(())
    }

    /// Changes the entry of a claimed cluster whose table is owned, after a write to the host cluster that it names, or to
    /// its own one in a data file.
    pub fn relink(&self, claim: &Claim<'_>, cluster: u64, entry: NewEntry, written: Written) -> Result<()> {
        self.store(claim, cluster, entry, written.ticket())
    }

    /// Changes the entry of a claimed cluster whose table is owned to one that shows less of a host cluster, or names none:
    /// nothing has to be written for that, but to a data file that shows what the disk shows.
    pub fn unmap(
        &self,
        claim: &Claim<'_>,
        cluster: u64,
        entry: NewEntry,
        zeroed: Option<Written>,
    ) -> Result<()> {
        debug_assert!(shows_no_more(&self.entry(claim, cluster)?, &entry.new), "an entry without contents");
        self.store(claim, cluster, entry, zeroed.map_or(Ticket::PAST, Written::ticket))
    }

    fn has_table_at(&self, offset: u64) -> bool {
        (0..self.l1_entries).any(|i| L1Entry(self.l1.entry(i as usize).descriptor).table_offset() == offset)
    }

    /// Fails before anything has changed when an entry would let go of what it does not own.
    #[inline]
    fn check_release(&self, dropped: &Option<Release>) -> Result<()> {
        match dropped {
            Some(r) => self.shared.guard.check_release(r.owner, r.first_cluster, r.cluster_count),
            None => Ok(()),
        }
    }

    fn store(&self, _claim: &Claim<'_>, cluster: u64, entry: NewEntry, after: Ticket) -> Result<()> {
        self.check_release(&entry.dropped)?;
        let l1_index = cluster / self.geometry.l2_entry_count();
        let value = entry.new.encode(&self.geometry);
        let change = Change { entry: self.index_in_slice(cluster), value, after, dropped: entry.dropped };
        loop {
            let table = self.l1_entry(l1_index)?.table_offset();
            debug_assert_ne!(table, 0, "link without own_table");
            let loaded;
            let page = match self.front_page(self.slice_key(cluster)) {
                Some(page) => page,
                None => {
                    loaded = self.slice(cluster, table, Access::Change)?;
                    &loaded
                }
            };
            // A slice of the table that has just been replaced may still be on its way out.
            if self.geometry.cluster_floor(page.home()) != table {
                self.forget(self.slice_key(cluster));
                continue;
            }
            let done = page.update(change, &self.shared.medium, &*self.shared.readers, &self.list);
            if let Updated::Done(held) = done {
                if held >= HELD_LIMIT {
                    // To bound what is held; whoever needs the change in the file will say so, and be told.
                    let _ = self.write_through();
                }
                return Ok(());
            }
        }
    }

    /// Brings everything that was stored before the call into the file (not yet durable).
    pub fn write_through(&self) -> Result<()> {
        self.write_out().write_through()
    }

    /// Makes everything that was stored before the call durable.
    pub fn barrier(&self) -> Result<()> {
        self.write_out().barrier()
    }

    /// Guest offset past the last L2 table.
    pub fn tables_end(&self) -> u64 {
        let has_table = |i: &u64| L1Entry(self.l1.entry(*i as usize).descriptor).table_offset() != 0;
        let last = (0..self.l1_entries).rev().find(has_table);
        last.map_or(0, |i| (i + 1).saturating_mul(self.geometry.l2_table_guest_bytes()))
    }

    /// Host clusters that changes in memory have let go of, and that no write-out has passed on yet.
    pub fn held_clusters(&self) -> u64 {
        self.list.held_clusters()
    }

    /// The L1 table as it is in memory, into the start of `bytes`, in disk order.
    pub fn copy_l1(&self, bytes: &mut [u8]) {
        for (index, out) in bytes.chunks_exact_mut(8).take(self.l1_entries as usize).enumerate() {
            out.copy_from_slice(&self.l1.entry(index).descriptor.to_be_bytes());
        }
    }

    /// Whether an L1 entry from number `first` on has a table.
    pub fn has_tables_from(&self, first: u64) -> bool {
        self.tables_end() > first.saturating_mul(self.geometry.l2_table_guest_bytes())
    }

    /// Guest bytes that the L1 table can map.
    pub fn room(&self) -> u64 {
        self.l1_entries.saturating_mul(self.geometry.l2_table_guest_bytes())
    }

    /// Clears the L1 entries from number `first` on. The caller is alone, lets go of what they led to once the L1 table
    /// is durable, and loads the image again.
    pub fn clear_entries(&self, first: u64) {
        for index in first..self.l1_entries {
            if self.l1.entry(index as usize) != RawL2::default() {
                let value = RawL2::default();
                let change = Change { entry: index as usize, value, after: Ticket::PAST, dropped: None };
                self.l1.update(change, &self.shared.medium, &*self.shared.readers, &self.list);
            }
        }
    }

    /// Drops slices that no request used since the last call. `true`: the cache holds the whole disk and no
    /// request has used it, so that loading the image anew would free all of it.
    pub fn forget_unused(&self) -> bool {
        if self.front.is_empty() {
            self.cache.forget_unused();
            return false;
        }
        let used = self.front_used.swap(false, Ordering::Relaxed);
        !used && self.front.iter().any(|p| p.get().is_some())
    }
}

/// Whether `new` leads to nothing that `old` did not lead to.
fn shows_no_more(old: &L2Entry, new: &L2Entry) -> bool {
    match (old, new) {
        (_, L2Entry::Plain(new)) if new.alloc == 0 => {
            new.host.is_none() || matches!(old, L2Entry::Plain(old) if old.host == new.host)
        }
        (L2Entry::Plain(old), L2Entry::Plain(new)) => old.host == new.host && new.alloc & !old.alloc == 0,
        _ => false,
    }
}
