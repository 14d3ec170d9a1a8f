//! The overlap check: no write may hit a structure that it is not meant for, and no release may give one away.
//!
//! An index of metadata clusters, not a scan: a small filter answers "certainly no metadata" for almost every
//! data write; a hash map names the owners of the rest. Listed at a writable open, kept up to date by whoever
//! allocates or drops a table; the map is made with the first question, for most opens ask none.

use super::HeaderPage;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Geometry, HostCluster, HostOffset, Structure};
use crate::planted::{planted, Plant};
use crate::storage::Purpose;
use crate::sync::locked;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

/// One kind of metadata; a set of them is the OR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(pub u16);

impl Owner {
    /// Guest data, and what is free.
    pub const NOBODY: Owner = Owner(0);
    /// The header cluster.
    pub const HEADER: Owner = Owner::of(Structure::Header);
    /// The active L1 table.
    pub const ACTIVE_L1: Owner = Owner::of(Structure::ActiveL1);
    /// Active L2 tables.
    pub const ACTIVE_L2: Owner = Owner::of(Structure::ActiveL2);
    /// Refcount blocks.
    pub const REFCOUNT_BLOCK: Owner = Owner::of(Structure::RefcountBlock);
    /// The refcount table.
    pub const REFCOUNT_TABLE: Owner = Owner::of(Structure::RefcountTable);
    /// The snapshot table.
    pub const SNAPSHOT_TABLE: Owner = Owner::of(Structure::SnapshotTable);
    /// L1 tables of snapshots.
    pub const INACTIVE_L1: Owner = Owner::of(Structure::InactiveL1);
    /// L2 tables of snapshots.
    pub const INACTIVE_L2: Owner = Owner::of(Structure::InactiveL2);
    /// The bitmap directory.
    pub const BITMAP_DIRECTORY: Owner = Owner::of(Structure::BitmapDirectory);
    /// The encryption header with its key material: checked where the header cluster is, whose part it would be if it had
    /// room there. The reference implementation has no option for it, and does not check it.
    pub const ENCRYPTION: Owner = Owner(1 << Structure::ALL.len());
    /// L2 tables: the disk and its snapshots share them.
    pub const ANY_L2: Owner = Owner(Self::ACTIVE_L2.0 | Self::INACTIVE_L2.0);

    /// The set of one structure.
    pub const fn of(structure: Structure) -> Owner {
        Owner(1 << structure as u8)
    }

    /// The first of a set that is not empty, as messages call it.
    fn first_name(self) -> &'static str {
        Structure::ALL.get(self.0.trailing_zeros() as usize).map_or("encryption header", |s| s.name())
    }
}

/// Words of the filter: 32 Ki bits.
const FILTER_WORDS: usize = 512;

/// The index of who owns which cluster.
pub struct OverlapGuard {
    cluster_bits: u32,
    checked: u16,
    /// Changed with `owners` held for writing.
    filter: Box<[AtomicU64]>,
    owners: RwLock<Owners>,
    /// Takes note of a hit: sets the corrupt bit and closes the latch.
    header: Option<Arc<HeaderPage>>,
}

/// Most runs that wait for the map: 1.5 MiB of memory. A damaged image may name one table millions of times.
const MAX_LISTED: usize = 1 << 16;

/// Who owns which cluster.
#[derive(Default)]
struct Owners {
    /// Not in the map yet: clusters in runs, first and number, with their owner.
    listed: Vec<(u64, u64, u16)>,
    map: HashMap<u64, u16>,
    /// There was no memory for some of them: who asks is told so.
    is_short: bool,
}

impl Owners {
    fn list(&mut self, clusters: std::ops::RangeInclusive<u64>, owner: u16) {
        let (first, count) = (*clusters.start(), clusters.end() - clusters.start() + 1);
        match self.listed.last_mut() {
            Some((at, run, same)) if *same == owner && *at + *run == first => *run += count,
            _ => match self.listed.try_reserve(1) {
                Ok(()) => self.listed.push((first, count, owner)),
                Err(_) => self.is_short = true,
            },
        }
        if self.listed.len() >= MAX_LISTED {
            let _ = self.indexed();
        }
    }

    /// The map with everything in it.
    fn indexed(&mut self) -> Result<&mut HashMap<u64, u16>> {
        for (first, count, owner) in std::mem::take(&mut self.listed) {
            for cluster in first..first + count {
                if self.map.try_reserve(1).is_err() {
                    self.is_short = true;
                    break;
                }
                *self.map.entry(cluster).or_default() |= owner;
            }
        }
        match self.is_short {
            true => Err(Error::new(ErrorKind::NoMemory, "index of the metadata clusters: no memory")),
            false => Ok(&mut self.map),
        }
    }
}

