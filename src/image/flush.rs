//! A flush of an image is a barrier of its state in force.

use super::Core;
use crate::error::Result;

impl Core {
    /// Runs or joins a barrier that starts after this call.
    pub(super) fn flush(&self) -> Result<()> {
        self.session.flusher.join(|| self.barrier())
    }
}
