//! O_DIRECT for callers with any alignment: bounce buffers, and read-modify-write of partial blocks.
//!
//! Aligned writes hold `blocks` shared, and so do zeroing, discarding and reserving; a read-modify-write holds it alone:
//! without that, what a neighbour did between the read and the write of a block would be lost.

use super::aligned::{Aligned, PAGE_BYTES};
use super::buffers::Gather;
use super::file::sys::{direct_alignment, pread};
use super::file::{read_many, write_many, write_one};
use crate::sync::locked;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Unit that every usual device takes, bytes: for files of which nobody knows a smaller one.
const SAFE_ALIGNMENT: u64 = 4096;
/// Largest unit that is believed, bytes.
const MAX_ALIGNMENT: u64 = 65536;
/// Largest bounce buffer, bytes; longer requests go in pieces.
const BOUNCE_BYTES: usize = 1 << 20;

/// The length of a file that grows by writes; `None`: a device.
pub(super) type LengthOf<'a> = &'a dyn Fn() -> io::Result<Option<u64>>;

/// The state of a file opened with O_DIRECT.
pub(super) struct Direct {
    /// Rises once where it turns out to be too small.
    alignment: AtomicU64,
    blocks: RwLock<()>,
}

impl Direct {
    /// Finds the smallest unit that the file takes.
    pub(super) fn probe(file: &File) -> Direct {
        let told = direct_alignment(file).filter(|a| a.is_power_of_two() && *a <= MAX_ALIGNMENT);
        let alignment = told.unwrap_or_else(|| if takes_sectors(file) { 512 } else { SAFE_ALIGNMENT });
        Direct { alignment: AtomicU64::new(alignment.max(512)), blocks: RwLock::new(()) }
    }

    pub(super) fn alignment(&self) -> u64 {
        self.alignment.load(Ordering::Relaxed)
    }

    /// While the answer lives, no block is between its read and its write.
    pub(super) fn beside(&self) -> RwLockReadGuard<'_, ()> {
        locked(self.blocks.read())
    }

    /// As `beside`, and nobody writes or zeroes either.
    pub(super) fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        locked(self.blocks.write())
    }

    /// Whether the unit was too small for this file: `error` came with blocks of `unit` bytes, from aligned memory.
    fn was_wrong(&self, unit: u64, error: &io::Error) -> bool {
        let wrong = error.raw_os_error() == Some(libc::EINVAL) && unit < SAFE_ALIGNMENT;
        if wrong {
            self.alignment.fetch_max(SAFE_ALIGNMENT, Ordering::Relaxed);
        }
        wrong
    }

    /// Does `work` with blocks of the unit, and once more where that turns out to be too small.
    fn in_blocks(&self, mut work: impl FnMut(u64) -> io::Result<()>) -> io::Result<()> {
        let unit = self.alignment();
        match work(unit) {
            Err(e) if self.was_wrong(unit, &e) => work(self.alignment()),
            done => done,
        }
    }

    fn fits(&self, offset: u64, buffers: impl Iterator<Item = (usize, usize)>) -> bool {
        let unit = self.alignment();
        offset % unit == 0
            && buffers
                .into_iter()
                .all(|(address, len)| address % PAGE_BYTES.min(512) == 0 && len as u64 % unit == 0)
    }

    pub(super) fn read(&self, file: &File, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        if self.fits(offset, buffers.iter().map(|b| (b.as_ptr() as usize, b.len()))) {
            match read_many(file, offset, buffers) {
                // The end of the file inside a block, memory that this device does not take, or too small a unit.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
                done => return done,
            }
        }
        self.in_blocks(|unit| read_bounced(file, offset, buffers, unit))
    }

    pub(super) fn write(
        &self,
        file: &File,
        offset: u64,
        buffers: &[IoSlice<'_>],
        length: LengthOf<'_>,
    ) -> io::Result<()> {
        if self.fits(offset, buffers.iter().map(|b| (b.as_ptr() as usize, b.len()))) {
            let _shared = self.beside();
            match write_many(file, offset, buffers) {
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
                done => return done,
            }
        }
        self.in_blocks(|unit| self.write_bounced(file, offset, buffers, unit, length))
    }

    fn write_bounced(
        &self,
        file: &File,
        offset: u64,
        buffers: &[IoSlice<'_>],
        unit: u64,
        length: LengthOf<'_>,
    ) -> io::Result<()> {
        let total: usize = buffers.iter().map(|b| b.len()).sum();
        let mut rest = Gather::new(buffers);
        let mut at = offset;
        let end = offset + total as u64;
        let mut bounce = Aligned::zeroed(total.min(BOUNCE_BYTES) + 2 * unit as usize);
        while at < end {
            let from = aligned_down(at, unit);
            let stop = end.min(from + BOUNCE_BYTES as u64);
            let to = aligned_up(stop, unit);
            let area = bounce.first((to - from) as usize);
            let partial = from < at || stop < to;
            let _alone = partial.then(|| self.alone());
            let _shared = (!partial).then(|| self.beside());
            if partial {
                read_edges(file, [from, at, stop, to], area, unit)?;
            }
            rest.copy_into(&mut area[(at - from) as usize..(stop - from) as usize]);
            match stop < to {
                true => write_tail(file, from, area, stop, length)?,
                false => write_one(file, from, area)?,
            }
            at = stop;
        }
        Ok(())
    }
}

/// Whether the kernel takes sectors of 512 bytes. It checks nothing where there is nothing to read, in a hole or at the
/// end of the file: a single byte is then as good as a sector, and says that nobody has looked.
fn takes_sectors(file: &File) -> bool {
    let mut buffer = Aligned::zeroed(PAGE_BYTES);
    let mut reads = |bytes: usize| file.read_at(buffer.first(bytes), 0).is_ok();
    reads(512) && !reads(1)
}

fn read_bounced(file: &File, offset: u64, buffers: &mut [IoSliceMut<'_>], unit: u64) -> io::Result<()> {
    let total: usize = buffers.iter().map(|b| b.len()).sum();
    let mut bounce = Aligned::zeroed(total.min(BOUNCE_BYTES) + 2 * unit as usize);
    let mut at = offset;
    for buffer in buffers {
        for piece in buffer.chunks_mut(BOUNCE_BYTES) {
            let end = at + piece.len() as u64;
            let (from, to) = (aligned_down(at, unit), aligned_up(end, unit));
            let area = bounce.first((to - from) as usize);
            read_block_range(file, from, area, unit)?;
            let skip = (at - from) as usize;
            piece.copy_from_slice(&area[skip..skip + piece.len()]);
            at = end;
        }
    }
    Ok(())
}

/// Reads the first and the last block of `[from, to)`, the only ones that a write of `[at, stop)` keeps parts of.
fn read_edges(file: &File, [from, at, stop, to]: [u64; 4], area: &mut [u8], unit: u64) -> io::Result<()> {
    if from < at {
        read_block_range(file, from, &mut area[..unit as usize], unit)?;
    }
    let last = area.len() - unit as usize;
    if stop < to && (last > 0 || from == at) {
        read_block_range(file, to - unit, &mut area[last..], unit)?;
    }
    Ok(())
}

/// Writes whole blocks of which the bytes from `stop` on are there already, or past the end of the file: that stays
/// where it is. The caller keeps everybody else from the file.
fn write_tail(file: &File, from: u64, area: &[u8], stop: u64, length: LengthOf<'_>) -> io::Result<()> {
    let end = length()?.map(|length| length.max(stop));
    write_one(file, from, area)?;
    match end.filter(|end| *end < from + area.len() as u64) {
        Some(end) => file.set_len(end),
        None => Ok(()),
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
