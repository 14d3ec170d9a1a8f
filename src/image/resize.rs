//! The parts of a resize that change tables: a longer L1 table, dropped entries, preallocated clusters.

use super::bitmaps::load_bitmaps;
use super::core::Io;
use super::payload::Place;
use super::qcow2::Alone;
use super::snapshots::Walk;
use super::unfinished::{Gone, Steps};
use super::{Core, ZeroFlags};
use crate::alloc::Allocator;
use crate::error::{zeroed, Error, ErrorKind, Result};
use crate::format::entries::{L2Entry, Mapping};
use crate::map::NewEntry;
use crate::meta::guard::Owner;
use crate::options::Preallocation;
use crate::storage::medium::Ticket;
use crate::storage::Purpose;
use std::io::IoSlice;
use std::sync::Arc;

/// Guest clusters that one step of a preallocation or a cut handles.
const STEP_CLUSTERS: u64 = 4096;
/// Clusters and runs of them that wait to be free before a cut asks for a barrier: some 8 MiB of memory.
const MAX_PENDING_RUNS: u64 = 64 << 10;
/// Bytes of zeroes written at once by full preallocation.
const CHUNK_BYTES: u64 = 1 << 20;

impl Alone<'_> {
    /// Sets the virtual size, preallocates what is added, and leaves everything durable. The image is loaded
    /// again.
    pub fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let core = self.core();
        let (geometry, old) = (core.geometry, core.virtual_size);
        geometry.check_virtual_size(size).map_err(|e| {
            Error::new(ErrorKind::TooLarge, format!("Failed to grow the L1 table: File too large [{e}]"))
        })?;
        let header = core.header();
        if header.snapshot_count > 0 && header.version < 3 {
            return Err(Error::unsupported("Can't resize a v2 image which has snapshots"));
        }
        // Of another size they mean nothing. Where nobody can read them, a repair frees them.
        let bitmaps = load_bitmaps(&**core.storage(), &header).unwrap_or_default();
        core.begin_write()?;
        let preallocation = match preallocation {
            // A raw data file has no holes that only the tables know of.
            Preallocation::Off if size > old && core.raw_data_file => Preallocation::Metadata,
            asked => asked,
        };
        if size > old {
            self.image().session.check_chain()?;
            core.grow_data_file(old, size)?;
        }
        if size < old && preallocation != Preallocation::Off {
            return Err(Error::invalid("Preallocation can't be used for shrinking an image"));
        }
        if size != old {
            // A table that breaks a rule leaves leaks.
            match core.free_bitmaps(&bitmaps) {
                Err(e) if e.kind() != ErrorKind::Corrupt => return Err(e),
                _ => {}
            }
            // It begins where the disk's L1 entries end: it would be part of the disk, or out of its place.
            self.drop_vm_state()?;
        }
        if size < old {
            self.core().cut(size)?;
        }
        let resized = self
            .make_l1_room(geometry.l1_entries_for(size))
            .and_then(|()| self.prepare(old, size, preallocation))
            .and_then(|()| self.put_size(old, size));
        match resized {
            Ok(()) if size < old => self.core().cut_data_file(size),
            Err(e) if size > old => {
                // The data file goes back to its length, if it can.
                let _ = self.core().cut_data_file(old);
                Err(e)
            }
            done => done,
        }
    }

    /// Puts another size in force. Everything is on the medium. A failure leaves the old one.
    fn put_size(&self, old: u64, size: u64) -> Result<()> {
        let core = self.core();
        let header = &core.shared.header;
        header.change(|h| h.virtual_size = size)?;
        let loaded = self.load_now(Arc::clone(core.storage()), core.settings.clone());
        match &loaded {
            Err(e) if !e.is_failed_sync() && header.change(|h| h.virtual_size = old).is_err() => {
                self.reload()
            }
            _ => loaded,
        }
    }

    /// Has the L1 table hold `entries` at least.
    pub(super) fn make_l1_room(&self, entries: u64) -> Result<()> {
        // Loading anew is sound only from a medium that has everything, counts of a lazy image too.
        self.settle()?;
        let core = self.core();
        let needed = entries.max(1);
        if needed <= u64::from(core.header().l1_size) {
            return Ok(());
        }
        core.grow_l1(needed)?;
        // The header names the new table: the core in force writes to the old one and must not go on.
        self.complete(Steps::settle(&core))
    }

    /// Readies what lies past `old` for a disk of `size` bytes, durably, before the disk says that it has this range: a
    /// power cut must not leave the new size with old bytes. Zeroes what a longer backing file, the rest of the last
    /// cluster, or entries that somebody has left behind would show there; then preallocates. A failure gives the room
    /// back, and what is not given back nobody sees.
    fn prepare(&self, old: u64, size: u64, preallocation: Preallocation) -> Result<()> {
        let core = self.core();
        let below = core.backing().map_or(0, |b| b.length());
        let cluster_end = core.geometry.cluster_ceil(old).unwrap_or(old);
        let hidden_end = below.max(cluster_end).max(core.io()?.map.tables_end()).min(size);
        if hidden_end <= old && (size <= old || preallocation == Preallocation::Off) {
            return Ok(());
        }
        // The core in force is settled. From the first write on the wide one it knows less than the medium.
        let mut wide = self.load_sized(Arc::clone(core.storage()), core.settings.clone(), size)?;
        let (changed, zeroed) = wide.zero_what_shows(old, hidden_end);
        if !changed && (zeroed.is_err() || preallocation == Preallocation::Off) {
            return zeroed;
        }
        let prepared = zeroed.and_then(|()| match preallocation {
            Preallocation::Off => Ok(()),
            how => wide.preallocate_past(old, size, how),
        });
        if prepared.is_err() && preallocation != Preallocation::Off {
            let _ = wide.give_back_past(old);
        }
        wide.virtual_size = old;
        self.put(wide);
        let settled = self.settle();
        if prepared.is_err() && settled.is_ok() {
            let _ = self.core().writer().and_then(|(_, alloc)| alloc.cut_file());
        }
        prepared.and(settled)
    }
}

