//! Structure changes that are in force on the medium and not complete: the host did not take the last steps, as when it
//! is full. The steps are kept, writes wait with the host's error, and the next request that changes something, or a
//! flush, does the steps first. Reads go on from the state before, which still is what the disk showed.
//!
//! U1: while steps are left, the state in force writes nothing. U2: each step may be done again. Power cut: the dirty
//! bit stands, or leaks are all that is left.

use super::core::CoreSettings;
use super::snapshots::{L1Table, Walk};
use super::{Core, ExclusiveImage, Image};
use crate::alloc::{ClusterRun, Freed};
use crate::error::{Error, Result};
use crate::meta::guard::Owner;
use crate::storage::Storage;
use crate::sync::locked;
use std::ops::Range;
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
    /// Then this is counted down.
    lower: Option<Gone>,
}

/// What nothing leads to any more. What cannot be counted down leaks.
#[derive(Clone)]
pub(super) struct Gone {
    tree: L1Table,
    /// The entries that have gone.
    part: Range<usize>,
    /// The table itself has gone.
    whole: bool,
    freed: Freed,
}

impl Gone {
    /// A whole tree that another one has replaced.
    pub(super) fn tree(tree: L1Table) -> Gone {
        Gone { part: 0..tree.entries.len(), tree, whole: true, freed: Freed::BySnapshot }
    }

    /// Entries of a table that stays.
    pub(super) fn entries(tree: L1Table, part: Range<usize>) -> Gone {
        Gone { tree, part, whole: false, freed: Freed::ByRequest }
    }
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

    /// As `settle`; then `gone` is counted down.
    pub(super) fn lower(core: &Core, gone: Gone) -> Steps {
        Steps { lower: Some(gone), ..Steps::settle(core) }
    }
}

impl ExclusiveImage<'_> {
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
        match &steps.lower {
            Some(gone) => self.core().count_down(gone),
            None => Ok(()),
        }
    }
}

impl Core {
    /// Lowers the counts of what has gone, in memory.
    fn count_down(&self, gone: &Gone) -> Result<()> {
        let alloc = self.structure_writer()?;
        let mut lower = |runs: &mut [ClusterRun]| alloc.lower_all(runs, gone.freed).map(drop);
        let lowered = self.walk(&gone.tree, gone.part.clone(), Walk::Release, &mut lower);
        if gone.whole {
            self.let_go(alloc, Owner::NOBODY, gone.tree.offset, gone.tree.entries.len() as u64 * 8);
        }
        match lowered {
            Err(e) if e.is_failed_sync() => Err(e),
            _ => Ok(()),
        }
    }
}

impl Image {
    fn keep_steps(&self, steps: Steps) {
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
    pub(super) fn finish(&self, alone: &ExclusiveImage<'_>) -> Result<()> {
        if !self.is_unfinished.load(Ordering::SeqCst) {
            return Ok(());
        }
        let steps = locked(self.steps.lock()).clone();
        match steps {
            Some(steps) => alone.complete(steps).map_err(unfinished),
            None => Ok(()),
        }
    }

    /// Runs a request again that failed because an earlier change is not complete, once it is.
    pub(super) fn after_steps(&self, request: impl Fn() -> Result<()>) -> Result<()> {
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

/// Why a request has to wait for steps that cannot be done.
pub(super) fn unfinished(why: Error) -> Error {
    why.within("an earlier change of the image could not be completed yet")
}
