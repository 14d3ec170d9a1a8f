//! What a check finds and a repair mends, as numbers. Words are made of them for those who take words, and they are the
//! stock tool's.

use super::line::Line;
use super::{MessageKind, Messages};

/// What has been found. "Entry" is the host offset of an entry of a table, "index" one of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A refcount that is not the number of references: host cluster, refcount, references.
    Refcount,
    /// A refcount that cannot be read: host cluster.
    RefcountUnreadable,
    /// Why: index of the refcount block, its offset.
    RefcountBlockUnusable,
    /// An entry of the refcount table with reserved bits: index, entry.
    RefcountTableReserved,
    /// A refcount block that begins inside a cluster: index, its offset.
    RefcountBlockUnaligned,
    /// A refcount block whose cluster has another use, too: index, its offset, references.
    RefcountBlockShared,
    /// A refcount block past the end of the file: index, its offset.
    RefcountBlockOutside,
    /// The file does not grow over such a block: the end it was to have.
    NotGrown,
    /// The refcounts can be mended by a rebuild only.
    RebuildNeeded,
    /// All refcount structures are built anew.
    Rebuild,
    /// Something reaches past the end of the file: host offset, bytes.
    RegionOutside,
    /// More references than a refcount holds: host offset.
    Overflow,
    /// An L1 entry with reserved bits: entry, its value.
    L1Reserved,
    /// An L2 table that begins inside a cluster: entry, offset of the table.
    L2TableUnaligned,
    /// A wrong COPIED flag of an L1 entry: index, its value, the table's refcount.
    L1Copied,
    /// A wrong COPIED flag of an L2 entry: entry, its value, the cluster's refcount.
    L2Copied,
    /// An L2 entry with reserved bits: entry, its value.
    L2Reserved,
    /// Data that begins inside a cluster: entry, offset of the data.
    DataUnaligned,
    /// Room for data that begins inside a cluster: entry, its offset.
    PreallocatedUnaligned,
    /// Subclusters that are allocated in no cluster: entry, bitmap.
    SubclustersWithout,
    /// Subclusters that are allocated and zero: entry, offset of the cluster, bitmap.
    SubclustersTwice,
    /// A compressed cluster with a COPIED flag: entry, offset of the data.
    CompressedCopied,
    /// A compressed cluster in an image with a data file: entry, its value, index.
    CompressedInDataFile,
    /// A compressed cluster with subclusters: entry, its value, index.
    CompressedSubclusters,
    /// Snapshots in an image with a data file: their number is the third.
    SnapshotsWithDataFile,
    /// The L1 table of a snapshot begins inside a cluster: index, offset of the table.
    SnapshotL1Unaligned,
    /// The L1 table of a snapshot is too large: index, its entries.
    SnapshotL1TooLarge,
    /// An entry of the snapshot table lacks what version 3 asks for: index.
    SnapshotIncomplete,
    /// More snapshots than there may be: the number of those that are too many is the third.
    SnapshotsTooMany,
    /// The snapshot table has more bytes than it may have: the third as above.
    SnapshotTableTooBig,
    /// An entry of the snapshot table with too much in it: index, its extra bytes, what they may be.
    SnapshotExtra,
    /// What helps against `Overflow`.
    HintAmend,
    /// What helps against too many snapshots: their number is the third.
    HintSnapshots,
    /// What helps against `SnapshotExtra`.
    HintExtra,
}

/// One finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding<'a> {
    pub what: What,
    /// How it is told.
    pub kind: MessageKind,
    /// Where it is.
    pub place: u64,
    /// What stands there.
    pub value: u64,
    /// How much there is of it, or should be.
    pub count: u64,
    /// A name, or the host's words.
    name: &'a str,
}