impl Alone<'_> {
    /// Lets go of everything that the image holds: afterwards it shows its backing file, or zeroes.
    pub fn make_empty(&self) -> Result<()> {
        let core = self.core();
        core.writer()?;
        // Entries that let go of a raw data file's clusters read as zeroes: the file has them first.
        core.zero_raw_data(0, core.virtual_size, true, false, ZeroFlags::default())?;
        // What goes is found on the medium.
        self.settle()?;
        self.drop_tables(&core, 0)?;
        core.give_back_data(0, core.virtual_size)?;
        self.settle()?;
        self.core().writer()?.1.cut_file()
    }

    /// Lets go of what the L1 entries from number `first` on hold. Everything is on the medium; the image is loaded
    /// anew. Entries first, then the counts of all that they led to, in pieces: a power cut leaves leaks.
    pub(super) fn drop_tables(&self, core: &Core, first: u64) -> Result<()> {
        let header = core.header();
        let old = core.read_l1("of the image", header.l1_table_offset, header.l1_size)?;
        let part = (first as usize).min(old.entries.len())..old.entries.len();
        core.walk(&old, part.clone(), Walk::Release, &mut |_| Ok(()))?;
        // Slices of dropped tables are still cached: once the first entry is gone only a reload may go on.
        core.io()?.map.clear_entries(first);
        self.complete(Steps::lower(core, Gone::entries(old, part)))
    }
}

impl Core {
    /// Preallocates `[from, to)`, durably.
    fn preallocate_past(&self, from: u64, to: u64, preallocation: Preallocation) -> Result<()> {
        // The cluster that the old end cuts keeps what it shows before that end, of a backing file too.
        let cut_end = self.geometry.cluster_ceil(from).unwrap_or(to).min(to);
        if from < cut_end && self.is_hole(from)? {
            let zeroes = zeroed("rest of a cluster", cut_end - from)?;
            self.write(from, &[IoSlice::new(&zeroes)])?;
        }
        self.preallocate(from, to, preallocation)?;
        if preallocation == Preallocation::Full {
            self.fill_what_is_left(from, to)?;
        }
        self.barrier()
    }

    fn writer(&self) -> Result<(&Io, &Allocator)> {
        let (io, alloc) = self.begin_write()?;
        Ok((io, alloc))
    }

    /// Zeroes what does not read as zeroes in `[from, to)`. `true`: something was written, even if it failed.
    fn zero_what_shows(&self, from: u64, to: u64) -> (bool, Result<()>) {
        let table_bytes = self.geometry.l2_table_guest_bytes();
        let (mut at, mut changed) = (from, false);
        while at < to {
            // The cluster that the old end cuts by itself: what it shows says nothing about those behind it.
            let unit =
                if self.geometry.in_cluster(at) == 0 { table_bytes } else { self.geometry.cluster_bytes() };
            let step = (unit - at % unit).min(to - at);
            match self.reads_zero(at, step) {
                Ok(true) => {}
                Ok(false) => {
                    changed = true;
                    if let Err(e) = self.write_zeroes(at, step, ZeroFlags::default()) {
                        return (true, Err(e));
                    }
                }
                Err(e) => return (changed, Err(e)),
            }
            at += step;
        }
        (changed, Ok(()))
    }

