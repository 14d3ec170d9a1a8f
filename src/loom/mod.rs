//! Small programs of two or three threads around the parts that order everything, run by `loom` in every order
//! of their steps up to a few preemptions, with every value that a weaker memory could show:
//!
//!     c-tests/loom.sh                                                          the models
//!     cargo test --features planted-bugs --test planted the_models             proof that each of them fails on mistakes
//!
//! The storage is a double whose bytes need no lock, so that nothing but the part itself orders its accesses.

mod alone;
mod clock;
mod disk;
mod pages;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// Runs `model` in every order with at most `preemptions` (or `LOOM_MAX_PREEMPTIONS`) forced changes of thread.
fn explore(name: &str, preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = ::loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 20_000;
    let orders = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&orders);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let orders = orders.load(Ordering::Relaxed);
    assert!(orders > 10, "{name}: only {orders} orders were tried");
    eprintln!("{name}: {orders} orders tried");
}
