//! The failure latch of an image or a raw disk: after the first failed sync, and once an image is known to be corrupt,
//! nothing more is written.

use crate::error::{Error, ErrorKind, Result};
use once_cell::sync::OnceCell;

/// Set once, never cleared: closing and reopening is the only way on.
#[derive(Debug, Default)]
pub struct Latch(OnceCell<Error>);

#[cold]
fn latched(first: &Error) -> Error {
    first.clone().restated(ErrorKind::Latched, |first| {
        format!("the image takes no more writes after an earlier failure: {first}")
    })
}

impl Latch {
    /// Fails once the latch has closed.
    #[inline(always)]
    pub fn check(&self) -> Result<()> {
        match self.0.get() {
            None => Ok(()),
            Some(first) => Err(latched(first)),
        }
    }

    /// Closes the latch with the first failure, which is handed back.
    pub fn close(&self, first: Error) -> Error {
        let _ = self.0.set(first.clone());
        first
    }
}
