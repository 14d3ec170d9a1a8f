//! A CRC-32 of the guest-visible contents, in time proportional to what is allocated: runs of zeroes are
//! folded in with `combine`, in time logarithmic in their length.
//!
//! Workers, of which one is the caller, take stretches one after the other. The digests of those that are through are
//! put together in the order of the disk.

use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::aligned::Aligned;
use crate::storage::helper;
use crate::sync::locked;
use crc32fast::Hasher;
use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

/// Bytes that are read at once: they stay in the cache of one processor until they are digested.
const CHUNK_BYTES: u64 = 128 << 10;
/// Most bytes that a worker takes at once.
const STRETCH_BYTES: u64 = 1 << 20;
/// So many bytes of data are the caller's alone before others help.
const ALONE_BYTES: u64 = 4 << 20;
/// Most digests that wait for that of a stretch before them.
const MOST_AHEAD: usize = 1024;

/// The digest of a run of `length` zero bytes, built by doubling.
fn zeroes(length: u64) -> Hasher {
    let mut total = Hasher::new();
    let mut power = Hasher::new();
    power.update(&[0]);
    let mut rest = length;
    while rest > 0 {
        if rest & 1 != 0 {
            total.combine(&power);
        }
        let doubled = power.clone();
        power.combine(&doubled);
        rest >>= 1;
    }
    total
}

/// CRC-32 (IEEE) of all guest bytes, by so many `workers`. `progress(done, total)` in bytes, on the caller's thread;
/// `false` cancels.
pub fn checksum(disk: &Disk, workers: u32, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<u32> {
    disk.settle_runs()?;
    let job = Job {
        disk,
        length: disk.length(),
        next: Mutex::default(),
        folded: Mutex::default(),
        went_on: Condvar::new(),
        stop: AtomicBool::new(false),
        failure: Mutex::default(),
    };
    match workers {
        1 => job.work(&mut |_| progress(lock(&job.folded).bytes, job.length)),
        _ => job.work_together(workers, progress),
    }
    if let Some((_, error)) = locked(job.failure.into_inner()) {
        return Err(error);
    }
    progress(job.length, job.length);
    Ok(locked(job.folded.into_inner()).digest.finalize())
}

/// What the workers share.
struct Job<'a> {
    disk: &'a Disk,
    length: u64,
    /// Held across the look-up in the disk's tables. Before all locks of the disk.
    next: Mutex<Next>,
    /// Held to put digests together.
    folded: Mutex<Folded>,
    went_on: Condvar,
    stop: AtomicBool,
    /// The failure nearest to the start of the disk, with its offset.
    failure: Mutex<Option<(u64, Error)>>,
}

/// What nobody has taken yet.
#[derive(Default)]
struct Next {
    at: u64,
    /// Where the extent that was looked up last ends.
    end: u64,
    zero: bool,
}

/// Guest bytes that one worker digests.
struct Stretch {
    offset: u64,
    length: u64,
    zero: bool,
}

/// The digest of the disk up to `bytes`, and those of stretches further on, by their offset.
#[derive(Default)]
struct Folded {
    bytes: u64,
    digest: Hasher,
    ahead: BTreeMap<u64, (u64, Hasher)>,
    /// Workers that wait for it to go on.
    waiting: usize,
}

impl Folded {
    fn put(&mut self, offset: u64, length: u64, digest: Hasher) {
        self.ahead.insert(offset, (length, digest));
        while let Some((length, digest)) = self.ahead.remove(&self.bytes) {
            self.digest.combine(&digest);
            self.bytes += length;
        }
    }
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
    fn work_together(&self, workers: u32, progress: &mut dyn FnMut(u64, u64) -> bool) {
        std::thread::scope(|scope| {
            // A host that has no more threads to give has fewer workers.
            let help = |_| helper::start(scope, || self.work(&mut |_| true));
            let mut helpers: Option<Vec<_>> = None;
            self.work(&mut |data| {
                if data > ALONE_BYTES {
                    helpers.get_or_insert_with(|| (1..workers).map_while(help).collect());
                }
                let done = lock(&self.folded).bytes;
                progress(done, self.length)
            });
            for helper in helpers.into_iter().flatten() {
                helper.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
            }
        });
    }

