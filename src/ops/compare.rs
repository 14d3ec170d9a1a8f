//! Compare: whether two disks show the same.
//!
//! Ranges that both know to be zeroes, or that both have from the same place of the same file, are not read. A
//! difference is found to the sector, as the stock tool tells it; so is its strict mode, which wants equal sizes
//! and an equal status of every range.

use super::rebase::node;
use crate::disk::{Disk, Status};
use crate::error::{Error, ErrorKind};
use crate::format::geometry::SECTOR_BYTES;
use crate::storage::aligned::Aligned;
use std::io::IoSliceMut;

/// Most bytes that are read at once, of each disk: both stay in the cache of one processor until they are compared.
const CHUNK_BYTES: u64 = 128 << 10;

/// Where two disks part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nowhere; what one is longer is zeroes.
    Same,
    /// Strict: their sizes differ.
    Sizes,
    /// The sector at this guest offset.
    Contents(u64),
    /// Strict: one is allocated or zero at this guest offset in another way.
    Status(u64),
}

/// What could not be done.
#[derive(Debug)]
pub struct Failure {
    /// Why.
    pub error: Error,
    /// Of which disk, 0 or 1; `None`: it is not a matter of one.
    pub side: Option<usize>,
    /// Its status, and not its bytes.
    pub status: bool,
    /// The guest offset.
    pub offset: u64,
}

/// One of the two.
struct Side<'a> {
    index: usize,
    disk: &'a Disk,
    length: u64,
    buffer: Aligned,
    /// The extent that was looked up last, with its offset: a long one is looked up once, not once for each part.
    known: Option<(u64, Status)>,
}

impl<'a> Side<'a> {
    fn new(index: usize, disk: &'a Disk) -> Side<'a> {
        Side { index, disk, length: disk.length(), buffer: Aligned::default(), known: None }
    }

    fn failure(&self, error: Error, status: bool, offset: u64) -> Failure {
        Failure { error, side: Some(self.index), status, offset }
    }

    /// The extent from `at` on, which is not before the last one; past the end `None`.
    fn status(&mut self, at: u64) -> Result<Option<Status>, Failure> {
        if at >= self.length {
            return Ok(None);
        }
        if let Some((start, known)) = self.known.filter(|(start, known)| at - start < known.length) {
            return Ok(Some(known.after(at - start)));
        }
        let found = self.disk.status(at, self.length - at, false);
        let status = found.map_err(|e| self.failure(e, true, at))?;
        self.known = Some((at, status));
        Ok(Some(status))
    }

    /// Bytes of the disk; zeroes where it has none to read.
    fn read(&mut self, at: u64, bytes: u64, zero: bool) -> Result<&[u8], Failure> {
        let part = self.buffer.first(bytes as usize);
        match zero {
            true => part.fill(0),
            false => {
                let done = self.disk.read(at, &mut [IoSliceMut::new(part)]);
                done.map_err(|error| Failure { error, side: Some(self.index), status: false, offset: at })?;
            }
        }
        Ok(part)
    }

    /// In strict mode an extent that reaches the disk's end is not the same as one that does not.
    fn kind(&self, at: u64, status: &Status) -> [bool; 5] {
        let ends = at + status.length >= self.length;
        [status.data, status.zero, status.allocated, status.compressed, ends]
    }
}

/// Compares from the start on, up to the first difference. `progress(done, total)` in guest bytes; `false` cancels.
pub fn compare(
    left: &Disk,
    right: &Disk,
    strict: bool,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Verdict, Failure> {
    let (mut left, mut right) = (Side::new(0, left), Side::new(1, right));
    let total = left.length.max(right.length);
    if strict && left.length != right.length {
        return Ok(Verdict::Sizes);
    }
    for side in [&left, &right] {
        side.disk.settle_runs().map_err(|e| side.failure(e, true, 0))?;
    }
    let mut at = 0;
    while at < total {
        if !progress(at, total) {
            let error = Error::new(ErrorKind::Cancelled, "compare: the caller asked to stop");
            return Err(Failure { error, side: None, status: false, offset: at });
        }
        let (a, b) = (left.status(at)?, right.status(at)?);
        if let (true, Some(a), Some(b)) = (strict, &a, &b) {
            if left.kind(at, a) != right.kind(at, b) {
                return Ok(Verdict::Status(at));
            }
        }
        let length = [&a, &b].into_iter().flatten().map(|s| s.length).min().unwrap_or(total - at);
        let zero = |status: &Option<Status>| status.as_ref().is_none_or(|s| s.zero);
        if zero(&a) && zero(&b) || same_place(&left, &right, &a, &b) {
            at += length;
            continue;
        }
        let bytes = length.min(CHUNK_BYTES);
        let (one, other) = (left.read(at, bytes, zero(&a))?, right.read(at, bytes, zero(&b))?);
        if let Some(sector) = first_difference(one, other) {
            return Ok(Verdict::Contents(at + sector));
        }
        at += bytes;
    }
    progress(total, total);
    Ok(Verdict::Same)
}

/// Whether both have the bytes from one place of one file.
fn same_place(left: &Side<'_>, right: &Side<'_>, a: &Option<Status>, b: &Option<Status>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    let place = |side: &Side<'_>, status: &Status| {
        let file = node(side.disk, status.depth).filter(|_| status.data).and_then(|n| n.data);
        file.zip(status.host)
    };
    let first = place(left, a);
    first.is_some() && first == place(right, b)
}

/// The offset of the first sector that differs.
fn first_difference(left: &[u8], right: &[u8]) -> Option<u64> {
    if left == right {
        return None;
    }
    let sector = SECTOR_BYTES as usize;
    let pairs = left.chunks(sector).zip(right.chunks(sector));
    pairs.zip(0..).find(|((a, b), _)| a != b).map(|(_, index): (_, u64)| index * SECTOR_BYTES)
}
