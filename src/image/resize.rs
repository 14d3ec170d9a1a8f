//! The parts of a resize that change tables: a longer L1 table, dropped entries, preallocated clusters.

use super::core::Io;
use super::flush::Flusher;
use super::qcow2::Alone;
use super::{Core, ZeroFlags};
use crate::alloc::Allocator;
use crate::error::{Error, ErrorKind, Result};
use crate::format::entries::{L2Entry, Mapping};
use crate::map::Link;
use crate::options::Preallocation;
use crate::storage::medium::Ticket;
use crate::storage::Purpose;
use std::io::IoSlice;
use std::sync::Arc;

/// Guest clusters that one step of a preallocation or a cut handles.
const STEP_CLUSTERS: u64 = 4096;
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
        core.begin_write()?;
        let preallocation = match preallocation {
            // A raw data file has no holes that only the tables know of.
            Preallocation::Off if size > old && core.raw_data_file => Preallocation::Metadata,
            asked => asked,
        };
        if size > old {
            self.image().check_chain()?;
            core.grow_data_file(old, size)?;
        }
        if size < old && preallocation != Preallocation::Off {
            return Err(Error::invalid("Preallocation can't be used for shrinking an image"));
        }
        if size != old {
            // It begins where the disk's L1 entries end: it would be part of the disk, or out of its place.
            self.drop_vm_state()?;
        }
        if size < old {
            self.core().cut(size)?;
        }
        self.make_l1_room(geometry.l1_entries_for(size))?;
        self.hide(old, size)?;
        let core = self.core();
        self.core().shared.header.change(|h| h.virtual_size = size)?;
        self.reload(Arc::clone(core.storage()), core.settings.clone())?;
        if size < old {
            return self.core().cut_data_file(size);
        }
        if size > old && preallocation != Preallocation::Off {
            if let Err(e) = self.preallocate(old, size, preallocation) {
                // A resize that failed has not happened. If this fails too, the disk is longer than asked for.
                let _ = self.resize(old, Preallocation::Off);
                return Err(e);
            }
        }
        Ok(())
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
        self.settle().map_err(|e| core.shared.medium.latch().close(e))?;
        self.reload(Arc::clone(core.storage()), core.settings.clone())
    }

    fn preallocate(&self, from: u64, to: u64, preallocation: Preallocation) -> Result<()> {
        let core = self.core();
        // The cluster that the old end cuts keeps what it shows before that end, of a backing file too.
        let cut_end = core.geometry.cluster_ceil(from).unwrap_or(to).min(to);
        if from < cut_end && core.is_hole(from)? {
            let zeroes = vec![0; (cut_end - from) as usize];
            core.write(from, &[IoSlice::new(&zeroes)], self.flusher())?;
        }
        core.preallocate(from, to, preallocation == Preallocation::Falloc)?;
        if preallocation == Preallocation::Full {
            let zeroes = vec![0; CHUNK_BYTES as usize];
            let mut at = from;
            while at < to {
                let bytes = (to - at).min(CHUNK_BYTES);
                core.write(at, &[IoSlice::new(&zeroes[..bytes as usize])], self.flusher())?;
                at += bytes;
            }
        }
        core.barrier()
    }

    /// Zeroes what a longer backing file, the rest of the last cluster, or entries that somebody has left behind
    /// would show past `old`, durably, before the disk says that it has this range: a power cut must not leave the
    /// new size with old bytes.
    fn hide(&self, old: u64, size: u64) -> Result<()> {
        let core = self.core();
        let below = core.backing().map_or(0, |b| b.length());
        let cluster_end = core.geometry.cluster_ceil(old).unwrap_or(old);
        let end = below.max(cluster_end).max(core.io()?.map.tables_end()).min(size);
        if end <= old {
            return Ok(());
        }
        let wide = self.load_sized(Arc::clone(core.storage()), core.settings.clone(), end)?;
        let (changed, zeroed) = wide.zero_what_shows(old, end, self.flusher());
        if !changed {
            return zeroed;
        }
        // From the first write on the core in force knows less than the medium.
        zeroed.and_then(|()| wide.settle()).map_err(|e| core.shared.medium.latch().close(e))?;
        self.reload(Arc::clone(core.storage()), core.settings.clone())
    }
}

impl Alone<'_> {
    /// Lets go of everything that the image holds: afterwards it shows its backing file, or zeroes.
    pub fn make_empty(&self) -> Result<()> {
        let core = self.core();
        let (_, alloc) = core.writer()?;
        // Entries that let go of a raw data file's clusters read as zeroes: the file has them first.
        core.zero_raw_data(0, core.virtual_size, true, false, ZeroFlags::default())?;
        self.drop_tables(&core, alloc, 0)?;
        core.give_back_data(0, core.virtual_size)?;
        alloc.cut_file().map_err(|e| core.shared.medium.latch().close(e))?;
        self.reload(Arc::clone(core.storage()), core.settings.clone())
    }

    /// Lets go of what the L1 entries from number `first` on hold. The caller loads the image anew.
    pub(super) fn drop_tables(&self, core: &Core, alloc: &Allocator, first: u64) -> Result<()> {
        let latch = core.shared.medium.latch();
        // Slices of dropped tables are still cached: once the first entry is gone only a reload may go on.
        let releases = core.io()?.map.drop_tables(first).map_err(|e| latch.close(e))?;
        core.barrier().map_err(|e| latch.close(e))?;
        crate::meta::Settler::settle_after(alloc, Ticket::PAST, releases);
        self.settle().map_err(|e| latch.close(e))
    }
}

