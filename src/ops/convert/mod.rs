//! Convert: what one disk shows is copied into another one, by several workers when asked.
//!
//! The range is cut into pieces, which workers take one after the other: they read, look for zeroes and compress
//! side by side, and write in the order of the disk unless any order will do. What is plain data in files on both
//! sides the host copies (`offload`), for one worker: others start once there is something to do in memory. Nothing is
//! made durable here.

mod offload;
mod pieces;

use crate::codec::is_zero;
use crate::disk::{Disk, PackedClusters, ZeroFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::SECTOR_BYTES;
use crate::storage::aligned::Aligned;
use crate::storage::helper;
use crate::sync::locked;
use offload::Offload;
use pieces::{Piece, Pieces, What};
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

/// One worker copies so much through memory before others help.
const ALONE_BYTES: u64 = 4 << 20;
/// Most workers of one call.
pub const MAX_WORKERS: u32 = 64;
/// Longest part that must be zero to become a hole, bytes.
pub const MAX_SPARSE_BYTES: u64 = 16 << 20;

/// How to copy.
#[derive(Clone, Copy, Debug)]
pub struct ConvertOptions {
    /// Data becomes compressed clusters.
    pub compressed: bool,
    /// What the source does not hold itself is left to the target's backing file.
    pub top_only: bool,
    /// What is not written reads as zeroes in the target already.
    pub target_zero: bool,
    /// Zeroes are written as data.
    pub allocate: bool,
    /// Pieces may be written in any order.
    pub any_order: bool,
    /// Aligned parts of so many bytes that are zero become holes, whole clusters when compressing; 0: nobody looks.
    pub sparse_bytes: u64,
    /// Threads, the caller's among them.
    pub workers: u32,
    /// Where in the target the source begins: a multiple of 512.
    pub target_offset: u64,
    /// Sectors that cannot be read become zeroes, and are told.
    pub salvage: bool,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        ConvertOptions {
            compressed: false,
            top_only: false,
            target_zero: false,
            allocate: false,
            any_order: false,
            sparse_bytes: 4096,
            workers: 1,
            target_offset: 0,
            salvage: false,
        }
    }
}

/// Copies `source` into `target`. `progress(done, total)` in guest bytes, on the caller's thread; `false` cancels.
pub fn convert(
    source: &Disk,
    target: &Disk,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<()> {
    convert_telling(source, target, options, &mut |_, _| (), progress)
}

/// As `convert`; `lost`, on the caller's thread, is told the guest offset of each sector that could not be read.
pub fn convert_telling(
    source: &Disk,
    target: &Disk,
    options: &ConvertOptions,
    lost: &mut dyn FnMut(u64, &Error),
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<()> {
    let cluster_bytes = validate(source, target, options)?;
    source.settle_runs()?;
    let total = source.length();
    let job = Job {
        pieces: Pieces::new(source, total, options, cluster_bytes),
        offload: Offload::new(source, target, options.sparse_bytes, cluster_bytes),
        source,
        target,
        options,
        cluster_bytes,
        done: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
        turn: Mutex::default(),
        turned: Condvar::new(),
        read_bytes: AtomicU64::new(0),
        lost: Mutex::default(),
    };
    if options.salvage || options.target_offset != 0 {
        job.offload.forbid();
    }
    let mut tell = || lock(&job.lost).drain(..).for_each(|(at, e)| lost(at, &e));
    std::thread::scope(|scope| {
        // A host that has no more threads to give has fewer workers.
        let help = |_| helper::start(scope, || job.work(&mut || true));
        let mut helpers: Option<Vec<_>> = None;
        job.work(&mut || {
            // What the host copies it copies into one file: workers would only wait for each other.
            if options.compressed || job.read_bytes.load(Ordering::Relaxed) > ALONE_BYTES {
                helpers.get_or_insert_with(|| (1..options.workers).map_while(help).collect());
            }
            tell();
            progress(job.done.load(Ordering::Relaxed), total)
        });
        for helper in helpers.into_iter().flatten() {
            helper.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
        }
    });
    tell();
    if let Some((_, error)) = locked(job.failure.into_inner()) {
        return Err(error);
    }
    progress(total, total);
    Ok(())
}

/// Refuses what cannot be done; the unit of compressed pieces.
fn validate(source: &Disk, target: &Disk, options: &ConvertOptions) -> Result<u64> {
    if source.is(target) || source.identity().is_some_and(|s| target.identity() == Some(s)) {
        return Err(Error::invalid("convert: source and target are the same"));
    }
    if target.is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly, "convert: the target is open read-only"));
    }
    if options.target_offset % SECTOR_BYTES != 0 {
        return Err(Error::invalid(format!(
            "target_offset is {}: it is a multiple of 512",
            options.target_offset
        )));
    }
    if target.length().checked_sub(options.target_offset).is_none_or(|room| room < source.length()) {
        return Err(Error::invalid("output file is smaller than input file"));
    }
    if options.sparse_bytes % 512 != 0 || options.sparse_bytes > MAX_SPARSE_BYTES {
        let rule = "is a multiple of 512 up to 16777216, or 0";
        return Err(Error::invalid(format!("sparse_bytes is {}: it {rule}", options.sparse_bytes)));
    }
    if !(1..=MAX_WORKERS).contains(&options.workers) {
        return Err(Error::invalid(format!("workers is {}: 1 to {MAX_WORKERS}", options.workers)));
    }
    match target.compressed_unit() {
        Some(cluster_bytes) => Ok(cluster_bytes),
        None if options.compressed => {
            Err(Error::unsupported("Compression not supported for this file format"))
        }
        None => Ok(SECTOR_BYTES),
    }
}

