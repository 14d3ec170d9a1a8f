//! Writing a page: what may be on disk of it, and what of its changes is done with that.

use super::{DirtyPages, Held, Page, State, WORDS_PER_SECTOR};
use crate::error::Result;
use crate::format::entries::RawL2;
use crate::format::geometry::SECTOR_BYTES;
use crate::meta::guard::OverlapGuard;
use crate::meta::{InFlight, Release, Settler};
use crate::planted::{planted, Plant};
use crate::storage::medium::{Medium, Ticket};
use crate::sync::atomic::Ordering;
use crate::sync::locked;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a write-out takes from a page.
struct Ripe {
    /// First sector and bytes of each dirty run.
    runs: Vec<(usize, Vec<u8>)>,
    /// The changes in `runs` that let go of something.
    letting_go: Vec<Held>,
    /// Nothing waits any more.
    clean: bool,
}

impl Page {
    /// Forgets what has not been written: nothing leads to the table any more, or will before the next barrier. Returns
    /// what its changes had let go of. The caller is alone, and takes the page out of the cache.
    pub fn abandon(&self, list: &DirtyPages) -> Vec<Release> {
        let _order = locked(self.writing.lock());
        let mut state = self.lock();
        let mut releases = Vec::new();
        for held in state.take_held() {
            if held.waits {
                list.remove_waiting(held.after, 1);
            }
            list.count_plain(0, u64::from(held.dropped.is_none()));
            releases.extend(held.dropped);
        }
        list.let_go(&releases);
        state.newborn.abandon(list);
        state.dirty.clear();
        state.dirty_sectors = 0;
        releases
    }

    /// Writes what may be written. `Ok(false)`: changes that wait for a later sync are left, and the page is
    /// back on `list`, as it is after a failure.
    pub fn write_out(
        self: &Arc<Self>,
        medium: &Medium,
        guard: &OverlapGuard,
        settler: &dyn Settler,
        list: &DirtyPages,
        _announced: &InFlight<'_>,
    ) -> Result<bool> {
        let _order = (!planted(Plant::WriteOutsOvertake)).then(|| locked(self.writing.lock()));
        let ripe = self.take_ripe(medium, list);
        if let Err(e) = self.write_runs(&ripe.runs, medium, guard) {
            if !planted(Plant::UnwrittenPageForgotten) {
                self.take_back(ripe, list);
            }
            return Err(e);
        }
        let releases: Vec<Release> = ripe.letting_go.iter().filter_map(|h| h.dropped).collect();
        if !releases.is_empty() {
            list.let_go(&releases);
            settler.settle_after(medium.ticket(), releases);
        }
        Ok(ripe.clean)
    }

    /// Undoes `take_ripe` after a failed write, which may have left any part of its bytes in the file: all of them may
    /// be there.
    fn take_back(self: &Arc<Self>, ripe: Ripe, list: &DirtyPages) {
        let mut state = self.lock();
        for (first, bytes) in &ripe.runs {
            for sector in *first..first + bytes.len().div_ceil(SECTOR_BYTES as usize) {
                self.mark_sector_dirty(&mut state, sector);
            }
        }
        // P2: what was ripe is older than whatever is held of the same entry.
        let younger = state.take_held();
        ripe.letting_go.into_iter().chain(younger).for_each(|held| state.hold(held, self.entry_count()));
        let back = (!state.listed).then(|| Arc::clone(self));
        state.listed = true;
        list.put_back(back);
    }

    fn write_runs(&self, runs: &[(usize, Vec<u8>)], medium: &Medium, guard: &OverlapGuard) -> Result<()> {
        for (first_sector, bytes) in runs {
            let at = self.home + *first_sector as u64 * SECTOR_BYTES;
            guard.check_table_write(self.purpose, at, bytes.len() as u64)?;
            medium.write_live(self.purpose, at, bytes)?;
        }
        Ok(())
    }

