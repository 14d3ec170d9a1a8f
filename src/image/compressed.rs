//! Compressed writes: whole guest clusters that this image does not hold yet, each a stream that is appended to the
//! one before. A cluster that does not get smaller is written as it is.
//!
//! Compressing happens before the claim. Power cut: as for any allocating write; the pointer waits for the stream.

use super::buffers::Gather;
use super::core::Io;
use super::{check_range, total, Core, PackedClusters};
use crate::alloc::{Allocator, Reserved};
use crate::error::{Error, ErrorKind, Result};
use crate::format::entries::{CompressedSpan, L2Entry};
use crate::format::{GuestCluster, GuestOffset, HostOffset};
use crate::map::{Claim, NewEntry};
use crate::storage::event::Event;
use crate::storage::helper;
use std::borrow::Cow;
use std::io::IoSlice;
use std::ops::Range;

/// Clusters that each thread compresses before the streams are written: bounds the memory of a long request.
const CLUSTERS_PER_THREAD: usize = 8;

impl Core {
    /// Writes `buffers` at `offset`, compressed. The range is whole clusters; the disk's last one may be shorter.
    pub(crate) fn write_compressed(&self, offset: GuestOffset, buffers: &[IoSlice<'_>]) -> Result<()> {
        let Some(bytes) = total(buffers.iter().map(|b| b.len())) else {
            return Err(Error::invalid("the buffers are longer than 2^63 bytes together"));
        };
        self.check_clusters(offset, bytes)?;
        self.begin_change(offset, 0)?;
        let mut source = Gather::new(buffers);
        let threads = self.settings.options.compress_threads.max(1) as usize;
        let step_bytes = ((threads * CLUSTERS_PER_THREAD) as u64) << self.geometry.cluster_bits;
        let mut done = 0;
        while done < bytes {
            let step = (bytes - done).min(step_bytes);
            let data = match source.peek_one(step) {
                Some(data) => Cow::Borrowed(data),
                None => {
                    let mut parts = Vec::with_capacity(4);
                    source.peek_into(step, &mut parts);
                    Cow::Owned(parts.iter().flat_map(|p| p.iter()).copied().collect())
                }
            };
            let share = (data.len().div_ceil(threads) as u64).next_multiple_of(self.geometry.cluster_bytes());
            let mut at = offset + done;
            for (packed, part) in
                self.pack_all(&data, share as usize)?.iter().zip(data.chunks(share as usize))
            {
                self.write_packed(packed, at, part)?;
                at += share;
            }
            source.advance(step);
            done += step;
        }
        Ok(())
    }

    /// Fails unless the range is whole clusters of the disk.
    pub(crate) fn check_clusters(&self, offset: GuestOffset, bytes: u64) -> Result<()> {
        self.refuse_data_file("compressed clusters")?;
        if !self.payload.zeroes_are_zero() {
            return Err(Error::unsupported("Compression and encryption not supported at the same time"));
        }
        check_range(self.virtual_size, offset.0, bytes)?;
        let (geometry, end) = (&self.geometry, offset + bytes);
        if geometry.in_cluster(offset) != 0 || (geometry.in_cluster(end) != 0 && end != self.disk_end()) {
            return Err(Error::invalid(format!(
                "a compressed write is whole clusters of {} bytes: {bytes} bytes at {offset} are not",
                geometry.cluster_bytes()
            )));
        }
        Ok(())
    }

    /// Compresses shares of `share` bytes, the first by this thread and each other one by a thread of its own.
    fn pack_all(&self, data: &[u8], share: usize) -> Result<Vec<PackedClusters>> {
        if data.len() <= share {
            return Ok(vec![self.pack(data)?]);
        }
        let (first, others) = data.split_at(share);
        std::thread::scope(|scope| {
            // A host that has no more threads to give leaves the share to this one.
            let start = |part| helper::start(scope, move || self.pack(part));
            let started: Vec<_> = others.chunks(share).map(|part| (part, start(part))).collect();
            let mut packed = vec![self.pack(first)?];
            for (part, helper) in started {
                packed.push(match helper {
                    Some(helper) => helper.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?,
                    None => self.pack(part)?,
                });
            }
            Ok(packed)
        })
    }

    /// Compresses clusters; the disk's last one may be shorter.
    pub(super) fn pack(&self, data: &[u8]) -> Result<PackedClusters> {
        let Some(mut compressor) = self.compressors.take().or_else(|| self.codec.compressor()) else {
            return Err(Error::new(ErrorKind::NoMemory, "compressor: no memory"));
        };
        let cluster_bytes = self.geometry.cluster_bytes() as usize;
        let mut packed = PackedClusters::default();
        for bytes in data.chunks(cluster_bytes) {
            let stream = match bytes.len() == cluster_bytes {
                true => compressor.compress(bytes),
                false => {
                    let mut padded = bytes.to_vec();
                    padded.resize(cluster_bytes, 0);
                    compressor.compress(&padded)
                }
            };
            packed.streams.extend_from_slice(stream.unwrap_or_default());
            packed.ends.push(packed.streams.len());
        }
        self.compressors.put(compressor);
        Ok(packed)
    }

    /// Writes what `pack` has made of `data`, guest bytes from `offset` on.
    pub(super) fn write_packed(
        &self,
        packed: &PackedClusters,
        offset: GuestOffset,
        data: &[u8],
    ) -> Result<()> {
        self.check_clusters(offset, data.len() as u64)?;
        let geometry = &self.geometry;
        debug_assert_eq!(packed.ends.len() as u64, geometry.clusters_ceil(data.len() as u64));
        // What is refused changes nothing.
        let (io, alloc) = self.begin_change(offset, 0)?;
        let first = geometry.cluster_index(offset);
        let mut index = 0;
        while index < packed.ends.len() {
            let cluster = first + index as u64;
            // One claim, one table, streams that are written together.
            let in_table = geometry.table_end(cluster) - cluster;
            let limit = packed.ends.len().min(index + (in_table as usize).min(CLUSTERS_PER_THREAD));
            let end = packed.run_end(index, limit);
            let claim = io.map.claim(cluster, first + end as u64);
            for cluster in cluster.to(first + end as u64) {
                let old = io.map.entry(&claim, cluster)?;
                if !matches!(old, L2Entry::Plain(m) if m.host.is_none()) {
                    let rule = "is allocated, and a compressed write does not overwrite";
                    return Err(Error::new(ErrorKind::Occupied, format!("guest cluster {cluster} {rule}")));
                }
            }
            let (from, to) = (index << geometry.cluster_bits, end << geometry.cluster_bits);
            let part = &data[from..to.min(data.len())];
            self.begin_change(geometry.cluster_offset(cluster), part.len() as u64)?;
            if packed.stream(index).is_empty() {
                drop(claim);
                self.write(geometry.cluster_offset(cluster), &[IoSlice::new(part)])?;
            } else {
                self.write_streams(io, alloc, &claim, first, packed, index..end)?;
            }
            index = end;
        }
        Ok(())
    }

    /// Gives the streams of claimed clusters places, those that follow each other in one write.
    fn write_streams(
        &self,
        io: &Io,
        alloc: &Allocator,
        claim: &Claim<'_>,
        first: GuestCluster,
        packed: &PackedClusters,
        indices: Range<usize>,
    ) -> Result<()> {
        io.map.own_table(claim, first + indices.start as u64)?;
        let mut places: Vec<(Reserved<'_>, HostOffset)> = Vec::with_capacity(indices.len());
        let mut start = indices.start;
        for index in indices.clone() {
            let place = alloc.reserve_packed(packed.stream(index).len() as u64)?;
            let before = packed.stream(index).start - packed.stream(start).start;
            if places.first().is_some_and(|(_, host)| *host + before as u64 != place.1) {
                let together = std::mem::take(&mut places);
                self.link_streams(io, claim, first, packed, start..index, together)?;
                start = index;
            }
            places.push(place);
        }
        self.link_streams(io, claim, first, packed, start..indices.end, places)
    }

    /// Writes streams to places that follow each other, and links them.
    fn link_streams(
        &self,
        io: &Io,
        claim: &Claim<'_>,
        first: GuestCluster,
        packed: &PackedClusters,
        indices: Range<usize>,
        places: Vec<(Reserved<'_>, HostOffset)>,
    ) -> Result<()> {
        let bytes = &packed.streams[packed.stream(indices.start).start..packed.stream(indices.end - 1).end];
        let host_start = places[0].1;
        self.inflation.forget(host_start, bytes.len() as u64);
        self.storage().event(Event::WriteCompressed);
        let written = self.payload.write_streams(host_start, bytes)?;
        for (index, (reserved, host_offset)) in indices.zip(places) {
            let length = packed.stream(index).len() as u64;
            let new = L2Entry::Compressed(CompressedSpan::of_stream(host_offset, length));
            let entry = NewEntry { new, dropped: None };
            io.map.link_run(claim, first + index as u64, 1, reserved.filled(written), &mut |_| Ok(entry))?;
        }
        Ok(())
    }
}
