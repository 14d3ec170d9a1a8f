//! Who has the file: its lock, taken, changed and handed on.

use super::{sys, FileStorage};
use crate::error::Result;
use crate::storage::access::Access;
use crate::storage::lock::FileLock;
use crate::sync::locked;
use std::sync::atomic::Ordering;

impl FileStorage {
    pub(super) fn take_lock(&self, access: Access, shown: &str) -> Result<()> {
        let taken = FileLock::take(&self.file, self.identity, access, shown)?;
        self.look_at_length();
        *locked(self.lock.lock()) = Some(taken);
        Ok(())
    }

    /// As the file changes hands, or the descriptor that is used. On failure the lock is as it was.
    pub(super) fn take_over_lock(&self, access: Access, shown: &str) -> Result<()> {
        let mut held = locked(self.lock.lock());
        let kept_length = held.as_ref().is_some_and(FileLock::keeps_length);
        match held.take() {
            None => {}
            Some(mut lock) if lock.is_on(&self.file) => {
                let done = lock.change(access, shown);
                *held = Some(lock);
                done?;
            }
            Some(lock) => match lock.exchange(&self.file, access, shown) {
                Ok(lock) => *held = Some(lock),
                Err((lock, e)) => {
                    *held = Some(lock);
                    return Err(e);
                }
            },
        }
        drop(held);
        // What nobody could change needs no look, and no system call that a program may have forbidden itself.
        if !kept_length {
            self.look_at_length();
        }
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
}
