//! Threads that help with one call of the caller's and end with it.

use super::file::sys::SignalsHeld;
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// Starts a helper; `None`: the host has no more threads to give. No signal handler of the program runs on it.
pub fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Option<ScopedJoinHandle<'scope, T>> {
    // A thread begins with the signals held that its parent holds.
    let _held = SignalsHeld::new();
    Builder::new().spawn_scoped(scope, work).ok()
}
