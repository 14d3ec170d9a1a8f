//! Clusters of bitmaps that have another owner, too: who stored bits there would destroy what the other one has.

use super::Tracked;
use crate::error::{room, Error, Result};
use crate::format::bitmap::ENTRY_ONES;
use crate::format::extensions::BitmapsPointer;
use crate::format::{Geometry, HostOffset};
use crate::meta::guard::{OverlapGuard, Owner};

/// A part of a bitmap, or of the directory, that has a cluster.
struct Part<'a> {
    /// Of which bitmap; `None`: of the directory.
    tracked: Option<&'a Tracked>,
    /// Of an entry of the table; `None`: of the table itself.
    index: Option<u64>,
    offset: u64,
}

/// Fails where a cluster of the directory, of a table or of bits is metadata of another kind as well, or another one of
/// these. Whether it is guest data, too, nobody knows who has not looked at all tables: a check tells it.
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