    /// `report` is told how many bytes of data this worker has read.
    fn work(&self, report: &mut dyn FnMut(u64) -> bool) {
        let _stop = StopOthers(self);
        let (mut buffer, mut data) = (Aligned::default(), 0);
        while !self.stop.load(Ordering::SeqCst) {
            let stretch = match self.take() {
                Ok(Some(stretch)) => stretch,
                Ok(None) => return,
                Err((at, e)) => return self.fail(at, e),
            };
            if !report(data) {
                let error = Error::new(ErrorKind::Cancelled, "checksum: the caller asked to stop");
                return self.fail(0, error);
            }
            match self.digest(&stretch, &mut buffer) {
                Ok(digest) => self.fold(&stretch, digest),
                Err(e) => return self.fail(stretch.offset, e),
            }
            data += if stretch.zero { 0 } else { stretch.length };
        }
    }

    fn halt(&self) {
        let _folded = lock(&self.folded);
        self.stop.store(true, Ordering::SeqCst);
        self.went_on.notify_all();
    }

    fn fail(&self, offset: u64, error: Error) {
        let mut failure = lock(&self.failure);
        if failure.as_ref().is_none_or(|(at, _)| offset < *at) {
            *failure = Some((offset, error));
        }
        drop(failure);
        self.halt();
    }

    /// Puts a digest in its place, and waits while those that are ahead are many: one of the others is slow.
    fn fold(&self, stretch: &Stretch, digest: Hasher) {
        let mut folded = lock(&self.folded);
        let before = folded.bytes;
        folded.put(stretch.offset, stretch.length, digest);
        if folded.waiting > 0 && folded.bytes > before {
            self.went_on.notify_all();
        }
        while folded.ahead.len() >= MOST_AHEAD && !self.stop.load(Ordering::SeqCst) {
            folded.waiting += 1;
            folded = locked(self.went_on.wait(folded));
            folded.waiting -= 1;
        }
    }

    /// The next stretch, of several extents of data where they are short; an error comes with its guest offset.
    fn take(&self) -> std::result::Result<Option<Stretch>, (u64, Error)> {
        let mut next = lock(&self.next);
        let offset = next.at;
        if offset == self.length {
            return Ok(None);
        }
        if offset == next.end {
            self.look(&mut next)?;
        }
        let zero = next.zero;
        let most = if zero { next.end - offset } else { STRETCH_BYTES };
        let mut length = (next.end - offset).min(most);
        while length < most && next.end < self.length && next.zero == zero {
            self.look(&mut next)?;
            if next.zero == zero {
                length = (next.end - offset).min(most);
            }
        }
        next.at = offset + length;
        Ok(Some(Stretch { offset, length, zero }))
    }

    /// Looks up the extent behind the last one.
    fn look(&self, next: &mut Next) -> std::result::Result<(), (u64, Error)> {
        let at = next.end;
        let found = self.disk.status(at, self.length - at, false).map_err(|e| (at, e))?;
        (next.end, next.zero) = (at + found.length, found.zero);
        Ok(())
    }

    fn digest(&self, stretch: &Stretch, buffer: &mut Aligned) -> Result<Hasher> {
        if stretch.zero {
            return Ok(zeroes(stretch.length));
        }
        let mut digest = Hasher::new();
        let mut done = 0;
        while done < stretch.length {
            let bytes = (stretch.length - done).min(CHUNK_BYTES);
            let part = buffer.first(bytes as usize);
            self.disk.read(stretch.offset + done, &mut [IoSliceMut::new(part)])?;
            digest.update(part);
            done += bytes;
        }
        Ok(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folded_zeroes_equal_hashed_zeroes() {
        for length in [0u64, 1, 2, 511, 65536, 100_001] {
            let mut slow = Hasher::new();
            slow.update(b"head");
            slow.update(&vec![0; length as usize]);
            slow.update(b"tail");
            let mut fast = Hasher::new();
            fast.update(b"head");
            fast.combine(&zeroes(length));
            let mut tail = Hasher::new();
            tail.update(b"tail");
            fast.combine(&tail);
            assert_eq!(fast.finalize(), slow.finalize());
        }
    }
}
