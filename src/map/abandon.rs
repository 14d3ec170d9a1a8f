//! Letting go of whole L2 tables as they are in memory, by whoever is alone: what has not been written to them need not
//! be, so that a host that is full can be given back what a failed growth has put there.

use super::Map;
use crate::error::Result;
use crate::format::entries::{L1Entry, L2Entry, RawL2};
use crate::format::{GuestCluster, HostCluster};
use crate::meta::guard::Owner;
use crate::meta::page::Change;
use crate::meta::{Page, Release};
use crate::storage::medium::Ticket;
use std::collections::BTreeSet;

/// What abandoned tables referred to; neighbours are one release.
#[derive(Default)]
struct Gone(Vec<Release>);

impl Gone {
    fn add(&mut self, release: Release) {
        if let Some(last) = self.0.last_mut() {
            let end = last.first_cluster + last.cluster_count;
            if end == release.first_cluster && last.discard == release.discard && last.owner == release.owner
            {
                last.cluster_count += release.cluster_count;
                return;
            }
        }
        self.0.push(release);
    }
}

impl Map {
    /// Clears the L1 entries from number `first` on whose tables are this L1 table's alone. Returns what these referred
    /// to; its counts may fall after the next barrier (R3).
    pub fn abandon_tables(&self, first: u64) -> Result<Vec<Release>> {
        let owned = |index: &u64| {
            let entry = L1Entry(self.l1.entry(*index as usize).descriptor);
            entry.table_offset() != 0 && entry.copied()
        };
        let tables: Vec<u64> = (first..self.l1_entries).filter(owned).collect();
        let (mut gone, mut done) = (Gone::default(), BTreeSet::new());
        // First what is in memory: it makes the room that the others need, and none of it has to be written for that.
        for in_memory in [true, false] {
            for index in &tables {
                self.abandon_slices(*index, in_memory, &mut done, &mut gone)?;
            }
        }
        for index in tables {
            let offset = self.l1_entry(index)?.table_offset();
            let value = RawL2::default();
            let table = Release::of(Owner::ACTIVE_L2, HostCluster(self.geometry.cluster_index(offset)), 1);
            let dropped = Some(Release { discard: true, ..table });
            let change = Change { entry: index as usize, value, after: Ticket::PAST, dropped };
            self.l1.update(change, &self.shared.medium, &*self.shared.readers, &self.list);
            self.shared.guard.remove(Owner::ACTIVE_L2, offset, self.geometry.cluster_bytes());
        }
        Ok(gone.0)
    }

    /// The slices of a table that are in memory, or the others.
    fn abandon_slices(
        &self,
        index: u64,
        in_memory: bool,
        done: &mut BTreeSet<u64>,
        gone: &mut Gone,
    ) -> Result<()> {
        let first = index * self.geometry.l2_entry_count();
        let table = self.l1_entry(index)?.table_offset();
        for number in 0..self.geometry.l2_entry_count() >> self.slice_entry_bits {
            let cluster = GuestCluster(first + (number << self.slice_entry_bits));
            let key = self.slice_key(cluster);
            let page = match in_memory {
                true => self.cache.find(key, std::sync::Arc::clone),
                false if done.contains(&key) => None,
                false => Some(self.slice(cluster, table, super::Access::Change)?),
            };
            let Some(page) = page else { continue };
            self.let_go(cluster, &page, gone)?;
            page.abandon(&self.list).into_iter().for_each(|release| gone.add(release));
            self.forget(key);
            if in_memory {
                done.insert(key);
            }
        }
        Ok(())
    }

    fn let_go(&self, first: GuestCluster, page: &Page, gone: &mut Gone) -> Result<()> {
        // What is in a data file is not counted.
        for index in (0..page.entry_count()).filter(|_| !self.geometry.external_data) {
            let release = match self.decode(first + index as u64, page.entry(index))? {
                L2Entry::Plain(m) => m.host.map(|h| Release::new(self.geometry.cluster_index(h), 1, true)),
                L2Entry::Compressed(span) => {
                    let (from, to) = span.clusters(&self.geometry);
                    Some(Release::new(from, to - from, true))
                }
            };
            if let Some(release) = release {
                self.check_release(&Some(release))?;
                gone.add(release);
            }
        }
        Ok(())
    }
}