/// A result whose error comes with its guest offset.
type Placed<T> = std::result::Result<T, (u64, Error)>;

/// What a run of a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Bytes in memory.
    Data,
    /// A part of a cluster: it is not compressed.
    Short,
    /// Zeroes.
    Zero,
    /// Bytes that the host copies from file to file.
    Host,
}

/// What the workers share.
struct Job<'a> {
    pieces: Pieces<'a>,
    offload: Offload<'a>,
    source: &'a Disk,
    target: &'a Disk,
    options: &'a ConvertOptions,
    /// Of the target.
    cluster_bytes: u64,
    /// Guest bytes that are through.
    done: AtomicU64,
    stop: AtomicBool,
    /// The failure nearest to the start of the disk, with its offset.
    failure: Mutex<Option<(u64, Error)>>,
    /// Held to look, never across I/O.
    turn: Mutex<Turn>,
    turned: Condvar,
    /// Bytes of a copy without compression that went through memory.
    read_bytes: AtomicU64,
    /// Sectors that could not be read, until the caller's thread tells them.
    lost: Mutex<Vec<(u64, Error)>>,
}

#[derive(Default)]
struct Turn {
    /// Number of the piece that may be written now.
    number: u64,
    /// Workers that wait: nobody is woken, by a system call, when there are none.
    waiting: usize,
}

/// Stops the others when its worker does not come to an end.
struct StopOthers<'a, 'b>(&'a Job<'b>);

impl Drop for StopOthers<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.halt();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    locked(mutex.lock())
}

