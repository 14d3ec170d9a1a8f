//! Walking over a caller's list of buffers to write.

use std::io::IoSlice;

/// A position in a list of buffers to write.
pub struct Gather<'a> {
    buffers: &'a [IoSlice<'a>],
    index: usize,
    skip: usize,
}

impl<'a> Gather<'a> {
    /// At the start of the list.
    pub fn new(buffers: &'a [IoSlice<'a>]) -> Self {
        Gather { buffers, index: 0, skip: 0 }
    }

    /// The next `bytes`, when they are in one buffer.
    pub fn peek_one(&self, bytes: u64) -> Option<&'a [u8]> {
        let rest = self.buffers.get(self.index)?.get(self.skip..)?;
        rest.get(..usize::try_from(bytes).ok()?)
    }

    /// Appends the next `bytes` to `parts` without passing over them.
    pub fn peek_into(&self, mut bytes: u64, parts: &mut Vec<IoSlice<'a>>) {
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

    /// Copies the next bytes, as many as `out` has, and passes over them. The list has so many.
    pub fn copy_into(&mut self, mut out: &mut [u8]) {
        while !out.is_empty() {
            let source = &self.buffers[self.index][self.skip..];
            let bytes = source.len().min(out.len());
            out[..bytes].copy_from_slice(&source[..bytes]);
            out = &mut out[bytes..];
            self.advance(bytes as u64);
            if bytes == 0 {
                self.index += 1;
                self.skip = 0;
            }
        }
    }

    /// Passes over `bytes`.
    pub fn advance(&mut self, mut bytes: u64) {
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
        let (a, b, c) = ([1, 1, 2], [], [2, 2, 3, 3, 3]);
        let list = [IoSlice::new(&a), IoSlice::new(&b), IoSlice::new(&c)];
        let mut gather = Gather::new(&list);
        gather.advance(2);
        let mut parts = Vec::new();
        gather.peek_into(4, &mut parts);
        let bytes: Vec<u8> = parts.iter().flat_map(|p| p.to_vec()).collect();
        assert_eq!(bytes, [2, 2, 2, 3]);
        let mut copied = [0; 6];
        gather.copy_into(&mut copied);
        assert_eq!(copied, [2, 2, 2, 3, 3, 3]);
    }
}
