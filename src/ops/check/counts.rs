//! The references that a check has counted, in the layout of refcount blocks.
//!
//! One count has the width that the image's refcounts have, so the array needs no more memory than the blocks
//! that it stands for, a block compares with `==`, and a rebuild writes slices of it. Memory comes in chunks
//! with the first reference into each, so a sparse file costs what it refers to and not its length.

use crate::error::{Error, ErrorKind, Result};
use crate::format::{refcount, Geometry};
use std::collections::HashSet;

/// Smallest chunk, bytes.
const MIN_CHUNK_BYTES: usize = 64 << 10;
/// Most chunks. At the worst geometry (512-byte clusters, 64-bit counts) this is a file of 16 TiB, where no
/// refcount table within its limit reaches past 32 GiB.
const MAX_CHUNKS: u64 = 1 << 22;

/// Most clusters that are remembered for counts that did not fit.
const MAX_OVERFLOWN: usize = 1 << 16;

/// A count for each cluster of the image file.
pub(super) struct Counts {
    order: u32,
    chunk_bytes: usize,
    /// log2 of the counts in one chunk.
    chunk_bits: u32,
    chunks: Vec<Option<Box<[u8]>>>,
    clusters: u64,
    max: u64,
    /// Some count has been above one.
    shared: bool,
    /// Clusters whose count did not fit its width; all of them may be meant once there are `MAX_OVERFLOWN`.
    overflown: HashSet<u64>,
}

impl Counts {
    /// No references to `clusters` clusters.
    pub fn new(geometry: &Geometry, clusters: u64) -> Result<Counts> {
        let chunk_bytes = MIN_CHUNK_BYTES.max(geometry.cluster_bytes() as usize);
        let chunk_bits = chunk_bytes.trailing_zeros() + 3 - geometry.refcount_order;
        let mut counts = Counts {
            order: geometry.refcount_order,
            chunk_bytes,
            chunk_bits,
            chunks: Vec::new(),
            clusters: 0,
            max: geometry.refcount_max(),
            shared: false,
            overflown: HashSet::new(),
        };
        counts.grow(clusters)?;
        Ok(counts)
    }

