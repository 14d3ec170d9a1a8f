//! Choosing clusters: the search for free ones, and raising and lowering counts. One lock for all of it, and for the
//! length of the file (`end`).

use super::reserved::Run;
use super::table::RefcountTable;
use super::Shared;
use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::MAX_HOST_OFFSET;
use crate::format::{Geometry, HostCluster};
use crate::meta::guard::Owner;
use crate::meta::Release;
use crate::planted::{planted, Plant};
use crate::storage::event::Event;
use crate::storage::medium::Ticket;

/// Cluster 0 is the header: an image whose refcounts say otherwise is damaged.
pub(super) fn refuse_header(shared: &Shared, first: u64) -> Result<()> {
    if first > 0 {
        return Ok(());
    }
    let found = Error::corrupt("refcount of cluster", 0, 0, "the header's cluster is counted as free");
    Err(shared.header.mark_corrupt(found))
}

/// Clusters whose counts have been raised ahead (`ahead`).
#[derive(Default)]
pub(super) struct Ahead {
    pub(super) first: u64,
    pub(super) count: u64,
    /// When their counts are durable.
    pub(super) ticket: Ticket,
    /// A count was raised for use since the last barrier.
    pub(super) raised: bool,
    /// Clusters that this handle has used.
    pub(super) used: u64,
    /// Barriers still to come that write the counts that they must and no others; `None`: all of them.
    pub(super) wait: Option<u32>,
}

impl Ahead {
    /// Nothing ahead yet, nor before `wait` barriers have written counts.
    fn after(wait: Option<u32>) -> Ahead {
        Ahead { wait, ..Ahead::default() }
    }
}

/// The state behind the ledger lock.
pub struct Ledger {
    pub(super) table: RefcountTable,
    /// No cluster below is free.
    hint: u64,
    /// Clusters from here on have never been handed out by this handle and lie past the file's first length.
    pub(super) frontier: u64,
    /// Length of the file when opened, and as set since.
    pub(super) first_length: u64,
    pub(super) length: u64,
    pub(super) length_ticket: Ticket,
    /// One past the last cluster in use by this handle's doing.
    pub(super) high_water: u64,
    pub(super) zero_past_end: bool,
    /// Runs to punch, host bytes.
    pub(super) holes: Vec<(u64, u64)>,
    /// Where the next compressed stream goes: inside the last cluster of the one before, which is in use.
    pub(super) packing: Option<u64>,
    pub(super) ahead: Ahead,
}

impl Ledger {
    pub(super) fn new(table: RefcountTable, shared: &Shared, ahead_after: Option<u32>) -> Result<Self> {
        let storage = shared.medium.storage();
        let length = storage.length().map_err(|e| Error::host("length of the image file", &e))?;
        let frontier = table.geometry.clusters_ceil(length);
        Ok(Ledger {
            table,
            hint: 0,
            frontier,
            first_length: length,
            length,
            length_ticket: Ticket::PAST,
            high_water: frontier,
            zero_past_end: storage.traits().zero_past_end,
            holes: Vec::new(),
            packing: None,
            ahead: Ahead::after(ahead_after),
        })
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.table.geometry
    }

    pub(super) fn count(&mut self, shared: &Shared, cluster: u64) -> Result<u64> {
        self.table.get(shared, cluster)
    }

    pub(super) fn write_dirty(&mut self, shared: &Shared) -> Result<()> {
        self.table.write_dirty(shared)
    }

    /// The first free cluster at or after `from`.
    pub(super) fn first_free(&mut self, shared: &Shared, from: u64) -> Result<u64> {
        let mut at = from;
        loop {
            if self.geometry().cluster_offset(at) >= MAX_HOST_OFFSET {
                return Err(Error::new(ErrorKind::TooLarge, "no free cluster below host offset 2^56"));
            }
            if let Some(free) = self.table.first_free_in_block(shared, at, u64::MAX)? {
                return Ok(free);
            }
            let per_block = self.geometry().refcount_block_entries();
            at = (at / per_block + 1) * per_block;
        }
    }

    /// No cluster below is free.
    pub(super) fn hint(&self) -> u64 {
        self.hint
    }

    /// Up to `count` free clusters in a row, with raised counts.
    pub(super) fn take_run(&mut self, shared: &Shared, count: u64, lazy: bool) -> Result<Run> {
        if let Some(run) = self.take_ahead(shared, count)? {
            return Ok(run);
        }
        let first = self.first_covered_free(shared)?;
        let mut taken = 1;
        while taken < count {
            let cluster = first + taken;
            // A cluster without a block ends the run: the next one makes the block.
            if self.table.block_offset(shared, cluster)?.is_none() || self.table.get(shared, cluster)? != 0 {
                break;
            }
            taken += 1;
        }
        self.raise(shared, first, taken, lazy)
    }

