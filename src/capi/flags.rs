//! Flags of calls: those that a caller sets and this version does not know are refused.

use crate::error::{Error, Result};

/// Refuses flags outside `known`; `call` says whose flags they are.
pub(super) fn check_flags(call: &str, flags: u64, known: u64) -> Result<()> {
    match flags & !known {
        0 => Ok(()),
        unknown => Err(Error::invalid(format!("unknown {call} flags {unknown:#x}"))),
    }
}
