//! The storage of guest data where it is not the image's own, with what its syncs have covered: a barrier that comes
//! when only tables have changed costs no sync here.

use super::Storage;
use crate::planted::{planted, Plant};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{locked, Mutex};
use std::io;
use std::sync::Arc;

/// An external data file.
pub struct DataFile {
    storage: Arc<dyn Storage>,
    /// Changes that have returned. Counted before the ticket of a change is taken.
    changes: AtomicU64,
    /// Of these, what is durable. Held across the sync: two that overlap must not take the other's word for it.
    synced: Mutex<u64>,
}

impl DataFile {
    /// What was written before it was opened counts as not durable.
    pub(super) fn new(storage: Arc<dyn Storage>) -> Self {
        DataFile { storage, changes: AtomicU64::new(1), synced: Mutex::new(0) }
    }

    /// The storage itself, for reads and properties.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// A change has returned.
    pub(super) fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Makes every change that has returned durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        let mut synced = locked(self.synced.lock());
        let changes = self.changes.load(Ordering::SeqCst);
        if *synced < changes {
            if !planted(Plant::DataFileNotSynced) {
                self.storage.sync()?;
            }
            *synced = changes;
        }
        Ok(())
    }
}
