//! A small reader of the format, independent of the engine: where everything of an image is.
//!
//! A repaired image can be consistent and still let the guest's disk show its own metadata, for a reference
//! to a table's cluster counts like any other. Such a disk is no array of bytes, and nobody can say what is right.

use super::medium::Contents;
use std::collections::BTreeSet;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const AUTOCLEAR_BITMAPS: u64 = 1;
const INCOMPAT_EXTENDED_L2: u64 = 1 << 4;
/// Largest tables that are looked at, entries.
const MAX_ENTRIES: u64 = 1 << 16;

/// The header fields that a walk needs.
pub struct Head {
    pub version: u32,
    pub cluster_bits: u32,
    pub virtual_size: u64,
    pub l1_size: u64,
    pub l1_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u64,
    pub snapshot_count: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
}

pub fn be64(c: &Contents, at: u64) -> u64 {
    let mut bytes = [0; 8];
    c.read(at, &mut bytes);
    u64::from_be_bytes(bytes)
}

pub fn be32(c: &Contents, at: u64) -> u32 {
    let mut bytes = [0; 4];
    c.read(at, &mut bytes);
    u32::from_be_bytes(bytes)
}

fn be16(c: &Contents, at: u64) -> u64 {
    u64::from(be32(c, at) >> 16)
}

impl Head {
    pub fn read(c: &Contents) -> Head {
        let version = be32(c, 4);
        let from_version_3 = |at| if version >= 3 { be64(c, at) } else { 0 };
        Head {
            version,
            cluster_bits: be32(c, 20),
            virtual_size: be64(c, 24),
            l1_size: u64::from(be32(c, 36)),
            l1_offset: be64(c, 40),
            refcount_table_offset: be64(c, 48),
            refcount_table_clusters: u64::from(be32(c, 56)),
            snapshot_count: be32(c, 60),
            snapshots_offset: be64(c, 64),
            incompatible: from_version_3(72),
            autoclear: from_version_3(88),
            refcount_order: if version >= 3 { be32(c, 96) } else { 4 },
        }
    }

    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub fn entry_bytes(&self) -> u64 {
        if self.incompatible & INCOMPAT_EXTENDED_L2 != 0 {
            16
        } else {
            8
        }
    }

    /// Guest data is in another file.
    pub fn has_data_file(&self) -> bool {
        self.version >= 3 && self.incompatible & 4 != 0
    }

    /// That file shows what the disk shows.
    pub fn has_raw_data_file(&self) -> bool {
        self.has_data_file() && self.autoclear & 2 != 0
    }

    pub fn has_bitmaps(&self) -> bool {
        self.autoclear & AUTOCLEAR_BITMAPS != 0
    }

    /// L1 tables: offset and entries, the active one first.
    pub fn l1_tables(&self, c: &Contents) -> Vec<(u64, u64)> {
        let mut tables = vec![(self.l1_offset, self.l1_size)];
        self.each_snapshot(c, |at| tables.push((be64(c, at), u64::from(be32(c, at + 8)))));
        tables
    }

    /// Calls with the offset of each entry of the snapshot table; answers the table's end.
    pub fn each_snapshot(&self, c: &Contents, mut call: impl FnMut(u64)) -> u64 {
        let mut at = self.snapshots_offset;
        for _ in 0..self.snapshot_count.min(1000) {
            call(at);
            let bytes = 40 + be16(c, at + 12) + be16(c, at + 14) + u64::from(be32(c, at + 36));
            at = at.saturating_add(bytes.div_ceil(8) * 8);
        }
        at
    }
}

/// Whether some cluster past the end of the file is counted. No check looks there; once the file has grown over
/// it, it is a leak.
pub fn counts_past_end(c: &Contents) -> bool {
    let head = Head::read(c);
    let cluster = head.cluster_bytes();
    let per_block = (cluster * 8) >> head.refcount_order;
    let end = c.length.div_ceil(cluster);
    let counted = |(index, block): (u64, u64)| {
        let bits = end.saturating_sub(index * per_block).min(per_block) << head.refcount_order;
        let bytes = c.bytes(block, cluster as usize);
        let (first, rest) = bytes[(bits / 8) as usize..].split_first().unwrap_or((&0, &[]));
        let partly = u32::from(*first) >> (bits % 8);
        block != 0 && (partly != 0 || rest.iter().any(|b| *b != 0))
    };
    let entries = head.refcount_table_clusters * cluster / 8;
    (0..entries).map(|i| (i, be64(c, head.refcount_table_offset + i * 8))).any(counted)
}

