//! Who may be where at the same time: the gate with its pins, and the claims.

use super::explore;
use crate::map::Claims;
use crate::storage::gate::{Gate, Readers};
use crate::sync::atomic::{AtomicU64, Ordering};
use ::loom::cell::UnsafeCell;
use ::loom::thread;
use std::sync::Arc;

const OLD: u64 = 1;
const NEW: u64 = 2;

/// R4: a cluster is not reused while a request that has looked it up is inside.
#[test]
fn a_pinned_cluster_is_not_reused() {
    explore("pins", 3, || {
        let gate = Arc::new(Gate::new(()));
        let entry = Arc::new(AtomicU64::new(OLD));
        let reused = Arc::new(AtomicU64::new(0));
        let reader = {
            let (gate, entry, reused) = (gate.clone(), entry.clone(), reused.clone());
            thread::spawn(move || {
                let pin = gate.enter();
                if entry.load(Ordering::SeqCst) == OLD {
                    assert_eq!(reused.load(Ordering::Relaxed), 0, "reused under a reader");
                }
                drop(pin);
            })
        };
        // As `Page::update` and `Allocator::settle` do it.
        entry.store(NEW, Ordering::SeqCst);
        let epoch = gate.retire();
        for _ in 0..2 {
            if epoch < gate.oldest() {
                reused.store(1, Ordering::Relaxed);
            }
        }
        reader.join().unwrap();
        let _later = gate.enter();
        assert!(epoch < gate.oldest(), "a cluster stays out of use for ever");
    });
}

/// `value` is changed where only one thread may be.
fn raise(value: &UnsafeCell<u64>) {
    value.with_mut(|v| {
        std::hint::black_box(v);
    });
}

/// Nobody is inside with whoever is alone, and nobody waits for ever.
#[test]
fn alone_is_alone() {
    explore("gate", 2, || {
        let gate = Arc::new(Gate::new(()));
        let value = Arc::new(UnsafeCell::new(0));
        let requests: Vec<_> = (0..2)
            .map(|_| {
                let (gate, value) = (gate.clone(), value.clone());
                thread::spawn(move || {
                    let _pin = gate.enter();
                    value.with(|v| {
                        std::hint::black_box(v);
                    });
                })
            })
            .collect();
        {
            let _alone = gate.enter_alone();
            raise(&value);
        }
        requests.into_iter().for_each(|r| r.join().unwrap());
    });
}

/// Who comes after somebody was inside alone has the state that was put there.
#[test]
fn a_state_that_is_put_is_what_requests_have() {
    explore("state", 3, || {
        let gate = Arc::new(Gate::new(OLD));
        let request = {
            let gate = gate.clone();
            thread::spawn(move || {
                let first = *gate.enter();
                let second = *gate.enter();
                assert!(first == OLD || second == NEW, "the old state came back");
            })
        };
        gate.enter_alone().put(NEW);
        // Each place is somebody's.
        let pins = [gate.enter(), gate.enter()];
        assert!(pins.iter().all(|pin| **pin == NEW), "an old state is in use");
        drop(pins);
        request.join().unwrap();
    });
}

/// Claims that overlap take turns; nobody waits for ever.
#[test]
fn claims_that_overlap_take_turns() {
    explore("claims", 3, || {
        let claims = Arc::new(Claims::default());
        let clusters: Arc<Vec<_>> = Arc::new((0..4).map(UnsafeCell::new).collect());
        let run = move |first: u64, end: u64| {
            let claim = claims.take(first, end);
            clusters[claim.first_cluster() as usize..claim.end_cluster() as usize].iter().for_each(raise);
        };
        let others = [(1, 3), (2, 4)].map(|(first, end)| {
            let run = run.clone();
            thread::spawn(move || run(first, end))
        });
        run(0, 2);
        others.into_iter().for_each(|o| o.join().unwrap());
    });
}
