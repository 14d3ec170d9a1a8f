//! Structure changes that are in force on the medium and not complete: the host did not take the last steps, as when it
//! is full. The steps are kept, writes wait with the host's error, and the next request that changes something, or a
//! flush, does the steps first. Reads go on from the state before, which still is what the disk showed.
//!
//! U1: while steps are left, the state in force writes nothing. U2: each step may be done again. Power cut: the dirty
//! bit stands, or leaks are all that is left.

use super::core::unfinished;
use super::qcow2::LastSteps;
use super::{ExclusiveImage, Image};
use crate::error::{Error, Result};
use crate::sync::locked;
use std::sync::atomic::Ordering;
use std::sync::Arc;

impl ExclusiveImage<'_> {
    /// Does the last steps of a change, or keeps them. A failed sync is final, as always.
    pub(crate) fn complete(
        &self,
        steps: impl Fn(&ExclusiveImage<'_>) -> Result<()> + Send + Sync + 'static,
    ) -> Result<()> {
        self.complete_kept(Arc::new(steps))
    }

    /// Does the last steps, or keeps them: what was asked for is done either way.
    pub(crate) fn complete_later(
        &self,
        steps: impl Fn(&ExclusiveImage<'_>) -> Result<()> + Send + Sync + 'static,
    ) -> Result<()> {
        match self.complete(steps) {
            Err(_) if self.core().suspended().is_some() => Ok(()),
            done => done,
        }
    }

    fn complete_kept(&self, steps: LastSteps) -> Result<()> {
        let done = self.core().check_latch().and_then(|()| steps(self));
        match &done {
            Err(e) if self.core().check_latch().is_ok() => {
                self.core().suspend(e.clone());
                self.image().keep_steps(steps);
            }
            _ => {}
        }
        done
    }
}

impl Image {
    fn keep_steps(&self, steps: LastSteps) {
        *locked(self.steps.lock()) = Some(steps);
        self.is_unfinished.store(true, Ordering::SeqCst);
    }

    /// No steps are left: another state is in force.
    pub(super) fn drop_steps(&self) {
        if self.is_unfinished.swap(false, Ordering::SeqCst) {
            *locked(self.steps.lock()) = None;
        }
    }

    /// Does what is left of an earlier change. Called by whoever is alone.
    pub(super) fn finish(&self, image: &ExclusiveImage<'_>) -> Result<()> {
        if !self.is_unfinished.load(Ordering::SeqCst) {
            return Ok(());
        }
        let steps = locked(self.steps.lock()).clone();
        match steps {
            Some(steps) => image.complete_kept(steps).map_err(unfinished),
            None => Ok(()),
        }
    }

    /// Runs a request again that failed because an earlier change is not complete, once it is.
    pub(crate) fn after_steps(&self, request: impl Fn() -> Result<()>) -> Result<()> {
        match request() {
            Err(e) => self.again(e, &request),
            done => done,
        }
    }

    /// As `after_steps`, for a request that has failed with `e`.
    #[cold]
    #[inline(never)]
    pub(super) fn again(&self, e: Error, request: &dyn Fn() -> Result<()>) -> Result<()> {
        let waits = self.is_unfinished.load(Ordering::SeqCst);
        match waits && self.finish(&self.exclusive_unfinished()).is_ok() {
            true => request(),
            false => Err(e),
        }
    }
}
