//! Changes of L2 entries: `link_run` is the only way to one that names a host cluster anew.

use super::{Claim, Map, NewEntry};
use crate::alloc::Filled;
use crate::error::Result;
use crate::format::entries::{L2Entry, Mapping};
use crate::format::GuestCluster;
use crate::meta::page::Change;
use crate::meta::{Access, Release};
use crate::storage::medium::{Ticket, Written};

impl Map {
    /// Links filled clusters to the `count` claimed guest clusters from `first` on, whose table is owned; `entry_of` says
    /// what each becomes, by its number in the run, which is also the number of its host cluster unless there is one
    /// entry only. After a failure what has been linked stays, with its host clusters, and the others go back.
    #[inline(always)]
    pub fn link_run(
        &self,
        claim: &Claim<'_>,
        first: GuestCluster,
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
    pub fn relink(
        &self,
        claim: &Claim<'_>,
        cluster: GuestCluster,
        entry: NewEntry,
        written: Written,
    ) -> Result<()> {
        self.store(claim, cluster, entry, written.ticket())
    }

    /// Says that a claimed cluster whose table is owned has its place in the data file, which reads as zeroes there,
    /// durably: nothing is counted there, and nothing was written.
    pub fn place_in_data_file(&self, claim: &Claim<'_>, cluster: GuestCluster, new: Mapping) -> Result<()> {
        debug_assert!(self.geometry.external_data, "a cluster without a count");
        self.store(claim, cluster, NewEntry { new: new.into(), dropped: None }, Ticket::PAST)
    }

    /// Changes the entry of a claimed cluster whose table is owned to one that shows less of a host cluster, or names none:
    /// nothing has to be written for that, but to a data file that shows what the disk shows.
    pub fn unmap(
        &self,
        claim: &Claim<'_>,
        cluster: GuestCluster,
        entry: NewEntry,
        zeroed: Option<Written>,
    ) -> Result<()> {
        debug_assert!(shows_no_more(&self.entry(claim, cluster)?, &entry.new), "an entry without contents");
        self.store(claim, cluster, entry, zeroed.map_or(Ticket::PAST, Written::ticket))
    }

    /// Fails before anything has changed when an entry would let go of what it does not own.
    #[inline]
    pub(super) fn check_release(&self, dropped: &Option<Release>) -> Result<()> {
        match dropped {
            Some(r) => self.shared.guard.check_release(r.owner, r.first_cluster, r.cluster_count),
            None => Ok(()),
        }
    }

    fn store(&self, _claim: &Claim<'_>, cluster: GuestCluster, entry: NewEntry, after: Ticket) -> Result<()> {
        self.check_release(&entry.dropped)?;
        let l1_index = cluster.0 / self.geometry.l2_entry_count();
        let value = entry.new.encode(&self.geometry);
        let change = Change { entry: self.index_in_slice(cluster), value, after, dropped: entry.dropped };
        loop {
            let table = self.l1_entry(l1_index)?.table_offset();
            debug_assert_ne!(table, 0, "link without own_table");
            let loaded;
            let page = match self.front.page(self.slice_key(cluster)) {
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
            if page.update(change, &self.shared.medium, &*self.shared.readers, &self.list) {
                return Ok(());
            }
        }
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
