//! Everything that a tree refers to, in runs of clusters.

use super::L1Table;
use crate::alloc::ClusterRun;
use crate::error::{zeroed, Error, ErrorKind, Result};
use crate::format::be64;
use crate::format::entries::{plain_run, L2Entry, RawL2, COMPRESSED, OFFSET_MASK};
use crate::format::{HostCluster, HostOffset};
use crate::image::Parts;
use crate::meta::guard::Owner;
use crate::storage::Purpose;
use std::ops::Range;

/// Runs that are collected before they are given on: 4 MiB of memory.
const BATCH_RUNS: usize = 256 << 10;

/// What a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum Walk {
    /// What the tree refers to gets one reference more.
    Raise,
    /// It is let go of: nothing may be among it that the entries do not own.
    Release,
}

/// Runs of clusters on their way to `each`, in batches.
struct Batch<'a> {
    runs: Vec<ClusterRun>,
    each: &'a mut dyn FnMut(&mut [ClusterRun]) -> Result<()>,
}

impl Batch<'_> {
    fn add(&mut self, first: HostCluster, count: u64) -> Result<()> {
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

impl L1Table {
    /// Gives every host cluster that the entries `part` and their trees refer to to `each`, in runs: L2 tables
    /// once for each L1 entry, data once for each L2 entry of each of them. The L1 table itself is not among them.
    pub(in crate::ops) fn walk(
        &self,
        parts: &Parts<'_>,
        part: Range<usize>,
        purpose: Walk,
        each: &mut dyn FnMut(&mut [ClusterRun]) -> Result<()>,
    ) -> Result<()> {
        let geometry = parts.geometry;
        let mut batch = Batch { runs: Vec::new(), each };
        let mut bytes = zeroed("L2 table", geometry.cluster_bytes())?;
        for index in part {
            let table = self.l2_table(geometry, index)?;
            if table == 0 {
                continue;
            }
            let cluster = geometry.cluster_index(HostOffset(table));
            if purpose == Walk::Release {
                parts.guard.check_release(Owner::ANY_L2, cluster, 1)?;
            }
            batch.add(cluster, 1)?;
            parts.medium.read_table(Purpose::L2, table, &mut bytes)?;
            // What is in a data file is not counted.
            if !geometry.external_data {
                walk_table(parts, index, &bytes, purpose, &mut batch)?;
            }
        }
        batch.give()
    }
}

/// The part of `walk` for the L2 table of L1 entry `index`.
fn walk_table(
    parts: &Parts<'_>,
    index: usize,
    bytes: &[u8],
    purpose: Walk,
    batch: &mut Batch<'_>,
) -> Result<()> {
    let geometry = parts.geometry;
    let entry_bytes = geometry.l2_entry_bytes() as usize;
    let mut add = |first, count| {
        if purpose == Walk::Release {
            parts.guard.check_release(Owner::NOBODY, first, count)?;
        }
        batch.add(first, count)
    };
    let mut at = 0;
    while at < bytes.len() {
        let run = plain_run(geometry, &bytes[at..]);
        if run > 0 {
            let host = HostOffset(be64(bytes, at) & OFFSET_MASK);
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
