//! The gate: shared for requests, exclusive for structure changes. It guards the state that requests use and that a
//! structure change replaces; and its pins say which readers may still use a host cluster that has been let go of
//! (rule R4).
//!
//! The state stands in many places, each with a lock of its own, on a cache line of its own. A request locks one, by
//! one compare-and-swap on a line that mostly no other thread uses, and has the state while it is inside; it leaves by
//! a store. Whoever is alone has locked all, and has looked again and again at those that were taken. A pin publishes the
//! epoch in which its request started; `retire` ends an epoch; what was unlinked before `retire` may be reused once
//! `oldest` is past the value that it returned.
//!
//! G1: who looks whether somebody is inside tries the lock of each place. Whoever locks one later finds, by that lock,
//! everything that was stored before the look: nobody can have an old entry and not be seen.
//! G2: the epoch beside a place that is locked is that of its request or an older one.

use crate::planted::{planted, Plant};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{locked, sleep, Mutex, MutexGuard, TryGuard, TryLock};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::atomic::AtomicUsize;
use std::sync::OnceLock;
use std::time::Duration;

/// Places at first, and in all: more requests wait for a free one.
const FIRST_PLACES: usize = if cfg!(all(loom, test)) { 2 } else { 16 };
const MOST_PLACES: usize = if cfg!(all(loom, test)) { 2 } else { 256 };

/// How long somebody waits before the next look at places that are taken: at first, and at most.
const PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(2);

/// Who may still use what they have looked up.
pub trait Readers: Send + Sync {
    /// Ends the current epoch and returns its number.
    fn retire(&self) -> u64;
    /// The oldest epoch that a request inside may have started in; `u64::MAX` when nobody is inside.
    fn oldest(&self) -> u64;
}

#[repr(align(128))]
struct Place<S> {
    state: TryLock<S>,
    /// The epoch in which whoever is in this place came; `u64::MAX` while somebody is inside alone.
    since: AtomicU64,
}

impl<S> Place<S> {
    fn new(state: S) -> Self {
        Place { state: TryLock::new(state), since: AtomicU64::new(0) }
    }

    /// The place, unless somebody has it.
    #[inline(always)]
    fn take(&self, epoch: &AtomicU64) -> Option<Pin<'_, S>> {
        let state = self.state.try_lock()?;
        // Read with the place taken: whatever was unlinked before this epoch began is gone for this request (G2).
        let late = u64::from(planted(Plant::PinDatedLate));
        self.since.store(epoch.load(Ordering::Acquire) + late, Ordering::Release);
        Some(Pin { state, _here: PhantomData })
    }
}

/// A state, and who is inside with it. A structure change puts another state in its place.
pub struct Gate<S> {
    epoch: AtomicU64,
    first: Box<[Place<S>]>,
    /// The other places, once requests have met in the first ones.
    others: OnceLock<Box<[Place<S>]>>,
    /// Somebody is inside alone or waits to be. Correctness is the locks'; this keeps newcomers from being first again
    /// and again.
    closed: AtomicBool,
    /// Held by whoever is inside alone; with the state for places to come.
    turn: Mutex<S>,
}

/// A request inside the gate, with the state.
pub struct Pin<'a, S> {
    state: TryGuard<'a, S>,
    /// It stays on its thread, whose place it has.
    _here: PhantomData<*const ()>,
}

impl<S> Deref for Pin<'_, S> {
    type Target = S;

    #[inline]
    fn deref(&self) -> &S {
        &self.state
    }
}

/// The only one inside the gate.
pub struct Exclusive<'a, S> {
    gate: &'a Gate<S>,
    /// Every place. Before `turn`: who waits for that one finds the places free.
    places: Vec<TryGuard<'a, S>>,
    turn: MutexGuard<'a, S>,
}

static NEXT_NUMBER: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MY_NUMBER: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Of this thread: threads have places of their own as far as there are places.
#[inline(always)]
fn my_number() -> usize {
    MY_NUMBER.with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT_NUMBER.fetch_add(1, Ordering::Relaxed));
        }
        mine.get()
    })
}

impl<S: Clone + Send> Gate<S> {
    /// A gate with nobody inside.
    pub fn new(state: S) -> Self {
        Gate {
            epoch: AtomicU64::new(1),
            first: (0..FIRST_PLACES).map(|_| Place::new(state.clone())).collect(),
            others: OnceLock::new(),
            closed: AtomicBool::new(false),
            turn: Mutex::new(state),
        }
    }

