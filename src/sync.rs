//! Locks, conditions and atomics of the parts that a model checker runs: the standard ones and a lock of `spin`, or, in a
//! test build with `--cfg loom`, those of `loom`, which tries every order of their operations; its mutex stands for spin's
//! there. A part that `src/loom` is about takes them from here.

#[cfg(not(all(loom, test)))]
mod plain {
    use spin::mutex::{SpinMutex, SpinMutexGuard};
    pub use std::hint::spin_loop;
    pub use std::sync::{atomic, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};

    /// A lock that nobody waits for: who has it leaves by a store, where one that wakes others needs an exchange.
    pub struct TryLock<T>(SpinMutex<T>);

    pub type TryGuard<'a, T> = SpinMutexGuard<'a, T>;

    impl<T> TryLock<T> {
        pub const fn new(value: T) -> Self {
            TryLock(SpinMutex::new(value))
        }

        /// `None`: somebody has it.
        #[inline(always)]
        pub fn try_lock(&self) -> Option<TryGuard<'_, T>> {
            self.0.try_lock()
        }
    }

    /// Waits for a while, by the system call that locks need in any case. Those of the standard library's `sleep` and
    /// `yield_now` may be forbidden (seccomp lists of emulators lack them), and a yield lets nobody less urgent run.
    pub fn sleep(time: std::time::Duration) {
        let (lock, never) = (Mutex::new(()), Condvar::new());
        let guard = super::locked(lock.lock());
        drop(never.wait_timeout(guard, time));
    }
}

#[cfg(all(loom, test))]
mod plain {
    pub use ::loom::hint::spin_loop;
    pub use ::loom::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};

    pub struct TryLock<T>(Mutex<T>);

    pub type TryGuard<'a, T> = MutexGuard<'a, T>;

    impl<T> TryLock<T> {
        pub fn new(value: T) -> Self {
            TryLock(Mutex::new(value))
        }

        pub fn try_lock(&self) -> Option<TryGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }

    pub fn sleep(_: std::time::Duration) {
        ::loom::thread::yield_now();
    }

    /// `loom` knows sequential consistency of fences only: an access that asks for it gets one on either side.
    pub mod atomic {
        pub use ::loom::sync::atomic::{fence, Ordering};

        fn fenced<T>(order: Ordering, access: impl FnOnce() -> T) -> T {
            if order != Ordering::SeqCst {
                return access();
            }
            fence(order);
            let value = access();
            fence(order);
            value
        }

        macro_rules! fenced {
            ($name:ident, $value:ty { $($method:ident),* }) => {
                #[derive(Debug, Default)]
                pub struct $name(::loom::sync::atomic::$name);

                #[allow(dead_code)] // the same for each, whoever uses what
                impl $name {
                    pub fn new(value: $value) -> Self {
                        Self(::loom::sync::atomic::$name::new(value))
                    }

                    pub fn load(&self, order: Ordering) -> $value {
                        fenced(order, || self.0.load(order))
                    }

                    pub fn store(&self, value: $value, order: Ordering) {
                        fenced(order, || self.0.store(value, order));
                    }

                    $(pub fn $method(&self, value: $value, order: Ordering) -> $value {
                        fenced(order, || self.0.$method(value, order))
                    })*

                    pub fn compare_exchange(
                        &self,
                        old: $value,
                        new: $value,
                        done: Ordering,
                        failed: Ordering,
                    ) -> Result<$value, $value> {
                        fenced(done, || self.0.compare_exchange(old, new, done, failed))
                    }
                }
            };
        }

        fenced!(AtomicBool, bool { swap });
        fenced!(AtomicU64, u64 { fetch_add, fetch_sub, fetch_max });
        fenced!(AtomicUsize, usize { fetch_add });
    }
}

pub use plain::*;

/// What a lock guards, after a panic of another thread too: each part that is locked is whole at any moment, and what a
/// panic has broken is a handle's, which the C edge closes.
#[inline]
pub fn locked<G>(answer: std::sync::LockResult<G>) -> G {
    answer.unwrap_or_else(std::sync::PoisonError::into_inner)
}
