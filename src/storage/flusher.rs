//! Flushes that coalesce: whoever comes while a barrier runs waits for the next one, which serves all of them.

use crate::error::Result;
use crate::planted::{planted, Plant};
use crate::sync::{locked, Condvar, Mutex};

#[derive(Default)]
struct State {
    started: u64,
    completed: u64,
    running: bool,
    /// Threads that wait.
    waiting: usize,
}

/// The flushes of one disk.
#[derive(Default)]
pub struct Flusher {
    state: Mutex<State>,
    done: Condvar,
}

impl Flusher {
    /// Runs `barrier`, or waits for one that somebody else starts after this call.
    pub(crate) fn join(&self, barrier: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut state = locked(self.state.lock());
        let running = planted(Plant::FlushJoinsRunningBarrier) && state.started > 0;
        let mine = state.started + u64::from(!running);
        loop {
            if state.completed >= mine {
                return Ok(());
            }
            if !state.running {
                break;
            }
            state.waiting += 1;
            state = locked(self.done.wait(state));
            state.waiting -= 1;
        }
        state.running = true;
        state.started += 1;
        let number = state.started;
        drop(state);
        let mut turn = Turn { flusher: self, served: None };
        let answer = barrier();
        turn.served = answer.is_ok().then_some(number);
        answer
    }
}

/// The one barrier that runs. Its end lets the next one begin, after a panic too.
struct Turn<'a> {
    flusher: &'a Flusher,
    served: Option<u64>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = locked(self.flusher.state.lock());
        state.running = false;
        state.completed = self.served.unwrap_or(state.completed);
        if state.waiting > 0 && !planted(Plant::FlushEndsUnannounced) {
            self.flusher.done.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{catch_unwind, AssertUnwindSafe};

    #[test]
    fn a_panic_does_not_keep_the_next_barrier_out() {
        let flusher = Flusher::default();
        let panics = || flusher.join(|| panic!("a barrier that panics"));
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        assert!(flusher.join(|| Ok(())).is_ok());
    }
}
