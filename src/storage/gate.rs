//! The gate: shared for requests, exclusive for structure changes; and the pins that say which readers
//! may still use a host cluster that has been let go of (rule R4).
//!
//! Entering is one compare-and-swap on a cache line that no other thread uses, so readers do not disturb
//! each other. A pin publishes the epoch in which its request started; `retire` ends an epoch; what was
//! unlinked before `retire` may be reused once `oldest` is past the value that it returned.

use crate::sync::atomic::{fence, AtomicBool, AtomicU64, Ordering};
use crate::sync::{locked, sleep, spin_loop, Condvar, Mutex, MutexGuard};
use std::cell::Cell;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

/// Requests that may be inside at once; more wait for a free place.
const PLACES: usize = if cfg!(all(loom, test)) { 2 } else { 256 };

/// How long somebody waits before the next look at the places.
const PAUSE: Duration = Duration::from_micros(50);
/// Looks without a pause: most requests are over soon.
const QUICK_LOOKS: u32 = 100;

#[repr(align(128))]
#[derive(Default)]
struct Place(AtomicU64);

/// See the module.
pub struct Gate {
    epoch: AtomicU64,
    closed: AtomicBool,
    places: Box<[Place]>,
    exclusive: Mutex<()>,
    opened: (Mutex<()>, Condvar),
}

/// A request inside the gate.
pub struct Pin<'a> {
    place: &'a AtomicU64,
}

/// The only one inside the gate.
pub struct Exclusive<'a> {
    gate: &'a Gate,
    _turn: MutexGuard<'a, ()>,
}

static NEXT_PLACE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MY_PLACE: Cell<usize> = const { Cell::new(usize::MAX) };
}

fn my_place() -> usize {
    MY_PLACE.with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT_PLACE.fetch_add(1, Ordering::Relaxed));
        }
        mine.get()
    })
}

impl Default for Gate {
    fn default() -> Self {
        Gate {
            epoch: AtomicU64::new(1),
            closed: AtomicBool::new(false),
            places: (0..PLACES).map(|_| Place::default()).collect(),
            exclusive: Mutex::new(()),
            opened: (Mutex::new(()), Condvar::new()),
        }
    }
}

impl Gate {
    /// Enters as a request; waits while somebody is inside alone.
    pub fn enter(&self) -> Pin<'_> {
        loop {
            let pin = self.take_place();
            if !self.closed.load(Ordering::SeqCst) {
                return pin;
            }
            drop(pin);
            self.wait_open();
        }
    }

    /// Enters as a request unless somebody is inside alone, or waits to be: for those who are inside another gate
    /// and must not wait in a circle with a request that goes the other way.
    pub fn try_enter(&self) -> Option<Pin<'_>> {
        let pin = self.take_place();
        (!self.closed.load(Ordering::SeqCst)).then_some(pin)
    }

    fn take_place(&self) -> Pin<'_> {
        let mut index = my_place() % PLACES;
        loop {
            for _ in 0..PLACES {
                let place = &self.places[index].0;
                // The epoch is read before the place is published: too old a value only delays reuse.
                let epoch = self.epoch.load(Ordering::SeqCst);
                if place.compare_exchange(0, epoch, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                    return Pin { place };
                }
                index = (index + 1) % PLACES;
            }
            sleep(PAUSE);
        }
    }

    #[cold]
    fn wait_open(&self) {
        let mut guard = locked(self.opened.0.lock());
        while self.closed.load(Ordering::SeqCst) {
            guard = locked(self.opened.1.wait(guard));
        }
    }

    /// Waits until every request has left and keeps others out.
    pub fn enter_alone(&self) -> Exclusive<'_> {
        let turn = locked(self.exclusive.lock());
        self.closed.store(true, Ordering::SeqCst);
        let mut round = 0u32;
        while self.oldest() != u64::MAX {
            if round < QUICK_LOOKS {
                spin_loop();
                round += 1;
            } else {
                sleep(PAUSE);
            }
        }
        Exclusive { gate: self, _turn: turn }
    }

    /// Ends the current epoch and returns its number.
    pub fn retire(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::SeqCst)
    }

    /// The oldest epoch that a request inside started in; `u64::MAX` when nobody is inside.
    pub fn oldest(&self) -> u64 {
        fence(Ordering::SeqCst);
        let starts = self.places.iter().map(|p| p.0.load(Ordering::SeqCst));
        starts.filter(|s| *s != 0).min().unwrap_or(u64::MAX)
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.place.store(0, Ordering::Release);
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        let _guard = locked(self.gate.opened.0.lock());
        self.gate.closed.store(false, Ordering::SeqCst);
        self.gate.opened.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_holds_back_only_what_was_retired_after_it_entered() {
        let gate = Gate::default();
        let before = gate.retire();
        let pin = gate.enter();
        assert!(gate.oldest() > before);
        let after = gate.retire();
        assert!(gate.oldest() <= after);
        drop(pin);
        assert!(gate.oldest() > after);
    }

    #[test]
    fn who_may_not_wait_is_sent_away() {
        let gate = Gate::default();
        assert!(gate.try_enter().is_some());
        let alone = gate.enter_alone();
        assert!(gate.try_enter().is_none());
        drop(alone);
        assert!(gate.try_enter().is_some());
    }

    #[test]
    fn alone_means_alone() {
        let gate = Gate::default();
        let inside = AtomicU64::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..2000 {
                        let _pin = gate.enter();
                        inside.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            for _ in 0..50 {
                let _alone = gate.enter_alone();
                assert_eq!(inside.load(Ordering::SeqCst), 0);
            }
        });
    }
}
