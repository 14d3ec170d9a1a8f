//! Copies by the host: bytes go from one file to another without passing through memory, where both hosts can.
//!
//! A copy is an allocating write: of whole clusters that hold nothing yet, in long runs. Power cut: as for any
//! allocating write. The source's pin is held across the copy, so that its clusters are not reused under it (R4).

use super::payload::Place;
use super::{check_range, Core, UseHost};
use crate::alloc::Reserved;
use crate::error::Result;
use crate::format::entries::{L2Entry, Mapping};
use crate::format::{GuestCluster, GuestOffset, HostOffset};
use crate::map::{Claim, NewEntry, Source};
use crate::storage::Storage;
use std::ops::Range;

impl Core {
    pub(super) fn with_host_bytes(
        &self,
        offset: GuestOffset,
        length: u64,
        use_host: UseHost<'_>,
    ) -> Result<u64> {
        check_range(self.virtual_size, offset.0, length)?;
        let extent = self.io()?.map.resolve(offset, length)?;
        match (extent.source, extent.host, self.backing()) {
            (Source::Data, Some(host), _) => match self.payload.in_file(Place { guest: offset, host }) {
                Some((storage, at)) => use_host(storage, at.0, extent.length),
                None => Ok(0),
            },
            (Source::Hole, _, Some(backing)) if offset.0 < backing.length() => {
                let inside = extent.length.min(backing.length() - offset.0);
                backing.with_host_bytes(offset.0, inside, use_host)
            }
            _ => Ok(0),
        }
    }

    pub(super) fn write_from(
        &self,
        offset: GuestOffset,
        length: u64,
        source: &dyn Storage,
        source_offset: u64,
    ) -> Result<u64> {
        check_range(self.virtual_size, offset.0, length)?;
        let geometry = &self.geometry;
        if geometry.in_cluster(offset) != 0 || !self.payload.zeroes_are_zero() {
            return Ok(0);
        }
        let (io, alloc) = self.begin_change(offset, length)?;
        let (mut cluster, end) = (geometry.cluster_index(offset), geometry.cluster_index(offset + length));
        while cluster < end {
            self.relieve(io, alloc)?;
            let in_table = geometry.table_end(cluster) - cluster;
            let claim = io.map.claim(cluster, end.min(cluster + in_table));
            let mut count = 0;
            while cluster + count < end && count < in_table {
                match io.map.entry(&claim, cluster + count)? {
                    L2Entry::Plain(m) if m.host.is_none() => count += 1,
                    _ => break,
                }
            }
            if count == 0 {
                break;
            }
            io.map.own_table(&claim, cluster)?;
            let reserved = if geometry.external_data { None } else { Some(alloc.reserve(count)?) };
            let count = reserved.as_ref().map_or(count, Reserved::cluster_count);
            let done = geometry.cluster_offset(cluster) - offset;
            self.copy_run(&claim, cluster..cluster + count, reserved, source, source_offset + done)?;
            cluster += count;
        }
        Ok(geometry.cluster_offset(cluster) - offset)
    }

    /// Fills reserved clusters, or those of the data file, from the other file and links them.
    fn copy_run(
        &self,
        claim: &Claim<'_>,
        clusters: Range<GuestCluster>,
        reserved: Option<Reserved<'_>>,
        source: &dyn Storage,
        source_offset: u64,
    ) -> Result<()> {
        let geometry = &self.geometry;
        let map = &self.io()?.map;
        let start = geometry.cluster_offset(clusters.start);
        let bytes = (clusters.end - clusters.start) << geometry.cluster_bits;
        // Past the end of the disk, the last cluster's bytes are nobody's.
        let was_zero = self.reads_zero(start, bytes.min(self.disk_end() - start))?;
        let host_start =
            reserved.as_ref().map_or(HostOffset(start.0), |r| geometry.cluster_offset(r.first_cluster()));
        let place = Place { guest: start, host: host_start };
        let written = self.payload.copy_from(place, source, source_offset, bytes)?;
        let (first, count) = (clusters.start, clusters.end - clusters.start);
        let mut entry_of = |index: u64| {
            let host = Some(host_start + (index << geometry.cluster_bits));
            let mapping = Mapping { host, copied: true, alloc: geometry.all_subclusters(), zero: 0 };
            let old = map.entry(claim, first + index)?;
            Ok(NewEntry { new: mapping.into(), dropped: self.dropped_by(&old, false) })
        };
        match reserved {
            Some(reserved) if was_zero => {
                map.link_run(claim, first, count, reserved.filled_over_zeroes(written), &mut entry_of)
            }
            Some(reserved) => map.link_run(claim, first, count, reserved.filled(written), &mut entry_of),
            None => (0..count).try_for_each(|i| map.relink(claim, first + i, entry_of(i)?, written)),
        }
    }
}
