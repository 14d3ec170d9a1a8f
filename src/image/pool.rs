//! Things that are dear to make and serve one thread at a time, kept for the next one.

use std::sync::Mutex;

/// Most that are kept.
const MOST_KEPT: usize = 16;

/// Idle ones; the lock is held to take one or to put it back.
pub(super) struct Pool<T>(Mutex<Vec<T>>);

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Pool(Mutex::default())
    }
}

impl<T> Pool<T> {
    /// One that is idle.
    pub(super) fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).pop()
    }

    /// For the next taker.
    pub(super) fn put(&self, one: T) {
        let mut idle = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if idle.len() < MOST_KEPT {
            idle.push(one);
        }
    }

    /// Frees all that are idle.
    pub(super) fn clear(&self) {
        let idle = std::mem::take(&mut *self.0.lock().unwrap_or_else(|e| e.into_inner()));
        drop(idle);
    }
}
