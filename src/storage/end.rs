//! The end of a file that grows by writes and by changes of its length.
//!
//! Who sets a length decides by the one that he has read. A write past the end that comes in between would be cut off,
//! or zeroed, although it has been acknowledged. So writes past what is known of the end are inside shared, and whoever
//! decides about the length is inside alone. A write that ends before it meets no lock.

use crate::sync::locked;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{RwLock, RwLockWriteGuard};

/// See the module.
pub struct End {
    /// The file is at least so long. Falls before the file is cut.
    known: AtomicU64,
    growing: RwLock<()>,
}

/// The only one that changes the length.
pub struct EndAlone<'a> {
    end: &'a End,
    _turn: RwLockWriteGuard<'a, ()>,
}

impl End {
    /// Of a file of `length` bytes.
    pub fn new(length: u64) -> End {
        End { known: AtomicU64::new(length), growing: RwLock::new(()) }
    }

    /// Runs a write of the bytes before `to`.
    #[inline]
    pub fn write(&self, to: u64, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self.is_before(to) {
            true => write(),
            false => self.write_past(to, write),
        }
    }

    #[cold]
    fn write_past(&self, to: u64, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let _shared = locked(self.growing.read());
        write()?;
        self.known.fetch_max(to, Ordering::SeqCst);
        Ok(())
    }

    /// Whether a range up to `to` is inside the file for sure.
    pub fn is_before(&self, to: u64) -> bool {
        to <= self.known.load(Ordering::SeqCst)
    }

    /// Waits for writes past the end, and keeps them out.
    pub fn alone(&self) -> EndAlone<'_> {
        EndAlone { end: self, _turn: locked(self.growing.write()) }
    }

    /// The file had `length` bytes a moment ago: somebody else may have cut it.
    pub fn note(&self, length: u64) {
        self.known.fetch_min(length, Ordering::SeqCst);
    }
}

impl EndAlone<'_> {
    /// Sets the length by `set`.
    pub fn set(&self, length: u64, set: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.end.known.fetch_min(length, Ordering::SeqCst);
        set()?;
        self.end.known.store(length, Ordering::SeqCst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A file whose length is read and set in steps, with time in between.
    #[test]
    fn growing_cuts_off_no_write_further_on() {
        for _ in 0..200 {
            let (end, length) = (End::new(0), Mutex::new(0u64));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let alone = end.alone();
                    let now = *length.lock().unwrap();
                    std::thread::yield_now();
                    if now < 50 {
                        alone
                            .set(50, || {
                                *length.lock().unwrap() = 50;
                                Ok(())
                            })
                            .unwrap();
                    }
                });
                let write = || {
                    let mut l = length.lock().unwrap();
                    *l = (*l).max(100);
                    Ok(())
                };
                end.write(100, write).unwrap();
            });
            assert_eq!(*length.lock().unwrap(), 100);
        }
    }
}
