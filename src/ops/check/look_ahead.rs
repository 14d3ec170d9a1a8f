//! L2 tables looked at before their turn, by several threads, when the caller has asked for them.
//!
//! The pass itself stays what it is: one thread, one order, which decides what is counted and told. What it gets
//! from here are the **plain runs** of a table in which nothing is to be told. Of any other table it gets nothing, and
//! reads it as it would without help. Plain runs are of use as long as the pass has written nothing.

use crate::codec::is_zero;
use crate::format::entries::{plain_run, L1Entry, L1_RESERVED, OFFSET_MASK};
use crate::format::{be64, be64s, Geometry};
use crate::storage::{helper, read_exact, Purpose, Storage};
use crate::sync::locked;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

/// Tables that each thread is given at once.
const TABLES_PER_WORKER: usize = 32;

/// The plain runs of a table, in order: the first entry, and the number of entries.
pub(super) type PlainRuns = Vec<(u64, u64)>;

/// Who looks ahead.
#[derive(Clone, Copy)]
pub(super) struct LookAhead<'a> {
    pub storage: &'a dyn Storage,
    pub geometry: &'a Geometry,
    pub file_length: u64,
    /// Threads, the caller's among them.
    pub workers: usize,
}

impl LookAhead<'_> {
    /// L1 entries that are looked at in one go.
    pub fn batch_entries(&self) -> usize {
        TABLES_PER_WORKER * self.workers
    }

    /// The plain runs of the tables that L1 entries name, by host offset, but for those that are `known`.
    pub fn plain_tables(&self, l1: &[u8], known: impl Fn(u64) -> bool) -> HashMap<u64, PlainRuns> {
        let cluster_bytes = self.geometry.cluster_bytes();
        let sound = |entry: u64| entry & L1_RESERVED & !OFFSET_MASK == 0;
        let whole = |at: u64| at % cluster_bytes == 0 && at.saturating_add(cluster_bytes) <= self.file_length;
        let mut tables: Vec<u64> = be64s(l1)
            .filter(|entry| sound(*entry))
            .map(|entry| L1Entry(entry).table_offset())
            .filter(|at| *at != 0 && whole(*at) && !known(*at))
            .collect();
        tables.sort_unstable();
        tables.dedup();
        let next = AtomicUsize::new(0);
        let found = Mutex::new(HashMap::with_capacity(tables.len()));
        let work = || {
            let mut buffer = vec![0; cluster_bytes as usize];
            while let Some(at) = tables.get(next.fetch_add(1, Ordering::Relaxed)) {
                // A table that cannot be read is the pass's to tell.
                let read = read_exact(self.storage, Purpose::L2, *at, &mut buffer);
                if let Some(runs) = read.ok().and_then(|()| runs(self.geometry, &buffer)) {
                    locked(found.lock()).insert(*at, runs);
                }
            }
        };
        std::thread::scope(|scope| {
            // A host that has no more threads to give leaves the work to this one.
            let helpers = (1..self.workers.min(tables.len())).map_while(|_| helper::start(scope, work));
            let _helpers: Vec<_> = helpers.collect();
            work();
        });
        locked(found.into_inner())
    }
}

/// `None`: there is more in the table than plain runs.
fn runs(geometry: &Geometry, table: &[u8]) -> Option<PlainRuns> {
    let entry_bytes = geometry.l2_entry_bytes() as usize;
    let mut runs = PlainRuns::new();
    let mut at = 0;
    while at < table.len() {
        let run = plain_run(geometry, &table[at..]);
        match run {
            0 if is_zero(&table[at..at + entry_bytes]) => at += entry_bytes,
            0 => return None,
            run => {
                runs.push((be64(table, at), run as u64));
                at += run * entry_bytes;
            }
        }
    }
    Some(runs)
}
