//! What a check finds and a repair mends, as numbers. Words are made of them for those who take words, and they are the
//! stock tool's.

use super::line::Line;
use super::{MessageKind, Messages};
use std::ffi::CStr;
use std::ops::Range;

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
    /// An entry of a bitmap's table whose cluster has another use, too: index, entry, references. It adds nothing to
    /// what a wrong refcount has.
    BitmapShared,
    /// A bitmap's table in a cluster that has another use, too: offset of the cluster, of the table, references. Where the
    /// refcount is wrong it adds nothing to that.
    BitmapTableShared,
    /// As `BitmapTableShared`, of the bitmap directory.
    BitmapDirectoryShared,
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

    /// Puts the finding into words; where they name the place in decimal.
    fn put(&self, line: &mut Line) -> Range<usize> {
        let mut place = 0..0;
        line.clear();
        for part in self.what.words(self.kind) {
            match part {
                Text(words) => line.push(words),
                Fate => line.push(self.fate()),
                Name => line.push(self.name),
                Place => place = line.push_decimal(self.place),
                PlaceHex => line.push_hex(self.place),
                PlaceStockHex => {
                    if self.place > 0 {
                        line.push("0x");
                    }
                    line.push_hex(self.place);
                }
                Value => _ = line.push_decimal(self.value),
                ValueHex => line.push_hex(self.value),
                Count => _ = line.push_decimal(self.count),
            }
        }
        line.end();
        place
    }

    fn fate(&self) -> &'static str {
        match self.kind {
            MessageKind::Info => "",
            MessageKind::Leak => "Leaked",
            MessageKind::Error => "ERROR",
            MessageKind::Repair => "Repairing",
        }
    }
}

/// Puts findings into words, one after the other. Where there are many, most differ from the last one in their place only.
#[derive(Default)]
pub struct Words {
    line: Line,
    /// What the line says: a finding without a name, place aside, and where it names its place in decimal.
    last: Option<(What, MessageKind, u64, u64)>,
    place: Range<usize>,
}

impl Words {
    /// What the stock tool says of it.
    pub fn of(&mut self, finding: &Finding<'_>) -> &CStr {
        let says = (finding.what, finding.kind, finding.value, finding.count);
        let is_like_last = self.last == Some(says) && finding.name.is_empty();
        if !is_like_last || !self.line.put_decimal(self.place.clone(), finding.place) {
            self.place = finding.put(&mut self.line);
            self.last = (finding.name.is_empty() && !self.place.is_empty()).then_some(says);
        }
        self.line.text()
    }
}

