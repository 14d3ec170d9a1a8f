//! A table tree as the medium has it: what an L1 table refers to, and the COPIED flags of the active tree. The
//! caller is alone and has brought everything to the medium; caches are not used and not filled.

use super::super::Core;
use crate::alloc::{Allocator, ClusterRun};
use crate::error::{room, zeroed, Error, ErrorKind, Result};
use crate::format::be64;
use crate::format::entries::{plain_run, L1Entry, L2Entry, RawL2, COMPRESSED, COPIED, OFFSET_MASK};
use crate::format::geometry::{MAX_HOST_OFFSET, MAX_L1_BYTES, SECTOR_BYTES};
use crate::meta::guard::Owner;
use crate::storage::Purpose;
use std::ops::Range;

/// Runs that are collected before they are given on: 4 MiB of memory.
const BATCH_RUNS: usize = 256 << 10;

/// Bytes of an L1 table that are read at once.
const PIECE_BYTES: usize = 16 << 10;

/// An L1 table as it is on the medium.
#[derive(Clone)]
pub(in crate::image) struct L1Table {
    pub(in crate::image) offset: u64,
    pub(in crate::image) entries: Vec<u64>,
}

impl L1Table {
    /// A table of `count` entries: these, as `change` makes them, and zeroes.
    pub(super) fn copied(&self, count: usize, change: impl Fn(usize, u64) -> u64) -> Result<Vec<u64>> {
        let mut copy = room("L1 table", count as u64)?;
        copy.extend(self.entries.iter().take(count).enumerate().map(|(index, entry)| change(index, *entry)));
        copy.resize(count, 0);
        Ok(copy)
    }
}

/// What a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image) enum Walk {
    /// What the tree refers to gets one reference more.
    Raise,
    /// It is let go of: nothing may be among it that the entries do not own.
    Release,
}

/// What a COPIED flag becomes.
#[derive(Clone, Copy)]
pub(super) enum Flags<'a> {
    /// Cleared everywhere.
    Clear,
    /// Cleared where the L1 entry has the flag: below a shared table no entry has it.
    ClearOwned,
    /// Set exactly where the count is one.
    Match(&'a Allocator),
}

impl Flags<'_> {
    fn of(&self, cluster: u64) -> Result<u64> {
        Ok(match self {
            Flags::Clear | Flags::ClearOwned => 0,
            Flags::Match(alloc) if alloc.count(cluster)? == 1 => COPIED,
            Flags::Match(_) => 0,
        })
    }

    /// The flag of all clusters of a run; `None` when they may differ.
    fn of_run(&self, run: ClusterRun) -> Result<Option<u64>> {
        let Flags::Match(alloc) = self else { return Ok(Some(0)) };
        Ok(match alloc.count_bounds(run)? {
            (1, 1) => Some(COPIED),
            (least, most) if least > 1 || most == 0 => Some(0),
            _ => None,
        })
    }
}

/// Runs of clusters on their way to `each`, in batches.
struct Batch<'a> {
    runs: Vec<ClusterRun>,
    each: &'a mut dyn FnMut(&mut [ClusterRun]) -> Result<()>,
}

impl Batch<'_> {
    fn add(&mut self, first: u64, count: u64) -> Result<()> {
        match self.runs.last_mut() {
            Some(last) if last.first + last.count == first => last.count += count,
            _ => {
                let more = self.runs.try_reserve(1);
                more.map_err(|_| Error::new(ErrorKind::NoMemory, "runs of clusters: no memory"))?;
                self.runs.push(ClusterRun { first, count });
            }
        }
        if self.runs.len() == BATCH_RUNS {
            self.give()?;
        }
        Ok(())
    }

    fn give(&mut self) -> Result<()> {
        (self.each)(&mut self.runs)?;
        self.runs.clear();
        Ok(())
    }
}

