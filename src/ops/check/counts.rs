//! The references that a check has counted, in chunks of the image file.
//!
//! One count has the width that the image's refcounts have, so no chunk needs more memory than the blocks that it
//! stands for, a block compares with it, and a rebuild writes it. Memory comes with the first reference into each
//! chunk, so a sparse file costs what it refers to and not its length.

use super::chunk::{Chunk, Shape};
use super::no_memory;
use crate::codec::is_zero;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{index_in_memory, Geometry};
use std::collections::HashSet;

/// Smallest chunk, bytes of its array.
const MIN_CHUNK_BYTES: usize = 64 << 10;
/// Most chunks. At the worst geometry (512-byte clusters, 64-bit counts) this is a file of 16 TiB, where no
/// refcount table within its limit reaches past 32 GiB.
const MAX_CHUNKS: u64 = 1 << 22;

/// Most clusters that are remembered for counts that did not fit.
const MAX_OVERFLOWN: usize = 1 << 16;

/// A count for each cluster of the image file.
pub(super) struct Counts {
    shape: Shape,
    chunks: Vec<Option<Box<Chunk>>>,
    clusters: u64,
    /// Some count has been above one.
    shared: bool,
    /// Clusters whose count did not fit its width; all of them may be meant once there are `MAX_OVERFLOWN`.
    overflown: HashSet<u64>,
}

impl Counts {
    /// No references to `clusters` clusters.
    pub fn new(geometry: &Geometry, clusters: u64) -> Result<Counts> {
        let bytes = MIN_CHUNK_BYTES.max(geometry.cluster_bytes() as usize);
        let mut counts = Counts {
            shape: Shape { order: geometry.refcount_order, bytes },
            chunks: Vec::new(),
            clusters: 0,
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
        let chunks = ((clusters - 1) >> self.shape.bits()) + 1;
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
        (index_in_memory(cluster >> self.shape.bits()), cluster & ((1 << self.shape.bits()) - 1))
    }

    /// The chunk with this number, which is there from now on.
    fn chunk(&mut self, chunk: usize) -> &mut Chunk {
        self.chunks[chunk].get_or_insert_with(|| Box::new(Chunk::empty()))
    }

    /// References counted to `cluster`; 0 past the end.
    pub fn get(&self, cluster: u64) -> u64 {
        let (chunk, index) = self.place(cluster);
        match self.chunks.get(chunk) {
            Some(Some(chunk)) => chunk.get(self.shape.order, index),
            _ => 0,
        }
    }

    /// The first cluster at or after `cluster` that nothing refers to.
    pub fn next_free(&self, mut cluster: u64) -> u64 {
        loop {
            let (chunk, index) = self.place(cluster);
            let Some(Some(counts)) = self.chunks.get(chunk) else { return cluster };
            let free = counts.next_zero(self.shape, index);
            cluster += free - index;
            if free >> self.shape.bits() == 0 {
                return cluster;
            }
        }
    }

    /// Adds `amount` references to a cluster that has a count. Answers how many did not fit its width.
    pub fn add(&mut self, cluster: u64, amount: u64) -> Result<u64> {
        if self.add_run(cluster, 1, amount)? == 1 {
            return Ok(0);
        }
        let room = self.shape.max() - self.get(cluster);
        self.add_run(cluster, 1, room)?;
        if self.overflown.len() < MAX_OVERFLOWN {
            self.overflown.try_reserve(1).map_err(|_| no_memory())?;
            self.overflown.insert(cluster);
        }
        Ok(amount - room)
    }

    /// Adds `amount` references to each of `count` clusters from `first` on, which have counts. Answers how many
    /// clusters from the first on got them: less than all when some count after those does not fit its width.
    pub fn add_run(&mut self, first: u64, count: u64, amount: u64) -> Result<u64> {
        let (mut at, end) = (first, first + count);
        let shape = self.shape;
        while at < end && amount > 0 {
            let (chunk, index) = self.place(at);
            let step = (end - at).min((1 << shape.bits()) - index);
            let Some(most) = self.chunk(chunk).add(shape, index, index + step, amount)? else {
                return Ok(at - first);
            };
            self.shared |= most > 1;
            at += step;
        }
        Ok(count)
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
        let shape = self.shape;
        self.chunk(chunk).set(shape, index, value)
    }

    /// Where the counts of a refcount block begin; `None` when all of them are zero for want of a chunk.
    fn block_in(&self, geometry: &Geometry, block_index: u64) -> Option<(&Chunk, u64)> {
        let (chunk, index) = self.place(block_index << geometry.refcount_block_bits());
        Some((self.chunks.get(chunk)?.as_deref()?, index))
    }

    /// Writes the counts of refcount block `block_index` into `block` as that block would hold them.
    pub fn render(&self, geometry: &Geometry, block_index: u64, block: &mut [u8]) {
        match self.block_in(geometry, block_index) {
            Some((chunk, index)) => chunk.render(self.shape.order, index, block),
            None => block.fill(0),
        }
    }

    /// Whether refcount block `block_index` with these bytes says what has been counted; without any: whether
    /// nothing has.
    pub fn is_same(&self, geometry: &Geometry, block_index: u64, block: Option<&[u8]>) -> bool {
        match (self.block_in(geometry, block_index), block) {
            (Some((chunk, index)), Some(block)) => chunk.is_same(self.shape.order, index, block),
            (None, Some(block)) => is_zero(block),
            (_, None) => self.is_zero(geometry, block_index),
        }
    }

    /// Whether nothing refers to a cluster that refcount block `block_index` counts.
    pub fn is_zero(&self, geometry: &Geometry, block_index: u64) -> bool {
        self.block_in(geometry, block_index).is_none_or(|(chunk, index)| {
            chunk.is_zero(self.shape.order, index, geometry.refcount_block_entries())
        })
    }

    /// First refcount block at or after `block_index` that may hold a reference; `None` past the last.
    pub fn next_block(&self, geometry: &Geometry, block_index: u64) -> Option<u64> {
        let per_chunk_bits = self.shape.bits() - geometry.refcount_block_bits();
        let mut chunk = index_in_memory(block_index >> per_chunk_bits);
        if self.chunks.get(chunk)?.is_some() {
            return Some(block_index);
        }
        while self.chunks.get(chunk)?.is_none() {
            chunk += 1;
        }
        Some((chunk as u64) << per_chunk_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::refcount;

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
    fn runs_add_up_like_single_clusters() {
        for order in 0..=6 {
            let g = geometry(9, order);
            let clusters = 3 << Counts::new(&g, 1).unwrap().shape.bits().min(20);
            let mut counts = Counts::new(&g, clusters).unwrap();
            assert_eq!(counts.add_run(5, clusters - 7, 1).unwrap(), clusters - 7);
            assert!(!counts.any_shared());
            let get = |counts: &Counts, at: [u64; 4]| at.map(|c| counts.get(c));
            assert_eq!(get(&counts, [4, 5, clusters - 3, clusters - 2]), [0, 1, 1, 0], "order {order}");
            counts.set(20, g.refcount_max()).unwrap();
            assert_eq!(counts.add_run(10, 20, 1).unwrap(), 0);
            assert_eq!(get(&counts, [10, 19, 20, 21]), [1, 1, g.refcount_max(), 1]);
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
            let mut rendered = vec![0xff; 1 << cluster_bits];
            counts.render(&g, 3, &mut rendered);
            assert_eq!(rendered, block);
            assert!(counts.is_same(&g, 3, Some(&block)) && !counts.is_same(&g, 3, None));
            assert!(counts.is_same(&g, 2, None) && counts.is_zero(&g, 4) && !counts.is_zero(&g, 3));
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