    /// Copies the dirty sectors with the values that may be on disk now, and what ripe changes let go of.
    fn take_ripe(self: &Arc<Self>, medium: &Medium, list: &DirtyPages) -> Ripe {
        let mut state = self.lock();
        let some_past = state.newborn.any_past(medium) || state.held.iter().any(|h| medium.is_past(h.after));
        let waits = !state.held.is_empty() || !state.newborn.is_empty();
        if state.dirty_sectors == 0 && !some_past && waits {
            list.add(self);
            return Ripe { runs: Vec::new(), letting_go: Vec::new(), clean: false };
        }
        state.listed = false;
        self.ripen_newborn(&mut state, medium, list);
        let mut older = Vec::new();
        let mut blocked = BTreeSet::new();
        let mut letting_go = Vec::new();
        let mut kept = Vec::new();
        // Neighbours mostly wait for the same.
        let mut arrived = (Ticket::PAST, 0);
        for held in state.take_held() {
            let newborn = state.newborn.ticket_of(held.entry).is_some();
            if medium.is_past(held.after) && !newborn && !blocked.contains(&held.entry) {
                self.mark_dirty(&mut state, held.entry);
                if held.waits && held.after == arrived.0 {
                    arrived.1 += 1;
                } else if held.waits {
                    list.remove_waiting(arrived.0, arrived.1);
                    arrived = (held.after, 1);
                }
                if held.dropped.is_none() {
                    list.count_plain(0, 1);
                } else {
                    letting_go.push(Held { waits: false, ..held });
                }
                continue;
            }
            if !newborn && blocked.insert(held.entry) {
                older.push((held.entry, held.before));
            }
            kept.push(held);
        }
        list.remove_waiting(arrived.0, arrived.1);
        kept.into_iter().for_each(|held| state.hold(held, self.entry_count()));
        let unit = medium.storage().traits().alignment.max(SECTOR_BYTES) / SECTOR_BYTES;
        let runs = self.copy_dirty(&mut state, unit as usize, &older);
        let clean = older.is_empty() && state.newborn.is_empty();
        if !clean {
            state.listed = true;
            list.add(self);
        }
        Ripe { runs, letting_go, clean }
    }

    /// Copies runs of dirty sectors, widened to `unit` sectors where the page is large enough, and cleans them.
    fn copy_dirty(&self, state: &mut State, unit: usize, older: &[(usize, RawL2)]) -> Vec<(usize, Vec<u8>)> {
        let sectors = self.words.len().div_ceil(WORDS_PER_SECTOR);
        let unit = if sectors % unit == 0 { unit } else { 1 };
        let mut runs: Vec<(usize, Vec<u8>)> = Vec::new();
        let mut from = 0;
        while let Some(dirty) = state.dirty.next(from) {
            let sector = dirty / unit * unit;
            let end = (sector + unit).min(sectors);
            match runs.last_mut() {
                Some((first, run)) if *first + run.len().div_ceil(SECTOR_BYTES as usize) == sector => {
                    self.copy_sectors(sector, end, run)
                }
                _ => {
                    let mut run = Vec::new();
                    self.copy_sectors(sector, end, &mut run);
                    runs.push((sector, run));
                }
            }
            from = end;
        }
        let nothing = RawL2::default();
        for (first, run) in &mut runs {
            self.put_older(*first, run, older.iter().copied());
            self.put_older(*first, run, state.newborn.entries().map(|entry| (entry, nothing)));
        }
        state.dirty.clear();
        state.dirty_sectors = 0;
        runs
    }

    fn copy_sectors(&self, from: usize, to: usize, run: &mut Vec<u8>) {
        let words = &self.words[from * WORDS_PER_SECTOR..(to * WORDS_PER_SECTOR).min(self.words.len())];
        let start = run.len();
        run.resize(start + words.len() * 8, 0);
        for (bytes, word) in run[start..].chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.load(Ordering::SeqCst).to_be_bytes());
        }
    }

    /// Replaces entries that may not be on disk yet by the values that may.
    fn put_older(&self, first_sector: usize, run: &mut [u8], older: impl Iterator<Item = (usize, RawL2)>) {
        let start = first_sector * SECTOR_BYTES as usize;
        for (entry, before) in older {
            let at = entry * self.entry_words * 8;
            if at < start || at >= start + run.len() {
                continue;
            }
            before.put(&mut run[at - start..][..self.entry_words * 8]);
        }
    }
}