impl Core {
    /// Reads the L1 table of `entries` entries at `offset`; `whose` names it in errors.
    pub(in crate::image) fn read_l1(&self, whose: &str, offset: u64, entries: u32) -> Result<L1Table> {
        let bytes = u64::from(entries) * 8;
        if bytes > MAX_L1_BYTES {
            let rule = "the table may have 32 MiB at most";
            return Err(Error::corrupt("L1 entries", whose, u64::from(entries), rule));
        }
        if bytes != 0 && (self.geometry.in_cluster(offset) != 0 || offset >= MAX_HOST_OFFSET) {
            let rule = "offset must be a multiple of the cluster size below 2^56";
            return Err(Error::corrupt("L1 table", whose, offset, rule));
        }
        let mut table = L1Table { offset, entries: room("L1 table", bytes / 8)? };
        let mut piece = [0; PIECE_BYTES];
        for at in (0..bytes).step_by(PIECE_BYTES) {
            let part = &mut piece[..(bytes - at).min(PIECE_BYTES as u64) as usize];
            self.shared.medium.read_table(Purpose::L1, offset + at, part)?;
            table.entries.extend(part.chunks_exact(8).map(|c| be64(c, 0)));
        }
        Ok(table)
    }

    /// The host offset of the L2 table of an L1 entry, checked; 0 for none.
    pub(super) fn table_of(&self, index: usize, entry: u64) -> Result<u64> {
        let table = L1Entry(entry).table_offset();
        if self.geometry.in_cluster(table) != 0 || table >= MAX_HOST_OFFSET {
            let rule = "L2 table offset must be a multiple of the cluster size below 2^56";
            return Err(Error::corrupt("L1 entry", index, entry, rule));
        }
        Ok(table)
    }

    /// Gives every host cluster that the entries `part` of `l1` and their trees refer to to `each`, in runs: L2 tables
    /// once for each L1 entry, data once for each L2 entry of each of them. The L1 table itself is not among them.
    pub(in crate::image) fn walk(
        &self,
        l1: &L1Table,
        part: Range<usize>,
        purpose: Walk,
        each: &mut dyn FnMut(&mut [ClusterRun]) -> Result<()>,
    ) -> Result<()> {
        let geometry = &self.geometry;
        let mut batch = Batch { runs: Vec::new(), each };
        let mut bytes = zeroed("L2 table", geometry.cluster_bytes())?;
        for index in part {
            let table = self.table_of(index, l1.entries[index])?;
            if table == 0 {
                continue;
            }
            let cluster = geometry.cluster_index(table);
            if purpose == Walk::Release {
                self.shared.guard.check_release(Owner::ANY_L2, cluster, 1)?;
            }
            batch.add(cluster, 1)?;
            self.shared.medium.read_table(Purpose::L2, table, &mut bytes)?;
            // What is in a data file is not counted.
            if !geometry.external_data {
                self.walk_table(index, &bytes, purpose, &mut batch)?;
            }
        }
        batch.give()
    }

    /// The part of `walk` for the L2 table of L1 entry `index`.
    fn walk_table(&self, index: usize, bytes: &[u8], purpose: Walk, batch: &mut Batch<'_>) -> Result<()> {
        let geometry = &self.geometry;
        let entry_bytes = geometry.l2_entry_bytes() as usize;
        let mut add = |first, count| {
            if purpose == Walk::Release {
                self.shared.guard.check_release(Owner::NOBODY, first, count)?;
            }
            batch.add(first, count)
        };
        let mut at = 0;
        while at < bytes.len() {
            let run = plain_run(geometry, &bytes[at..]);
            if run > 0 {
                let host = be64(bytes, at) & OFFSET_MASK;
                add(geometry.cluster_index(host), run as u64)?;
                at += run * entry_bytes;
                continue;
            }
            let (slot, stored) = (at / entry_bytes, &bytes[at..at + entry_bytes]);
            at += entry_bytes;
            let descriptor = be64(stored, 0);
            if descriptor & (COMPRESSED | OFFSET_MASK) == 0 {
                continue;
            }
            let bitmap = if geometry.extended_l2 { be64(stored, 8) } else { 0 };
            let decoded = RawL2 { descriptor, bitmap }.decode(geometry).map_err(|rule| {
                let guest = index as u64 * geometry.l2_entry_count() + slot as u64;
                Error::corrupt("L2 entry of guest cluster", guest, descriptor, rule)
            })?;
            match decoded {
                L2Entry::Plain(m) => {
                    if let Some(host) = m.host {
                        add(geometry.cluster_index(host), 1)?;
                    }
                }
                L2Entry::Compressed(span) => {
                    let (first, end) = span.clusters(geometry);
                    add(first, end - first)?;
                }
            }
        }
        Ok(())
    }