impl Core {
    fn writer(&self) -> Result<(&Io, &Allocator)> {
        let (io, alloc) = self.begin_write()?;
        Ok((io, alloc))
    }

    /// Zeroes what does not read as zeroes in `[from, to)`. `true`: something was written, even if it failed.
    fn zero_what_shows(&self, from: u64, to: u64, flusher: &Flusher) -> (bool, Result<()>) {
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
                    if let Err(e) = self.write_zeroes(at, step, ZeroFlags::default(), flusher) {
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
        let reserved = alloc.reserve_contiguous(clusters)?;
        let mut bytes = vec![0; (clusters << geometry.cluster_bits) as usize];
        io.map.copy_l1(&mut bytes);
        let offset = geometry.cluster_offset(reserved.first_cluster());
        self.shared.medium.write_unlinked(Purpose::L1, offset, &bytes)?;
        // Counts and contents are durable before the header points to the table (R1, R5).
        crate::meta::Settler::advance(alloc)?;
        let old = self.header();
        self.shared.header.change(|h| {
            h.l1_table_offset = offset;
            h.l1_size = entries as u32;
        })?;
        reserved.keep();
        let old_clusters = geometry.clusters_ceil(u64::from(old.l1_size) * 8);
        if old.l1_table_offset != 0 && old_clusters > 0 {
            let release =
                crate::meta::Release::new(geometry.cluster_index(old.l1_table_offset), old_clusters, false);
            crate::meta::Settler::settle_after(alloc, Ticket::PAST, vec![release]);
        }
        Ok(())
    }

    /// Drops the entries of whole clusters past `size`.
    fn cut(&self, size: u64) -> Result<()> {
        let (io, _) = self.writer()?;
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
                let link = Link { cluster, new: Mapping::default().into(), after: Ticket::PAST, dropped };
                io.map.link(&claim, link)?;
            }
            at = step_end;
        }
        Ok(())
    }

    fn is_hole(&self, offset: u64) -> Result<bool> {
        Ok(self.io()?.map.resolve(offset, 1)?.source == crate::map::Source::Hole)
    }

    /// Gives every cluster that `[from, to)` touches a place; what reads as zeroes does so still. With `host_space` the
    /// host reserves room too.
    fn preallocate(&self, from: u64, to: u64, host_space: bool) -> Result<()> {
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
                    true => self.preallocate_run(io, alloc, &claim, at..step_end, old, host_space)?,
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
        host_space: bool,
    ) -> Result<u64> {
        let (geometry, at) = (&self.geometry, clusters.start);
        let mut wanted = 1;
        while at + wanted < clusters.end && io.map.entry(claim, at + wanted)? == old {
            wanted += 1;
        }
        if geometry.external_data {
            return self.preallocate_in_data_file(io, claim, at, wanted, host_space);
        }
        let reserved = alloc.reserve(wanted)?;
        let count = reserved.cluster_count();
        let host = geometry.cluster_offset(reserved.first_cluster());
        let bytes = count << geometry.cluster_bits;
        let mut after = reserved.ticket();
        if !reserved.is_fresh() {
            self.shared.medium.zero_unlinked(Purpose::Data, host, bytes)?;
            after = after.max(self.shared.medium.ticket());
        }
        if host_space {
            let done = self.shared.medium.storage().preallocate(host, bytes);
            done.map_err(|e| Error::host("preallocating host space", &e))?;
        }
        // Subclusters beside those that are zeroes may show a backing file.
        let (alloc, zero) = match old {
            L2Entry::Plain(m) if m.zero != 0 => (0, m.zero),
            _ => (geometry.all_subclusters(), 0),
        };
        for index in 0..count {
            let host = Some(host + (index << geometry.cluster_bits));
            let mapping = Mapping { host, copied: true, alloc, zero };
            io.map.link(claim, Link { cluster: at + index, new: mapping.into(), after, dropped: None })?;
        }
        reserved.keep();
        Ok(count)
    }

    /// Maps clusters of a data file, which reads as zeroes there, durably.
    fn preallocate_in_data_file(
        &self,
        io: &Io,
        claim: &crate::map::Claim<'_>,
        first: u64,
        count: u64,
        host_space: bool,
    ) -> Result<u64> {
        let geometry = &self.geometry;
        let (from, to) = (geometry.cluster_offset(first), geometry.cluster_offset(first + count));
        if host_space {
            let bytes = to.min(self.virtual_size) - from;
            let done = self.shared.medium.change_data(|storage| storage.preallocate(from, bytes))?;
            done.map_err(|e| Error::host("preallocating host space", &e))?;
        }
        // As in a new image: subclusters that nobody has written are not there.
        let alloc = if geometry.extended_l2 { 0 } else { 1 };
        for cluster in first..first + count {
            let host = Some(geometry.cluster_offset(cluster));
            let mapping = Mapping { host, copied: true, alloc, zero: 0 };
            io.map.link(claim, Link { cluster, new: mapping.into(), after: Ticket::PAST, dropped: None })?;
        }
        Ok(count)
    }
}
