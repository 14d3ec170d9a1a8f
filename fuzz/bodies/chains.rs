//! What each guest cluster of an intact image depends on, and so which of them a damage has not touched.

use super::layout::l1_tables;
use super::medium::Contents;
use std::ops::Range;
use testkit::oracle::{compressed, Bytes, Head, COMPRESSED, OFFSET};

/// Dirty and corrupt say nothing about where things are.
const STATE_BITS: u64 = 3;

/// A guest cluster with the parts of the file that its contents come from: L1 entry, L2 entry, host bytes.
pub struct Chain {
    pub guest: Range<u64>,
    parts: Vec<(u64, u64)>,
}

/// All guest clusters of an image and all of its tables.
pub struct Chains {
    pub list: Vec<Chain>,
    /// Offsets worth to be named by a broken pointer.
    pub places: Vec<u64>,
    /// L2 tables, active ones only.
    pub l2_tables: Vec<u64>,
    /// Refcount blocks.
    pub blocks: Vec<u64>,
}

impl Chains {
    /// Follows the tables of an intact image.
    pub fn follow(c: &Contents) -> Chains {
        let head = Head::fields(c);
        let cluster = head.cluster_bytes();
        let per_table = cluster / head.entry_bytes;
        let mut chains =
            Chains { list: Vec::new(), places: vec![0], l2_tables: Vec::new(), blocks: Vec::new() };
        for guest in (0..head.size).step_by(cluster as usize) {
            let index = guest / cluster;
            let l1_at = head.l1_offset + index / per_table * 8;
            let mut parts = vec![(l1_at, 8)];
            let table = c.be64(l1_at) & OFFSET;
            if table != 0 {
                let at = table + index % per_table * head.entry_bytes;
                parts.push((at, head.entry_bytes));
                parts.extend(host_range(&head, c.be64(at)));
                if chains.l2_tables.last() != Some(&table) {
                    chains.l2_tables.push(table);
                }
            }
            chains.places.extend(parts.get(2).map(|p| p.0));
            let guest = guest..(guest + cluster).min(head.size);
            chains.list.push(Chain { guest, parts });
        }
        for index in 0..head.table_clusters * cluster / 8 {
            match c.be64(head.table_offset + index * 8) {
                0 => {}
                block => chains.blocks.push(block),
            }
        }
        chains.places.extend([head.l1_offset, head.table_offset, head.snapshots_offset]);
        chains.places.extend(l1_tables(&head, c).iter().map(|t| t.0));
        chains.places.extend(&chains.l2_tables);
        chains.places.extend(&chains.blocks);
        let end = c.length.div_ceil(cluster) * cluster;
        chains.places.extend([end, end + cluster, end + 1000 * cluster, 1 << 40, 1 << 55]);
        chains
    }

    /// Guest ranges whose whole chain is in `after` as it was in `before`.
    pub fn untouched(&self, before: &Contents, after: &Contents) -> Vec<Range<u64>> {
        let Some(size) = same_reading(before, after) else { return Vec::new() };
        let same = |&(at, bytes): &(u64, u64)| {
            at + bytes <= after.length && before.bytes(at, bytes as usize) == after.bytes(at, bytes as usize)
        };
        let whole = self.list.iter().filter(|chain| chain.parts.iter().all(same));
        whole.map(|chain| chain.guest.start..chain.guest.end.min(size)).filter(|r| r.start < r.end).collect()
    }
}

/// Guest data in a data file is out of reach of the damage.
fn host_range(head: &Head, entry: u64) -> Option<(u64, u64)> {
    if head.has_data_file() {
        return None;
    }
    if entry & COMPRESSED != 0 {
        return Some(compressed(head, entry));
    }
    Some((entry & OFFSET, head.cluster_bytes())).filter(|r| r.0 != 0)
}

/// The guest bytes that a reader of both headers sees through the same tables; `None`: not the same tables.
fn same_reading(before: &Contents, after: &Contents) -> Option<u64> {
    let (a, b) = (Head::fields(before), Head::fields(after));
    let fields = |h: &Head| (h.version, h.cluster_bits, h.l1_offset, h.incompatible & !STATE_BITS);
    // Magic, backing file, encryption; header length and compression type.
    let same = |at, bytes| before.bytes(at, bytes) == after.bytes(at, bytes);
    let rest = same(0, 20) && same(32, 4) && (a.version < 3 || same(100, 8));
    (fields(&a) == fields(&b) && rest).then(|| a.size.min(b.size))
}
