//! Convert: what one disk shows is copied into another one, by several workers when asked.
//!
//! The range is cut into pieces, which workers take one after the other: they read, look for zeroes and compress
//! side by side, and write in the order of the disk unless any order will do. Nothing is made durable here.

use super::pieces::{Piece, Pieces, What};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Disk, PackedClusters, ZeroFlags};
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

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
        }
    }
}

/// Copies `source` to the start of `target`. `progress(done, total)` in guest bytes, on the caller's thread; `false`
/// cancels.
pub fn convert(
    source: &Disk,
    target: &Disk,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<()> {
    let cluster_bytes = validate(source, target, options)?;
    let total = source.length();
    let job = Job {
        pieces: Pieces::new(source, options, cluster_bytes),
        source,
        target,
        options,
        cluster_bytes,
        done: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
        turn: Mutex::new(0),
        turned: Condvar::new(),
    };
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..options.workers).map(|_| scope.spawn(|| job.work(&mut || true))).collect();
        job.work(&mut || progress(job.done.load(Ordering::Relaxed), total));
        for helper in helpers {
            helper.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
        }
    });
    if let Some((_, error)) = job.failure.into_inner().unwrap_or_else(|e| e.into_inner()) {
        return Err(error);
    }
    progress(total, total);
    Ok(())
}

/// Refuses what cannot be done; the unit of compressed pieces.
fn validate(source: &Disk, target: &Disk, options: &ConvertOptions) -> Result<u64> {
    if std::ptr::eq(source, target) || source.identity().is_some_and(|s| target.identity() == Some(s)) {
        return Err(Error::invalid("convert: source and target are the same"));
    }
    if target.is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly, "convert: the target is open read-only"));
    }
    if target.length() < source.length() {
        return Err(Error::invalid("output file is smaller than input file"));
    }
    if options.sparse_bytes % 512 != 0 || options.sparse_bytes > MAX_SPARSE_BYTES {
        let rule = "is a multiple of 512 up to 16777216, or 0";
        return Err(Error::invalid(format!("sparse_bytes is {}: it {rule}", options.sparse_bytes)));
    }
    if !(1..=MAX_WORKERS).contains(&options.workers) {
        return Err(Error::invalid(format!("workers is {}: 1 to {MAX_WORKERS}", options.workers)));
    }
    match target {
        Disk::Qcow2(image) => Ok(image.core().header().geometry().cluster_bytes()),
        Disk::Raw(_) if options.compressed => {
            Err(Error::unsupported("Compression not supported for this file format"))
        }
        Disk::Raw(_) => Ok(512),
    }
}

/// What the workers share.
struct Job<'a> {
    pieces: Pieces<'a>,
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
    /// Number of the piece that may be written now. Held to look, never across I/O.
    turn: Mutex<u64>,
    turned: Condvar,
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
    mutex.lock().unwrap_or_else(|e| e.into_inner())
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
        let mut buffer = Vec::new();
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
    fn copy(&self, piece: &Piece, buffer: &mut Vec<u8>) -> std::result::Result<(), (u64, Error)> {
        let Piece { offset, length, .. } = *piece;
        if !matches!(piece.what, What::Data | What::ZeroData) {
            return self.in_turn(piece, || match piece.what {
                What::Zeroes => self.put_zeroes(offset, length),
                _ => Ok(()),
            });
        }
        let bytes = length as usize;
        if buffer.len() < bytes {
            buffer.resize(bytes, 0);
        }
        let data = &mut buffer[..bytes];
        match piece.what {
            What::ZeroData => data.fill(0),
            _ => {
                let read = self.source.read(offset, &mut [IoSliceMut::new(data)]);
                read.map_err(|e| (offset, told("reading at byte", offset, e)))?;
            }
        }
        let runs = self.runs(offset, data);
        let packed =
            self.pack(offset, data, &runs).map_err(|e| (offset, told("writing at byte", offset, e)))?;
        self.in_turn(piece, || {
            for (index, (run, zero)) in runs.iter().enumerate() {
                let at = offset + run.start as u64;
                match (zero, packed.get(index)) {
                    (true, _) => self.put_zeroes(at, run.len() as u64)?,
                    (false, Some(packed)) => {
                        let put = self.target.write_packed(packed, at, &data[run.clone()]);
                        put.map_err(|e| (at, told("writing at byte", at, e)))?;
                    }
                    (false, None) => {
                        let put = self.target.write(at, &[IoSlice::new(&data[run.clone()])], false);
                        put.map_err(|e| (at, told("writing at byte", at, e)))?;
                    }
                }
            }
            Ok(())
        })
    }

    /// Runs `write` when everything before the piece has been written.
    fn in_turn(
        &self,
        piece: &Piece,
        write: impl FnOnce() -> std::result::Result<(), (u64, Error)>,
    ) -> std::result::Result<(), (u64, Error)> {
        if self.options.any_order || self.options.workers == 1 {
            return write();
        }
        let mut turn = lock(&self.turn);
        while *turn != piece.number && !self.stop.load(Ordering::SeqCst) {
            turn = self.turned.wait(turn).unwrap_or_else(|e| e.into_inner());
        }
        drop(turn);
        if self.stop.load(Ordering::SeqCst) {
            return Ok(());
        }
        write()?;
        *lock(&self.turn) += 1;
        self.turned.notify_all();
        Ok(())
    }

    fn put_zeroes(&self, offset: u64, length: u64) -> std::result::Result<(), (u64, Error)> {
        if self.options.target_zero {
            return Ok(());
        }
        let flags = ZeroFlags { unmap: true, no_fallback: false };
        let put = self.target.write_zeroes(offset, length, flags, false);
        put.map_err(|e| (offset, told("writing at byte", offset, e)))
    }

    /// The parts of a piece that are data, and those that are zeroes.
    fn runs(&self, offset: u64, data: &[u8]) -> Vec<(Range<usize>, bool)> {
        let unit = match self.options.compressed {
            _ if self.options.sparse_bytes == 0 => return vec![(0..data.len(), false)],
            true => self.cluster_bytes,
            false => self.options.sparse_bytes,
        };
        let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
        let mut at = 0;
        while at < data.len() {
            let to_boundary = unit - (offset + at as u64) % unit;
            let end = data.len().min(at + to_boundary as usize);
            let zero = is_zero(&data[at..end]);
            match runs.last_mut() {
                Some((run, last)) if *last == zero => run.end = end,
                _ => runs.push((at..end, zero)),
            }
            at = end;
        }
        runs
    }

    /// The streams of the runs that are data, empty for the others; nothing without compression.
    fn pack(&self, offset: u64, data: &[u8], runs: &[(Range<usize>, bool)]) -> Result<Vec<PackedClusters>> {
        if !self.options.compressed {
            return Ok(Vec::new());
        }
        let packed = runs.iter().map(|(run, zero)| match zero {
            true => Ok(PackedClusters::default()),
            false => self.target.pack(offset + run.start as u64, &data[run.clone()]),
        });
        packed.collect()
    }
}

/// The words of the stock tool, with what the library knows in brackets.
fn told(what: &str, offset: u64, error: Error) -> Error {
    let host = Error::host(
        format_args!("error while {what} {offset}"),
        &io::Error::from_raw_os_error(error.errno()),
    );
    Error::new(error.kind(), format!("{host} ({error})"))
}

/// Whether all bytes are zero; compares with itself, shifted by one, once the first ones are.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (head, rest) = bytes.split_at(bytes.len().min(16));
    head.iter().all(|b| *b == 0) && (rest.is_empty() || bytes[16..] == bytes[..bytes.len() - 16])
}
