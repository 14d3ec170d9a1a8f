//! Things that are dear to make and serve one thread at a time, kept for the next one.

use crate::sync::locked;
use std::sync::Mutex;

/// Most that are kept.
const MOST_KEPT: usize = 16;

/// Idle ones; the lock is held to take one or to put it back.
pub(crate) struct Pool<T>(Mutex<Vec<T>>);

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Pool(Mutex::default())
    }
}

impl<T> Pool<T> {
    /// One that is idle.
    pub(crate) fn take(&self) -> Option<T> {
        locked(self.0.lock()).pop()
    }

    /// For the next taker.
    pub(crate) fn put(&self, one: T) {
        let mut idle = locked(self.0.lock());
        if idle.len() < MOST_KEPT {
            idle.push(one);
        }
    }

    /// Frees all that are idle.
    pub(crate) fn clear(&self) {
        let idle = std::mem::take(&mut *locked(self.0.lock()));
        drop(idle);
    }
}