    /// Enters as a request; waits while somebody is inside alone.
    #[inline(always)]
    pub fn enter(&self) -> Pin<'_, S> {
        if !self.closed.load(Ordering::Relaxed) {
            if let Some(pin) = self.my_place().take(&self.epoch) {
                return pin;
            }
        }
        self.enter_later()
    }

    #[inline(always)]
    fn my_place(&self) -> &Place<S> {
        let number = my_number();
        match self.others.get() {
            None => &self.first[number % FIRST_PLACES],
            Some(others) => match number % MOST_PLACES {
                index if index < FIRST_PLACES => &self.first[index],
                index => &others[index - FIRST_PLACES],
            },
        }
    }

    #[cold]
    #[inline(never)]
    fn enter_later(&self) -> Pin<'_, S> {
        loop {
            if self.closed.load(Ordering::Relaxed) {
                drop(locked(self.turn.lock()));
            }
            if let Some(pin) = self.any_place() {
                return pin;
            }
            if !self.add_places() {
                sleep(PAUSE);
            }
        }
    }

    fn any_place(&self) -> Option<Pin<'_, S>> {
        self.places().find_map(|place| place.take(&self.epoch))
    }

    fn places(&self) -> impl Iterator<Item = &Place<S>> {
        self.first.iter().chain(self.others.get().into_iter().flat_map(|others| others.iter()))
    }

    /// Makes the other places; `false` when there is nothing to add now.
    fn add_places(&self) -> bool {
        if self.others.get().is_some() || MOST_PLACES == FIRST_PLACES {
            return false;
        }
        // Whoever is inside alone has all places that there are.
        let Ok(state) = self.turn.try_lock() else { return false };
        self.others.set((FIRST_PLACES..MOST_PLACES).map(|_| Place::new(state.clone())).collect()).is_ok()
    }

    /// Enters as a request unless somebody is inside alone, or waits to be, or every place is taken: for those who are
    /// inside another gate and must not wait in a circle with a request that goes the other way.
    pub fn try_enter(&self) -> Option<Pin<'_, S>> {
        if self.closed.load(Ordering::Relaxed) {
            return None;
        }
        let found = self.my_place().take(&self.epoch).or_else(|| self.any_place());
        found.or_else(|| self.add_places().then(|| self.any_place())?)
    }

    fn take_alone(place: &Place<S>) -> TryGuard<'_, S> {
        let mut pause = PAUSE;
        let state = loop {
            if let Some(state) = place.state.try_lock() {
                break state;
            }
            sleep(pause);
            pause = LONGEST_PAUSE.min(pause * 2);
        };
        place.since.store(u64::MAX, Ordering::Release);
        state
    }

    /// Waits until every request has left and keeps others out.
    pub fn enter_alone(&self) -> Exclusive<'_, S> {
        let turn = locked(self.turn.lock());
        self.closed.store(true, Ordering::Relaxed);
        let places = self.places().skip(usize::from(planted(Plant::PlaceNotTaken)));
        Exclusive { gate: self, places: places.map(Self::take_alone).collect(), turn }
    }
}

impl<S: Clone + Send> Readers for Gate<S> {
    fn retire(&self) -> u64 {
        self.epoch.fetch_add(u64::from(!planted(Plant::EpochNotEnded)), Ordering::SeqCst)
    }

    fn oldest(&self) -> u64 {
        let inside = |place: &Place<S>| match place.state.try_lock() {
            None if !planted(Plant::PinNotSeen) => Some(place.since.load(Ordering::Acquire)),
            _ => None,
        };
        self.places().filter_map(inside).min().unwrap_or(u64::MAX)
    }
}

impl<S: Clone> Exclusive<'_, S> {
    /// Another state for the requests that come.
    pub fn put(&mut self, state: S) {
        for place in self.places.iter_mut().skip(usize::from(planted(Plant::OldStateLeftInPlace))) {
            **place = state.clone();
        }
        *self.turn = state;
    }
}

impl<S> Drop for Exclusive<'_, S> {
    fn drop(&mut self) {
        let others = self.gate.others.get().into_iter().flat_map(|others| others.iter());
        for place in self.gate.first.iter().chain(others) {
            // Who comes next has a place before its epoch is beside it (G2).
            place.since.store(0, Ordering::Release);
        }
        self.gate.closed.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_holds_back_only_what_was_retired_after_it_entered() {
        let gate = Gate::new(());
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
        let gate = Gate::new(());
        assert!(gate.try_enter().is_some());
        let alone = gate.enter_alone();
        assert_eq!(gate.oldest(), u64::MAX);
        assert!(gate.try_enter().is_none());
        drop(alone);
        assert!(gate.try_enter().is_some());
    }

    #[test]
    fn alone_means_alone() {
        let gate = Gate::new(());
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

    #[test]
    fn requests_have_the_state_that_was_put() {
        let gate = Gate::new(1);
        let pins: Vec<_> = (0..FIRST_PLACES + 3).map(|_| gate.enter()).collect();
        assert!(pins.iter().all(|pin| **pin == 1));
        assert!(gate.others.get().is_some(), "no places were added");
        drop(pins);
        gate.enter_alone().put(2);
        let pins: Vec<_> = (0..FIRST_PLACES + 3).map(|_| gate.enter()).collect();
        assert!(pins.iter().all(|pin| **pin == 2));
    }

    #[test]
    fn who_may_not_wait_is_not_sent_away_by_requests() {
        let gate = Gate::new(());
        let _pins: Vec<_> = (0..FIRST_PLACES).map(|_| gate.enter()).collect();
        assert!(gate.others.get().is_none(), "the first places are not the only ones");
        assert!(gate.try_enter().is_some());
    }

    /// A place whose last user was somebody alone must not count as one that nobody old is in.
    #[test]
    fn a_pin_after_somebody_alone_is_seen() {
        let gate = Gate::new(());
        let before = gate.retire();
        drop(gate.enter_alone());
        let _pin = gate.enter();
        assert!(gate.oldest() > before);
        assert!(gate.oldest() <= gate.retire());
    }
}
