//! Clusters of bitmaps that have another owner, too: who stored bits there would destroy what the other one has.

use super::{Tracked, MAX_ENTRIES};
use crate::alloc::Allocator;
use crate::error::{room, Error, ErrorKind, Result};
use crate::format::bitmap::{Bitmap, BitmapCluster, ENTRY_ONES};
use crate::format::extensions::BitmapsPointer;
use crate::format::{Geometry, HostCluster, HostOffset};
use crate::meta::bitmap_directory::each_entry;
use crate::meta::guard::{OverlapGuard, Owner};
use crate::storage::Storage;

/// A part of a bitmap, or of the directory, that has a cluster.
struct Part<'a> {
    /// Of which bitmap; `None`: of the directory.
    tracked: Option<&'a Tracked>,
    /// Of an entry of the table; `None`: of the table itself.
    index: Option<u64>,
    offset: u64,
}

/// Fails where a cluster of the directory, of a table or of bits is metadata of another kind as well, or another one of
/// these. Whether it is guest data, too, nobody knows who has not looked at all tables: a check tells it. Bitmaps that
/// are not to be believed are not looked at: `Listed` keeps what they share.
pub(super) fn check_owners(
    list: &[Tracked],
    directory: &BitmapsPointer,
    geometry: &Geometry,
    guard: &OverlapGuard,
) -> Result<()> {
    let all = || parts(list, directory, geometry);
    let mut clusters = room("clusters of the bitmaps", all().count() as u64)?;
    for part in all() {
        let own = if part.tracked.is_none() { Owner::BITMAP_DIRECTORY } else { Owner::NOBODY };
        if let Some(owner) = guard.owner_beside(own, HostOffset(part.offset))? {
            return Err(part.shared_with(owner));
        }
        clusters.push(part.offset);
    }
    clusters.sort_unstable();
    let twice = clusters.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
    let second = twice.and_then(|twice| all().filter(|part| part.offset == twice).nth(1));
    second.map_or(Ok(()), |part| Err(part.shared_with("another part of the bitmaps")))
}

fn parts<'a>(
    list: &'a [Tracked],
    directory: &BitmapsPointer,
    geometry: &'a Geometry,
) -> impl Iterator<Item = Part<'a>> {
    let clusters = move |offset: u64, bytes: u64| {
        (0..geometry.clusters_ceil(bytes)).map(move |number| offset + (number << geometry.cluster_bits))
    };
    let own = clusters(directory.directory_offset, directory.directory_bytes);
    let own = own.map(|offset| Part { tracked: None, index: None, offset });
    own.chain(list.iter().filter_map(|t| Some((t, t.bits.as_ref()?))).flat_map(move |(tracked, bits)| {
        let part = move |index, offset| Part { tracked: Some(tracked), index, offset };
        let table = clusters(tracked.entry.table_offset, u64::from(tracked.entry.table_entries) * 8);
        let entries = (0..).zip(bits.table()).filter(|(_, entry)| *entry > ENTRY_ONES);
        table.map(move |at| part(None, at)).chain(entries.map(move |(index, at)| part(Some(index), at)))
    }))
}

impl Part<'_> {
    fn shared_with(&self, owner: &str) -> Error {
        let rule = format!("a cluster that nothing else has: this one is {owner}, too");
        let name = self.tracked.map(|tracked| tracked.entry.printable_name());
        match (name, self.index) {
            (None, _) => Error::corrupt("header extension", "bitmap directory", self.offset, rule),
            (Some(name), None) => {
                Error::corrupt("bitmap directory", format!("bitmap table of '{name}'"), self.offset, rule)
            }
            (Some(name), Some(index)) => {
                Error::corrupt(format!("bitmap table of '{name}' entry"), index, self.offset, rule)
            }
        }
    }
}

/// Fails where a table or the directory, which are written where they are, have another owner by their counts.
pub(super) fn check_counts(
    list: &[Tracked],
    directory: &BitmapsPointer,
    geometry: &Geometry,
    alloc: &Allocator,
) -> Result<()> {
    for part in parts(list, directory, geometry).filter(|part| part.index.is_none()) {
        let count = alloc.count(geometry.cluster_index(HostOffset(part.offset)).0)?;
        if count > 1 {
            return Err(part.shared_with(&format!("of {count} owners")));
        }
    }
    Ok(())
}

/// Host clusters that tables and bits of bitmaps are in, believed or not.
pub(crate) struct Listed {
    /// In order.
    clusters: Vec<u64>,
    /// Nobody can tell: it may be any cluster.
    any: bool,
}

impl Listed {
    /// Of these bitmaps. A table that cannot be read, or too many entries: any cluster.
    pub(crate) fn of<'a>(
        list: impl Iterator<Item = &'a Bitmap>,
        geometry: &Geometry,
        storage: &dyn Storage,
    ) -> Listed {
        let mut clusters = Vec::new();
        let mut add = |bitmap: &Bitmap| -> Result<()> {
            let bytes = u64::from(bitmap.table_entries) * 8;
            let first = geometry.cluster_index(HostOffset(bitmap.table_offset)).0;
            collect(&mut clusters, first..first.saturating_add(geometry.clusters_ceil(bytes)))?;
            each_entry(storage, bitmap, geometry, &mut |entries| {
                let hosts = entries.iter().filter_map(|entry| match entry {
                    BitmapCluster::Host(offset) => Some(geometry.cluster_index(HostOffset(*offset)).0),
                    _ => None,
                });
                collect(&mut clusters, hosts)
            })
        };
        let any = list.into_iter().any(|bitmap| add(bitmap).is_err());
        clusters.sort_unstable();
        Listed { clusters, any }
    }

    /// Whether one of these clusters is.
    pub(crate) fn has(&self, first: HostCluster, count: u64) -> bool {
        let next = self.clusters.partition_point(|cluster| *cluster < first.0);
        self.any || self.clusters.get(next).is_some_and(|cluster| *cluster - first.0 < count)
    }
}

fn collect(clusters: &mut Vec<u64>, more: impl Iterator<Item = u64>) -> Result<()> {
    for cluster in more {
        let full = clusters.len() as u64 >= MAX_ENTRIES || clusters.try_reserve(1).is_err();
        if full {
            return Err(Error::new(ErrorKind::TooLarge, "the bitmap tables have too many entries together"));
        }
        clusters.push(cluster);
    }
    Ok(())
}
