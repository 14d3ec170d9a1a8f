//! Consistency check and repair: counts every reference of an image, compares with the stored refcounts, and
//! mends what differs.
//!
//! Called with nobody else using the image: the caller has flushed and dropped its caches before, and reads
//! all state again after a repair. Findings are told as numbers, or in the words of the stock tool, in its order.
//!
//! ```text
//! snapshots   read the snapshot table                    -> entries that a repair completes
//! count       header, L1/L2/data (active, snapshots), snapshot table, encryption header, bitmaps,
//!             refcount table, refcount blocks            -> Counts, one for each host cluster
//! compare     Counts against the stored refcounts        -> leaks, errors, "rebuild"
//! rebuild     a cluster in use has a stored count of 0, or the refcount table is broken:
//!             all refcount structures anew, beside the old ones; then count and compare again
//! snapshots   a mended snapshot table, and its old place let go of
//! copied      COPIED flags of the active tables against the stored refcounts
//! seal        corrupt and dirty bits cleared
//! ```
//!
//! Durable before the next begins, so that a crash anywhere leaves an image that the next repair completes:
//!
//! 1. entries that lost a reference, before any count falls;
//! 2. new refcount blocks and the new table, before the header names them;
//! 3. the header (one sector), before the old structures' counts fall;
//! 4. all of it, before the dirty and corrupt bits are cleared (one sector);
//! 5. all of it, before freed clusters are given back to the host.

mod bitmaps;
mod bits;
mod chunk;
mod compare;
mod copied;
mod counts;
mod finding;
mod guard;
mod l2_table;
mod line;
mod look_ahead;
mod metadata;
mod pass;
mod rebuild;
mod seen;
mod snapshots;
mod stored;
mod tables;

#[cfg(test)]
mod tests;

use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;

pub use finding::{in_words, Finding, Findings, What, Words};

/// What a check may change. With neither, not one byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Lower counts that are too high, and mend COPIED flags if nothing else is wrong (`-r leaks`).
    pub repair_leaks: bool,
    /// Mend everything that can be; with `repair_leaks` this is `-r all`.
    pub repair_errors: bool,
    /// Threads that read L2 tables, the caller's among them; 0 is 1.
    pub workers: u32,
}

/// How a message came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// Explains something.
    Info,
    /// A cluster that nothing needs.
    Leak,
    /// Something is wrong and stays wrong, or is mended later in the same pass.
    Error,
    /// Something is being mended.
    Repair,
}

/// Takes the findings in words.
pub type Messages<'a> = &'a mut dyn FnMut(MessageKind, &str);

/// What one pass found. The caller that has repaired checks again to see what is left, as the stock tool does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Errors that are still there.
    pub corruptions: u64,
    /// Leaked clusters that are still there.
    pub leaks: u64,
    /// Places where the check itself could not look.
    pub check_errors: u64,
    /// Errors that this pass has mended.
    pub corruptions_fixed: u64,
    /// Leaks that this pass has mended.
    pub leaks_fixed: u64,
    /// Clusters of the virtual disk.
    pub total_clusters: u64,
    /// Guest clusters with a host cluster or compressed data, active layer only.
    pub allocated_clusters: u64,
    /// Of those, the ones that do not follow their predecessor on the host; all compressed ones are.
    pub fragmented_clusters: u64,
    /// Of those, the compressed ones.
    pub compressed_clusters: u64,
    /// End of the last cluster that is in use or counted as such.
    pub image_end_offset: u64,
}

/// Checks the image in `storage`, and repairs it as far as `options` say. One pass.
///
/// `findings` gets each of them; `in_words` puts them into words. `progress(done, total)` is called at least
/// every few table reads; false cancels with `ErrorKind::Cancelled`, which leaves a repair as unfinished as a crash
/// would: the next one completes it. An error says that the check could not be done at all, or that the repair asked for is not
/// enough (`ErrorKind::Corrupt`: "need to rebuild refcount structures" while only leaks may be repaired).
pub fn check(
    storage: &dyn Storage,
    options: CheckOptions,
    findings: Option<Findings<'_>>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<CheckReport> {
    // To the lifetime of the rest.
    let findings = findings.map(|findings| findings as Findings<'_>);
    pass::Pass::open(storage, options, findings, progress)?.run()
}

fn no_memory() -> Error {
    Error::new(ErrorKind::NoMemory, "no memory for the reference counts of this image")
}

/// `bytes` zero bytes.
fn zeroed(bytes: u64) -> Result<Vec<u8>> {
    crate::error::zeroed("part of the image", bytes).map_err(|_| no_memory())
}
