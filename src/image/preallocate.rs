//! A place for guest clusters that have none.

use super::core::Io;
use super::payload::Place;
use super::Core;
use crate::alloc::Allocator;
use crate::error::{Error, Result};
use crate::format::entries::{L2Entry, Mapping};
use crate::format::{GuestCluster, GuestOffset, HostOffset};
use crate::map::{Claim, NewEntry};
use crate::options::Preallocation;
use std::ops::Range;

impl Core {
    /// Gives every cluster that `[from, to)` touches a place, with the host's room if that is asked for; what reads as
    /// zeroes does so still.
    pub(crate) fn preallocate(&self, from: GuestOffset, to: GuestOffset, how: Preallocation) -> Result<()> {
        // The disk's contents stay.
        let (io, alloc) = (self.io()?, self.structure_writer()?.alloc);
        let geometry = &self.geometry;
        if !self.payload.zeroes_are_zero() && geometry.version < 3 {
            // Its entries cannot say zero, and zeroes of the host are none.
            return Err(Error::unsupported("preallocation of an encrypted image needs version 3"));
        }
        let end = geometry.cluster_after(to);
        let mut at = geometry.cluster_index(from);
        while at < end {
            let table_end = geometry.table_end(at);
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
        claim: &Claim<'_>,
        clusters: Range<GuestCluster>,
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
        let encrypted = !self.payload.zeroes_are_zero();
        let filled = match reserved.filled_with_zeroes() {
            Ok(filled) => filled,
            // Their entries will say zero.
            Err(reserved) if encrypted => reserved.filled(self.payload.nothing_written()),
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
            _ if encrypted => (0, geometry.all_subclusters()),
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
        claim: &Claim<'_>,
        first: GuestCluster,
        count: u64,
        how: Preallocation,
    ) -> Result<u64> {
        let geometry = &self.geometry;
        let (from, to) = (geometry.cluster_offset(first), geometry.cluster_offset(first + count));
        let bytes = to.min(self.disk_end()) - from;
        let written = self.payload.take_room(Place::apart(from), bytes, how)?;
        // As in a new image: subclusters that nobody has written are not there.
        let encrypted = !self.payload.zeroes_are_zero();
        let alloc = if geometry.extended_l2 || encrypted { 0 } else { 1 };
        let zero = if encrypted { geometry.all_subclusters() } else { 0 };
        for cluster in first.to(first + count) {
            let host = Some(HostOffset(geometry.cluster_offset(cluster).0));
            let mapping = Mapping { host, copied: true, alloc, zero };
            match written {
                Some(written) => {
                    io.map.relink(claim, cluster, NewEntry { new: mapping.into(), dropped: None }, written)?
                }
                None => io.map.place_in_data_file(claim, cluster, mapping)?,
            }
        }
        Ok(count)
    }
}
