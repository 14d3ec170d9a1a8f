//! Where the file ends: it grows ahead of what is handed out, gets its spare room cut off, and gives freed clusters back to
//! the host. All of it with the ledger held.

use super::ledger::Ledger;
use super::Shared;
use crate::error::{Error, Result};
use crate::format::Geometry;
use crate::storage::is_not_supported;

/// Most bytes by which the file grows ahead of what is handed out.
const MAX_SPARE_BYTES: u64 = 16 << 20;
/// It is an eighth of the file, and at least these clusters, within limits.
const LEAST_SPARE_CLUSTERS: u64 = 16;
const LEAST_SPARE_BYTES: (u64, u64) = (64 << 10, 1 << 20);

/// Bytes by which a file that ends at `end` grows ahead.
pub(super) fn spare_after(geometry: &Geometry, end: u64) -> u64 {
    let least = LEAST_SPARE_CLUSTERS << geometry.cluster_bits;
    (end / 8).clamp(least.clamp(LEAST_SPARE_BYTES.0, LEAST_SPARE_BYTES.1), MAX_SPARE_BYTES)
}

impl Ledger {
    /// Whether `bytes` that wait to be free are worth a barrier: the next cluster is one that was never used, and they
    /// are as many as the file grows at once.
    pub(super) fn would_grow(&self, bytes: u64) -> bool {
        let used = self.geometry().cluster_offset(self.high_water);
        self.hint() >= self.frontier && bytes >= spare_after(&self.geometry(), used)
    }

    /// Before a barrier: a file that this handle has made longer, and that is almost used up, grows now. The sync
    /// that comes in any case covers its length; clusters handed out later need not wait for one of their own.
    pub(super) fn grow_ahead(&mut self, shared: &Shared) -> Result<()> {
        shared.medium.latch().check()?;
        let used = self.geometry().cluster_offset(self.high_water);
        let almost = self.geometry().cluster_ceil(used + spare_after(&self.geometry(), used) / 2);
        match almost.filter(|_| self.length > self.first_length) {
            Some(almost) => self.extend_file(shared, almost),
            None => Ok(()),
        }
    }

    /// Makes the file at least `end` bytes long, with some to spare.
    pub(super) fn extend_file(&mut self, shared: &Shared, end: u64) -> Result<()> {
        if end <= self.length {
            return Ok(());
        }
        let spare = spare_after(&self.geometry(), end);
        let medium = &shared.medium;
        // A damaged image may have data past its end, written in place behind the ledger's back: the file must
        // never get shorter here.
        let now = medium.storage().length().map_err(|e| Error::host("length of the image file", &e))?;
        if now >= end {
            self.length = now;
            self.length_ticket = shared.medium.ticket();
            return Ok(());
        }
        let wanted = self.geometry().cluster_ceil(end + spare).unwrap_or(end);
        let grown = match medium.grow(wanted)? {
            Ok(length) => length,
            // Too long for this file system, perhaps; what is needed may still fit.
            Err(_) => match medium.grow(end)? {
                Ok(length) => length,
                // A storage that cannot be resized grows by being written; pointers then wait for the sync.
                Err(e) if is_not_supported(&e) => {
                    self.length_ticket = shared.medium.ticket();
                    return Ok(());
                }
                Err(e) => {
                    return Err(Error::host(format_args!("extending the image file to {end} bytes"), &e))
                }
            },
        };
        self.length = grown;
        self.length_ticket = shared.medium.ticket();
        Ok(())
    }

    /// Clusters `[from, to)` are free, and wait to be given back to the host.
    pub(super) fn add_hole(&mut self, from: u64, to: u64) {
        let (from, to) = (self.geometry().cluster_offset(from), self.geometry().cluster_offset(to));
        match self.holes.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => self.holes.push((from, to)),
        }
    }

    /// Punches what `lower` collected. Done before anybody can reserve the clusters again (story C2).
    pub(super) fn punch(&mut self, shared: &Shared) -> Result<()> {
        for (from, to) in std::mem::take(&mut self.holes) {
            let end = to.min(self.length);
            if from < end {
                shared.medium.give_back(from, end - from)?;
            }
        }
        Ok(())
    }

    /// Cuts the file after the last cluster in use.
    pub(super) fn cut_file(&mut self, shared: &Shared) -> Result<()> {
        let length = self.geometry().clusters_ceil(self.length);
        // Metadata stays, whatever its count says.
        let end = self.table.used_end(shared, 0, length)?.max(shared.guard.end()?.min(length));
        self.high_water = end;
        self.first_length = self.first_length.min(self.geometry().cluster_offset(end));
        // Later clusters are zero again once the file has been cut, but the frontier may only rise.
        self.trim(shared)
    }

    /// Gives back what the file was grown ahead.
    pub(super) fn trim(&mut self, shared: &Shared) -> Result<()> {
        let least = self.geometry().cluster_offset(self.high_water).max(self.first_length);
        if !self.zero_past_end || least >= self.length {
            return Ok(());
        }
        shared.medium.latch().check()?;
        // A damaged image may refer to clusters that its file did not reach when it was opened.
        let (first, end) = (self.geometry().cluster_index(least), self.geometry().clusters_ceil(self.length));
        let end = self.table.used_end(shared, first, end)?;
        let wanted = self.geometry().cluster_offset(end).max(least);
        let now =
            shared.medium.storage().length().map_err(|e| Error::host("length of the image file", &e))?;
        if wanted >= self.length || now > self.length {
            return Ok(());
        }
        if shared.medium.cut(wanted)?.is_ok() {
            self.length = wanted;
        }
        Ok(())
    }
}
