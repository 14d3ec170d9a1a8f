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
use std::sync::{Mutex, MutexGuard};

/// Bytes that are read at once: they stay in the cache of one processor until they are digested.
const CHUNK_BYTES: u64 = 128 << 10;
/// Most bytes that a worker takes at once.
const STRETCH_BYTES: u64 = 1 << 20;
/// So many bytes of data are the caller's alone before others help.
const ALONE_BYTES: u64 = 4 << 20;

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
        stop: AtomicBool::new(false),
        failure: Mutex::default(),
    };
    std::thread::scope(|scope| {
        // A host that has no more threads to give has fewer workers.
        let help = |_| helper::start(scope, || job.work(&mut |_| true));
        let mut helpers: Option<Vec<_>> = None;
        job.work(&mut |data| {
            if data > ALONE_BYTES {
                helpers.get_or_insert_with(|| (1..workers).map_while(help).collect());
            }
            let at = lock(&job.folded).bytes;
            progress(at, job.length)
        });
        for helper in helpers.into_iter().flatten() {
            helper.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
        }
    });
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
struct StopOthers<'a>(&'a AtomicBool);

impl Drop for StopOthers<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    locked(mutex.lock())
}

impl Job<'_> {
    /// `report` is told how many bytes of data this worker has read.
    fn work(&self, report: &mut dyn FnMut(u64) -> bool) {
        let _stop = StopOthers(&self.stop);
        let (mut buffer, mut data) = (Aligned::default(), 0);
        while !self.stop.load(Ordering::SeqCst) {
            if !report(data) {
                let error = Error::new(ErrorKind::Cancelled, "checksum: the caller asked to stop");
                return self.fail(0, error);
            }
            let stretch = match self.take() {
                Ok(Some(stretch)) => stretch,
                Ok(None) => return,
                Err((at, e)) => return self.fail(at, e),
            };
            match self.digest(&stretch, &mut buffer) {
                Ok(digest) => lock(&self.folded).put(stretch.offset, stretch.length, digest),
                Err(e) => return self.fail(stretch.offset, e),
            }
            data += if stretch.zero { 0 } else { stretch.length };
        }
    }

    fn fail(&self, offset: u64, error: Error) {
        let mut failure = lock(&self.failure);
        if failure.as_ref().is_none_or(|(at, _)| offset < *at) {
            *failure = Some((offset, error));
        }
        self.stop.store(true, Ordering::SeqCst);
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