fn filter_bit(cluster_index: u64) -> (usize, u64) {
    let hash = cluster_index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49;
    ((hash / 64) as usize, 1 << (hash % 64))
}

impl OverlapGuard {
    /// A guard that checks against the kinds in `checked` and marks the image corrupt when something hits.
    pub fn new(geometry: &Geometry, checked: u16, header: Option<Arc<HeaderPage>>) -> Self {
        let with_header = if checked & Owner::HEADER.0 != 0 { Owner::ENCRYPTION.0 } else { 0 };
        OverlapGuard {
            cluster_bits: geometry.cluster_bits,
            checked: checked | with_header,
            filter: (0..FILTER_WORDS).map(|_| AtomicU64::new(0)).collect(),
            owners: RwLock::default(),
            header,
        }
    }

    /// A guard that accepts everything.
    #[cfg(test)]
    pub fn off() -> Self {
        OverlapGuard {
            cluster_bits: 16,
            checked: 0,
            filter: Box::default(),
            owners: RwLock::default(),
            header: None,
        }
    }

    /// Whether `owner` is checked at all; what is not need not be added.
    pub fn checks(&self, owner: Owner) -> bool {
        self.checked & owner.0 != 0
    }

    /// Clusters of a range that is not empty. A damaged image may name one that ends past 2^64.
    #[inline]
    fn clusters(&self, host_offset: u64, length: u64) -> std::ops::RangeInclusive<u64> {
        host_offset >> self.cluster_bits..=host_offset.saturating_add(length - 1) >> self.cluster_bits
    }

    /// Records that `[host_offset, host_offset + length)` holds `owner`.
    pub fn add(&self, owner: Owner, host_offset: u64, length: u64) {
        self.add_all(owner, std::iter::once(host_offset), length);
    }

    /// Records that `length` bytes at each of `host_offsets` hold `owner`.
    pub fn add_all(&self, owner: Owner, host_offsets: impl Iterator<Item = u64>, length: u64) {
        if !self.checks(owner) || length == 0 {
            return;
        }
        let mut owners = locked(self.owners.write());
        for host_offset in host_offsets {
            let clusters = self.clusters(host_offset, length);
            for cluster in clusters.clone() {
                let (word, bit) = filter_bit(cluster);
                let word = &self.filter[word];
                // Nobody else changes it: the lock is held.
                word.store(word.load(Ordering::Relaxed) | bit, Ordering::Release);
            }
            owners.list(clusters, owner.0);
        }
    }

    /// Records that the range holds `owner` no more. The filter keeps its bits: it may only err towards asking.
    pub fn remove(&self, owner: Owner, host_offset: u64, length: u64) {
        if !self.checks(owner) || length == 0 {
            return;
        }
        let mut owners = locked(self.owners.write());
        // Where it is short, every question is answered so.
        let Ok(map) = owners.indexed() else { return };
        for cluster in self.clusters(host_offset, length) {
            if let Some(mask) = map.get_mut(&cluster) {
                *mask &= !owner.0;
                if *mask == 0 {
                    map.remove(&cluster);
                }
            }
        }
    }

    /// Who owns a cluster.
    fn owners_of(&self, cluster: u64) -> Result<u16> {
        let owners = locked(self.owners.read());
        if owners.listed.is_empty() && !owners.is_short {
            return Ok(owners.map.get(&cluster).copied().unwrap_or(0));
        }
        drop(owners);
        let mut owners = locked(self.owners.write());
        Ok(owners.indexed()?.get(&cluster).copied().unwrap_or(0))
    }

    /// Whether no metadata is in the range for certain; otherwise `check` has to tell.
    #[inline]
    pub fn is_clear(&self, host_offset: HostOffset, length: u64) -> bool {
        let is_set = |cluster| {
            let (word, bit) = filter_bit(cluster);
            self.filter[word].load(Ordering::Relaxed) & bit != 0
        };
        self.checked == 0 || length == 0 || !self.clusters(host_offset.0, length).any(is_set)
    }

    /// Fails when the range overlaps metadata other than `allowed`; the image is marked corrupt then.
    #[inline]
    pub fn check(&self, allowed: Owner, host_offset: HostOffset, length: u64) -> Result<()> {
        if self.checked == 0 || length == 0 || planted(Plant::OverlapCheckOff) {
            return Ok(());
        }
        for cluster in self.clusters(host_offset.0, length) {
            if self.may_be_owned(cluster) {
                self.check_cluster(allowed, cluster, "invalid write on")?;
            }
        }
        Ok(())
    }

