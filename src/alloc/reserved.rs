//! Clusters that have their counts and nobody who points to them yet: reserved, then filled.

use super::Allocator;
use crate::format::HostCluster;
use crate::planted::{planted, Plant};
use crate::storage::medium::{Ticket, Written};

/// Clusters chosen by the ledger.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) count: u64,
    /// Reads as zeroes on the medium: never used before, inside the durable length once `ticket` is past.
    pub(super) fresh: bool,
    pub(super) ticket: Ticket,
}

/// Reserved clusters: counted, referred to by nothing. Dropping gives them back.
#[must_use]
pub struct Reserved<'a> {
    allocator: &'a Allocator,
    run: Run,
    kept: bool,
}

impl<'a> Reserved<'a> {
    pub(super) fn new(allocator: &'a Allocator, run: Run) -> Self {
        Reserved { allocator, run, kept: false }
    }

    /// First cluster of the run.
    pub fn first_cluster(&self) -> HostCluster {
        HostCluster(self.run.first)
    }

    /// Clusters in the run.
    pub fn cluster_count(&self) -> u64 {
        self.run.count
    }

    /// The clusters read as zeroes on the medium and need no padding.
    pub fn is_fresh(&self) -> bool {
        self.run.fresh
    }

    /// The clusters hold what they are to show once `contents` is durable (R2).
    pub fn filled(self, contents: Written) -> Filled<'a> {
        let contents = if planted(Plant::ContentsNotWaitedFor) { Ticket::PAST } else { contents.ticket() };
        self.filled_after(contents)
    }

    /// As `filled`, where the guest's range read as zeroes, and `contents` may be a part of the clusters: those that read
    /// as zeroes on the medium are what they are to show, old or new, whatever of `contents` is lost.
    pub fn filled_over_zeroes(self, contents: Written) -> Filled<'a> {
        match self.run.fresh {
            true => self.filled_after(Ticket::PAST),
            false => self.filled(contents),
        }
    }

    /// Clusters that are to show zeroes, where they are zeroes already; otherwise they come back.
    pub fn filled_with_zeroes(self) -> std::result::Result<Filled<'a>, Reserved<'a>> {
        match self.run.fresh {
            true => Ok(self.filled_after(Ticket::PAST)),
            false => Err(self),
        }
    }

    fn filled_after(self, contents: Ticket) -> Filled<'a> {
        let after = self.run.ticket.max(contents);
        Filled { reserved: self, after }
    }

    /// A pointer to the clusters has been stored: they stay.
    pub fn keep(mut self) {
        self.kept = true;
    }

    /// Gives all but the first `cluster_count` clusters back.
    pub fn shrink(&mut self, cluster_count: u64) {
        if cluster_count < self.run.count {
            self.allocator.give_back(self.run.first + cluster_count, self.run.count - cluster_count);
            self.run.count = cluster_count;
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.allocator.give_back(self.run.first, self.run.count);
        }
    }
}

/// Reserved clusters with their contents: all that a pointer to them asks for. Dropping gives the clusters back.
#[must_use]
pub struct Filled<'a> {
    reserved: Reserved<'a>,
    after: Ticket,
}

impl Filled<'_> {
    /// When counts (eager images), contents and the file's length are durable (R1, R2).
    pub fn ticket(&self) -> Ticket {
        self.after
    }

    /// Pointers to all of the clusters have been stored.
    pub fn keep(self) {
        self.reserved.keep();
    }

    /// Pointers to the first `cluster_count` clusters have been stored; the others go back.
    pub fn keep_first(mut self, cluster_count: u64) {
        if cluster_count > 0 {
            self.reserved.shrink(cluster_count);
            self.reserved.keep();
        }
    }
}
