//! Writes: in place where nothing else refers to the clusters, otherwise into reserved clusters that are
//! linked once their contents are written.
//!
//! Power cut after any line of an allocating write: the old entry is in force until the new one is written,
//! and that waits for counts, file length and contents (tickets). What was reserved and not linked leaks.

use super::buffers::Gather;
use super::payload::Place;
use super::{check_range, total, Core, Io};
use crate::alloc::{Allocator, Reserved};
use crate::error::{zeroed, Error, Result};
use crate::format::entries::{L2Entry, Mapping};
use crate::format::{GuestCluster, GuestOffset, HostOffset};
use crate::map::{Claim, Look, NewEntry, Source};
use crate::meta::Release;
use crate::planted::{planted, Plant};
use std::io::IoSlice;
use std::sync::atomic::Ordering;

/// Most guest bytes that one allocating step handles: bounds what a claim keeps others from.
const STEP_BYTES: u64 = 64 << 20;
/// Bytes that wait to be free before a write asks for a barrier: least and most.
const PENDING_BYTES: (u64, u64) = (1 << 20, 64 << 20);

/// Most changes that let go of clusters and wait for a barrier: bounds the memory that they take.
pub(super) const MAX_WAITING: u64 = 1 << 18;

/// Guest clusters that get the same treatment, with what they held.
struct Run {
    first_cluster: GuestCluster,
    old: Vec<L2Entry>,
    /// Preallocated host clusters that are used as they are.
    reuse: Option<HostOffset>,
    /// Where the first byte to write is, of a run that is one cluster with nothing to be done but to write.
    in_place: Option<HostOffset>,
}

/// Bytes `[from, to)` of the run, relative to its first cluster, that one write covers.
struct Span {
    from: u64,
    to: u64,
}

