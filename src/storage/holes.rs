//! Whether the host may be asked where a file has holes.
//!
//! Some hosts answer by what is on the medium and know nothing of what is still in a cache above it (FUSE with a cache
//! that writes back): what was just written is a hole to them. So nobody is asked about a file that has changed since
//! it was last settled, which a sync does; what is not known counts as data.

use super::{is_not_supported, HostRun, Storage};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was written before the file was opened counts as a change, too.
pub struct Holes {
    /// Changes, as far as they came after a settling had begun.
    changes: AtomicU64,
    /// Of these, what the last settling that has begun covers, and what is settled.
    begun: AtomicU64,
    settled: AtomicU64,
}

impl Default for Holes {
    fn default() -> Self {
        Holes { changes: AtomicU64::new(1), begun: AtomicU64::new(0), settled: AtomicU64::new(0) }
    }
}

impl Holes {
    /// A write has returned.
    #[inline]
    pub fn note_change(&self) {
        if self.begun.load(Ordering::SeqCst) >= self.changes.load(Ordering::SeqCst) {
            self.changes.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn is_settled(&self) -> bool {
        self.settled.load(Ordering::SeqCst) >= self.changes.load(Ordering::SeqCst)
    }

    /// Makes the host see every write that has returned.
    pub fn settle(&self, storage: &dyn Storage) -> io::Result<()> {
        if self.is_settled() {
            return Ok(());
        }
        let changes = self.changes.load(Ordering::SeqCst);
        self.begun.fetch_max(changes, Ordering::SeqCst);
        storage.settle_runs()?;
        self.settled.fetch_max(changes, Ordering::SeqCst);
        Ok(())
    }

    /// The run that holds `offset`, all data where nobody can tell. A file that is open for reading, which nobody
    /// changes here, is settled when it is first asked for.
    pub fn run(&self, storage: &dyn Storage, offset: u64) -> io::Result<HostRun> {
        if !self.is_settled() {
            let settled = match storage.traits().read_only {
                true => self.settle(storage).or_else(|e| self.never_changes(e)).is_ok(),
                false => false,
            };
            if !settled {
                return Ok(HostRun { data: true, end: storage.length()? });
            }
        }
        storage.host_run(offset)
    }

    /// A host without a sync has nothing that is not on the medium.
    fn never_changes(&self, error: io::Error) -> io::Result<()> {
        if !is_not_supported(&error) && error.raw_os_error() != Some(libc::EROFS) {
            return Err(error);
        }
        self.settled.fetch_max(self.begun.load(Ordering::SeqCst), Ordering::SeqCst);
        Ok(())
    }
}