    /// Makes room for at least `clusters` clusters.
    pub fn grow(&mut self, clusters: u64) -> Result<()> {
        if clusters <= self.clusters {
            return Ok(());
        }
        let chunks = ((clusters - 1) >> self.chunk_bits) + 1;
        if chunks > MAX_CHUNKS {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("image file of {clusters} clusters is too long to check"),
            ));
        }
        let more = chunks as usize - self.chunks.len().min(chunks as usize);
        self.chunks.try_reserve(more).map_err(|_| no_memory())?;
        self.chunks.resize_with(self.chunks.len() + more, || None);
        self.clusters = clusters;
        Ok(())
    }

    /// Clusters that have a count.
    pub fn clusters(&self) -> u64 {
        self.clusters
    }

    /// Whether some count has been above one since the start.
    pub fn any_shared(&self) -> bool {
        self.shared
    }

    fn place(&self, cluster: u64) -> (usize, u64) {
        ((cluster >> self.chunk_bits) as usize, cluster & ((1 << self.chunk_bits) - 1))
    }

    /// References counted to `cluster`; 0 past the end.
    pub fn get(&self, cluster: u64) -> u64 {
        let (chunk, index) = self.place(cluster);
        match self.chunks.get(chunk) {
            Some(Some(bytes)) => refcount::get(bytes, self.order, index),
            _ => 0,
        }
    }

    /// Adds `amount` references to a cluster that has a count. Answers how many did not fit its width.
    pub fn add(&mut self, cluster: u64, amount: u64) -> Result<u64> {
        let old = self.get(cluster);
        let fits = amount.min(self.max - old);
        if fits > 0 {
            self.set(cluster, old + fits)?;
        }
        if fits < amount && self.overflown.len() < MAX_OVERFLOWN {
            self.overflown.try_reserve(1).map_err(|_| no_memory())?;
            self.overflown.insert(cluster);
        }
        Ok(amount - fits)
    }

    /// Whether a cluster may have more references than its count says.
    pub fn has_overflown(&self, cluster: u64) -> bool {
        self.overflown.len() >= MAX_OVERFLOWN || self.overflown.contains(&cluster)
    }

    /// Sets the count of a cluster below `clusters()`.
    pub fn set(&mut self, cluster: u64, value: u64) -> Result<()> {
        debug_assert!(cluster < self.clusters);
        let (chunk, index) = self.place(cluster);
        self.shared |= value > 1;
        if self.chunks[chunk].is_none() {
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(self.chunk_bytes).map_err(|_| no_memory())?;
            bytes.resize(self.chunk_bytes, 0);
            self.chunks[chunk] = Some(bytes.into_boxed_slice());
        }
        if let Some(bytes) = &mut self.chunks[chunk] {
            refcount::set(bytes, self.order, index, value);
        }
        Ok(())
    }

    /// The counts of refcount block `block_index` as that block holds them; `None` when all are zero.
    pub fn block(&self, geometry: &Geometry, block_index: u64) -> Option<&[u8]> {
        let first = block_index << geometry.refcount_block_bits();
        let (chunk, index) = self.place(first);
        let bytes = self.chunks.get(chunk)?.as_deref()?;
        let at = refcount::byte_of(self.order, index) as usize;
        Some(&bytes[at..at + geometry.cluster_bytes() as usize])
    }

    /// First refcount block at or after `block_index` that may hold a reference; `None` past the last.
    pub fn next_block(&self, geometry: &Geometry, block_index: u64) -> Option<u64> {
        let per_chunk_bits = self.chunk_bits - geometry.refcount_block_bits();
        let mut chunk = (block_index >> per_chunk_bits) as usize;
        if self.chunks.get(chunk)?.is_some() {
            return Some(block_index);
        }
        while self.chunks.get(chunk)?.is_none() {
            chunk += 1;
        }
        Some((chunk as u64) << per_chunk_bits)
    }
}

pub(super) fn no_memory() -> Error {
    Error::new(ErrorKind::NoMemory, "no memory for the reference counts of this image")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(cluster_bits: u32, refcount_order: u32) -> Geometry {
        Geometry { version: 3, cluster_bits, refcount_order, extended_l2: false, external_data: false }
    }

    #[test]
    fn counts_saturate_at_their_width() {
        for order in 0..=6 {
            let g = geometry(9, order);
            let mut counts = Counts::new(&g, 1000).unwrap();
            assert_eq!(counts.add(7, 1).unwrap(), 0);
            assert!(!counts.any_shared());
            let room = g.refcount_max() - 1;
            assert_eq!(counts.add(7, room.saturating_add(2)).unwrap(), room.saturating_add(2) - room);
            assert_eq!(counts.get(7), g.refcount_max());
            assert_eq!((counts.get(6), counts.get(8), counts.get(5000)), (0, 0, 0));
        }
    }

    #[test]
    fn blocks_have_the_layout_of_the_image() {
        for (cluster_bits, order) in [(9, 6), (9, 0), (16, 4), (21, 4)] {
            let g = geometry(cluster_bits, order);
            let per_block = g.refcount_block_entries();
            let mut counts = Counts::new(&g, per_block * 5).unwrap();
            counts.add(per_block * 3 + 1, 1).unwrap();
            let mut block = vec![0; 1 << cluster_bits];
            refcount::set(&mut block, order, 1, 1);
            assert_eq!(counts.block(&g, 3), Some(&block[..]));
            assert!(counts.next_block(&g, 0).unwrap() <= 3);
            assert_eq!(counts.next_block(&g, 3), Some(3));
            assert_eq!(counts.next_block(&g, 1 << 40), None);
        }
    }

    #[test]
    fn a_sparse_file_costs_nothing() {
        let g = geometry(9, 6);
        let counts = Counts::new(&g, 1 << 34).unwrap();
        assert_eq!(counts.next_block(&g, 0), None);
        assert_eq!(Counts::new(&g, u64::MAX).err().map(|e| e.kind()), Some(ErrorKind::TooLarge));
    }
}
