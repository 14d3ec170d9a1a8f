//! Who has the file: its lock, taken, changed and handed on.

use super::{sys, FileStorage};
use crate::error::Result;
use crate::storage::lock::{Access, FileLock};
use crate::sync::locked;
use std::sync::atomic::Ordering;
use std::sync::Arc;

impl FileStorage {
    /// Locks the file against other programs and other opens of this process.
    pub fn lock(&self, access: Access, shown: &str) -> Result<()> {
        let taken = FileLock::take(&self.file, self.identity, access, shown)?;
        self.look_at_length();
        *locked(self.lock.lock()) = Some(taken);
        Ok(())
    }

    /// Changes the access of the lock, where there is one, as the file changes hands. On failure it is as it was.
    pub fn change_lock(&self, access: Access, shown: &str) -> Result<()> {
        if let Some(lock) = &mut *locked(self.lock.lock()) {
            lock.change(access, shown)?;
        }
        self.look_at_length();
        Ok(())
    }

    /// Whether the lock keeps others from changing the length.
    pub(super) fn keeps_length(&self) -> bool {
        locked(self.lock.lock()).as_ref().is_some_and(FileLock::keeps_length)
    }

    /// When the file has just come into these hands, with a lock or without: others may have changed the length until
    /// then, and who believed an old one would cut off what they have written.
    fn look_at_length(&self) {
        if let Some(shared) = &self.shared_length {
            if let Ok(length) = sys::length_in_place(&self.file) {
                shared.store(length, Ordering::SeqCst);
                self.end.note(length);
            }
        }
    }

    /// Takes the lock over from another storage of the same file, with another access. On failure `old` keeps it as
    /// it was.
    pub fn take_lock_from(&self, old: &FileStorage, access: Access, shown: &str) -> Result<()> {
        let mut held = locked(old.lock.lock());
        if Arc::ptr_eq(&self.file, &old.file) {
            match &mut *held {
                Some(lock) => lock.change(access, shown)?,
                None => self.look_at_length(),
            }
            *locked(self.lock.lock()) = held.take();
            return Ok(());
        }
        let Some(lock) = held.take() else { return Ok(()) };
        match lock.exchange(&self.file, access, shown) {
            Ok(lock) => {
                *locked(self.lock.lock()) = Some(lock);
                Ok(())
            }
            Err((lock, e)) => {
                *held = Some(lock);
                Err(e)
            }
        }
    }
}
