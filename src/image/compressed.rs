//! Compressed writes: whole guest clusters that this image does not hold yet, each a stream that is appended to the
//! one before. A cluster that does not get smaller is written as it is.
//!
//! Compressing happens before the claim. Power cut: as for any allocating write; the pointer waits for the stream.

use super::buffers::{total, Gather};
use super::core::Io;
use super::flush::Flusher;
use super::{check_range, Core};
use crate::alloc::Allocator;
use crate::codec::Compressor;
use crate::error::{Error, ErrorKind, Result};
use crate::format::entries::{CompressedSpan, L2Entry};
use crate::map::Link;
use crate::meta::guard::Owner;
use std::io::IoSlice;

/// One guest cluster with its stream; an empty stream means that it does not get smaller.
struct Packed {
    cluster: u64,
    stream: Vec<u8>,
}

/// Clusters that each thread compresses before the streams are written: bounds the memory of a long request.
const CLUSTERS_PER_THREAD: usize = 8;

impl Core {
    /// Writes `buffers` at `offset`, compressed. The range is whole clusters; the disk's last one may be shorter.
    pub(super) fn write_compressed(
        &self,
        offset: u64,
        buffers: &[IoSlice<'_>],
        flusher: &Flusher,
    ) -> Result<()> {
        let Some(bytes) = total(buffers.iter().map(|b| b.len())) else {
            return Err(Error::invalid("the buffers are longer than 2^63 bytes together"));
        };
        check_range(self.virtual_size, offset, bytes)?;
        let (io, alloc) = self.begin_write()?;
        let geometry = &self.geometry;
        let end = offset + bytes;
        if geometry.in_cluster(offset) != 0 || (geometry.in_cluster(end) != 0 && end != self.virtual_size) {
            return Err(Error::invalid(format!(
                "a compressed write is whole clusters of {} bytes: {bytes} bytes at {offset} are not",
                geometry.cluster_bytes()
            )));
        }
        let mut source = Gather::new(buffers);
        let threads = self.settings.options.compress_threads.max(1) as usize;
        let (mut at, last) = (geometry.cluster_index(offset), geometry.clusters_ceil(end));
        while at < last {
            let step = (last - at).min((threads * CLUSTERS_PER_THREAD) as u64);
            let clusters: Vec<Vec<u8>> =
                (at..at + step).map(|c| self.take_cluster(&mut source, c, end)).collect();
            let packed = self.compress_all(at, &clusters, threads)?;
            for (packed, cluster) in packed.iter().zip(&clusters) {
                self.write_packed(io, alloc, packed, cluster, flusher)?;
            }
            at += step;
        }
        Ok(())
    }

    /// The next cluster's bytes, with zeroes past the end of the disk.
    fn take_cluster(&self, source: &mut Gather<'_>, cluster: u64, end: u64) -> Vec<u8> {
        let inside = (end - self.geometry.cluster_offset(cluster)).min(self.geometry.cluster_bytes());
        let mut parts = Vec::with_capacity(4);
        source.peek_into(inside, &mut parts);
        let mut bytes = Vec::with_capacity(self.geometry.cluster_bytes() as usize);
        parts.iter().for_each(|p| bytes.extend_from_slice(p));
        bytes.resize(self.geometry.cluster_bytes() as usize, 0);
        source.advance(inside);
        bytes
    }

    /// Compresses clusters from `first` on, by up to `threads` threads.
    fn compress_all(&self, first: u64, clusters: &[Vec<u8>], threads: usize) -> Result<Vec<Packed>> {
        let share = clusters.len().div_ceil(threads);
        if threads == 1 || clusters.len() == 1 {
            return self.compress_share(first, clusters);
        }
        std::thread::scope(|scope| {
            let work: Vec<_> = clusters
                .chunks(share)
                .enumerate()
                .map(|(i, part)| scope.spawn(move || self.compress_share(first + (i * share) as u64, part)))
                .collect();
            let mut all = Vec::with_capacity(clusters.len());
            for part in work {
                all.extend(part.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?);
            }
            Ok(all)
        })
    }

    fn compress_share(&self, first: u64, clusters: &[Vec<u8>]) -> Result<Vec<Packed>> {
        let Some(mut compressor) = self.compressors.take().or_else(|| self.codec.compressor()) else {
            return Err(Error::new(ErrorKind::NoMemory, "compressor: no memory"));
        };
        let packed = clusters.iter().zip(first..);
        let packed = packed.map(|(bytes, cluster)| pack(&mut compressor, bytes, cluster)).collect();
        self.compressors.put(compressor);
        Ok(packed)
    }

    fn write_packed(
        &self,
        io: &Io,
        alloc: &Allocator,
        packed: &Packed,
        bytes: &[u8],
        flusher: &Flusher,
    ) -> Result<()> {
        let cluster = packed.cluster;
        let claim = io.map.claim(cluster, cluster + 1);
        let old = io.map.entry(&claim, cluster)?;
        if !matches!(old, L2Entry::Plain(m) if m.host.is_none()) {
            let rule = "is allocated, and a compressed write does not overwrite";
            return Err(Error::new(ErrorKind::Occupied, format!("guest cluster {cluster} {rule}")));
        }
        if packed.stream.is_empty() {
            drop(claim);
            let start = self.geometry.cluster_offset(cluster);
            let inside = (self.virtual_size - start).min(bytes.len() as u64) as usize;
            return self.write(start, &[IoSlice::new(&bytes[..inside])], flusher);
        }
        io.map.own_table(&claim, cluster)?;
        let length = packed.stream.len() as u64;
        let (reserved, host_offset) = alloc.reserve_packed(length)?;
        self.shared.guard.check(Owner(0), host_offset, length)?;
        self.inflation.forget(host_offset, length);
        self.shared.medium.write_data(host_offset, &[IoSlice::new(&packed.stream)])?;
        let new = L2Entry::Compressed(CompressedSpan::of_stream(host_offset, length));
        let after = reserved.ticket().max(self.shared.medium.ticket());
        io.map.link(&claim, Link { cluster, new, after, dropped: None })?;
        reserved.keep();
        Ok(())
    }
}

fn pack(compressor: &mut Compressor, bytes: &[u8], cluster: u64) -> Packed {
    Packed { cluster, stream: compressor.compress(bytes).map(<[u8]>::to_vec).unwrap_or_default() }
}
