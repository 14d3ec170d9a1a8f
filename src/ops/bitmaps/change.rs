//! Another directory in the place of the one that is in force.
//!
//! ```text
//! new bits, tables and directory, which nothing points to -> their counts and contents durable (R1, R2, R5)
//!   -> the header names the new directory, durably -> the image is loaded anew -> what has gone is counted down (R3)
//! ```
//!
//! Power cut: the bitmaps are as before or as after, all of them; clusters leak at most. The image is held alone, and its
//! bitmaps are stored.

use super::doubt;
use crate::alloc::{ClusterRun, Freed, Reserved};
use crate::error::{room, Error, ErrorKind, Result};
use crate::format::bitmap::*;
use crate::format::extensions::{self, BitmapsPointer, BITMAPS};
use crate::format::HostOffset;
use crate::image::bitmaps::{Bits, Listed, MAX_ENTRIES};
use crate::image::{Core, ExclusiveImage, Parts};
use crate::meta::bitmap_directory::{each_entry, load_directory};
use crate::meta::guard::Owner;
use crate::ops::last_steps::reload;
use crate::ops::tree::write_unlinked;
use crate::storage::Purpose;

/// The directory that is to come.
pub(super) struct Change<'a> {
    parts: Parts<'a>,
    pub(super) list: Vec<Bitmap>,
    old: Option<BitmapsPointer>,
    /// Some of the bitmaps that there were are not believed: nothing is known of their clusters.
    unbelieved: bool,
    rooms: Vec<Reserved<'a>>,
    gone: Vec<ClusterRun>,
    /// Clusters that bitmaps have let go of that are not believed.
    doubted: Vec<u64>,
}