    /// Exactly `count` free clusters in a row.
    pub(super) fn take_contiguous(&mut self, shared: &Shared, count: u64, lazy: bool) -> Result<Run> {
        let per_block = self.geometry().refcount_block_entries();
        let mut first = self.first_covered_free(shared)?;
        let mut length = 0;
        while length < count {
            let cluster = first + length;
            if self.table.block_offset(shared, cluster)?.is_none() {
                // A block among the clusters that it counts parts the run: a longer one would never find its place.
                if length > 0 && count >= per_block && self.table.has_entry_for(cluster) {
                    self.add_block_at(shared, cluster, first)?;
                    first += 1;
                    length -= 1;
                } else {
                    self.add_block(shared, cluster)?;
                }
            }
            if self.table.get(shared, cluster)? == 0 {
                length += 1;
            } else {
                first = self.first_free(shared, cluster + 1)?;
                length = 0;
            }
        }
        self.raise(shared, first, count, lazy)
    }

    /// The first free cluster whose count has a place, after making one where it is missing.
    pub(super) fn first_covered_free(&mut self, shared: &Shared) -> Result<u64> {
        loop {
            let first = self.first_free(shared, self.hint)?;
            self.hint = first;
            if self.table.block_offset(shared, first)?.is_some() {
                return Ok(first);
            }
            self.add_block(shared, first)?;
        }
    }

    pub(super) fn raise(&mut self, shared: &Shared, first: u64, count: u64, lazy: bool) -> Result<Run> {
        let (fresh, _) = self.make_ready(shared, first, count)?;
        if let Err((done, e)) = self.table.change_run(shared, first, count, &mut |_, _| Ok(1)) {
            let _ = self.lower(shared, Release::new(HostCluster(first), done, false), false);
            return Err(e);
        }
        self.ahead.raised = true;
        self.ahead.used += count;
        if first == self.hint {
            self.hint = first + count;
        }
        Ok(Run { first, count, fresh, ticket: self.ticket_now(shared, lazy) })
    }

    /// Checks a run that is about to be used and makes the file reach over it. Whether it reads as zeroes, and
    /// when the file's length is durable.
    pub(super) fn make_ready(&mut self, shared: &Shared, first: u64, count: u64) -> Result<(bool, Ticket)> {
        let geometry = self.geometry();
        shared.guard.check(
            Owner::NOBODY,
            geometry.cluster_offset(HostCluster(first)),
            count << geometry.cluster_bits,
        )?;
        refuse_header(shared, first)?;
        self.extend_file(shared, geometry.cluster_offset(first + count))?;
        let inside = geometry.cluster_offset(first + count) <= self.length;
        let fresh = self.zero_past_end && inside && first >= self.frontier;
        self.note_used(first, count);
        Ok((fresh, self.ticket_now(shared, true)))
    }

    /// When the file's length, and in an eager image the counts raised so far, are durable.
    pub(super) fn ticket_now(&self, shared: &Shared, lazy: bool) -> Ticket {
        let length = if planted(Plant::LengthNotWaitedFor) { Ticket::PAST } else { self.length_ticket };
        match lazy {
            true => length,
            false => length.max(shared.medium.ticket()),
        }
    }

    pub(super) fn note_used(&mut self, first: u64, count: u64) {
        self.frontier = self.frontier.max(first + count);
        self.high_water = self.high_water.max(first + count);
    }

    /// Clusters before `end` may have been written: they are not fresh.
    pub(super) fn note_written(&mut self, end: u64) {
        self.frontier = self.frontier.max(end);
    }

    /// Lowers the counts of a run by one. Clusters that nobody refers to any more become free, and with
    /// `discard` are given back to the host. `true`: a count has become one.
    pub(super) fn lower(&mut self, shared: &Shared, release: Release, discard: bool) -> Result<bool> {
        shared.guard.check_release(release.owner, release.first_cluster, release.cluster_count)?;
        self.lower_by(shared, release, 1, discard)
    }

    /// As `lower`, by `times`, without a look at who owns the clusters: for counts that this session has raised for
    /// what came to nothing, and for what has been looked at.
    pub(super) fn lower_by(
        &mut self,
        shared: &Shared,
        release: Release,
        times: u64,
        discard: bool,
    ) -> Result<bool> {
        let (mut freed, mut single) = (Vec::new(), false);
        let (first, count) = (release.first_cluster.0, release.cluster_count);
        let done =
            self.table.shift_run(shared, first, count, &mut |clusters, least, most| match (least, most) {
                // Already free: the image is damaged, and there is nothing to give back.
                (0, 0) => Ok(Some(0)),
                (same, most) if same == most && same <= times => {
                    match freed.last_mut() {
                        Some((_, end)) if *end == clusters.start => *end = clusters.end,
                        _ => freed.push((clusters.start, clusters.end)),
                    }
                    Ok(Some(0i64.wrapping_sub_unsigned(same)))
                }
                (least, _) if least > times => {
                    single |= least == times + 1;
                    Ok(Some(0i64.wrapping_sub_unsigned(times)))
                }
                _ => Ok(None),
            });
        for (from, to) in freed {
            shared.medium.storage().event(Event::ClusterFree);
            self.hint = self.hint.min(from);
            self.packing = self.packing.filter(|p| !(from..to).contains(&self.geometry().cluster_index(*p)));
            if discard {
                self.add_hole(from, to);
            }
        }
        done.map_err(|(_, e)| e)?;
        Ok(single)
    }
}
