//! The counts of everything that a tree refers to.

use super::{let_go, L1Table, Walk};
use crate::alloc::Freed;
use crate::error::Result;
use crate::format::HostOffset;
use crate::image::{Core, Parts};
use crate::meta::guard::Owner;

impl L1Table {
    /// Fails while nothing has changed when a tree that is going to be let go of breaks a rule, or refers to what is not
    /// its own; the L1 table itself holds `l1_owner`.
    pub(in crate::ops) fn check_release(&self, parts: &Parts<'_>, l1_owner: Owner) -> Result<()> {
        let clusters = parts.geometry.clusters_ceil(self.entries.len() as u64 * 8);
        if clusters > 0 {
            let first = parts.geometry.cluster_index(HostOffset(self.offset));
            parts.guard.check_release(l1_owner, first, clusters)?;
        }
        self.walk(parts, 0..self.entries.len(), Walk::Release, &mut |_| Ok(()))
    }

    /// Raises the counts of everything that the tree refers to, or of nothing.
    pub(in crate::ops) fn raise(&self, core: &Core, parts: &Parts<'_>) -> Result<()> {
        let mut raised = 0;
        let done = self.walk(parts, 0..self.entries.len(), Walk::Raise, &mut |runs| {
            parts.alloc.raise_all(runs)?;
            raised += 1;
            Ok(())
        });
        let Err(e) = done else { return Ok(()) };
        self.unraise_first(parts, raised);
        // Nothing has changed: the image need not stay dirty.
        let _ = core.settle();
        Err(e)
    }

    /// Undoes `raise`. What fails of this leaks.
    pub(in crate::ops) fn unraise(&self, parts: &Parts<'_>) {
        self.unraise_first(parts, u64::MAX);
    }

    /// Undoes the first `left` steps of `raise`.
    fn unraise_first(&self, parts: &Parts<'_>, mut left: u64) {
        let _ = self.walk(parts, 0..self.entries.len(), Walk::Raise, &mut |runs| {
            if left > 0 {
                left -= 1;
                parts.alloc.unraise(runs, 1)?;
            }
            Ok(())
        });
    }

    /// Lowers the counts of everything that the tree refers to, and of the L1 table, which holds `l1_owner`. `true`: a
    /// count became one.
    pub(in crate::ops) fn lower(&self, parts: &Parts<'_>, l1_owner: Owner) -> Result<bool> {
        let mut single = false;
        self.walk(parts, 0..self.entries.len(), Walk::Release, &mut |runs| {
            single |= parts.alloc.lower_all(runs, Freed::BySnapshot)?;
            Ok(())
        })?;
        let_go(parts, l1_owner, self.offset, self.entries.len() as u64 * 8);
        Ok(single)
    }
}
