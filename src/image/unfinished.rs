//! Structure changes that are in force on the medium and not complete: the host did not take the last steps, as when it
//! is full. The steps are kept, writes wait with the host's error, and the next request that changes something, or a
//! flush, does the steps first. Reads go on from the state before, which still is what the disk showed.
//!
//! U1: while steps are left, the state in force writes nothing. U2: each step may be done again. Power cut: the dirty
//! bit stands, or leaks are all that is left.

use super::core::CoreSettings;
use super::snapshots::L1Table;
use super::{Alone, Core, Image};
use crate::error::{Error, Result};
use crate::storage::Storage;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// Steps that are left, in this order.
#[derive(Clone)]
pub(super) struct Steps {
    /// The COPIED flags of the active tree are brought to what the counts say.
    flags: bool,
    /// What the state in force has in memory goes to the medium.
    settle: bool,
    /// Then the image is loaded anew from here, and with these settings.
    storage: Arc<dyn Storage>,
    settings: CoreSettings,
    /// Then this tree, which nothing leads to any more, is counted down. What fails of this leaks.
    lower: Option<L1Table>,
}

impl Steps {
    /// Nothing but loading anew.
    pub(super) fn load(storage: Arc<dyn Storage>, settings: CoreSettings) -> Steps {
        Steps { flags: false, settle: false, storage, settings, lower: None }
    }

    /// Everything to the medium, then loading anew.
    pub(super) fn settle(core: &Core) -> Steps {
        Steps { settle: true, ..Steps::load(Arc::clone(core.storage()), core.settings.clone()) }
    }

    /// As `settle`, after the flags of the active tree have been set.
    pub(super) fn flags(core: &Core) -> Steps {
        Steps { flags: true, ..Steps::settle(core) }
    }

    /// As `settle`; then `tree` is counted down.
    pub(super) fn lower(core: &Core, tree: L1Table) -> Steps {
        Steps { lower: Some(tree), ..Steps::settle(core) }
    }
}

impl Alone<'_> {
    /// Does the steps, or keeps them. A failed sync is final, as always.
    pub(super) fn complete(&self, steps: Steps) -> Result<()> {
        let done = self.take_steps(&steps);
        match &done {
            Err(e) if self.core().check_latch().is_ok() => {
                self.core().suspend(e.clone());
                self.image().keep_steps(steps);
            }
            _ => {}
        }
        done
    }

    /// Does the steps, or keeps them: what was asked for is done either way.
    pub(super) fn complete_later(&self, steps: Steps) -> Result<()> {
        match self.complete(steps) {
            Err(_) if self.core().suspended().is_some() => Ok(()),
            done => done,
        }
    }

    fn take_steps(&self, steps: &Steps) -> Result<()> {
        let core = self.core();
        core.check_latch()?;
        if steps.flags {
            core.match_flags()?;
        }
        if steps.settle {
            core.settle()?;
        }
        self.load_now(Arc::clone(&steps.storage), steps.settings.clone())?;
        if let Some(tree) = &steps.lower {
            let core = self.core();
            if let Ok(alloc) = core.structure_writer() {
                let _ = core.lower_tree(alloc, tree);
            }
        }
        Ok(())
    }
}

impl Image {
    fn keep_steps(&self, steps: Steps) {
        *self.steps.lock().unwrap_or_else(|e| e.into_inner()) = Some(steps);
        self.is_unfinished.store(true, Ordering::SeqCst);
    }

    /// No steps are left: another state is in force.
    pub(super) fn drop_steps(&self) {
        if self.is_unfinished.swap(false, Ordering::SeqCst) {
            *self.steps.lock().unwrap_or_else(|e| e.into_inner()) = None;
        }
    }

    /// Does what is left of an earlier change. Called by whoever is alone.
    pub(super) fn finish(&self, alone: &Alone<'_>) -> Result<()> {
        if !self.is_unfinished.load(Ordering::SeqCst) {
            return Ok(());
        }
        let steps = self.steps.lock().unwrap_or_else(|e| e.into_inner()).clone();
        match steps {
            Some(steps) => alone.take_steps(&steps).map_err(unfinished),
            None => Ok(()),
        }
    }

    /// Runs a request again that failed because an earlier change is not complete, once it is.
    #[inline]
    pub(super) fn after_steps<T>(&self, request: impl Fn() -> Result<T>) -> Result<T> {
        let waits = self.is_unfinished.load(Ordering::Relaxed);
        match request() {
            Err(_) if waits => {
                self.finish(&self.alone_unfinished())?;
                request()
            }
            answer => answer,
        }
    }
}

/// Why a request has to wait for steps that cannot be done.
pub(super) fn unfinished(why: Error) -> Error {
    why.within("an earlier change of the image could not be completed yet")
}
