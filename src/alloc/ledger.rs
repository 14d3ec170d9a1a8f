//! Choosing clusters: the search for free ones, and raising and lowering counts. One lock for all of it.

use super::ahead::Ahead;
use super::table::RefcountTable;
use super::{Allocator, Shared};
use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::MAX_HOST_OFFSET;
use crate::format::Geometry;
use crate::meta::guard::Owner;
use crate::meta::Release;
use crate::planted::{planted, Plant};
use crate::storage::is_not_supported;
use crate::storage::medium::{Ticket, Written};

/// Most bytes by which the file grows ahead of what is handed out.
const MAX_SPARE_BYTES: u64 = 16 << 20;
/// It is an eighth of the file, and at least these clusters, within limits.
const LEAST_SPARE_CLUSTERS: u64 = 16;
const LEAST_SPARE_BYTES: (u64, u64) = (64 << 10, 1 << 20);

/// Clusters chosen by the ledger.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) count: u64,
    /// Reads as zeroes on the medium: never used before, inside the durable length once `ticket` is past.
    pub(super) fresh: bool,
    pub(super) ticket: Ticket,
}

/// Reserved clusters: counted, referred to by nothing. Dropping gives them back.
#[must_use]
pub struct Reserved<'a> {
    allocator: &'a Allocator,
    run: Run,
    kept: bool,
}

impl<'a> Reserved<'a> {
    pub(super) fn new(allocator: &'a Allocator, run: Run) -> Self {
        Reserved { allocator, run, kept: false }
    }

    /// First cluster of the run.
    pub fn first_cluster(&self) -> u64 {
        self.run.first
    }

    /// Clusters in the run.
    pub fn cluster_count(&self) -> u64 {
        self.run.count
    }

    /// The clusters read as zeroes on the medium and need no padding.
    pub fn is_fresh(&self) -> bool {
        self.run.fresh
    }

    /// The clusters hold what they are to show once `contents` is durable (R2).
    pub fn filled(self, contents: Written) -> Filled<'a> {
        let contents = if planted(Plant::ContentsNotWaitedFor) { Ticket::PAST } else { contents.ticket() };
        self.filled_after(contents)
    }

    /// As `filled`, where the guest's range read as zeroes, and `contents` may be a part of the clusters: those that read
    /// as zeroes on the medium are what they are to show, old or new, whatever of `contents` is lost.
    pub fn filled_over_zeroes(self, contents: Written) -> Filled<'a> {
        match self.run.fresh {
            true => self.filled_after(Ticket::PAST),
            false => self.filled(contents),
        }
    }

    /// Clusters that are to show zeroes, where they are zeroes already; otherwise they come back.
    pub fn filled_with_zeroes(self) -> std::result::Result<Filled<'a>, Reserved<'a>> {
        match self.run.fresh {
            true => Ok(self.filled_after(Ticket::PAST)),
            false => Err(self),
        }
    }

    fn filled_after(self, contents: Ticket) -> Filled<'a> {
        let after = self.run.ticket.max(contents);
        Filled { reserved: self, after }
    }

    /// A pointer to the clusters has been stored: they stay.
    pub fn keep(mut self) {
        self.kept = true;
    }

    /// Gives all but the first `cluster_count` clusters back.
    pub fn shrink(&mut self, cluster_count: u64) {
        if cluster_count < self.run.count {
            self.allocator.give_back(self.run.first + cluster_count, self.run.count - cluster_count);
            self.run.count = cluster_count;
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.allocator.give_back(self.run.first, self.run.count);
        }
    }
}

/// Reserved clusters with their contents: all that a pointer to them asks for. Dropping gives the clusters back.
#[must_use]
pub struct Filled<'a> {
    reserved: Reserved<'a>,
    after: Ticket,
}

impl Filled<'_> {
    /// When counts (eager images), contents and the file's length are durable (R1, R2).
    pub fn ticket(&self) -> Ticket {
        self.after
    }

    /// Pointers to all of the clusters have been stored.
    pub fn keep(self) {
        self.reserved.keep();
    }

    /// Pointers to the first `cluster_count` clusters have been stored; the others go back.
    pub fn keep_first(mut self, cluster_count: u64) {
        if cluster_count > 0 {
            self.reserved.shrink(cluster_count);
            self.reserved.keep();
        }
    }
}

/// Bytes by which a file that ends at `end` grows ahead.
pub(super) fn spare_after(geometry: &Geometry, end: u64) -> u64 {
    let least = LEAST_SPARE_CLUSTERS << geometry.cluster_bits;
    (end / 8).clamp(least.clamp(LEAST_SPARE_BYTES.0, LEAST_SPARE_BYTES.1), MAX_SPARE_BYTES)
}

/// Cluster 0 is the header: an image whose refcounts say otherwise is damaged.
pub(super) fn refuse_header(shared: &Shared, first: u64) -> Result<()> {
    if first > 0 {
        return Ok(());
    }
    let found = Error::corrupt("refcount of cluster", 0, 0, "the header's cluster is counted as free");
    Err(shared.header.mark_corrupt(found))
}

/// The state behind the ledger lock.
pub struct Ledger {
    pub(super) table: RefcountTable,
    /// No cluster below is free.
    hint: u64,
    /// Clusters from here on have never been handed out by this handle and lie past the file's first length.
    frontier: u64,
    /// Length of the file when opened, and as set since.
    first_length: u64,
    length: u64,
    length_ticket: Ticket,
    /// One past the last cluster in use by this handle's doing.
    high_water: u64,
    zero_past_end: bool,
    /// Runs to punch, host bytes.
    holes: Vec<(u64, u64)>,
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
            let _ = self.lower(shared, Release::new(first, done, false), false);
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
        shared.guard.check(Owner(0), geometry.cluster_offset(first), count << geometry.cluster_bits)?;
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

