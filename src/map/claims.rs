//! Claims on guest clusters: whoever changes a mapping holds the claim from the look-up to the link, across
//! I/O. A request holds one claim at a time, so claims cannot wait in a circle.

use crate::planted::{planted, Plant};
use crate::sync::{locked, Condvar, Mutex};

#[derive(Default)]
struct Held {
    ranges: Vec<(u64, u64)>,
    /// Threads that wait: nobody is woken, by a system call, when there are none.
    waiting: usize,
}

/// The claims of one image.
#[derive(Default)]
pub struct Claims {
    held: Mutex<Held>,
    dropped: Condvar,
}

/// Guest clusters `[first, end)` that nobody else changes.
#[must_use]
pub struct Claim<'a> {
    claims: &'a Claims,
    first: u64,
    end: u64,
}

impl Claims {
    /// Waits until nobody holds a part of `[first, end)`, then takes it.
    pub fn take(&self, first: u64, end: u64) -> Claim<'_> {
        debug_assert!(first < end);
        let mut held = locked(self.held.lock());
        let from_below = planted(Plant::ClaimsOverlapFromBelow);
        let overlaps = |(f, e): &(u64, u64)| *f < end && first < *e && !(from_below && first < *f);
        while !planted(Plant::ClaimSkipped) && held.ranges.iter().any(overlaps) {
            held.waiting += 1;
            if planted(Plant::ClaimDroppedBeforeWait) {
                drop(held);
                held = locked(self.held.lock());
            }
            held = locked(self.dropped.wait(held));
            held.waiting -= 1;
        }
        held.ranges.push((first, end));
        Claim { claims: self, first, end }
    }
}

impl Claim<'_> {
    /// First claimed cluster.
    #[cfg(all(loom, test))]
    pub fn first_cluster(&self) -> u64 {
        self.first
    }

    /// One past the last claimed cluster.
    #[cfg(all(loom, test))]
    pub fn end_cluster(&self) -> u64 {
        self.end
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut held = locked(self.claims.held.lock());
        if let Some(at) = held.ranges.iter().position(|h| *h == (self.first, self.end)) {
            held.ranges.swap_remove(at);
        }
        if held.waiting > 0 && !planted(Plant::ClaimDroppedUnannounced) {
            self.claims.dropped.notify_all();
        }
    }
}
