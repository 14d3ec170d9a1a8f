//! The COPIED flags of a tree.

use super::L1Table;
use crate::alloc::{Allocator, ClusterRun};
use crate::error::{room, zeroed, Result};
use crate::format::be64;
use crate::format::entries::{plain_run, COMPRESSED, COPIED, OFFSET_MASK};
use crate::format::geometry::SECTOR_BYTES;
use crate::format::HostOffset;
use crate::image::Parts;
use crate::meta::guard::Owner;
use crate::storage::Purpose;

/// What a COPIED flag becomes.
#[derive(Clone, Copy)]
pub(in crate::ops) enum Flags<'a> {
    /// Cleared everywhere: below a table that counts as shared, too, for a count that has leaked says nothing of its
    /// entries.
    Clear,
    /// Set exactly where the count is one.
    Match(&'a Allocator),
}

impl Flags<'_> {
    fn of(&self, cluster: u64) -> Result<u64> {
        Ok(match self {
            Flags::Clear => 0,
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

/// Brings the flags of the active tree to what the counts say, durable ones.
pub(in crate::ops) fn match_flags(parts: &Parts<'_>) -> Result<()> {
    parts.make_durable()?;
    L1Table::active(parts)?.set_flags(parts, true, Flags::Match(parts.alloc))
}

impl L1Table {
    /// Brings the COPIED flags of the tree to what `flags` says, on the medium and in `entries`. Only flags
    /// change, so any part of it may survive a power cut. `stored`: the L1 entries are on the medium.
    pub(in crate::ops) fn set_flags(
        &mut self,
        parts: &Parts<'_>,
        stored: bool,
        flags: Flags<'_>,
    ) -> Result<()> {
        let (geometry, count) = (parts.geometry, self.entries.len());
        let mut bytes = zeroed("L2 table", geometry.cluster_bytes())?;
        // Sectors of the table that change: as many at most as it has.
        let mut changed = room("L1 table", count as u64 * 8 / SECTOR_BYTES + 1)?;
        for index in 0..count {
            let table = self.l2_table(geometry, index)?;
            if table == 0 {
                continue;
            }
            parts.medium.read_table(Purpose::L2, table, &mut bytes)?;
            set_table_flags(parts, table, &mut bytes, flags)?;
            let entry = table | flags.of(geometry.cluster_index(table))?;
            if entry != self.entries[index] {
                self.entries[index] = entry;
                let sector = index as u64 * 8 / SECTOR_BYTES;
                if changed.last() != Some(&sector) {
                    changed.push(sector);
                }
            }
        }
        for sector in changed.into_iter().filter(|_| stored) {
            let from = (sector * SECTOR_BYTES / 8) as usize;
            let to = (from + SECTOR_BYTES as usize / 8).min(self.entries.len());
            let part: Vec<u8> = self.entries[from..to].iter().flat_map(|e| e.to_be_bytes()).collect();
            let at = self.offset + sector * SECTOR_BYTES;
            parts.guard.check_table_write(Purpose::L1, at, part.len() as u64)?;
            parts.medium.write_live(Purpose::L1, at, &part)?;
        }
        Ok(())
    }
}

fn set_table_flags(parts: &Parts<'_>, table: u64, bytes: &mut [u8], flags: Flags<'_>) -> Result<()> {
    let sector_bytes = SECTOR_BYTES as usize;
    // Sectors `[first, end)` that have changed.
    let mut dirty: Option<(usize, usize)> = None;
    let entry_bytes = parts.geometry.l2_entry_bytes() as usize;
    // One flag for all entries of a run, where that is known.
    let (mut run_end, mut run_flag) = (0, None);
    for at in (0..bytes.len()).step_by(entry_bytes) {
        let entry = be64(bytes, at);
        let host = entry & OFFSET_MASK;
        if entry & COMPRESSED != 0 || host == 0 {
            continue;
        }
        let first = || parts.geometry.cluster_index(HostOffset(host));
        if at >= run_end {
            let count = plain_run(parts.geometry, &bytes[at..]).max(1);
            run_end = at + count * entry_bytes;
            run_flag = flags.of_run(ClusterRun { first: first(), count: count as u64 })?;
        }
        let flag = match run_flag {
            Some(flag) => flag,
            None => flags.of(first().0)?,
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
    parts.guard.check(Owner::ANY_L2, HostOffset(at), part.len() as u64)?;
    parts.medium.write_live(Purpose::L2, at, part)
}