/// Takes findings for somebody who takes words.
pub fn in_words<'m>(message: Messages<'m>) -> impl FnMut(&Finding<'_>) + 'm {
    let mut words = Words::default();
    move |finding| message(finding.kind, words.of(finding).to_str().unwrap_or_default())
}

/// A piece of what is said of a finding.
enum Part {
    Text(&'static str),
    /// What becomes of it.
    Fate,
    Name,
    Place,
    PlaceHex,
    /// As C's `%#x`: 0 is plain.
    PlaceStockHex,
    Value,
    ValueHex,
    Count,
}
use Part::*;

impl What {
    #[rustfmt::skip]
    fn words(self, kind: MessageKind) -> &'static [Part] {
        match (self, kind) {
            (What::SnapshotsTooMany, MessageKind::Repair) => {
                &[Text("Discarding "), Count, Text(" overhanging snapshots")]
            }
            (What::SnapshotTableTooBig, MessageKind::Repair) => {
                &[Text("Discarding "), Count, Text(" overhanging snapshots (snapshot table is too big)")]
            }
            (What::SnapshotExtra, MessageKind::Repair) => {
                &[Text("Discarding too much extra metadata in snapshot table entry "), Place, Text(" ("), Value, Text(" > "), Count, Text(")")]
            }
            _ => WORDS[self as usize].1,
        }
    }
}

/// The words of all findings, in the order of `What`.
#[rustfmt::skip]
const WORDS: [(What, &[Part]); 37] = [
    (What::Refcount, &[Fate, Text(" cluster "), Place, Text(" refcount="), Value, Text(" reference="), Count]),
    (What::RefcountUnreadable, &[Text("Can't get refcount for cluster "), Place, Text(": Input/output error")]),
    (What::RefcountBlockUnusable, &[Text("qcow2: Image is corrupt: Refblock offset 0x"), ValueHex, Text(" unaligned (reftable index: "), PlaceStockHex, Text("); further non-fatal corruption events will be suppressed")]),
    (What::RefcountTableReserved, &[Text("ERROR refcount table entry "), Place, Text(" has reserved bits set")]),
    (What::RefcountBlockUnaligned, &[Text("ERROR refcount block "), Place, Text(" is not cluster aligned; refcount table entry corrupted")]),
    (What::RefcountBlockShared, &[Text("ERROR refcount block "), Place, Text(" refcount="), Count]),
    (What::RefcountBlockOutside, &[Fate, Text(" refcount block "), Place, Text(" is outside image")]),
    (What::NotGrown, &[Text("ERROR could not resize image: "), Name]),
    (What::RebuildNeeded, &[Text("ERROR need to rebuild refcount structures")]),
    (What::Rebuild, &[Text("Rebuilding refcount structure")]),
    (What::RegionOutside, &[Text("ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset 0x"), PlaceHex, Text(" size 0x"), ValueHex]),
    (What::Overflow, &[Text("ERROR: overflow cluster offset=0x"), PlaceHex]),
    (What::L1Reserved, &[Text("ERROR found L1 entry with reserved bits set: "), ValueHex]),
    (What::L2TableUnaligned, &[Text("ERROR l2_offset="), ValueHex, Text(": Table is not cluster aligned; L1 entry corrupted")]),
    (What::L1Copied, &[Fate, Text(" OFLAG_COPIED L2 cluster: l1_index="), Place, Text(" l1_entry="), ValueHex, Text(" refcount="), Count]),
    (What::L2Copied, &[Fate, Text(" OFLAG_COPIED data cluster: l2_entry="), ValueHex, Text(" refcount="), Count]),
    (What::L2Reserved, &[Text("ERROR found l2 entry with reserved bits set: "), ValueHex]),
    (What::DataUnaligned, &[Text("ERROR offset="), ValueHex, Text(": Data cluster is not properly aligned; L2 entry corrupted.")]),
    (What::PreallocatedUnaligned, &[Fate, Text(" offset="), ValueHex, Text(": Preallocated cluster is not properly aligned; L2 entry corrupted.")]),
    (What::SubclustersWithout, &[Text("ERROR: Unallocated cluster has non-zero subcluster allocation map")]),
    (What::SubclustersTwice, &[Text("ERROR offset="), ValueHex, Text(": Allocated cluster has corrupted subcluster allocation bitmap")]),
    (What::CompressedCopied, &[Text("ERROR: coffset=0x"), ValueHex, Text(": copied flag must never be set for compressed clusters")]),
    (What::CompressedInDataFile, &[Text("ERROR compressed cluster "), Count, Text(" with data file, entry=0x"), ValueHex]),
    (What::CompressedSubclusters, &[Text("ERROR compressed cluster "), Count, Text(" with non-zero subcluster allocation bitmap, entry=0x"), ValueHex]),
    (What::SnapshotsWithDataFile, &[Text("ERROR "), Count, Text(" snapshots in image with data file")]),
    (What::SnapshotL1Unaligned, &[Text("ERROR "), Name, Text(" l1_offset=0x"), ValueHex, Text(": L1 table is not cluster aligned; snapshot table entry corrupted")]),
    (What::SnapshotL1TooLarge, &[Text("ERROR "), Name, Text(" l1_size=0x"), ValueHex, Text(": L1 table is too large; snapshot table entry corrupted")]),
    (What::SnapshotIncomplete, &[Fate, Text(" snapshot table entry "), Place, Text(" is incomplete")]),
    (What::SnapshotsTooMany, &[Text("ERROR snapshot table too large")]),
    (What::SnapshotTableTooBig, &[Text("ERROR failed to read the snapshot table: Snapshot table is too big")]),
    (What::SnapshotExtra, &[Text("ERROR failed to read the snapshot table: Too much extra metadata in snapshot table entry "), Place]),
    (What::HintAmend, &[Text("Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if the image cannot be opened for writing")]),
    (What::HintSnapshots, &[Text("You can force-remove all "), Count, Text(" overhanging snapshots with qemu-img check -r all")]),
    (What::HintExtra, &[Text("You can force-remove this extra metadata with qemu-img check -r all")]),
    (What::BitmapShared, &[Text("ERROR bitmap table of '"), Name, Text("' entry "), Place, Text(": value 0x"), ValueHex, Text(": a cluster that nothing else has; this one has "), Count, Text(" uses")]),
    (What::BitmapTableShared, &[Text("ERROR bitmap table of '"), Name, Text("': value 0x"), ValueHex, Text(": clusters that nothing else has; that at 0x"), PlaceHex, Text(" has "), Count, Text(" uses")]),
    (What::BitmapDirectoryShared, &[Text("ERROR bitmap directory: value 0x"), ValueHex, Text(": clusters that nothing else has; that at 0x"), PlaceHex, Text(" has "), Count, Text(" uses")]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_in_the_order_of_findings() {
        for (index, (what, words)) in WORDS.iter().enumerate() {
            assert_eq!(*what as usize, index);
            assert!(!words.is_empty());
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
        for cluster in [8, 10, 9] {
            tell(&Finding::new(What::Refcount, [cluster, 2, 1]).mended(true));
        }
        tell(&Finding::new(What::Refcount, [8, 3, 1]).mended(true));
        tell(&Finding::new(What::SnapshotL1TooLarge, [0, 255, 0]).with_name("snapshot 1 (a{b})"));
        drop(tell);
        let expected = [
            (MessageKind::Leak, "Leaked cluster 7 refcount=2 reference=1"),
            (MessageKind::Repair, "Repairing cluster 7 refcount=2 reference=1"),
            (MessageKind::Repair, "Repairing cluster 8 refcount=2 reference=1"),
            (MessageKind::Repair, "Repairing cluster 10 refcount=2 reference=1"),
            (MessageKind::Repair, "Repairing cluster 9 refcount=2 reference=1"),
            (MessageKind::Repair, "Repairing cluster 8 refcount=3 reference=1"),
            (
                MessageKind::Error,
                "ERROR snapshot 1 (a{b}) l1_size=0xff: L1 table is too large; snapshot table entry corrupted",
            ),
        ];
        assert_eq!(told, expected.map(|(kind, text)| (kind, text.to_owned())));
    }
}
