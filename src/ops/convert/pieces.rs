//! Convert's range, cut into pieces that one worker copies at a time.

use super::ConvertOptions;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::geometry::SECTOR_BYTES;
use crate::sync::locked;
use std::ops::Range;
use std::sync::Mutex;

/// Least bytes of a long run of data that one worker copies at a time: they should stay in the processor's cache
/// between read and write.
const PIECE_BYTES: u64 = 1 << 20;

/// What becomes of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Read and copied.
    Data,
    /// Zero bytes are written; the source need not be read.
    ZeroData,
    /// The target shall read as zeroes.
    Zeroes,
    /// The target's backing file has it.
    Below,
}

/// Guest bytes that one worker copies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Counts up from 0 in the order of the disk.
    pub(super) number: u64,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) what: What,
}

/// The rest of the source.
pub(super) struct Pieces<'a> {
    source: &'a Disk,
    /// Of the source when it began: a resize beside makes it no longer, and is an error where it makes it shorter.
    length: u64,
    top_only: bool,
    allocate: bool,
    /// What cannot be looked up is read as data, which is salvaged then.
    salvage: bool,
    /// Offset in the target of the source's start: pieces are cut where the target's clusters end.
    shift: u64,
    /// Pieces of data end at multiples of it.
    piece_bytes: u64,
    /// Compressing: pieces are whole clusters of so many bytes.
    cluster_bytes: Option<u64>,
    /// Held across the look-up in the source's tables. Before all locks of the disks.
    next: Mutex<Next>,
}

/// What has been looked up and not handed out yet.
struct Next {
    number: u64,
    at: u64,
    end: u64,
    what: What,
    /// The last extent that was looked up, with its end: a long one is looked up once, not once for each piece.
    known: (Range<u64>, What),
}

impl<'a> Pieces<'a> {
    pub(super) fn new(source: &'a Disk, length: u64, options: &ConvertOptions, cluster_bytes: u64) -> Self {
        let sparse = options.sparse_bytes.max(512);
        let piece_bytes = match options.compressed {
            true => PIECE_BYTES.max(cluster_bytes),
            false => (PIECE_BYTES.max(cluster_bytes) / sparse * sparse).max(sparse),
        };
        Pieces {
            source,
            length,
            top_only: options.top_only,
            salvage: options.salvage,
            shift: options.target_offset,
            allocate: options.allocate,
            piece_bytes,
            cluster_bytes: options.compressed.then_some(cluster_bytes),
            next: Mutex::new(Next {
                number: 0,
                at: 0,
                end: 0,
                what: What::Below,
                known: (0..0, What::Below),
            }),
        }
    }

    /// The next piece; an error comes with its guest offset.
    pub(super) fn next(&self) -> std::result::Result<Option<Piece>, (u64, Error)> {
        let mut next = locked(self.next.lock());
        let next = &mut *next;
        if next.at == self.length {
            return Ok(None);
        }
        if next.at == next.end {
            let found = match self.cluster_bytes {
                None => self.extents(&mut next.known, next.at),
                Some(cluster_bytes) => self.clusters(&mut next.known, next.at, cluster_bytes),
            };
            (next.end, next.what) = found.map_err(|e| (next.at, e))?;
        }
        let offset = next.at;
        let end = match next.what {
            What::Zeroes | What::Below => next.end,
            What::Data | What::ZeroData => next.end.min(self.end_of_unit(offset, self.piece_bytes)),
        };
        let piece = Piece { number: next.number, offset, length: end - offset, what: next.what };
        next.at = end;
        next.number += 1;
        Ok(Some(piece))
    }

    /// Where the unit of the target ends that `at` is in.
    fn end_of_unit(&self, at: u64, unit: u64) -> u64 {
        ((at + self.shift) / unit + 1) * unit - self.shift
    }

    /// End and kind of the extent at `at`.
    fn extent(&self, at: u64) -> Result<(u64, What)> {
        let status = match self.source.status(at, self.length - at, self.top_only) {
            Err(_) if self.salvage => {
                return Ok((self.length.min(self.end_of_unit(at, SECTOR_BYTES)), What::Data))
            }
            status => status?,
        };
        let zero = status.zero || !status.data;
        let what = match () {
            _ if self.top_only && !status.allocated => What::Below,
            _ if !zero => What::Data,
            _ if self.allocate => What::ZeroData,
            _ => What::Zeroes,
        };
        Ok((at + status.length, what))
    }

    /// End and kind of the extents of one kind at `at`; of data, up to the end of a piece at least: clusters that lie
    /// all over a file are not copied one by one.
    fn extents(&self, known: &mut (Range<u64>, What), at: u64) -> Result<(u64, What)> {
        let (mut end, what) = self.known_extent(known, at)?;
        let piece_end = self.length.min(self.end_of_unit(at, self.piece_bytes));
        while what == What::Data && end < piece_end {
            match self.known_extent(known, end) {
                Ok((next, kind)) if kind == what => end = next,
                // What cannot be looked up is the next piece's error, once this one is copied.
                _ => break,
            }
        }
        Ok((end, what))
    }

    /// As `extent`, from what was looked up last where that will do.
    fn known_extent(&self, known: &mut (Range<u64>, What), at: u64) -> Result<(u64, What)> {
        if !known.0.contains(&at) {
            let (end, what) = self.extent(at)?;
            *known = (at..end, what);
        }
        Ok((known.0.end, known.1))
    }

    /// End and kind of the whole clusters at `at`. Data goes with what is around it, except where that is the
    /// backing file's; a cluster that is neither all zeroes nor all the backing file's is data.
    fn clusters(&self, known: &mut (Range<u64>, What), at: u64, cluster_bytes: u64) -> Result<(u64, What)> {
        let length = self.length;
        let mut look = |at: u64| self.known_extent(known, at);
        let (mut end, what) = look(at)?;
        if !matches!(what, What::Zeroes | What::Below) {
            let unit = if self.top_only { cluster_bytes } else { self.piece_bytes };
            return Ok((length.min(self.end_of_unit(at, unit)), What::Data));
        }
        while end < length {
            let (next, kind) = look(end)?;
            if kind != what {
                break;
            }
            end = next;
        }
        let whole = match end < length {
            true => ((end + self.shift) / cluster_bytes * cluster_bytes).saturating_sub(self.shift),
            false => end,
        };
        match whole > at {
            true => Ok((whole, what)),
            false => Ok((length.min(self.end_of_unit(at, cluster_bytes)), What::Data)),
        }
    }
}