    /// Moves the L1 table to a longer place.
    fn grow_l1(&self, entries: u64) -> Result<()> {
        let (io, alloc) = (self.io()?, self.structure_writer()?);
        let geometry = &self.geometry;
        let clusters = geometry.clusters_ceil(entries * 8);
        let old = self.header();
        let old_first = geometry.cluster_index(old.l1_table_offset);
        let old_clusters = geometry.clusters_ceil(u64::from(old.l1_size) * 8);
        if old.l1_table_offset != 0 {
            self.shared.guard.check_release(Owner::ACTIVE_L1, old_first, old_clusters)?;
        }
        let reserved = alloc.reserve_contiguous(clusters)?;
        let mut bytes = zeroed("L1 table", clusters << geometry.cluster_bits)?;
        io.map.copy_l1(&mut bytes);
        let offset = geometry.cluster_offset(reserved.first_cluster());
        self.shared.medium.write_unlinked(Purpose::L1, offset, &bytes)?;
        // Counts and contents are durable before the header points to the table (R1, R5).
        crate::meta::Settler::advance(alloc)?;
        self.shared.header.change(|h| {
            h.l1_table_offset = offset;
            h.l1_size = entries as u32;
        })?;
        reserved.keep();
        if old.l1_table_offset != 0 && old_clusters > 0 {
            let release = crate::meta::Release::of(Owner::ACTIVE_L1, old_first, old_clusters);
            crate::meta::Settler::settle_after(alloc, Ticket::PAST, vec![release]);
        }
        Ok(())
    }

    /// After a preallocation past `size` that failed: lets go of all that is there, and asks for as little room on the
    /// host as can be. What fails of this leaks, where nobody sees it.
    fn give_back_past(&self, size: u64) -> Result<()> {
        let (io, alloc) = self.writer()?;
        let gone = io.map.abandon_tables(size.div_ceil(self.geometry.l2_table_guest_bytes()))?;
        self.cut(size)?;
        io.map.barrier()?;
        crate::meta::Settler::settle_after(alloc, Ticket::PAST, gone);
        Ok(())
    }

    /// Drops the entries of whole clusters past `size`.
    fn cut(&self, size: u64) -> Result<()> {
        let (io, alloc) = self.writer()?;
        let geometry = &self.geometry;
        let end = geometry.clusters_ceil(self.virtual_size);
        let mut at = geometry.clusters_ceil(size);
        while at < end {
            let from = geometry.cluster_offset(at);
            let extent = io.map.resolve(from, (self.virtual_size - from).max(1))?;
            let hole = extent.source == crate::map::Source::Hole && extent.host.is_none();
            let clusters = geometry.clusters_ceil(extent.length).max(1);
            let step_end = (at + clusters.min(STEP_CLUSTERS)).min(end);
            if hole {
                at += clusters;
                continue;
            }
            let claim = io.map.claim(at, step_end);
            for cluster in at..step_end {
                let old = io.map.entry(&claim, cluster)?;
                if old == L2Entry::Plain(Mapping::default()) {
                    continue;
                }
                io.map.own_table(&claim, cluster)?;
                let dropped = self.dropped_by(&old, true);
                let entry = NewEntry { new: Mapping::default().into(), dropped };
                io.map.unmap(&claim, cluster, entry, None)?;
            }
            drop(claim);
            // Each of them may wait by itself, in a page and then in the ledger.
            if alloc.pending_runs() as u64 + io.map.held_clusters() > MAX_PENDING_RUNS {
                self.session.flusher.flush(self)?;
            }
            at = step_end;
        }
        Ok(())
    }

    fn is_hole(&self, offset: u64) -> Result<bool> {
        Ok(self.io()?.map.resolve(offset, 1)?.source == crate::map::Source::Hole)
    }