impl Core {
    /// Writes `buffers` at `offset`.
    pub(crate) fn write(&self, offset: GuestOffset, buffers: &[IoSlice<'_>]) -> Result<()> {
        let Some(bytes) = total(buffers.iter().map(|b| b.len())) else {
            return Err(Error::invalid("the buffers are longer than 2^63 bytes together"));
        };
        check_range(self.virtual_size, offset.0, bytes)?;
        let (io, alloc) = self.begin_change(offset, bytes)?;
        self.write_at(io, alloc, offset, bytes, buffers)?;
        if planted(Plant::MarkedAfterWrite) {
            self.mark_late(offset, bytes);
        }
        Ok(())
    }

    /// Writes to a range of the disk or of the VM state, which the L1 table has room for.
    pub(super) fn write_at(
        &self,
        io: &Io,
        alloc: &Allocator,
        offset: GuestOffset,
        bytes: u64,
        buffers: &[IoSlice<'_>],
    ) -> Result<()> {
        let mut source = Gather::new(buffers);
        let mut done = 0;
        while done < bytes {
            let at = offset + done;
            let step = match self.in_place(io, at, bytes - done)? {
                Some((host, length)) => {
                    self.write_in_place(Place { guest: at, host }, length, &source)?;
                    if self.raw_data_file && !self.is_still_in_place(io, at, length)? {
                        continue;
                    }
                    length
                }
                None => {
                    self.relieve(io, alloc)?;
                    self.write_allocating(io, alloc, at, bytes - done, &source)?
                }
            };
            source.advance(step);
            done += step;
        }
        Ok(())
    }

    /// Overwrites a range inside one cluster where it is, if looks alone can tell that there is no more to it.
    /// `false`: it is to be written as any other.
    #[inline(always)]
    pub(super) fn overwrite(&self, offset: GuestOffset, bytes: &[u8]) -> Result<bool> {
        let length = bytes.len() as u64;
        let Some(io) = self.io.as_ref().filter(|_| self.writes_are_plain.load(Ordering::Relaxed)) else {
            return Ok(false);
        };
        if length > self.virtual_size || offset.0 > self.virtual_size - length || length == 0 {
            return Ok(false);
        }
        match io.map.look(offset, length) {
            Look::Data(host, true) => {
                if self.shared.header.autoclear_pending() && !self.note_overwrite(offset, length)? {
                    return Ok(false);
                }
                let Some(done) = self.payload.write_clear(Place { guest: offset, host }, bytes) else {
                    return Ok(false);
                };
                done?;
                Ok(!self.raw_data_file || self.is_still_in_place(io, offset, length)?)
            }
            _ => Ok(false),
        }
    }

    /// Host offset and length of what may be overwritten where it is.
    #[inline]
    fn in_place(&self, io: &Io, at: GuestOffset, bytes: u64) -> Result<Option<(HostOffset, u64)>> {
        if io.map.look(at, bytes) == Look::Hole {
            return Ok(None);
        }
        let extent = io.map.resolve(at, bytes)?;
        let in_place = extent.in_place || extent.source == Source::Data && planted(Plant::CopiedIgnored);
        Ok(extent.host.filter(|_| in_place).map(|host| (host, extent.length)))
    }

    fn write_in_place(&self, place: Place, length: u64, source: &Gather<'_>) -> Result<()> {
        if let Some(part) = source.peek_one(length) {
            return self.payload.write(place, &[IoSlice::new(part)]).map(drop);
        }
        let mut parts = Vec::with_capacity(4);
        source.peek_into(length, &mut parts);
        self.payload.write(place, &parts).map(drop)
    }

    /// Freed clusters become free at barriers; a guest that never flushes must not grow the file for ever.
    #[inline(always)]
    pub(super) fn relieve(&self, io: &Io, alloc: &Allocator) -> Result<()> {
        let held = io.map.held_clusters() + io.map.held_plain();
        match alloc.pending_clusters() + held {
            0 => Ok(()),
            MAX_WAITING.. if alloc.pending_runs() as u64 + held > MAX_WAITING => self.flush(),
            _ => self.relieve_of(alloc.pending_to_free() + io.map.held_to_free(), alloc),
        }
    }

    fn relieve_of(&self, to_free: u64, alloc: &Allocator) -> Result<()> {
        let waiting = to_free << self.geometry.cluster_bits;
        let limit = (self.virtual_size / 8).clamp(PENDING_BYTES.0, PENDING_BYTES.1);
        if waiting > limit || (waiting >= PENDING_BYTES.0 && alloc.would_grow(waiting)) {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes the start of a range whose first byte cannot be written in place; returns how much.
    fn write_allocating(
        &self,
        io: &Io,
        alloc: &Allocator,
        at: GuestOffset,
        bytes: u64,
        source: &Gather<'_>,
    ) -> Result<u64> {
        let geometry = &self.geometry;
        let table_bytes = geometry.l2_table_guest_bytes();
        let table_end = GuestOffset((at.0 & !(table_bytes - 1)).saturating_add(table_bytes));
        let end = (at + bytes.min(STEP_BYTES)).min(table_end);
        let first_cluster = geometry.cluster_index(at);
        let claim = io.map.claim(first_cluster, geometry.cluster_after(end));
        self.write_claimed(io, alloc, &claim, at, end, source)
    }

    /// Writes the start of a claimed range inside one L2 table; how much.
    pub(super) fn write_claimed(
        &self,
        io: &Io,
        alloc: &Allocator,
        claim: &Claim<'_>,
        at: GuestOffset,
        end: GuestOffset,
        source: &Gather<'_>,
    ) -> Result<u64> {
        let geometry = &self.geometry;
        let first_cluster = geometry.cluster_index(at);
        let mut run = self.find_run(io, claim, at, end)?;
        if let Some(host) = run.in_place {
            // The entry has been linked while we waited for the claim.
            let length = geometry.cluster_bytes().min(end - geometry.cluster_offset(first_cluster))
                - geometry.in_cluster(at);
            self.write_in_place(Place { guest: at, host }, length, source)?;
            return Ok(length);
        }
        io.map.own_table(claim, first_cluster)?;
        let reserved = match run.reuse {
            Some(_) => None,
            None => Some(alloc.reserve(run.old.len() as u64)?),
        };
        if let Some(reserved) = &reserved {
            run.old.truncate(reserved.cluster_count() as usize);
        }
        let run_start = geometry.cluster_offset(first_cluster);
        let run_bytes = (run.old.len() as u64) << geometry.cluster_bits;
        let payload = Span { from: at - run_start, to: (end - run_start).min(run_bytes) };
        self.fill_and_link(io, claim, run, reserved, &payload, source)?;
        Ok(payload.to - payload.from)
    }

    /// The longest run of claimed clusters from `at` that need the same treatment.
    fn find_run(&self, io: &Io, claim: &Claim<'_>, at: GuestOffset, end: GuestOffset) -> Result<Run> {
        let geometry = &self.geometry;
        let first_cluster = geometry.cluster_index(at);
        let mut run = Run { first_cluster, old: Vec::new(), reuse: None, in_place: None };
        for cluster in first_cluster.to(geometry.cluster_after(end)) {
            let entry = io.map.entry(claim, cluster)?;
            let start = geometry.cluster_offset(cluster);
            let from = at.max(start) - start;
            let to = (end - start).min(geometry.cluster_bytes());
            let reuse = match &entry {
                // In the data file every guest cluster has its place, used or not.
                _ if geometry.external_data => Some(HostOffset(start.0)),
                L2Entry::Plain(m) if m.copied => m.host,
                _ => None,
            };
            let touched = geometry.subclusters_touched(from, to);
            let in_place = matches!(&entry, L2Entry::Plain(m) if m.copied && m.alloc & touched == touched);
            if run.old.is_empty() {
                run.reuse = reuse;
                run.in_place = reuse.filter(|_| in_place).map(|host| host + from);
            } else if run.in_place.is_some() {
                break;
            } else {
                let next = run.reuse.map(|h| h + ((run.old.len() as u64) << geometry.cluster_bits));
                if in_place || reuse.is_some() != run.reuse.is_some() || (reuse.is_some() && reuse != next) {
                    break;
                }
            }
            run.old.push(entry);
        }
        Ok(run)
    }

    /// Writes head, payload and tail of a run in one request, then links its clusters.
    fn fill_and_link(
        &self,
        io: &Io,
        claim: &Claim<'_>,
        run: Run,
        reserved: Option<Reserved<'_>>,
        payload: &Span,
        source: &Gather<'_>,
    ) -> Result<()> {
        let geometry = &self.geometry;
        let host_start = match (&reserved, run.reuse) {
            (Some(r), _) => geometry.cluster_offset(r.first_cluster()),
            (None, reuse) => reuse.unwrap_or_default(),
        };
        let mut full = self.span_to_fill(&run, payload);
        let run_start = geometry.cluster_offset(run.first_cluster);
        // Past the end of the disk, the last cluster's bytes are zero; a data file has none there.
        let disk_end = self.area_end(run_start) - run_start;
        if geometry.external_data {
            full.to = full.to.min(disk_end);
        }
        let was_zero = (self.payload.zeroes_are_zero() || planted(Plant::FreshClusterNotFilled))
            && (self.is_void(&run.old)
                || self.reads_zero(run_start + full.from, full.to.min(disk_end) - full.from)?);
        let fresh = reserved.as_ref().is_some_and(|r| r.is_fresh());
        let padded = !(fresh && was_zero);
        let written = if padded { Span { from: full.from, to: full.to } } else { Span { ..*payload } };
        let head = self.copy_guest(run_start, written.from, payload.from, disk_end)?;
        let tail = self.copy_guest(run_start, payload.to, written.to, disk_end)?;
        let mut parts = Vec::with_capacity(6);
        parts.extend((!head.is_empty()).then(|| IoSlice::new(&head)));
        source.peek_into(payload.to - payload.from, &mut parts);
        parts.extend((!tail.is_empty()).then(|| IoSlice::new(&tail)));
        let place = Place { guest: run_start, host: host_start };
        let written = self.payload.write(place.after(written.from), &parts)?;
        let (first, count) = (run.first_cluster, run.old.len() as u64);
        let entry_of = |index| self.filled_entry(&run, &full, host_start, index);
        let filled = match reserved {
            None => {
                return (0..count).try_for_each(|i| io.map.relink(claim, first + i, entry_of(i), written))
            }
            Some(reserved) if was_zero => reserved.filled_over_zeroes(written),
            Some(reserved) => reserved.filled(written),
        };
        io.map.link_run(claim, first, count, filled, |index| Ok(entry_of(index)))
    }

    /// Whether clusters with these entries read as zeroes, as far as a look at the entries can tell.
    fn is_void(&self, entries: &[L2Entry]) -> bool {
        let void = |entry: &L2Entry| matches!(entry, L2Entry::Plain(m) if m.alloc == 0);
        !self.has_backing() && entries.iter().all(void)
    }

    /// The payload widened to what the new clusters must hold: whole subclusters, and all that moves.
    fn span_to_fill(&self, run: &Run, payload: &Span) -> Span {
        let geometry = &self.geometry;
        let (sub, cluster) = (geometry.subcluster_bytes(), geometry.cluster_bytes());
        let mut from = payload.from / sub * sub;
        let mut to = payload.to.div_ceil(sub) * sub;
        if run.reuse.is_some() {
            // Bytes beside the payload that are in the host cluster already stay as they are: others may be
            // writing them in place.
            let has_data = |at: u64| {
                let alloc = match &run.old[(at / cluster) as usize] {
                    L2Entry::Plain(m) => m.alloc,
                    L2Entry::Compressed(_) => 0,
                };
                alloc >> (at % cluster / sub) & 1 != 0
            };
            from = if has_data(payload.from) { payload.from } else { from };
            to = if has_data(payload.to - 1) { payload.to } else { to };
        } else {
            let (first_moved, _) = moved_subclusters(&run.old[0], geometry.all_subclusters());
            from = from.min(u64::from(first_moved) * sub);
            let last = run.old.len() - 1;
            let (_, end_moved) = moved_subclusters(&run.old[last], geometry.all_subclusters());
            to = to.max(last as u64 * cluster + u64::from(end_moved) * sub);
        }
        Span { from, to }
    }

    /// Guest bytes `[from, to)` relative to `run_start`; zeroes past `disk_end`.
    fn copy_guest(&self, run_start: GuestOffset, from: u64, to: u64, disk_end: u64) -> Result<Vec<u8>> {
        if from >= to {
            return Ok(Vec::new());
        }
        let mut bytes = zeroed("copy of guest data", to - from)?;
        let inside = to.min(disk_end).saturating_sub(from) as usize;
        if inside > 0 {
            self.read_range(run_start + from, &mut bytes[..inside])?;
        }
        Ok(bytes)
    }

    /// What the entry of cluster `index` of a run becomes once `full` has been written.
    #[inline(always)]
    fn filled_entry(&self, run: &Run, full: &Span, host_start: HostOffset, index: u64) -> NewEntry {
        let geometry = &self.geometry;
        let (start, old) = (index << geometry.cluster_bits, &run.old[index as usize]);
        let from = full.from.max(start) - start;
        let to = (full.to - start).min(geometry.cluster_bytes());
        let filled = geometry.subclusters_touched(from, to);
        let (old_alloc, old_zero) = match old {
            L2Entry::Plain(m) => (if run.reuse.is_some() { m.alloc } else { 0 }, m.zero),
            L2Entry::Compressed(_) => (0, 0),
        };
        let alloc = old_alloc | filled;
        let mapping =
            Mapping { host: Some(host_start + start), copied: true, alloc, zero: old_zero & !alloc };
        let dropped = if run.reuse.is_some() { None } else { self.dropped_by(old, false) };
        NewEntry { new: mapping.into(), dropped }
    }

    /// The host clusters that lose a reference when `old` is replaced; those of a data file are not counted.
    pub(super) fn dropped_by(&self, old: &L2Entry, discard: bool) -> Option<Release> {
        match old {
            _ if self.geometry.external_data => None,
            L2Entry::Plain(m) => m.host.map(|h| {
                let release = Release::new(self.geometry.cluster_index(h), 1, discard);
                Release { shared: !m.copied, ..release }
            }),
            L2Entry::Compressed(span) => {
                let (first, end) = span.clusters(&self.geometry);
                Some(Release::new(first, end - first, discard))
            }
        }
    }

    /// Whether a hole here would show a backing file.
    pub(super) fn has_backing(&self) -> bool {
        self.settings.backing.is_some()
    }
}

/// First and one past the last subcluster whose contents move with the cluster.
fn moved_subclusters(old: &L2Entry, all: u32) -> (u32, u32) {
    let moved = match old {
        L2Entry::Plain(m) => m.alloc,
        L2Entry::Compressed(_) => all,
    };
    // A standard entry has one subcluster, which is filled whole in any case.
    if moved == 0 {
        return (u32::MAX >> 1, 0);
    }
    (moved.trailing_zeros(), 32 - moved.leading_zeros())
}
