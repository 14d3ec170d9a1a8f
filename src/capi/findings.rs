//! Findings of a check for the caller, as numbers.

use super::messages::message_code;
use crate::ops::check::{Finding, What};
use std::ffi::{c_int, c_void};

/// A refcount that is not the number of references. place: host cluster; value: refcount; count: references.
pub const QCOW2_FINDING_REFCOUNT: i32 = 1;
/// A refcount that cannot be read. place: host cluster.
pub const QCOW2_FINDING_REFCOUNT_UNREADABLE: i32 = 2;
/// Why refcounts cannot be read. place: index of the refcount block; value: its host offset.
pub const QCOW2_FINDING_REFCOUNT_BLOCK_UNUSABLE: i32 = 3;
/// A refcount table entry with reserved bits set. place: index; value: the entry.
pub const QCOW2_FINDING_REFCOUNT_TABLE_RESERVED: i32 = 4;
/// A refcount block that begins inside a cluster. place: index; value: its host offset.
pub const QCOW2_FINDING_REFCOUNT_BLOCK_UNALIGNED: i32 = 5;
/// A refcount block whose cluster has another use, too. place: index; value: host offset; count: references.
pub const QCOW2_FINDING_REFCOUNT_BLOCK_SHARED: i32 = 6;
/// A refcount block past the end of the file. place: index; value: its host offset.
pub const QCOW2_FINDING_REFCOUNT_BLOCK_OUTSIDE: i32 = 7;
/// The file does not grow over such a block. place: the end that it was to have.
pub const QCOW2_FINDING_NOT_GROWN: i32 = 8;
/// The refcounts can be mended by a rebuild only.
pub const QCOW2_FINDING_REBUILD_NEEDED: i32 = 9;
/// All refcount structures are built anew.
pub const QCOW2_FINDING_REBUILD: i32 = 10;
/// Something reaches past the end of the file. place: host offset; value: bytes.
pub const QCOW2_FINDING_REGION_OUTSIDE: i32 = 11;
/// More references than a refcount of this width holds. place: host offset.
pub const QCOW2_FINDING_OVERFLOW: i32 = 12;
/// An L1 entry with reserved bits set. place: host offset of the entry; value: the entry.
pub const QCOW2_FINDING_L1_RESERVED: i32 = 13;
/// An L2 table that begins inside a cluster. place: host offset of its L1 entry; value: of the table.
pub const QCOW2_FINDING_L2_TABLE_UNALIGNED: i32 = 14;
/// A wrong COPIED flag of an L1 entry. place: index; value: the entry; count: the table's refcount.
pub const QCOW2_FINDING_L1_COPIED: i32 = 15;
/// A wrong COPIED flag of an L2 entry. place: host offset of the entry; value: the entry; count: refcount.
pub const QCOW2_FINDING_L2_COPIED: i32 = 16;
/// An L2 entry with reserved bits set. place: host offset of the entry; value: the entry.
pub const QCOW2_FINDING_L2_RESERVED: i32 = 17;
/// Data that begins inside a cluster. place: host offset of the L2 entry; value: of the data.
pub const QCOW2_FINDING_DATA_UNALIGNED: i32 = 18;
/// The same of a cluster without data.
pub const QCOW2_FINDING_PREALLOCATED_UNALIGNED: i32 = 19;
/// Subclusters that are allocated in no cluster. place: host offset of the L2 entry; value: bitmap.
pub const QCOW2_FINDING_SUBCLUSTERS_WITHOUT: i32 = 20;
/// Subclusters that are allocated and zero. place: as above; value: host offset of the data; count: bitmap.
pub const QCOW2_FINDING_SUBCLUSTERS_TWICE: i32 = 21;
/// A compressed cluster with a COPIED flag. place: host offset of the L2 entry; value: of the data.
pub const QCOW2_FINDING_COMPRESSED_COPIED: i32 = 22;
/// A compressed cluster in an image with a data file. place: as above; value: the entry; count: its index.
pub const QCOW2_FINDING_COMPRESSED_IN_DATA_FILE: i32 = 23;
/// A compressed cluster with subclusters. place: as above; value: the entry; count: its index.
pub const QCOW2_FINDING_COMPRESSED_SUBCLUSTERS: i32 = 24;
/// Snapshots in an image with a data file. count: how many.
pub const QCOW2_FINDING_SNAPSHOTS_WITH_DATA_FILE: i32 = 25;
/// An L1 table of a snapshot that begins inside a cluster. place: index of the snapshot; value: host offset.
pub const QCOW2_FINDING_SNAPSHOT_L1_UNALIGNED: i32 = 26;
/// An L1 table of a snapshot that is too large. place: index of the snapshot; value: entries.
pub const QCOW2_FINDING_SNAPSHOT_L1_TOO_LARGE: i32 = 27;
/// A snapshot without the data that version 3 asks for. place: index of the snapshot.
pub const QCOW2_FINDING_SNAPSHOT_INCOMPLETE: i32 = 28;
/// More snapshots than there may be. count: how many are too many.
pub const QCOW2_FINDING_SNAPSHOTS_TOO_MANY: i32 = 29;
/// A snapshot table with more bytes than it may have. count: snapshots past that.
pub const QCOW2_FINDING_SNAPSHOT_TABLE_TOO_BIG: i32 = 30;
/// A snapshot with too much extra data. place: index of the snapshot; value: bytes; count: the most.
pub const QCOW2_FINDING_SNAPSHOT_EXTRA: i32 = 31;
/// No finding, but what helps: other refcounts.
pub const QCOW2_FINDING_HINT_AMEND: i32 = 32;
/// No finding, but what helps: a repair that drops snapshots. count: how many.
pub const QCOW2_FINDING_HINT_SNAPSHOTS: i32 = 33;
/// No finding, but what helps: a repair that drops extra data of snapshots.
pub const QCOW2_FINDING_HINT_EXTRA: i32 = 34;
/// An entry of a dirty bitmap's table whose cluster has another use, too: the bitmap is not to be believed. place: index
/// of the entry; value: the entry; count: references. Its wrong refcount is a finding of its own, which is counted.
pub const QCOW2_FINDING_BITMAP_SHARED: i32 = 35;
/// The table of a dirty bitmap has a cluster with another use, too: a writable open refuses the bitmaps, unless that one is
/// not believed. place: offset of that cluster; value: offset of the table; count: references. A refcount that is too low
/// is a finding of its own, which is counted; otherwise this one is. No repair mends it: the bitmap is to be removed, or all are to be dropped.
pub const QCOW2_FINDING_BITMAP_TABLE_SHARED: i32 = 36;
/// As QCOW2_FINDING_BITMAP_TABLE_SHARED, of the bitmap directory. value: its offset.
pub const QCOW2_FINDING_BITMAP_DIRECTORY_SHARED: i32 = 37;

