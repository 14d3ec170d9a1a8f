//! O_DIRECT for callers with any alignment: bounce buffers, and read-modify-write of partial blocks.
//!
//! Aligned writes hold `blocks` shared, a read-modify-write holds it alone: without that, a neighbour's
//! write between the read and the write of a block would be lost.

use super::file::{pread, read_many, write_many, write_one};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::RwLock;

/// Memory alignment that every device accepts, bytes.
const MEMORY_ALIGNMENT: usize = 4096;
/// Largest bounce buffer, bytes; longer requests go in pieces.
const BOUNCE_BYTES: usize = 1 << 20;

/// The state of a file opened with O_DIRECT.
pub(super) struct Direct {
    alignment: u64,
    blocks: RwLock<()>,
}

/// A buffer whose first byte is aligned.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl Aligned {
    fn new(bytes: usize) -> Aligned {
        let memory = vec![0; bytes + MEMORY_ALIGNMENT];
        let start = memory.as_ptr().align_offset(MEMORY_ALIGNMENT).min(MEMORY_ALIGNMENT);
        Aligned { memory, start, bytes }
    }

    fn slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.bytes]
    }
}

impl Direct {
    /// Finds the smallest unit that the file takes.
    pub(super) fn probe(file: &File) -> io::Result<Direct> {
        let mut buffer = Aligned::new(MEMORY_ALIGNMENT);
        let takes_sectors = file.read_at(&mut buffer.slice()[..512], 0).is_ok();
        let alignment = if takes_sectors { 512 } else { 4096 };
        Ok(Direct { alignment, blocks: RwLock::new(()) })
    }

    pub(super) fn alignment(&self) -> u64 {
        self.alignment
    }

    fn fits(&self, offset: u64, buffers: impl Iterator<Item = (usize, usize)>) -> bool {
        let unit = self.alignment as usize;
        offset % self.alignment == 0
            && buffers
                .into_iter()
                .all(|(address, len)| address % MEMORY_ALIGNMENT.min(512) == 0 && len % unit == 0)
    }

    pub(super) fn read(&self, file: &File, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        if self.fits(offset, buffers.iter().map(|b| (b.as_ptr() as usize, b.len()))) {
            match read_many(file, offset, buffers) {
                // The end of the file inside a block, or memory that this device does not take.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
                done => return done,
            }
        }
        let total: usize = buffers.iter().map(|b| b.len()).sum();
        let mut bounce = Aligned::new(total.min(BOUNCE_BYTES) + 2 * MEMORY_ALIGNMENT);
        let mut at = offset;
        for buffer in buffers {
            for piece in buffer.chunks_mut(BOUNCE_BYTES) {
                let end = at + piece.len() as u64;
                let (from, to) = (aligned_down(at, self.alignment), aligned_up(end, self.alignment));
                let area = &mut bounce.slice()[..(to - from) as usize];
                read_block_range(file, from, area, self.alignment)?;
                let skip = (at - from) as usize;
                piece.copy_from_slice(&area[skip..skip + piece.len()]);
                at = end;
            }
        }
        Ok(())
    }

    pub(super) fn write(&self, file: &File, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        if self.fits(offset, buffers.iter().map(|b| (b.as_ptr() as usize, b.len()))) {
            let _shared = self.blocks.read().unwrap_or_else(|e| e.into_inner());
            match write_many(file, offset, buffers) {
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
                done => return done,
            }
        }
        let total: usize = buffers.iter().map(|b| b.len()).sum();
        let mut rest = Gather::new(buffers);
        let mut at = offset;
        let end = offset + total as u64;
        let mut bounce = Aligned::new(total.min(BOUNCE_BYTES) + 2 * MEMORY_ALIGNMENT);
        while at < end {
            let from = aligned_down(at, self.alignment);
            let stop = end.min(from + BOUNCE_BYTES as u64);
            let to = aligned_up(stop, self.alignment);
            let area = &mut bounce.slice()[..(to - from) as usize];
            let partial = from < at || stop < to;
            let _alone = partial.then(|| self.blocks.write().unwrap_or_else(|e| e.into_inner()));
            let _shared = (!partial).then(|| self.blocks.read().unwrap_or_else(|e| e.into_inner()));
            if partial {
                self.read_edges(file, from, at, stop, to, area)?;
            }
            rest.take(&mut area[(at - from) as usize..(stop - from) as usize]);
            write_one(file, from, area)?;
            at = stop;
        }
        Ok(())
    }

    /// Reads the first and the last block of `[from, to)`, the only ones that a write of `[at, stop)` keeps parts of.
    fn read_edges(
        &self,
        file: &File,
        from: u64,
        at: u64,
        stop: u64,
        to: u64,
        area: &mut [u8],
    ) -> io::Result<()> {
        let unit = self.alignment as usize;
        if from < at {
            read_block_range(file, from, &mut area[..unit], self.alignment)?;
        }
        let last = area.len() - unit;
        if stop < to && (last > 0 || from == at) {
            read_block_range(file, to - self.alignment, &mut area[last..], self.alignment)?;
        }
        Ok(())
    }
}

fn aligned_down(offset: u64, unit: u64) -> u64 {
    offset / unit * unit
}

fn aligned_up(offset: u64, unit: u64) -> u64 {
    offset.div_ceil(unit) * unit
}

/// A read of whole blocks of `unit` bytes that tolerates the end of the file inside one.
fn read_block_range(file: &File, mut offset: u64, mut area: &mut [u8], unit: u64) -> io::Result<()> {
    let mut again = false;
    while !area.is_empty() {
        // Not `read_at`: reads meet no cancellation point.
        let n = pread(file, area, offset as i64);
        if n < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        let whole = n as u64 / unit * unit;
        // No whole block is less than a sector of the end, or, once more, less than a block of it. (An offset inside a
        // block would be EINVAL.)
        if n == 0 || n % 512 != 0 || (whole == 0 && again) {
            area[n as usize..].fill(0);
            return Ok(());
        }
        again = whole == 0;
        offset += whole;
        area = &mut area[whole as usize..];
    }
    Ok(())
}

/// Copies out of a list of buffers in order.
struct Gather<'a> {
    buffers: &'a [IoSlice<'a>],
    skip: usize,
}

impl<'a> Gather<'a> {
    fn new(buffers: &'a [IoSlice<'a>]) -> Self {
        Gather { buffers, skip: 0 }
    }

    fn take(&mut self, mut out: &mut [u8]) {
        while !out.is_empty() {
            let source = &self.buffers[0][self.skip..];
            let bytes = source.len().min(out.len());
            out[..bytes].copy_from_slice(&source[..bytes]);
            out = &mut out[bytes..];
            self.skip += bytes;
            if self.skip == self.buffers[0].len() {
                self.buffers = &self.buffers[1..];
                self.skip = 0;
            }
        }
    }
}