impl<'a> Change<'a> {
    /// Begins with the directory that is in force. `core` has been settled with its bitmaps.
    pub(super) fn begin(core: &'a Core) -> Result<Change<'a>> {
        let parts = core.structure_writer()?;
        let directory = load_directory(&**core.storage(), &core.header())?;
        let old = directory.as_ref().map(|directory| directory.pointer);
        let list = directory.map(|directory| directory.list).unwrap_or_default();
        let unbelieved = list.iter().any(Bitmap::is_inconsistent);
        Ok(Change { parts, list, old, unbelieved, rooms: Vec::new(), gone: Vec::new(), doubted: Vec::new() })
    }

    /// Gives a bitmap a new table: the bits that differ from the medium get new clusters, others keep theirs. The table
    /// that it had goes.
    pub(super) fn put_bits(&mut self, index: usize, bits: &Bits) -> Result<()> {
        let mut table: Vec<u64> = room("bitmap table", bits.chunk_count())?;
        for (number, stored) in (0..).zip(bits.table()) {
            let entry = match bits.chunk(number).is_changed() {
                false => stored,
                true => {
                    if stored > ENTRY_ONES {
                        self.let_go_by(index, stored, 1)?;
                    }
                    self.place(bits, number)?
                }
            };
            table.push(entry);
        }
        self.drop_table(index)?;
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.list[index].table_entries = table.len() as u32;
        self.list[index].table_offset = self.write(&bytes)?;
        Ok(())
    }

    /// As `put_bits`, of bits that have nothing in common with those that the bitmap had: these go.
    pub(super) fn replace_bits(&mut self, index: usize, bits: &Bits) -> Result<()> {
        self.drop_bits(index)?;
        self.put_bits(index, bits)
    }

    /// Writes a chunk of bits; its entry.
    fn place(&mut self, bits: &Bits, number: u64) -> Result<u64> {
        let granules = bits.chunk_granules(number);
        let content = bits.content(number, self.parts.medium)?;
        match bits.plain_entry(number, &content) {
            Some(entry) => Ok(entry),
            None => {
                let cluster_bytes = self.parts.geometry.cluster_bytes();
                self.write(&content.encode(granules, cluster_bytes)?)
            }
        }
    }

    /// Writes what nothing points to yet; where.
    fn write(&mut self, bytes: &[u8]) -> Result<u64> {
        let (room, offset) = write_unlinked(&self.parts, Purpose::Bitmaps, bytes)?;
        self.rooms.extend(room);
        Ok(offset)
    }

    /// Lets go of the table of a bitmap, if it has one.
    fn drop_table(&mut self, index: usize) -> Result<()> {
        let bitmap = &self.list[index];
        match bitmap.table_offset {
            0 => Ok(()),
            offset => self.let_go_by(index, offset, u64::from(bitmap.table_entries) * 8),
        }
    }

    /// Lets go of the clusters of bits of a bitmap. A table that breaks a rule leaves leaks.
    pub(super) fn drop_bits(&mut self, index: usize) -> Result<()> {
        let bitmap = self.list[index].clone();
        let storage = self.parts.medium.storage();
        let mut hosts = Vec::new();
        let read = each_entry(&**storage, &bitmap, self.parts.geometry, &mut |clusters| {
            let found = || {
                clusters.iter().filter_map(|cluster| match cluster {
                    BitmapCluster::Host(offset) => Some(*offset),
                    _ => None,
                })
            };
            let reserved = hosts.try_reserve(found().count());
            reserved.map_err(|_| Error::new(ErrorKind::NoMemory, "bitmap table: no memory"))?;
            hosts.extend(found());
            Ok(())
        });
        match read {
            Err(e) if e.kind() != ErrorKind::Corrupt => return Err(e),
            _ => {}
        }
        hosts.into_iter().try_for_each(|offset| self.let_go_by(index, offset, 1))
    }

    /// Takes a bitmap out of the list, with all that it has.
    pub(super) fn remove(&mut self, index: usize) -> Result<()> {
        self.drop_bits(index)?;
        self.drop_table(index)?;
        self.list.remove(index);
        Ok(())
    }

    /// What the bitmap at `index` has is let go of. If it is not believed, only where nothing else has it.
    fn let_go_by(&mut self, index: usize, offset: u64, bytes: u64) -> Result<()> {
        if !self.list[index].is_inconsistent() {
            return self.let_go(offset, bytes);
        }
        let geometry = self.parts.geometry;
        let first = geometry.cluster_index(HostOffset(offset)).0;
        let clusters = first..first.saturating_add(geometry.clusters_ceil(bytes));
        self.doubted
            .try_reserve((clusters.end - clusters.start) as usize)
            .map_err(|_| Error::new(ErrorKind::NoMemory, "clusters of a bitmap: no memory"))?;
        self.doubted.extend(clusters);
        Ok(())
    }

    /// Lets go of a cluster, or those of a table, which the overlap check must know nothing else of.
    pub(super) fn let_go(&mut self, offset: u64, bytes: u64) -> Result<()> {
        self.let_go_of(Owner::NOBODY, offset, bytes)
    }

    fn let_go_of(&mut self, owner: Owner, offset: u64, bytes: u64) -> Result<()> {
        let geometry = self.parts.geometry;
        let first = geometry.cluster_index(HostOffset(offset));
        let count = geometry.clusters_ceil(bytes);
        self.parts.guard.check_release(owner, first, count)?;
        self.gone.push(ClusterRun { first, count });
        Ok(())
    }

    /// Of what bitmaps have let go that nobody believes, nothing goes that the list has, or twice: it leaks.
    fn keep_listed(&mut self) {
        if !self.unbelieved {
            return;
        }
        let storage = self.parts.medium.storage();
        let listed = Listed::of(self.list.iter(), self.parts.geometry, &**storage);
        let rooms = self.rooms.iter().map(|room| (room.first_cluster().0, room.cluster_count()));
        let mut kept: Vec<(u64, u64)> = rooms.map(|(first, count)| (first, first + count)).collect();
        kept.extend(self.old.map(|old| {
            let first = self.parts.geometry.cluster_index(HostOffset(old.directory_offset)).0;
            (first, first + self.parts.geometry.clusters_ceil(old.directory_bytes))
        }));
        kept.sort_unstable();
        self.gone.sort_unstable();
        let mut end = 0;
        self.gone.retain(|run| {
            let (first, after) = (run.first.0, run.first.0 + run.count);
            let next = kept.partition_point(|(_, end)| *end <= first);
            let taken = kept.get(next).is_some_and(|(start, _)| *start < after);
            let goes = first >= end && !taken && !listed.has(run.first, run.count);
            end = end.max(after);
            goes
        });
    }

    /// Puts the list in force, durably, for a disk of `virtual_size` bytes; what it has replaced.
    pub(super) fn put(mut self, image: &ExclusiveImage<'_>, virtual_size: u64) -> Result<Replaced> {
        let bytes = encode_directory(&self.list);
        check_limits(&self.list, bytes.len() as u64)?;
        let directory_offset = self.write(&bytes)?;
        let doubted = std::mem::take(&mut self.doubted);
        self.gone.extend(doubt::unused(&image.core(), &self.parts, doubted)?);
        self.keep_listed();
        if let Some(old) = self.old {
            self.let_go_of(Owner::BITMAP_DIRECTORY, old.directory_offset, old.directory_bytes)?;
        }
        self.parts.make_durable()?;
        let next = (!self.list.is_empty()).then_some(BitmapsPointer {
            count: self.list.len() as u32,
            directory_bytes: bytes.len() as u64,
            directory_offset,
        });
        let changed = self.parts.header.change_bitmaps(next.as_ref(), virtual_size);
        let header = self.parts.header.header();
        let now = header.extension(BITMAPS).and_then(|data| extensions::bitmaps(data).ok());
        if let Err(e) = changed {
            if now == next && now != self.old {
                // It is in force; what is left of the header's change would change nothing more.
                self.rooms.into_iter().for_each(Reserved::keep);
                image.forget_bitmaps();
                let _ = image.complete(reload);
            }
            return Err(e);
        }
        self.rooms.into_iter().for_each(Reserved::keep);
        if let Some(old) = self.old {
            self.parts.guard.remove(Owner::BITMAP_DIRECTORY, old.directory_offset, old.directory_bytes);
        }
        Ok(Replaced(self.gone))
    }
}

/// Clusters that a directory has given up.
pub(super) struct Replaced(Vec<ClusterRun>);

impl Replaced {
    /// Loads the image anew, and counts down what has gone: not before, for whoever looks at the state before must find
    /// it. What cannot be counted down leaks. Done or kept for later: the directory is in force either way.
    pub(super) fn complete(self, image: &ExclusiveImage<'_>) -> Result<()> {
        image.forget_bitmaps();
        image.complete_later(move |image| {
            reload(image)?;
            let core = image.core();
            let lowered = core.structure_writer()?.alloc.lower_all(&mut self.0.clone(), Freed::ByChange);
            match lowered {
                Err(e) if e.is_failed_sync() => Err(e),
                _ => Ok(()),
            }
        })
    }
}

fn check_limits(list: &[Bitmap], directory_bytes: u64) -> Result<()> {
    if list.len() > MAX_BITMAPS as usize {
        let text = "Maximum number of persistent bitmaps is already reached";
        return Err(Error::new(ErrorKind::TooLarge, text));
    }
    if directory_bytes > MAX_DIRECTORY_BYTES {
        return Err(Error::new(ErrorKind::TooLarge, "Not enough space in the bitmap directory"));
    }
    // What could not be loaded again must not be put in force.
    let used = list.iter().filter(|bitmap| !bitmap.is_inconsistent());
    let entries: u64 = used.map(|bitmap| u64::from(bitmap.table_entries)).sum();
    match entries > MAX_ENTRIES {
        true => {
            let text =
                format!("the bitmap tables would have {entries} entries together, more than {MAX_ENTRIES}");
            Err(Error::new(ErrorKind::TooLarge, text))
        }
        false => Ok(()),
    }
}