/// Something that a check has found. Numbers that its kind does not name are 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_finding {
    /// Set by the library.
    pub struct_size: usize,
    /// QCOW2_FINDING_*; there may be more in later versions.
    pub kind: c_int,
    /// What becomes of it: QCOW2_MSG_*.
    pub message_kind: c_int,
    /// Where it is.
    pub place: u64,
    /// What stands there.
    pub value: u64,
    /// How much there is of it, or should be.
    pub count: u64,
}

/// Takes a finding, valid during the call.
pub type qcow2_finding_fn = Option<unsafe extern "C" fn(opaque: *mut c_void, finding: *const qcow2_finding)>;

/// Hands a finding to the caller.
pub(super) fn send_finding(function: qcow2_finding_fn, opaque: *mut c_void, finding: &Finding<'_>) {
    let Some(function) = function else { return };
    let numbers = qcow2_finding {
        struct_size: std::mem::size_of::<qcow2_finding>(),
        kind: code(finding.what),
        message_kind: message_code(finding.kind),
        place: finding.place,
        value: finding.value,
        count: finding.count,
    };
    // SAFETY: the caller's function with the caller's opaque pointer, as it asked for.
    unsafe { function(opaque, &numbers) }
}

fn code(what: What) -> c_int {
    match what {
        What::Refcount => QCOW2_FINDING_REFCOUNT,
        What::RefcountUnreadable => QCOW2_FINDING_REFCOUNT_UNREADABLE,
        What::RefcountBlockUnusable => QCOW2_FINDING_REFCOUNT_BLOCK_UNUSABLE,
        What::RefcountTableReserved => QCOW2_FINDING_REFCOUNT_TABLE_RESERVED,
        What::RefcountBlockUnaligned => QCOW2_FINDING_REFCOUNT_BLOCK_UNALIGNED,
        What::RefcountBlockShared => QCOW2_FINDING_REFCOUNT_BLOCK_SHARED,
        What::RefcountBlockOutside => QCOW2_FINDING_REFCOUNT_BLOCK_OUTSIDE,
        What::NotGrown => QCOW2_FINDING_NOT_GROWN,
        What::RebuildNeeded => QCOW2_FINDING_REBUILD_NEEDED,
        What::Rebuild => QCOW2_FINDING_REBUILD,
        What::RegionOutside => QCOW2_FINDING_REGION_OUTSIDE,
        What::Overflow => QCOW2_FINDING_OVERFLOW,
        What::L1Reserved => QCOW2_FINDING_L1_RESERVED,
        What::L2TableUnaligned => QCOW2_FINDING_L2_TABLE_UNALIGNED,
        What::L1Copied => QCOW2_FINDING_L1_COPIED,
        What::L2Copied => QCOW2_FINDING_L2_COPIED,
        What::L2Reserved => QCOW2_FINDING_L2_RESERVED,
        What::DataUnaligned => QCOW2_FINDING_DATA_UNALIGNED,
        What::PreallocatedUnaligned => QCOW2_FINDING_PREALLOCATED_UNALIGNED,
        What::SubclustersWithout => QCOW2_FINDING_SUBCLUSTERS_WITHOUT,
        What::SubclustersTwice => QCOW2_FINDING_SUBCLUSTERS_TWICE,
        What::CompressedCopied => QCOW2_FINDING_COMPRESSED_COPIED,
        What::CompressedInDataFile => QCOW2_FINDING_COMPRESSED_IN_DATA_FILE,
        What::CompressedSubclusters => QCOW2_FINDING_COMPRESSED_SUBCLUSTERS,
        What::SnapshotsWithDataFile => QCOW2_FINDING_SNAPSHOTS_WITH_DATA_FILE,
        What::SnapshotL1Unaligned => QCOW2_FINDING_SNAPSHOT_L1_UNALIGNED,
        What::SnapshotL1TooLarge => QCOW2_FINDING_SNAPSHOT_L1_TOO_LARGE,
        What::SnapshotIncomplete => QCOW2_FINDING_SNAPSHOT_INCOMPLETE,
        What::SnapshotsTooMany => QCOW2_FINDING_SNAPSHOTS_TOO_MANY,
        What::SnapshotTableTooBig => QCOW2_FINDING_SNAPSHOT_TABLE_TOO_BIG,
        What::SnapshotExtra => QCOW2_FINDING_SNAPSHOT_EXTRA,
        What::HintAmend => QCOW2_FINDING_HINT_AMEND,
        What::HintSnapshots => QCOW2_FINDING_HINT_SNAPSHOTS,
        What::HintExtra => QCOW2_FINDING_HINT_EXTRA,
        What::BitmapShared => QCOW2_FINDING_BITMAP_SHARED,
        What::BitmapTableShared => QCOW2_FINDING_BITMAP_TABLE_SHARED,
        What::BitmapDirectoryShared => QCOW2_FINDING_BITMAP_DIRECTORY_SHARED,
    }
}
