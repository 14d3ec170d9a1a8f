//! Buffers that begin at a page.
//!
//! A large block of the allocator's begins 16 bytes past one: a cached read into it takes some processors three times
//! as long, and a file opened with O_DIRECT takes it only by way of another buffer.

use crate::error::{zeroed, Result};

/// Memory alignment that every device accepts, bytes.
pub const PAGE_BYTES: usize = 4096;

/// A buffer whose first byte is at a multiple of `PAGE_BYTES`; empty at first.
#[derive(Default)]
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    /// A buffer of `bytes` zero bytes.
    pub fn zeroed(bytes: usize) -> Aligned {
        let memory = vec![0; bytes + PAGE_BYTES];
        let start = memory.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        Aligned { memory, start }
    }

    /// As `first`, with an error where there is no memory for `what`.
    pub fn room(&mut self, what: &str, bytes: usize) -> Result<&mut [u8]> {
        if self.memory.len() < self.start + bytes {
            let memory = zeroed(what, (bytes + PAGE_BYTES) as u64)?;
            let start = memory.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
            *self = Aligned { memory, start };
        }
        Ok(self.first(bytes))
    }

    /// The first `bytes` bytes, which hold anything; there are more of them than before where it was shorter.
    pub fn first(&mut self, bytes: usize) -> &mut [u8] {
        if self.memory.len() < self.start + bytes {
            *self = Aligned::zeroed(bytes);
        }
        &mut self.memory[self.start..self.start + bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_begins_at_a_page() {
        let mut buffer = Aligned::default();
        for bytes in [0, 1, 4096, 1 << 20, 513, 2 << 20] {
            let part = buffer.first(bytes);
            assert_eq!(part.len(), bytes);
            assert!(bytes == 0 || part.as_ptr() as usize % PAGE_BYTES == 0);
            part.fill(7);
        }
    }
}