/// Takes findings.
pub type Findings<'a> = &'a mut dyn FnMut(&Finding<'_>);

impl<'a> Finding<'a> {
    /// An error. `numbers`: place, value, count.
    pub(super) fn new(what: What, numbers: [u64; 3]) -> Finding<'a> {
        let [place, value, count] = numbers;
        Finding { what, kind: MessageKind::Error, place, value, count, name: "" }
    }

    pub(super) fn with_name(self, name: &'a str) -> Finding<'a> {
        Finding { name, ..self }
    }

    pub(super) fn of_kind(self, kind: MessageKind) -> Finding<'a> {
        Finding { kind, ..self }
    }

    /// Something that is being mended, if `mends`.
    pub(super) fn mended(self, mends: bool) -> Finding<'a> {
        if mends {
            self.of_kind(MessageKind::Repair)
        } else {
            self
        }
    }

    /// Puts the finding into words.
    fn put(&self, line: &mut Line) {
        line.clear();
        let mut rest = self.what.words(self.kind);
        while let Some((words, tail)) = rest.split_once('{') {
            let (field, after) = tail.split_once('}').unwrap_or((tail, ""));
            line.push(words);
            self.put_field(field, line);
            rest = after;
        }
        line.push(rest);
    }

    fn put_field(&self, field: &str, line: &mut Line) {
        let (name, is_hex) = field.strip_suffix(":x").map_or((field, false), |name| (name, true));
        let number = match name {
            "place" => self.place,
            "value" => self.value,
            "count" => self.count,
            "name" => return line.push(self.name),
            _ => return line.push(self.word()),
        };
        if is_hex {
            line.push_hex(number);
        } else {
            line.push_decimal(number);
        }
    }

    fn word(&self) -> &'static str {
        match self.kind {
            MessageKind::Info => "",
            MessageKind::Leak => "Leaked",
            MessageKind::Error => "ERROR",
            MessageKind::Repair => "Repairing",
        }
    }
}

/// Takes findings for somebody who takes words.
pub fn in_words<'m>(message: Messages<'m>) -> impl FnMut(&Finding<'_>) + 'm {
    let mut line = Line::default();
    move |finding| {
        finding.put(&mut line);
        message(finding.kind, line.text());
    }
}

impl What {
    fn words(self, kind: MessageKind) -> &'static str {
        match (self, kind) {
            (What::SnapshotsTooMany, MessageKind::Repair) => "Discarding {count} overhanging snapshots",
            (What::SnapshotTableTooBig, MessageKind::Repair) => {
                "Discarding {count} overhanging snapshots (snapshot table is too big)"
            }
            (What::SnapshotExtra, MessageKind::Repair) => {
                "Discarding too much extra metadata in snapshot table entry {place} ({value} > {count})"
            }
            _ => WORDS[self as usize].1,
        }
    }
}

