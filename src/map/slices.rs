//! L2 slices in memory: the front and the cache behind it.

use super::Map;
use crate::error::{Error, Result};
use crate::format::geometry::MAX_HOST_OFFSET;
use crate::format::GuestCluster;
use crate::meta::{Access, Page};
use crate::storage::Purpose;
use std::sync::Arc;
use std::time::Instant;

impl Map {
    pub(super) fn slice_key(&self, cluster: GuestCluster) -> u64 {
        cluster.0 >> self.slice_entry_bits
    }

    pub(super) fn index_in_slice(&self, cluster: GuestCluster) -> usize {
        (cluster.0 & ((1 << self.slice_entry_bits) - 1)) as usize
    }

    /// The slice that maps guest cluster `cluster` in the L2 table at `table_offset`.
    pub(super) fn slice(
        &self,
        cluster: GuestCluster,
        table_offset: u64,
        access: Access,
    ) -> Result<Arc<Page>> {
        let key = self.slice_key(cluster);
        if let Some(page) = self.front.page(key) {
            return Ok(Arc::clone(page));
        }
        self.front.note_loading(key);
        let mut loaded = false;
        let page = self.cache.get(key, access, &self.write_out(), || {
            loaded = true;
            // The table may have been replaced while we waited for the set; whoever replaces it stores the L1
            // entry before it asks for the set, so now it is the right one.
            let now = self.l1_entry(cluster.0 / self.geometry.l2_entry_count())?.table_offset();
            self.load_slice(cluster, if now == 0 { table_offset } else { now })
        });
        // One that is only to be looked at is not in the cache, where VM state has taken the room.
        if let Some(page) = page.as_ref().ok().filter(|page| page.is_live()) {
            self.front.put(key, page);
        }
        if loaded {
            self.clean_if_due();
        }
        page
    }

    /// Drops the page of slice `key`, which must be clean.
    pub(super) fn forget(&self, key: u64) {
        self.front.note_leaving();
        self.cache.forget(key);
    }

    /// Runs the clean interval from the calls that load slices: memory only grows there.
    fn clean_if_due(&self) {
        let Some(interval) = self.clean_interval.filter(|_| self.front.is_empty()) else { return };
        let Ok(mut last) = self.last_clean.try_lock() else { return };
        if last.elapsed() >= interval {
            *last = Instant::now();
            drop(last);
            self.cache.forget_unused();
        }
    }

    fn load_slice(&self, cluster: GuestCluster, table_offset: u64) -> Result<Page> {
        if table_offset >= MAX_HOST_OFFSET {
            return Err(Error::corrupt(
                "L2 table of guest cluster",
                cluster,
                table_offset,
                "offset is past 2^56",
            ));
        }
        let entry_bytes = self.geometry.l2_entry_bytes();
        let slice_bytes = entry_bytes << self.slice_entry_bits;
        let in_table = cluster.0 & (self.geometry.l2_entry_count() - 1);
        let home = table_offset + (in_table >> self.slice_entry_bits) * slice_bytes;
        Page::read(&self.shared.medium, Purpose::L2, home, (entry_bytes / 8) as usize, slice_bytes)
    }

    /// Drops slices that no request used since the last call. `true`: the cache holds the whole disk and no
    /// request has used it, so that loading the image anew would free all of it.
    pub fn forget_unused(&self) -> bool {
        if self.front.is_empty() {
            self.cache.forget_unused();
            return false;
        }
        self.front.take_idle()
    }
}