    /// Brings the COPIED flags of the tree below the first `count` entries of `l1`, entries on the medium and in `l1`,
    /// to what `flags` says. Only flags change, so any part of it may survive a power cut. `stored`: the L1 entries
    /// are on the medium.
    pub(super) fn set_flags(
        &self,
        l1: &mut L1Table,
        count: usize,
        stored: bool,
        flags: Flags<'_>,
    ) -> Result<()> {
        let geometry = &self.geometry;
        let mut bytes = zeroed("L2 table", geometry.cluster_bytes())?;
        // Sectors of the table that change: as many at most as it has.
        let mut changed = room("L1 table", count as u64 * 8 / SECTOR_BYTES + 1)?;
        for index in 0..count {
            let table = self.table_of(index, l1.entries[index])?;
            let shared = matches!(flags, Flags::ClearOwned) && l1.entries[index] & COPIED == 0;
            if table == 0 || shared {
                continue;
            }
            self.shared.medium.read_table(Purpose::L2, table, &mut bytes)?;
            self.set_table_flags(table, &mut bytes, flags)?;
            let entry = table | flags.of(geometry.cluster_index(table))?;
            if entry != l1.entries[index] {
                l1.entries[index] = entry;
                let sector = index as u64 * 8 / SECTOR_BYTES;
                if changed.last() != Some(&sector) {
                    changed.push(sector);
                }
            }
        }
        for sector in changed.into_iter().filter(|_| stored) {
            let from = (sector * SECTOR_BYTES / 8) as usize;
            let to = (from + SECTOR_BYTES as usize / 8).min(l1.entries.len());
            let part: Vec<u8> = l1.entries[from..to].iter().flat_map(|e| e.to_be_bytes()).collect();
            let at = l1.offset + sector * SECTOR_BYTES;
            self.shared.guard.check_table_write(Purpose::L1, at, part.len() as u64)?;
            self.shared.medium.write_live(Purpose::L1, at, &part)?;
        }
        Ok(())
    }

    fn set_table_flags(&self, table: u64, bytes: &mut [u8], flags: Flags<'_>) -> Result<()> {
        let sector_bytes = SECTOR_BYTES as usize;
        // Sectors `[first, end)` that have changed.
        let mut dirty: Option<(usize, usize)> = None;
        let entry_bytes = self.geometry.l2_entry_bytes() as usize;
        // One flag for all entries of a run, where that is known.
        let (mut run_end, mut run_flag) = (0, None);
        for at in (0..bytes.len()).step_by(entry_bytes) {
            let entry = be64(bytes, at);
            let host = entry & OFFSET_MASK;
            if entry & COMPRESSED != 0 || host == 0 {
                continue;
            }
            let first = self.geometry.cluster_index(host);
            if at >= run_end {
                let count = plain_run(&self.geometry, &bytes[at..]).max(1);
                run_end = at + count * entry_bytes;
                run_flag = flags.of_run(ClusterRun { first, count: count as u64 })?;
            }
            let flag = match run_flag {
                Some(flag) => flag,
                None => flags.of(first)?,
            };
            let wanted = entry & !COPIED | flag;
            if wanted != entry {
                bytes[at..at + 8].copy_from_slice(&wanted.to_be_bytes());
                let sector = at / sector_bytes;
                dirty = Some((dirty.map_or(sector, |d| d.0), sector + 1));
            }
        }
        let Some((first, end)) = dirty else { return Ok(()) };
        let part = &bytes[first * sector_bytes..end * sector_bytes];
        let at = table + (first * sector_bytes) as u64;
        // A table that a snapshot shares with the active tree is in the index as both.
        self.shared.guard.check(Owner::ANY_L2, at, part.len() as u64)?;
        self.shared.medium.write_live(Purpose::L2, at, part)
    }
}
