//! What outlives the states of an open image, from its open to its close.
//!
//! A state (`Core`) is what was loaded from the medium; a structure change replaces it. The gate has the state, so
//! that a request finds it where it enters; the states have the session.

use super::bitmaps::Tracker;
use crate::error::{Error, Result};
use crate::storage::flusher::Flusher;
use crate::storage::gate::Readers;
use crate::storage::latch::Latch;
use crate::sync::locked;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What the states of one image share; in every one of them, and in the image.
pub(crate) struct Session {
    /// Who is inside, as far as those have to know who let go of clusters.
    pub(super) readers: Arc<dyn Readers>,
    pub(super) flusher: Flusher,
    /// Closed by the first sync that fails, whatever state is in force.
    latch: Mutex<Arc<Latch>>,
    virtual_size: AtomicU64,
    /// Counts the states that have been replaced.
    generation: Arc<AtomicU64>,
    /// The header names another backing file than the one that is open: what would leave a hole, or show one, is
    /// refused, for nobody here knows what it will show.
    chain_left: AtomicBool,
    /// What knows of changes, once it has been loaded; `None` in it: there are no bitmaps.
    bitmaps: Mutex<Option<Option<Arc<Tracker>>>>,
}

impl Session {
    pub(super) fn new(readers: Arc<dyn Readers>) -> Session {
        Session {
            readers,
            flusher: Flusher::default(),
            latch: Mutex::default(),
            virtual_size: AtomicU64::new(0),
            generation: Arc::default(),
            chain_left: AtomicBool::new(false),
            bitmaps: Mutex::default(),
        }
    }

    /// Notes that a state of `virtual_size` bytes comes into force. Called alone.
    pub(super) fn note_state(&self, virtual_size: u64) {
        self.virtual_size.store(virtual_size, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn latch(&self) -> Arc<Latch> {
        Arc::clone(&*locked(self.latch.lock()))
    }

    /// Another one, open: the image was inactive when its latch closed, so that nothing written here is lost.
    pub(super) fn renew_latch(&self) {
        *locked(self.latch.lock()) = Arc::default();
    }

    pub(super) fn virtual_size(&self) -> u64 {
        self.virtual_size.load(Ordering::Relaxed)
    }

    /// Changes whenever another state comes into force.
    pub(super) fn generation(&self) -> &Arc<AtomicU64> {
        &self.generation
    }

    /// Fails when the header names another backing file than the one that is open. Called inside the gate.
    pub(super) fn check_chain(&self) -> Result<()> {
        match self.chain_left.load(Ordering::SeqCst) {
            true => Err(Error::invalid("the backing file has been changed: open the image anew first")),
            false => Ok(()),
        }
    }

    /// Whether the chain that is open is the one that the header means.
    pub(super) fn is_chain_kept(&self) -> bool {
        !self.chain_left.load(Ordering::SeqCst)
    }

    /// The bitmaps that go from state to state; where there are none yet, what `load` answers.
    pub(super) fn bitmaps(
        &self,
        load: impl FnOnce() -> Result<Option<Tracker>>,
    ) -> Result<Option<Arc<Tracker>>> {
        let mut known = locked(self.bitmaps.lock());
        if known.is_none() {
            *known = Some(load()?.map(Arc::new));
        }
        Ok(known.clone().flatten())
    }

    /// The next state loads the bitmaps from the medium, which has all of them. Called alone.
    pub(super) fn forget_bitmaps(&self) {
        *locked(self.bitmaps.lock()) = None;
    }

    /// Notes whether the header names another backing file. Called alone.
    pub(super) fn leave_chain(&self, left: bool) {
        self.chain_left.store(left, Ordering::SeqCst);
    }
}
