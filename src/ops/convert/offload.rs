//! The part of convert that leaves copying to the host.

use crate::disk::Disk;
use crate::error::{ErrorKind, Result};
use crate::storage::{is_not_supported, Purpose, Storage};
use std::io::{Error, IoSliceMut};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Least bytes that are worth a copy by the host of their own.
const UNIT_BYTES: u64 = 64 << 10;
/// Bytes at the start of each part that are looked at: a part that does not begin with zeroes is not all zero.
const HEAD_BYTES: usize = 16;
/// So many units in a row without a part of zeroes (64 MiB or more), and fewer parts are looked at, until one is zero.
const TRUSTED_UNITS: u64 = 1024;
/// Then every so many-th: odd, so that zeroes that come back at every power of two are met soon.
const TRUSTED_STRIDE: u64 = 5;

/// What is left to the host.
pub(super) struct Offload<'a> {
    source: &'a Disk,
    target: &'a Disk,
    /// Parts of so many bytes that may be zero are not left to the host; 0: nobody looks.
    sparse_bytes: u64,
    unit_bytes: u64,
    /// Until a host says that it cannot.
    possible: AtomicBool,
    /// Units since one had a part of zeroes, or was not in files alone.
    trusted: AtomicU64,
}

impl<'a> Offload<'a> {
    pub(super) fn new(source: &'a Disk, target: &'a Disk, sparse_bytes: u64, cluster_bytes: u64) -> Self {
        let unit_bytes = UNIT_BYTES.max(cluster_bytes);
        let (possible, trusted) = (AtomicBool::new(true), AtomicU64::new(0));
        Offload { source, target, sparse_bytes, unit_bytes, possible, trusted }
    }

    /// Never, from now on.
    pub(super) fn forbid(&self) {
        self.possible.store(false, Ordering::Relaxed);
    }

    /// Cuts `[offset, offset + length)` into runs, relative to it, that the host copies (`true`) and others.
    pub(super) fn cut(&self, offset: u64, length: u64) -> Vec<(Range<usize>, bool)> {
        let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
        let mut at = 0;
        while at < length {
            let end = length.min(((offset + at) / self.unit_bytes + 1) * self.unit_bytes - offset);
            let whole = end - at == self.unit_bytes;
            let host = whole && self.possible.load(Ordering::Relaxed) && self.is_data(offset + at);
            match runs.last_mut() {
                Some((run, last)) if *last == host => run.end = end as usize,
                _ => runs.push((at as usize..end as usize, host)),
            }
            at = end;
        }
        runs
    }

    /// Whether the unit at `offset` lies in files, and no part of it is zero.
    fn is_data(&self, offset: u64) -> bool {
        let mut done = 0;
        while done < self.unit_bytes {
            let mut has_zeroes = false;
            let at = offset + done;
            let used =
                self.source.with_host_bytes(at, self.unit_bytes - done, &mut |storage, host, bytes| {
                    has_zeroes = self.may_have_zeroes(storage, at, host, bytes);
                    Ok(bytes)
                });
            // What fails here fails again where bytes are read, and is told there.
            match used {
                Ok(used) if used > 0 && !has_zeroes => done += used,
                _ => {
                    self.trusted.store(0, Ordering::Relaxed);
                    return false;
                }
            }
        }
        self.trusted.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Looks at the start of each part in `bytes` bytes at `host`, which are the guest's from `offset` on, or of one part
    /// in five: zeroes that are missed there take room, no more.
    fn may_have_zeroes(&self, storage: &dyn Storage, offset: u64, host: u64, bytes: u64) -> bool {
        if self.sparse_bytes == 0 {
            return false;
        }
        // Each unit is looked at, at any length of the parts.
        let may_trust = self.sparse_bytes * TRUSTED_STRIDE <= UNIT_BYTES;
        let trusted = may_trust && self.trusted.load(Ordering::Relaxed) >= TRUSTED_UNITS;
        let step = self.sparse_bytes * if trusted { TRUSTED_STRIDE } else { 1 };
        let mut at = if trusted { offset.next_multiple_of(step) - offset } else { 0 };
        while at < bytes {
            let mut head = [0; HEAD_BYTES];
            let read = storage.read(Purpose::Data, host + at, &mut [IoSliceMut::new(&mut head)]);
            if read.is_err() || head == [0; HEAD_BYTES] {
                return true;
            }
            at = (offset + at) / step * step + step - offset;
        }
        false
    }

    /// Has the host copy from `offset` on; how much it did.
    pub(super) fn copy(&self, offset: u64, length: u64) -> Result<u64> {
        let mut done = 0;
        while done < length && self.possible.load(Ordering::Relaxed) {
            let at = offset + done;
            let copied = self.source.with_host_bytes(at, length - done, &mut |storage, host, bytes| {
                self.target.write_from(at, bytes, storage, host)
            });
            match copied {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(e) if cannot(e.kind()) => self.forbid(),
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}

/// Whether the host says "cannot" rather than "failed".
fn cannot(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::Unsupported => true,
        ErrorKind::Host(errno) => is_not_supported(&Error::from_raw_os_error(errno)),
        _ => false,
    }
}