impl Job<'_> {
    fn halt(&self) {
        let _turn = lock(&self.turn);
        self.stop.store(true, Ordering::SeqCst);
        self.turned.notify_all();
    }

    fn fail(&self, offset: u64, error: Error) {
        let mut failure = lock(&self.failure);
        if failure.as_ref().is_none_or(|(at, _)| offset < *at) {
            *failure = Some((offset, error));
        }
        drop(failure);
        self.halt();
    }

    fn work(&self, report: &mut dyn FnMut() -> bool) {
        let _stop = StopOthers(self);
        let mut buffer = Aligned::default();
        while !self.stop.load(Ordering::SeqCst) {
            if !report() {
                self.fail(0, Error::new(ErrorKind::Cancelled, "convert: the caller asked to stop"));
                return;
            }
            let piece = match self.pieces.next() {
                Ok(Some(piece)) => piece,
                Ok(None) => return,
                Err((at, e)) => return self.fail(at, told("reading block status at offset", at, e)),
            };
            match self.copy(&piece, &mut buffer) {
                Ok(()) => self.done.fetch_add(piece.length, Ordering::Relaxed),
                Err((at, e)) => return self.fail(at, e),
            };
        }
    }

    /// Reads and writes one piece; an error comes with its guest offset.
    fn copy(&self, piece: &Piece, buffer: &mut Aligned) -> Placed<()> {
        let Piece { offset, length, .. } = *piece;
        if !matches!(piece.what, What::Data | What::ZeroData) {
            return self.in_turn(piece, || match piece.what {
                What::Zeroes => self.put_zeroes(offset, length),
                _ => Ok(()),
            });
        }
        let bytes = length as usize;
        let data = buffer.first(bytes);
        let runs = self.fetch(piece, data)?;
        let packed =
            self.pack(offset, data, &runs).map_err(|e| (offset, told("writing at byte", offset, e)))?;
        self.in_turn(piece, || {
            for (index, (run, kind)) in runs.iter().enumerate() {
                let at = offset + run.start as u64;
                let part = &mut data[run.clone()];
                match (kind, packed.get(index)) {
                    (Kind::Zero, _) => self.put_zeroes(at, part.len() as u64)?,
                    (Kind::Data, Some(packed)) => {
                        let put = self.target.write_packed(packed, self.to(at), part);
                        put.map_err(|e| (at, told("writing at byte", at, e)))?;
                    }
                    (Kind::Data, None) | (Kind::Short, _) => self.put_data(at, part)?,
                    (Kind::Host, _) => self.copy_by_host(at, part)?,
                }
            }
            Ok(())
        })
    }

    /// What the runs of a piece are; those that the host does not copy are in `data` then.
    fn fetch(&self, piece: &Piece, data: &mut [u8]) -> Placed<Vec<(Range<usize>, Kind)>> {
        if piece.what == What::ZeroData {
            data.fill(0);
            return Ok(vec![(0..data.len(), Kind::Data)]);
        }
        if self.options.compressed {
            self.read(piece.offset, data)?;
            return Ok(self.cluster_runs(piece.offset, data));
        }
        let mut runs = Vec::new();
        for (run, host) in self.offload.cut(piece.offset, piece.length) {
            if host {
                runs.push((run, Kind::Host));
                continue;
            }
            let at = piece.offset + run.start as u64;
            self.read(at, &mut data[run.clone()])?;
            self.read_bytes.fetch_add(run.len() as u64, Ordering::Relaxed);
            let inside = self.runs(at, &data[run.clone()]);
            runs.extend(inside.map(|(r, kind)| (r.start + run.start..r.end + run.start, kind)));
        }
        Ok(runs)
    }

    /// The runs of whole clusters, and those of clusters that the source begins or ends in.
    fn cluster_runs(&self, offset: u64, data: &[u8]) -> Vec<(Range<usize>, Kind)> {
        let mut runs: Vec<_> = self.runs(offset, data).collect();
        let end = self.to(offset) + data.len() as u64;
        let whole = data.len() - data.len().min((end % self.cluster_bytes) as usize);
        let ends_target = end == self.target.length();
        let head = (self.to(offset).next_multiple_of(self.cluster_bytes) - self.to(offset)) as usize;
        if let Some((first, Kind::Data)) = runs.first_mut().filter(|_| head > 0) {
            let part = (0..first.end.min(head), Kind::Short);
            first.start = part.0.end;
            runs.insert(0, part);
        }
        if let Some((last, Kind::Data)) = runs.last_mut().filter(|(r, _)| r.end > whole && !ends_target) {
            let tail = (last.start.max(whole)..last.end, Kind::Short);
            last.end = tail.0.start;
            runs.push(tail);
        }
        runs.retain(|(run, _)| !run.is_empty());
        runs
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Placed<()> {
        let read = self.source.read(offset, &mut [IoSliceMut::new(data)]);
        match read {
            Err(_) if self.options.salvage => self.read_sectors(offset, data),
            read => read.map_err(|e| (offset, told("reading at byte", offset, e))),
        }
    }

    /// What can be read, sector by sector; the others are zeroes.
    fn read_sectors(&self, offset: u64, data: &mut [u8]) -> Placed<()> {
        for (index, sector) in data.chunks_mut(SECTOR_BYTES as usize).enumerate() {
            if self.stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            let at = offset + index as u64 * SECTOR_BYTES;
            if let Err(e) = self.source.read(at, &mut [IoSliceMut::new(sector)]) {
                sector.fill(0);
                lock(&self.lost).push((at, told("reading offset", at, e)));
            }
        }
        Ok(())
    }

    /// Where in the target an offset of the source is.
    fn to(&self, offset: u64) -> u64 {
        offset + self.options.target_offset
    }

    /// As far as the host can, and the rest by way of `buffer`.
    fn copy_by_host(&self, offset: u64, buffer: &mut [u8]) -> Placed<()> {
        let copied = self.offload.copy(offset, buffer.len() as u64);
        let done = copied.map_err(|e| (offset, told("writing at byte", offset, e)))?;
        let (at, rest) = (offset + done, &mut buffer[done as usize..]);
        if rest.is_empty() {
            return Ok(());
        }
        self.read(at, rest)?;
        let runs: Vec<_> = self.runs(at, rest).collect();
        for (run, kind) in runs {
            let at = at + run.start as u64;
            match kind {
                Kind::Zero => self.put_zeroes(at, run.len() as u64)?,
                _ => self.put_data(at, &rest[run])?,
            }
        }
        Ok(())
    }

    /// Runs `write` when everything before the piece has been written.
    fn in_turn(&self, piece: &Piece, write: impl FnOnce() -> Placed<()>) -> Placed<()> {
        if self.options.any_order || self.options.workers == 1 {
            return write();
        }
        let mut turn = lock(&self.turn);
        while turn.number != piece.number && !self.stop.load(Ordering::SeqCst) {
            turn.waiting += 1;
            turn = locked(self.turned.wait(turn));
            turn.waiting -= 1;
        }
        drop(turn);
        if self.stop.load(Ordering::SeqCst) {
            return Ok(());
        }
        write()?;
        let mut turn = lock(&self.turn);
        turn.number += 1;
        if turn.waiting > 0 {
            self.turned.notify_all();
        }
        Ok(())
    }

    fn put_zeroes(&self, offset: u64, length: u64) -> Placed<()> {
        if self.options.target_zero {
            return Ok(());
        }
        let flags = ZeroFlags { unmap: true, no_fallback: false };
        let put = self.target.write_zeroes(self.to(offset), length, flags, false);
        put.map_err(|e| (offset, told("writing at byte", offset, e)))
    }

    fn put_data(&self, offset: u64, data: &[u8]) -> Placed<()> {
        let put = self.target.write(self.to(offset), &[IoSlice::new(data)], false);
        put.map_err(|e| (offset, told("writing at byte", offset, e)))
    }

    /// The parts of `data` that are zeroes, and those that are not.
    fn runs<'b>(&self, offset: u64, data: &'b [u8]) -> impl Iterator<Item = (Range<usize>, Kind)> + 'b {
        let unit = match self.options.compressed {
            _ if self.options.sparse_bytes == 0 => None,
            true => Some(self.cluster_bytes),
            false => Some(self.options.sparse_bytes),
        };
        let to = self.to(offset);
        let end_of = move |at: usize| match unit {
            None => data.len(),
            Some(unit) => data.len().min(at + (unit - (to + at as u64) % unit) as usize),
        };
        let zero = move |at: usize| unit.is_some() && is_zero(&data[at..end_of(at)]);
        let mut start = 0;
        std::iter::from_fn(move || {
            if start == data.len() {
                return None;
            }
            let kind = zero(start);
            let (from, mut end) = (start, end_of(start));
            while end < data.len() && zero(end) == kind {
                end = end_of(end);
            }
            start = end;
            Some((from..end, if kind { Kind::Zero } else { Kind::Data }))
        })
    }

    /// The streams of the runs that are data, empty for the others; nothing without compression.
    fn pack(&self, offset: u64, data: &[u8], runs: &[(Range<usize>, Kind)]) -> Result<Vec<PackedClusters>> {
        if !self.options.compressed {
            return Ok(Vec::new());
        }
        let packed = runs.iter().map(|(run, kind)| match kind {
            Kind::Data => self.target.pack(self.to(offset) + run.start as u64, &data[run.clone()]),
            _ => Ok(PackedClusters::default()),
        });
        packed.collect()
    }
}

/// The words of the stock tool; what the library knows is a detail.
fn told(what: &str, offset: u64, error: Error) -> Error {
    let host = Error::host(
        format_args!("error while {what} {offset}"),
        &io::Error::from_raw_os_error(error.errno()),
    );
    Error::new(error.kind(), host.parts().summary).because(error)
}
