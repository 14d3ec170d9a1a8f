//! Guest to host: the L1 table, L2 slices, and the claims that make changes of one guest cluster take turns.
//!
//! `resolve` describes where guest bytes are and performs no data I/O; `image` does that. `link_run` is the only
//! way to an entry that names a host cluster anew, `relink` and `unmap` to any other change of one; all take a claim.
//! Knows no files and no backing chain.

mod abandon;
mod claims;
mod front;
mod link;
mod resolve;
mod slices;
mod tables;

pub use claims::{Claim, Claims};
pub use front::Look;
pub use resolve::{Extent, Source};

use crate::alloc::{Allocator, Shared};
use crate::error::{room, stock_hex, Error, Result};
use crate::format::entries::{L1Entry, L2Entry, Mapping, RawL2, COMPRESSED, OFFSET_MASK, ZERO};
use crate::format::geometry::SECTOR_BYTES;
use crate::format::{index_in_memory, Geometry, GuestCluster};
use crate::meta::guard::Owner;
use crate::meta::{Access, DirtyPages, Page, Release, Settler, SliceCache, WriteOut};
use crate::options::CacheSizes;
use crate::storage::medium::Ticket;
use crate::storage::Purpose;
use front::Front;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The mapping of one image.
pub struct Map {
    shared: Shared,
    geometry: Geometry,
    writer: Option<Arc<Allocator>>,
    l1: Arc<Page>,
    l1_entries: u64,
    cache: SliceCache,
    /// For a cache that holds the whole disk.
    front: Front,
    /// log2 of the L2 entries in a slice.
    slice_entry_bits: u32,
    list: DirtyPages,
    claims: Claims,
    /// Held while an L2 table is made; across I/O. After claims, before the ledger.
    birth: Mutex<()>,
    /// L1 index + 1 of the table whose copy is not durable in the L1 table yet; nobody links in it.
    copied_table: AtomicU64,
    clean_interval: Option<Duration>,
    last_clean: Mutex<Instant>,
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

/// Memory that a slice takes besides its entries, bytes.
const SLICE_EXTRA_BYTES: u64 = 320;
/// So many small slices are kept whatever they take besides.
const FEW_SLICES: u64 = 4096;

/// Slices for which a cache of `cache_bytes` has room. Those of less than 4 KiB take more than their entries, which counts
/// where there are many.
fn slices_in(cache_bytes: u64, slice_bytes: u64) -> u64 {
    let bare = (cache_bytes / slice_bytes).max(2);
    match slice_bytes < 4096 {
        true => bare.min(FEW_SLICES).max(cache_bytes / (slice_bytes + SLICE_EXTRA_BYTES)),
        false => bare,
    }
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
        let slices = slices_in(cache_bytes, slice_bytes);
        let disk_slices =
            header.virtual_size.div_ceil(slice_bytes / geometry.l2_entry_bytes() * geometry.cluster_bytes());
        let kept = slices.min(disk_slices.max(2));
        // What there is no memory for is an error, not the end of the process.
        drop(std::hint::black_box(room::<u64>("the L2 cache", kept)?));
        let map = Map {
            geometry,
            writer,
            l1,
            l1_entries: u64::from(header.l1_size),
            cache: SliceCache::new(index_in_memory(kept), slices >= disk_slices),
            front: Front::new(&geometry, slice_bytes, if slices >= disk_slices { disk_slices } else { 0 })?,
            slice_entry_bits: (slice_bytes / geometry.l2_entry_bytes()).trailing_zeros(),
            list: DirtyPages::default(),
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
    pub fn claim(&self, first_cluster: GuestCluster, end_cluster: GuestCluster) -> Claim<'_> {
        self.claims.take(first_cluster.0, end_cluster.0)
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

    /// A table that breaks a rule must not be written on: a writable image is marked corrupt.
    #[cold]
    fn broken(&self, found: Error) -> Error {
        match &self.writer {
            Some(_) => self.shared.header.mark_corrupt(found),
            None => found,
        }
    }

    fn decode(&self, cluster: GuestCluster, raw: RawL2) -> Result<L2Entry> {
        let decoded = match raw.decode(&self.geometry) {
            Ok(L2Entry::Plain(mapping)) if self.geometry.external_data => self.in_data_file(cluster, mapping),
            decoded => decoded,
        };
        decoded.map_err(|rule| {
            let index = format_args!("of guest cluster {cluster}").to_string();
            let found = Error::corrupt("L2 entry", index, raw.descriptor, rule);
            self.broken(found.in_stock_words(self.stock_words(cluster, raw)))
        })
    }

    /// What the stock tools say of a broken entry.
    #[cold]
    fn stock_words(&self, cluster: GuestCluster, raw: RawL2) -> String {
        let per_table = self.geometry.l2_entry_count();
        let table = self.l1.entry(index_in_memory(cluster.0 / per_table)).descriptor;
        let table = stock_hex(L1Entry(table).table_offset());
        let index = stock_hex(cluster.0 % per_table);
        let place = format!("(L2 offset: {table}, L2 index: {index})");
        let offset = raw.descriptor & OFFSET_MASK;
        if raw.descriptor & COMPRESSED != 0 {
            format!("Compressed cluster entry found in image with external data file {place}")
        } else if self.geometry.in_cluster(offset) != 0 {
            format!("Cluster allocation offset {offset:#x} unaligned {place}")
        } else if self.geometry.extended_l2 && raw.bitmap as u32 & (raw.bitmap >> 32) as u32 != 0 {
            format!("Invalid cluster entry found  {place}")
        } else if self.geometry.external_data && offset != self.geometry.cluster_offset(cluster).0 {
            let guest = stock_hex(self.geometry.cluster_offset(cluster).0);
            let host = stock_hex(offset);
            format!(
                "External data file host cluster offset {host} does not match guest cluster offset: {guest}, L2 index: {index})"
            )
        } else if raw.descriptor & ZERO != 0 && self.geometry.version < 3 {
            format!("Zero cluster entry found in pre-v3 image {place}")
        } else {
            format!("Invalid cluster entry found  {place}")
        }
    }

    /// An entry of an image with an external data file: every guest cluster is at its own offset there, where
    /// nobody else can refer to it.
    fn in_data_file(
        &self,
        cluster: GuestCluster,
        mapping: Mapping,
    ) -> std::result::Result<L2Entry, &'static str> {
        match mapping.host {
            Some(host) if host.0 != self.geometry.cluster_offset(cluster).0 => {
                Err("offset in the external data file does not match the guest offset")
            }
            host => Ok(L2Entry::Plain(Mapping { copied: host.is_some(), ..mapping })),
        }
    }

    /// The entry of a claimed cluster.
    pub fn entry(&self, _claim: &Claim<'_>, cluster: GuestCluster) -> Result<L2Entry> {
        let l1_index = cluster.0 / self.geometry.l2_entry_count();
        let table = self.l1_entry(l1_index)?.table_offset();
        if table == 0 {
            return Ok(L2Entry::Plain(Mapping::default()));
        }
        let index = self.index_in_slice(cluster);
        let raw = match self.front.page(self.slice_key(cluster)) {
            Some(page) => page.entry(index),
            None => self.slice(cluster, table, Access::Look)?.entry(index),
        };
        if raw == RawL2::default() {
            return Ok(L2Entry::Plain(Mapping::default()));
        }
        self.decode(cluster, raw)
    }

    /// Brings everything that was stored before the call into the file (not yet durable).
    pub fn write_through(&self) -> Result<()> {
        self.write_out().write_through()
    }

    /// Makes everything that was stored before the call durable.
    pub fn barrier(&self) -> Result<()> {
        self.write_out().barrier()
    }

    /// Host clusters that changes in memory have let go of, and that no write-out has passed on yet.
    pub fn held_clusters(&self) -> u64 {
        self.list.held_clusters()
    }

    /// Changes in memory that let go of nothing and take memory until they are written out.
    pub fn held_plain(&self) -> u64 {
        self.list.held_plain()
    }

    /// Clusters that changes in memory have let go of and that will be free.
    pub fn held_to_free(&self) -> u64 {
        self.list.held_to_free()
    }
}