/// Whether two entries of the active tables name one host cluster.
pub fn shares_clusters(c: &Contents) -> bool {
    let head = Head::read(c);
    let mut ranges = Ranges::default();
    let mut tables = Vec::new();
    for index in 0..head.l1_size {
        let table = be64(c, head.l1_offset + index * 8) & OFFSET_MASK;
        if table != 0 {
            tables.push(table);
            ranges.add_data(c, &head, table);
        }
    }
    let mut named: Vec<u64> = ranges.data.iter().map(|d| d.0 / head.cluster_bytes()).collect();
    named.extend(tables.iter().map(|t| t / head.cluster_bytes()));
    let count = named.len();
    named.iter().collect::<BTreeSet<_>>().len() < count
}

#[derive(Default)]
struct Ranges {
    metadata: Vec<(u64, u64)>,
    l2_tables: BTreeSet<u64>,
    data: Vec<(u64, u64)>,
}

/// Whether no metadata of a consistent image overlaps other metadata or the guest's data. Images with large
/// tables are not looked at, and are not plain.
pub fn is_plain(c: &Contents) -> bool {
    let head = Head::read(c);
    if !(9..=21).contains(&head.cluster_bits) || head.has_bitmaps() {
        return false;
    }
    let cluster = head.cluster_bytes();
    let table_entries = head.refcount_table_clusters * cluster / 8;
    let tables = head.l1_tables(c);
    if tables.iter().map(|t| t.1).sum::<u64>() > MAX_ENTRIES || table_entries > 4 * MAX_ENTRIES {
        return false;
    }
    let mut ranges = Ranges::default();
    ranges.metadata.push((0, cluster));
    ranges.metadata.push((head.refcount_table_offset, head.refcount_table_clusters * cluster));
    for index in 0..table_entries {
        match be64(c, head.refcount_table_offset + index * 8) {
            0 => {}
            block => ranges.metadata.push((block, cluster)),
        }
    }
    if head.snapshot_count > 0 {
        let end = head.each_snapshot(c, |_| {});
        ranges.metadata.push((head.snapshots_offset, end.saturating_sub(head.snapshots_offset)));
    }
    for (offset, size) in tables {
        ranges.metadata.push((offset, size * 8));
        for index in 0..size {
            match be64(c, offset + index * 8) & OFFSET_MASK {
                0 => {}
                table => drop(ranges.l2_tables.insert(table)),
            }
        }
    }
    if head.has_data_file() && !is_in_place(c, &head) {
        return false;
    }
    for table in ranges.l2_tables.clone() {
        ranges.metadata.push((table, cluster));
        ranges.add_data(c, &head, table);
    }
    ranges.are_apart(cluster)
}

/// Whether every entry of an image with a data file names its guest offset there. No check tells, as with the stock tool;
/// whoever uses another entry finds the image corrupt.
fn is_in_place(c: &Contents, head: &Head) -> bool {
    let (cluster, step) = (head.cluster_bytes(), head.entry_bytes());
    (0..head.l1_size).all(|index| {
        let table = be64(c, head.l1_offset + index * 8) & OFFSET_MASK;
        let entries = cluster / step;
        let in_place = |i: u64| {
            let entry = be64(c, table + i * step);
            let host = entry & OFFSET_MASK;
            entry & COMPRESSED == 0 && (host == 0 || host == (index * entries + i).wrapping_mul(cluster))
        };
        // Offset 0 that is called assigned is the first cluster's.
        let first = |i: u64| be64(c, table + i * step) >> 63 == 0 || index + i == 0;
        table == 0
            || (0..entries).all(|i| in_place(i) && (be64(c, table + i * step) & OFFSET_MASK != 0 || first(i)))
    })
}

impl Ranges {
    fn add_data(&mut self, c: &Contents, head: &Head, table: u64) {
        if head.has_data_file() {
            return;
        }
        for at in (0..head.cluster_bytes()).step_by(head.entry_bytes() as usize) {
            let entry = be64(c, table + at);
            if entry & COMPRESSED != 0 {
                let shift = 62 - (head.cluster_bits - 8);
                let host = entry & ((1 << shift) - 1);
                let sectors = ((entry & (COMPRESSED - 1)) >> shift) + 1;
                self.data.push((host, sectors * 512 - host % 512));
            } else if entry & OFFSET_MASK != 0 {
                self.data.push((entry & OFFSET_MASK, head.cluster_bytes()));
            }
        }
    }

    fn are_apart(&mut self, cluster: u64) -> bool {
        self.metadata.retain(|r| r.1 > 0);
        self.metadata.sort_unstable();
        let round = |end: u64| end.div_ceil(cluster).saturating_mul(cluster);
        let ends = |r: &(u64, u64)| round(r.0.saturating_add(r.1));
        let apart = self.metadata.windows(2).all(|w| ends(&w[0]) <= w[1].0);
        let hit = |data: &(u64, u64)| {
            // The last metadata that starts before the data ends: the ranges are apart, so no other matters.
            let index = self.metadata.partition_point(|m| m.0 < data.0.saturating_add(data.1));
            index > 0 && ends(&self.metadata[index - 1]) > data.0
        };
        apart && !self.data.iter().any(hit)
    }
}
