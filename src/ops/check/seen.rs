//! What a pass has seen so far: where metadata is, and what it is called in messages; the snapshot table; L2 tables.

use crate::format::snapshot::Snapshot;
use crate::format::Structure;

/// A range of the image file with a use.
pub(super) struct Region {
    pub offset: u64,
    pub bytes: u64,
    /// What it is, for messages.
    pub name: &'static str,
}

impl Region {
    /// Whether the range has a byte in `[offset, offset + bytes)`.
    pub fn overlaps(&self, offset: u64, bytes: u64) -> bool {
        self.offset < offset.saturating_add(bytes) && offset < self.offset.saturating_add(self.bytes)
    }
}

/// The snapshot table as read.
#[derive(Default)]
pub(super) struct SnapshotTable {
    /// Its entries, as far as they could be read.
    pub list: Vec<Snapshot>,
    /// Bytes that it takes in the image, without the last entry's padding.
    pub stored_bytes: u64,
    /// A repair has changed entries: the table must be written anew.
    pub changed: bool,
    /// The stored table is in the file, so its clusters have been counted.
    pub counted: bool,
}

/// What is known of an L2 table after the first look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Visits {
    /// Times that L1 entries have named the table.
    pub named: u64,
    /// References to count once more, for L1 entries that named the table again.
    pub pending: u64,
    /// Full looks so far.
    pub looks: u64,
    /// What one look found.
    pub stats: Stats,
}

/// What one look at an L2 table adds to the report.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stats {
    pub corruptions: u64,
    pub allocated: u64,
    pub fragmented: u64,
    pub compressed: u64,
}

/// The header cluster.
pub(super) const HEADER: &str = Structure::Header.name();
/// The active L1 table.
pub(super) const ACTIVE_L1: &str = Structure::ActiveL1.name();
/// An L2 table; these are found in `Pass::visits`.
pub(super) const ACTIVE_L2: &str = Structure::ActiveL2.name();
/// The refcount table.
pub(super) const REFCOUNT_TABLE: &str = Structure::RefcountTable.name();
/// The snapshot table.
pub(super) const SNAPSHOT_TABLE: &str = Structure::SnapshotTable.name();
/// A snapshot's L1 table.
pub(super) const INACTIVE_L1: &str = Structure::InactiveL1.name();
/// The bitmap directory and bitmap tables.
pub(super) const BITMAPS: &str = Structure::BitmapDirectory.name();
/// The encryption header, which no write is checked against by name.
pub(super) const ENCRYPTION: &str = "encryption header";
