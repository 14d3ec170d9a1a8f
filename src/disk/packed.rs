//! Clusters that have been compressed and are not written yet.

use std::ops::Range;

/// Clusters in a row with their streams.
#[derive(Default)]
pub struct PackedClusters {
    /// The streams, one behind the other.
    pub(crate) streams: Vec<u8>,
    /// Where each one ends; one that is empty says that its cluster does not get smaller.
    pub(crate) ends: Vec<usize>,
}

impl PackedClusters {
    /// Where the stream of a cluster is.
    pub(crate) fn stream(&self, index: usize) -> Range<usize> {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        start..self.ends[index]
    }

    /// One past the last of the clusters from `index` on that are alike in having a stream, before `limit`.
    pub(crate) fn run_end(&self, index: usize, limit: usize) -> usize {
        let packed = |i: usize| !self.stream(i).is_empty();
        (index..limit).find(|i| packed(*i) != packed(index)).unwrap_or(limit)
    }
}
