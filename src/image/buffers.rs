//! Walking over a caller's list of buffers to fill in steps that the extents decide.

pub(super) use crate::storage::buffers::Gather;
use std::io::IoSliceMut;

/// A position in a list of buffers to fill.
pub(super) struct Scatter<'a, 'b> {
    buffers: &'a mut [IoSliceMut<'b>],
    index: usize,
    skip: usize,
}

impl<'a, 'b> Scatter<'a, 'b> {
    pub(super) fn new(buffers: &'a mut [IoSliceMut<'b>]) -> Self {
        Scatter { buffers, index: 0, skip: 0 }
    }

    /// The next `bytes`, as parts of the buffers.
    pub(super) fn take(&mut self, mut bytes: u64) -> Vec<IoSliceMut<'_>> {
        let mut parts = Vec::with_capacity(4);
        let mut skip = self.skip;
        let first = self.index;
        let (mut next_index, mut next_skip) = (self.index, self.skip);
        for buffer in self.buffers[first..].iter_mut() {
            let have = buffer.len() - skip;
            let step = (have as u64).min(bytes) as usize;
            if step > 0 {
                parts.push(IoSliceMut::new(&mut buffer[skip..skip + step]));
            }
            bytes -= step as u64;
            if step == have {
                next_index += 1;
                next_skip = 0;
            } else {
                next_skip = skip + step;
            }
            skip = 0;
            if bytes == 0 {
                break;
            }
        }
        (self.index, self.skip) = (next_index, next_skip);
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_cover_the_list_in_order() {
        let (mut a, mut b, mut c) = ([0u8; 3], [0u8; 0], [0u8; 5]);
        let mut list = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b), IoSliceMut::new(&mut c)];
        let mut scatter = Scatter::new(&mut list);
        for (value, step) in [(1, 2u64), (2, 3), (3, 3)] {
            let mut parts = scatter.take(step);
            assert_eq!(parts.iter().map(|p| p.len() as u64).sum::<u64>(), step);
            for part in &mut parts {
                part.fill(value);
            }
        }
        assert_eq!((a, c), ([1, 1, 2], [2, 2, 3, 3, 3]));
    }
}