    #[inline]
    fn may_be_owned(&self, cluster: u64) -> bool {
        let (word, bit) = filter_bit(cluster);
        self.filter[word].load(Ordering::Relaxed) & bit != 0
    }

    /// Fails when clusters whose count is about to fall hold metadata other than `allowed`, or the header: an entry has
    /// named what it does not own. The image is marked corrupt then.
    #[inline]
    pub fn check_release(
        &self,
        allowed: Owner,
        first_cluster: HostCluster,
        cluster_count: u64,
    ) -> Result<()> {
        if planted(Plant::OverlapCheckOff) {
            return Ok(());
        }
        let first_cluster = first_cluster.0;
        if first_cluster == 0 && cluster_count > 0 {
            return Err(self.found("release of", Owner::HEADER, 0));
        }
        if self.checked == 0 {
            return Ok(());
        }
        for cluster in first_cluster..first_cluster.saturating_add(cluster_count) {
            if self.may_be_owned(cluster) {
                self.check_cluster(allowed, cluster, "release of")?;
            }
        }
        Ok(())
    }

    /// What metadata other than `allowed` is in the cluster at an offset. Nobody has written there: the image is not
    /// marked.
    pub fn owner_beside(&self, allowed: Owner, host_offset: HostOffset) -> Result<Option<&'static str>> {
        let cluster = host_offset.0 >> self.cluster_bits;
        if self.checked == 0 || !self.may_be_owned(cluster) {
            return Ok(None);
        }
        let hit = self.owners_of(cluster)? & !allowed.0;
        Ok((hit != 0).then(|| Owner(hit).first_name()))
    }

    /// One past the last cluster that holds anything.
    pub fn end(&self) -> Result<u64> {
        let mut owners = locked(self.owners.write());
        Ok(owners.indexed()?.keys().max().map_or(0, |last| last + 1))
    }

    #[cold]
    fn check_cluster(&self, allowed: Owner, cluster: u64, what: &str) -> Result<()> {
        let hit = self.owners_of(cluster)? & !allowed.0;
        if hit == 0 {
            return Ok(());
        }
        Err(self.found(what, Owner(hit), cluster))
    }

    #[cold]
    fn found(&self, what: &str, hit: Owner, cluster: u64) -> Error {
        let owner = hit.first_name();
        let summary = format!("Preventing {what} metadata (overlaps with {owner})");
        let found = Error::new(ErrorKind::MarkedCorrupt, summary).detail(format!("host cluster {cluster}"));
        self.header.as_ref().map_or(found.clone(), |h| h.mark_corrupt(found))
    }

    /// The check for a table page's own write.
    pub fn check_table_write(&self, purpose: Purpose, host_offset: u64, length: u64) -> Result<()> {
        let allowed = match purpose {
            Purpose::L1 => Owner::ACTIVE_L1,
            Purpose::L2 => Owner::ACTIVE_L2,
            Purpose::RefcountBlock => Owner::REFCOUNT_BLOCK,
            Purpose::RefcountTable => Owner::REFCOUNT_TABLE,
            Purpose::Header => Owner::HEADER,
            _ => Owner(0),
        };
        self.check(allowed, HostOffset(host_offset), length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_may_write() {
        let g = Geometry {
            version: 3,
            cluster_bits: 9,
            refcount_order: 4,
            extended_l2: false,
            external_data: false,
        };
        let guard = OverlapGuard::new(&g, 0x1ff, None);
        guard.add(Owner::ACTIVE_L2, 1024, 512);
        assert!(guard.check(Owner::ACTIVE_L2, HostOffset(1024), 512).is_ok());
        assert!(guard.check(Owner(0), HostOffset(1536), 4096).is_ok());
        assert!(guard.check(Owner(0), HostOffset(0), 1025).is_err());
        guard.remove(Owner::ACTIVE_L2, 1024, 512);
        assert!(guard.check(Owner(0), HostOffset(0), 4096).is_ok());
        guard.add(Owner::ENCRYPTION, 4096, 600);
        assert!(guard.check(Owner::HEADER, HostOffset(4608), 512).is_err());
        assert!(guard.check_release(Owner::NOBODY, HostCluster(8), 1).is_err());
        let said = guard.check(Owner(0), HostOffset(4096), 1).unwrap_err().to_string();
        assert!(said.contains("encryption header"), "{said}");
        guard.add(Owner::BITMAP_DIRECTORY, u64::MAX - 511, 1024);
        assert!(guard.check(Owner(0), HostOffset(u64::MAX - 511), 512).is_err());
        assert!(OverlapGuard::off().check(Owner(0), HostOffset(0), 4096).is_ok());
    }
}
