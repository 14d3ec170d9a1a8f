//! Walking over a caller's list of buffers in steps that the extents decide.

use std::io::{IoSlice, IoSliceMut};

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

/// A position in a list of buffers to write.
pub(super) struct Gather<'a> {
    buffers: &'a [IoSlice<'a>],
    index: usize,
    skip: usize,
}

impl<'a> Gather<'a> {
    pub(super) fn new(buffers: &'a [IoSlice<'a>]) -> Self {
        Gather { buffers, index: 0, skip: 0 }
    }

    /// The next `bytes`, when they are in one buffer.
    pub(super) fn peek_one(&self, bytes: u64) -> Option<&'a [u8]> {
        let rest = self.buffers.get(self.index)?.get(self.skip..)?;
        rest.get(..usize::try_from(bytes).ok()?)
    }

    /// Appends the next `bytes` to `parts` without passing over them.
    pub(super) fn peek_into(&self, mut bytes: u64, parts: &mut Vec<IoSlice<'a>>) {
        let mut skip = self.skip;
        for buffer in &self.buffers[self.index..] {
            let step = ((buffer.len() - skip) as u64).min(bytes) as usize;
            if step > 0 {
                parts.push(IoSlice::new(&buffer[skip..skip + step]));
            }
            bytes -= step as u64;
            skip = 0;
            if bytes == 0 {
                return;
            }
        }
    }

    /// Passes over `bytes`.
    pub(super) fn advance(&mut self, mut bytes: u64) {
        while bytes > 0 && self.index < self.buffers.len() {
            let have = (self.buffers[self.index].len() - self.skip) as u64;
            if have <= bytes {
                bytes -= have;
                self.index += 1;
                self.skip = 0;
            } else {
                self.skip += bytes as usize;
                bytes = 0;
            }
        }
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
        let list = [IoSlice::new(&a), IoSlice::new(&b), IoSlice::new(&c)];
        let mut gather = Gather::new(&list);
        gather.advance(2);
        let mut parts = Vec::new();
        gather.peek_into(4, &mut parts);
        let bytes: Vec<u8> = parts.iter().flat_map(|p| p.to_vec()).collect();
        assert_eq!(bytes, [2, 2, 2, 3]);
    }
}