    /// Writes zeroes where a preallocation has found entries that hold no data.
    fn fill_what_is_left(&self, from: u64, to: u64) -> Result<()> {
        let zeroes = vec![0; CHUNK_BYTES as usize];
        let mut at = from;
        while at < to {
            let extent = self.io()?.map.resolve(at, to - at)?;
            let bytes = extent.length.min(CHUNK_BYTES);
            if extent.source != crate::map::Source::Data {
                self.write(at, &[IoSlice::new(&zeroes[..bytes as usize])])?;
            }
            at += bytes;
        }
        Ok(())
    }

    /// Gives every cluster that `[from, to)` touches a place, with the host's room if that is asked for; what reads as
    /// zeroes does so still.
    fn preallocate(&self, from: u64, to: u64, how: Preallocation) -> Result<()> {
        let (io, alloc) = self.writer()?;
        let geometry = &self.geometry;
        let end = geometry.clusters_ceil(to);
        let mut at = geometry.cluster_index(from);
        while at < end {
            let table_end = (at / geometry.l2_entry_count() + 1) * geometry.l2_entry_count();
            let step_end = end.min(table_end);
            let claim = io.map.claim(at, step_end);
            io.map.own_table(&claim, at)?;
            while at < step_end {
                let old = io.map.entry(&claim, at)?;
                at += match self.wants_place(&old) {
                    true => self.preallocate_run(io, alloc, &claim, at..step_end, old, how)?,
                    false => 1,
                };
            }
        }
        Ok(())
    }

    /// An entry of a data file that says zero has its place.
    fn wants_place(&self, old: &L2Entry) -> bool {
        match old {
            L2Entry::Plain(m) => m.host.is_none() && (m.zero == 0 || !self.geometry.external_data),
            L2Entry::Compressed(_) => false,
        }
    }

    /// The first of `clusters`, and those behind it whose entry is `old`, too.
    fn preallocate_run(
        &self,
        io: &Io,
        alloc: &Allocator,
        claim: &crate::map::Claim<'_>,
        clusters: std::ops::Range<u64>,
        old: L2Entry,
        how: Preallocation,
    ) -> Result<u64> {
        let (geometry, at) = (&self.geometry, clusters.start);
        let mut wanted = 1;
        while at + wanted < clusters.end && io.map.entry(claim, at + wanted)? == old {
            wanted += 1;
        }
        if geometry.external_data {
            return self.preallocate_in_data_file(io, claim, at, wanted, how);
        }
        let reserved = alloc.reserve(wanted)?;
        let count = reserved.cluster_count();
        let host = geometry.cluster_offset(reserved.first_cluster());
        let bytes = count << geometry.cluster_bits;
        let place = Place { guest: geometry.cluster_offset(at), host };
        let filled = match reserved.filled_with_zeroes() {
            Ok(filled) => filled,
            Err(reserved) => reserved.filled(self.payload.zero(place, bytes)?),
        };
        if let Err(e) = self.payload.take_room(place, bytes, how) {
            // What the host has given may be what it lacks now.
            let _ = self.payload.give_back(host, bytes);
            return Err(e);
        }
        // Subclusters beside those that are zeroes may show a backing file.
        let (alloc, zero) = match old {
            L2Entry::Plain(m) if m.zero != 0 => (0, m.zero),
            _ => (geometry.all_subclusters(), 0),
        };
        io.map.link_run(claim, at, count, filled, &mut |index| {
            let host = Some(host + (index << geometry.cluster_bits));
            let mapping = Mapping { host, copied: true, alloc, zero };
            Ok(NewEntry { new: mapping.into(), dropped: None })
        })?;
        Ok(count)
    }

    /// Maps clusters of a data file, which reads as zeroes there, durably.
    fn preallocate_in_data_file(
        &self,
        io: &Io,
        claim: &crate::map::Claim<'_>,
        first: u64,
        count: u64,
        how: Preallocation,
    ) -> Result<u64> {
        let geometry = &self.geometry;
        let (from, to) = (geometry.cluster_offset(first), geometry.cluster_offset(first + count));
        let bytes = to.min(self.virtual_size) - from;
        let written = self.payload.take_room(Place { guest: from, host: from }, bytes, how)?;
        // As in a new image: subclusters that nobody has written are not there.
        let alloc = if geometry.extended_l2 { 0 } else { 1 };
        for cluster in first..first + count {
            let host = Some(geometry.cluster_offset(cluster));
            let mapping = Mapping { host, copied: true, alloc, zero: 0 };
            io.map.relink(claim, cluster, NewEntry { new: mapping.into(), dropped: None }, written)?;
        }
        Ok(count)
    }
}