    /// Whether `bytes` that wait to be free are worth a barrier: the next cluster is one that was never used, and they
    /// are as many as the file grows at once.
    pub(super) fn would_grow(&self, bytes: u64) -> bool {
        let used = self.geometry().cluster_offset(self.high_water);
        self.hint >= self.frontier && bytes >= spare_after(&self.geometry(), used)
    }

    pub(super) fn note_used(&mut self, first: u64, count: u64) {
        self.frontier = self.frontier.max(first + count);
        self.high_water = self.high_water.max(first + count);
    }

    /// Clusters before `end` may have been written: they are not fresh.
    pub(super) fn note_written(&mut self, end: u64) {
        self.frontier = self.frontier.max(end);
    }

    /// Before a barrier: a file that this handle has made longer, and that is almost used up, grows now. The sync
    /// that comes in any case covers its length; clusters handed out later need not wait for one of their own.
    pub(super) fn grow_ahead(&mut self, shared: &Shared) -> Result<()> {
        shared.medium.latch().check()?;
        let used = self.geometry().cluster_offset(self.high_water);
        let almost = self.geometry().cluster_ceil(used + spare_after(&self.geometry(), used) / 2);
        match almost.filter(|_| self.length > self.first_length) {
            Some(almost) => self.extend_file(shared, almost),
            None => Ok(()),
        }
    }

    /// Makes the file at least `end` bytes long, with some to spare.
    pub(super) fn extend_file(&mut self, shared: &Shared, end: u64) -> Result<()> {
        if end <= self.length {
            return Ok(());
        }
        let spare = spare_after(&self.geometry(), end);
        let medium = &shared.medium;
        // A damaged image may have data past its end, written in place behind the ledger's back: the file must
        // never get shorter here.
        let now = medium.storage().length().map_err(|e| Error::host("length of the image file", &e))?;
        if now >= end {
            self.length = now;
            self.length_ticket = shared.medium.ticket();
            return Ok(());
        }
        let wanted = self.geometry().cluster_ceil(end + spare).unwrap_or(end);
        let grown = match medium.grow(wanted)? {
            Ok(length) => length,
            // Too long for this file system, perhaps; what is needed may still fit.
            Err(_) => match medium.grow(end)? {
                Ok(length) => length,
                // A storage that cannot be resized grows by being written; pointers then wait for the sync.
                Err(e) if is_not_supported(&e) => {
                    self.length_ticket = shared.medium.ticket();
                    return Ok(());
                }
                Err(e) => {
                    return Err(Error::host(format_args!("extending the image file to {end} bytes"), &e))
                }
            },
        };
        self.length = grown;
        self.length_ticket = shared.medium.ticket();
        Ok(())
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
        let (first, count) = (release.first_cluster, release.cluster_count);
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
            self.hint = self.hint.min(from);
            self.packing = self.packing.filter(|p| !(from..to).contains(&self.geometry().cluster_index(*p)));
            if discard {
                self.add_hole(from, to);
            }
        }
        done.map_err(|(_, e)| e)?;
        Ok(single)
    }

    fn add_hole(&mut self, from: u64, to: u64) {
        let (from, to) = (self.geometry().cluster_offset(from), self.geometry().cluster_offset(to));
        match self.holes.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => self.holes.push((from, to)),
        }
    }

    /// Punches what `lower` collected. Done before anybody can reserve the clusters again (story C2).
    pub(super) fn punch(&mut self, shared: &Shared) -> Result<()> {
        for (from, to) in std::mem::take(&mut self.holes) {
            let end = to.min(self.length);
            if from < end {
                shared.medium.give_back(from, end - from)?;
            }
        }
        Ok(())
    }

    /// Cuts the file after the last cluster in use.
    pub(super) fn cut_file(&mut self, shared: &Shared) -> Result<()> {
        let length = self.geometry().clusters_ceil(self.length);
        // Metadata stays, whatever its count says.
        let end = self.table.used_end(shared, 0, length)?.max(shared.guard.end()?.min(length));
        self.high_water = end;
        self.first_length = self.first_length.min(self.geometry().cluster_offset(end));
        // Later clusters are zero again once the file has been cut, but the frontier may only rise.
        self.trim(shared)
    }

    /// Gives back what the file was grown ahead.
    pub(super) fn trim(&mut self, shared: &Shared) -> Result<()> {
        let least = self.geometry().cluster_offset(self.high_water).max(self.first_length);
        if !self.zero_past_end || least >= self.length {
            return Ok(());
        }
        shared.medium.latch().check()?;
        // A damaged image may refer to clusters that its file did not reach when it was opened.
        let (first, end) = (self.geometry().cluster_index(least), self.geometry().clusters_ceil(self.length));
        let end = self.table.used_end(shared, first, end)?;
        let wanted = self.geometry().cluster_offset(end).max(least);
        let now =
            shared.medium.storage().length().map_err(|e| Error::host("length of the image file", &e))?;
        if wanted >= self.length || now > self.length {
            return Ok(());
        }
        if shared.medium.cut(wanted)?.is_ok() {
            self.length = wanted;
        }
        Ok(())
    }
}
