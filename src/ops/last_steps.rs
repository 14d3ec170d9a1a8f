//! How changes of tables end: what is in memory goes to the medium, the image is loaded anew, and what nothing leads to
//! any more is counted down. Each may be done again (`image/unfinished.rs`).

use super::tree::{let_go, match_flags, L1Table, Walk};
use crate::alloc::{ClusterRun, Freed};
use crate::error::Result;
use crate::image::ExclusiveImage;
use crate::meta::guard::Owner;
use std::ops::Range;

/// Everything to the medium, then loading anew.
pub(super) fn reload(image: &ExclusiveImage<'_>) -> Result<()> {
    image.core().settle()?;
    image.load_again()
}

/// As `reload`, after the COPIED flags of the active tree have been brought to what the counts say.
pub(super) fn reload_with_flags(image: &ExclusiveImage<'_>) -> Result<()> {
    match_flags(&image.core().parts()?)?;
    reload(image)
}

/// As `reload`; then `gone` is counted down. Not before: whoever reads the state before must find its clusters as they
/// were.
pub(super) fn reload_without(gone: Gone) -> impl Fn(&ExclusiveImage<'_>) -> Result<()> {
    move |image| {
        reload(image)?;
        gone.count_down(image)
    }
}

/// What nothing leads to any more. What cannot be counted down leaks.
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

    /// Lowers the counts, in memory.
    fn count_down(&self, image: &ExclusiveImage<'_>) -> Result<()> {
        let core = image.core();
        let parts = core.structure_writer()?;
        let mut lower = |runs: &mut [ClusterRun]| parts.alloc.lower_all(runs, self.freed).map(drop);
        let lowered = self.tree.walk(&parts, self.part.clone(), Walk::Release, &mut lower);
        if self.whole {
            let_go(&parts, Owner::NOBODY, self.tree.offset, self.tree.entries.len() as u64 * 8);
        }
        match lowered {
            Err(e) if e.is_failed_sync() => Err(e),
            _ => Ok(()),
        }
    }
}