/// The words of all findings, in the order of `What`. "{}" is what becomes of it: "Repairing", "Leaked", "ERROR".
#[rustfmt::skip]
const WORDS: [(What, &str); 34] = [
    (What::Refcount, "{} cluster {place} refcount={value} reference={count}"),
    (What::RefcountUnreadable, "Can't get refcount for cluster {place}: Input/output error"),
    (What::RefcountBlockUnusable, "qcow2: Image is corrupt: Refblock offset 0x{value:x} unaligned (reftable index: 0x{place:x}); further non-fatal corruption events will be suppressed"),
    (What::RefcountTableReserved, "ERROR refcount table entry {place} has reserved bits set"),
    (What::RefcountBlockUnaligned, "ERROR refcount block {place} is not cluster aligned; refcount table entry corrupted"),
    (What::RefcountBlockShared, "ERROR refcount block {place} refcount={count}"),
    (What::RefcountBlockOutside, "{} refcount block {place} is outside image"),
    (What::NotGrown, "ERROR could not resize image: {name}"),
    (What::RebuildNeeded, "ERROR need to rebuild refcount structures"),
    (What::Rebuild, "Rebuilding refcount structure"),
    (What::RegionOutside, "ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset 0x{place:x} size 0x{value:x}"),
    (What::Overflow, "ERROR: overflow cluster offset=0x{place:x}"),
    (What::L1Reserved, "ERROR found L1 entry with reserved bits set: {value:x}"),
    (What::L2TableUnaligned, "ERROR l2_offset={value:x}: Table is not cluster aligned; L1 entry corrupted"),
    (What::L1Copied, "{} OFLAG_COPIED L2 cluster: l1_index={place} l1_entry={value:x} refcount={count}"),
    (What::L2Copied, "{} OFLAG_COPIED data cluster: l2_entry={value:x} refcount={count}"),
    (What::L2Reserved, "ERROR found l2 entry with reserved bits set: {value:x}"),
    (What::DataUnaligned, "ERROR offset={value:x}: Data cluster is not properly aligned; L2 entry corrupted."),
    (What::PreallocatedUnaligned, "{} offset={value:x}: Preallocated cluster is not properly aligned; L2 entry corrupted."),
    (What::SubclustersWithout, "ERROR: Unallocated cluster has non-zero subcluster allocation map"),
    (What::SubclustersTwice, "ERROR offset={value:x}: Allocated cluster has corrupted subcluster allocation bitmap"),
    (What::CompressedCopied, "ERROR: coffset=0x{value:x}: copied flag must never be set for compressed clusters"),
    (What::CompressedInDataFile, "ERROR compressed cluster {count} with data file, entry=0x{value:x}"),
    (What::CompressedSubclusters, "ERROR compressed cluster {count} with non-zero subcluster allocation bitmap, entry=0x{value:x}"),
    (What::SnapshotsWithDataFile, "ERROR {count} snapshots in image with data file"),
    (What::SnapshotL1Unaligned, "ERROR {name} l1_offset=0x{value:x}: L1 table is not cluster aligned; snapshot table entry corrupted"),
    (What::SnapshotL1TooLarge, "ERROR {name} l1_size=0x{value:x}: L1 table is too large; snapshot table entry corrupted"),
    (What::SnapshotIncomplete, "{} snapshot table entry {place} is incomplete"),
    (What::SnapshotsTooMany, "ERROR snapshot table too large"),
    (What::SnapshotTableTooBig, "ERROR failed to read the snapshot table: Snapshot table is too big"),
    (What::SnapshotExtra, "ERROR failed to read the snapshot table: Too much extra metadata in snapshot table entry {place}"),
    (What::HintAmend, "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if the image cannot be opened for writing"),
    (What::HintSnapshots, "You can force-remove all {count} overhanging snapshots with qemu-img check -r all"),
    (What::HintExtra, "You can force-remove this extra metadata with qemu-img check -r all"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_in_the_order_of_findings_and_name_only_what_there_is() {
        for (index, (what, words)) in WORDS.iter().enumerate() {
            assert_eq!(*what as usize, index);
            let fields = words.split('{').skip(1).map(|rest| rest.split('}').next().unwrap());
            for field in fields {
                assert!(
                    ["", "name", "place", "value", "count", "place:x", "value:x"].contains(&field),
                    "{words}"
                );
            }
        }
    }

    #[test]
    fn a_finding_is_put_into_words_as_it_is_told() {
        let mut told = Vec::new();
        let mut message = |kind: MessageKind, text: &str| told.push((kind, text.to_owned()));
        let mut tell = in_words(&mut message);
        let leak = Finding::new(What::Refcount, [7, 2, 1]);
        tell(&leak.of_kind(MessageKind::Leak));
        tell(&leak.mended(true));
        tell(&Finding::new(What::SnapshotL1TooLarge, [0, 255, 0]).with_name("snapshot 1 (a{b})"));
        drop(tell);
        let expected = [
            (MessageKind::Leak, "Leaked cluster 7 refcount=2 reference=1"),
            (MessageKind::Repair, "Repairing cluster 7 refcount=2 reference=1"),
            (
                MessageKind::Error,
                "ERROR snapshot 1 (a{b}) l1_size=0xff: L1 table is too large; snapshot table entry corrupted",
            ),
        ];
        assert_eq!(told, expected.map(|(kind, text)| (kind, text.to_owned())));
    }
}
