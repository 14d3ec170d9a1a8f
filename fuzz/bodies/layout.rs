//! Where everything of an image is, by the parser of the tests' kit.
//!
//! A repaired image can be consistent and still let the guest's disk show its own metadata, for a reference
//! to a table's cluster counts like any other. Such a disk is no array of bytes, and nobody can say what is right.

use super::medium::Contents;
use std::collections::BTreeSet;
use testkit::oracle::{compressed, Bytes, Head, COMPRESSED, OFFSET};

/// Largest tables that are looked at, entries.
const MAX_ENTRIES: u64 = 1 << 16;

impl Bytes for Contents {
    fn read_at(&self, at: u64, out: &mut [u8]) {
        self.read(at, out);
    }
}

/// L1 tables: offset and entries, the active one first.
pub fn l1_tables(head: &Head, c: &Contents) -> Vec<(u64, u64)> {
    let snapshots = head.snapshots(c).0.into_iter().map(|at| (c.be64(at), c.be32(at + 8)));
    [(head.l1_offset, head.l1_size)].into_iter().chain(snapshots).collect()
}

/// Whether some cluster past the end of the file is counted. No check looks there; once the file has grown over
/// it, it is a leak.
pub fn counts_past_end(c: &Contents) -> bool {
    let head = Head::fields(c);
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
    let entries = head.table_clusters * cluster / 8;
    (0..entries).map(|i| (i, c.be64(head.table_offset + i * 8))).any(counted)
}

/// Whether two entries of the active tables name one host cluster.
pub fn shares_clusters(c: &Contents) -> bool {
    let head = Head::fields(c);
    let mut ranges = Ranges::default();
    let mut tables = Vec::new();
    for index in 0..head.l1_size {
        let table = c.be64(head.l1_offset + index * 8) & OFFSET;
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
    let head = Head::fields(c);
    if !(9..=21).contains(&head.cluster_bits) || head.has_bitmaps() {
        return false;
    }
    let cluster = head.cluster_bytes();
    let table_entries = head.table_clusters * cluster / 8;
    let tables = l1_tables(&head, c);
    if tables.iter().map(|t| t.1).sum::<u64>() > MAX_ENTRIES || table_entries > 4 * MAX_ENTRIES {
        return false;
    }
    let mut ranges = Ranges::default();
    ranges.metadata.push((0, cluster));
    ranges.metadata.push((head.table_offset, head.table_clusters * cluster));
    for index in 0..table_entries {
        match c.be64(head.table_offset + index * 8) {
            0 => {}
            block => ranges.metadata.push((block, cluster)),
        }
    }
    if head.snapshot_count > 0 {
        let end = head.snapshots(c).1;
        ranges.metadata.push((head.snapshots_offset, end.saturating_sub(head.snapshots_offset)));
    }
    for (offset, size) in tables {
        ranges.metadata.push((offset, size * 8));
        for index in 0..size {
            match c.be64(offset + index * 8) & OFFSET {
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
    let (cluster, step) = (head.cluster_bytes(), head.entry_bytes);
    (0..head.l1_size).all(|index| {
        let table = c.be64(head.l1_offset + index * 8) & OFFSET;
        let entries = cluster / step;
        let in_place = |i: u64| {
            let entry = c.be64(table + i * step);
            let host = entry & OFFSET;
            entry & COMPRESSED == 0 && (host == 0 || host == (index * entries + i).wrapping_mul(cluster))
        };
        // Offset 0 that is called assigned is the first cluster's.
        let first = |i: u64| c.be64(table + i * step) >> 63 == 0 || index + i == 0;
        table == 0
            || (0..entries).all(|i| in_place(i) && (c.be64(table + i * step) & OFFSET != 0 || first(i)))
    })
}

impl Ranges {
    fn add_data(&mut self, c: &Contents, head: &Head, table: u64) {
        if head.has_data_file() {
            return;
        }
        for at in (0..head.cluster_bytes()).step_by(head.entry_bytes as usize) {
            let entry = c.be64(table + at);
            if entry & COMPRESSED != 0 {
                self.data.push(compressed(head, entry));
            } else if entry & OFFSET != 0 {
                self.data.push((entry & OFFSET, head.cluster_bytes()));
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
