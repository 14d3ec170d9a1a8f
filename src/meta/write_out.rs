//! Bringing table pages to the medium: into the file, or durable. Any number of threads at once, whoever has
//! which page in hand; called by `map`, and by the cache to make room.

use super::page::{DirtyPages, Page};
use super::InFlight;
use super::{OverlapGuard, Settler};
use crate::error::Result;
use crate::planted::{planted, Plant};
use crate::storage::medium::{Medium, Ticket};
use std::sync::Arc;

/// What it takes to write pages.
pub struct WriteOut<'a> {
    /// Where pages go.
    pub medium: &'a Medium,
    /// The overlap check.
    pub guard: &'a OverlapGuard,
    /// Who settles what they let go of.
    pub settler: &'a dyn Settler,
    /// The list that they are on.
    pub list: &'a DirtyPages,
}

impl WriteOut<'_> {
    /// Writes what is ripe of one page; see `Page::write_out`.
    pub(super) fn page(&self, page: &Arc<Page>, announced: &InFlight<'_>) -> Result<bool> {
        page.write_out(self.medium, self.guard, self.settler, self.list, announced)
    }

    /// Brings everything that was stored before the call into the file (not yet durable); syncs where changes
    /// wait for one.
    pub fn write_through(&self) -> Result<()> {
        let target = self.medium.ticket();
        let waits = self.waits_for(target);
        self.write_listed()?;
        if waits && (!planted(Plant::WriteThroughAsksLate) || self.waits_for(target)) {
            self.write_waiting(target)?;
        }
        Ok(())
    }

    /// Makes everything that was stored before the call durable.
    pub fn barrier(&self) -> Result<()> {
        let target = self.medium.ticket();
        let waits = self.waits_for(target);
        self.write_listed()?;
        self.settler.advance()?;
        // What waited for the sync that has just completed needs another one, whoever has written it.
        if waits && (!planted(Plant::BarrierAsksLate) || self.waits_for(target)) {
            self.write_waiting(target)?;
            self.settler.advance()?;
        }
        Ok(())
    }

    /// Whether changes wait for `target` or less, in whatever hands their pages are. Asked before the list is
    /// written: what others take from then on they may still be writing when the list is done, and what they
    /// took before is waited for with the list.
    fn waits_for(&self, target: Ticket) -> bool {
        self.list.oldest_waiting().is_some_and(|oldest| oldest <= target)
    }

    /// Writes the changes that wait for `target` or less: a page that somebody else took before a sync comes
    /// back to the list and is taken again.
    fn write_waiting(&self, target: Ticket) -> Result<()> {
        while self.waits_for(target) {
            if !self.medium.is_past(target) {
                self.settler.advance()?;
            }
            self.write_listed()?;
        }
        // The last of them may have been taken by somebody who is still writing.
        if !planted(Plant::LastPageInHandNotWaitedFor) {
            self.list.wait_in_flight();
        }
        self.medium.latch().check()
    }

    /// Writes what is ripe of every dirty page. When it returns, every page that was dirty before is in the
    /// file, or on the list with changes that wait, whoever wrote it.
    fn write_listed(&self) -> Result<()> {
        loop {
            let failures = self.list.failures();
            let announced = self.list.begin();
            let mut taken = self.list.take(&announced);
            let mut pages = taken.drain(..);
            while let Some(page) = pages.next() {
                if let Err(e) = self.page(&page, &announced) {
                    self.list.put_back(pages);
                    return Err(e);
                }
            }
            drop((pages, announced));
            self.list.reuse(taken);
            if !planted(Plant::PagesInHandNotWaitedFor) {
                self.list.wait_in_flight();
            }
            self.medium.latch().check()?;
            // A page that somebody else had in hand may have come back unwritten: it is ours to try now.
            if self.list.failures() == failures || planted(Plant::ReturnedPageNotSeen) {
                return Ok(());
            }
        }
    }
}
