//! A flush of an image is a barrier of its state in force.

use super::Core;
use crate::error::Result;
use crate::storage::flusher::Flusher;

impl Flusher {
    /// Runs or joins a barrier that starts after this call.
    pub(super) fn flush(&self, core: &Core) -> Result<()> {
        self.join(|| core.barrier())
    }
}
