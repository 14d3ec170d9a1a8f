//! Breaks a few fields of a valid image.

use super::chains::Chains;
use super::medium::Contents;
use testkit::oracle::{Bytes, Head};

pub const DAMAGE_BYTES: usize = 8;

/// Header fields: offset and bytes.
const FIELDS: [(u64, u64); 17] = [
    (4, 4),
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 8),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 8),
    (96, 4),
    (100, 4),
];

/// One broken field.
#[derive(Clone, Copy, Debug)]
pub struct Damage {
    kind: u8,
    index: u16,
    mode: u8,
    value: u32,
}

impl Damage {
    pub fn decode(bytes: [u8; DAMAGE_BYTES]) -> Damage {
        let [kind, i0, i1, mode, v0, v1, v2, v3] = bytes;
        let value = u32::from_le_bytes([v0, v1, v2, v3]);
        Damage { kind, index: u16::from_le_bytes([i0, i1]), mode, value }
    }

    /// Breaks something in `c`, an image that once had the tables of `chains`.
    pub fn apply(&self, c: &mut Contents, chains: &Chains) {
        let head = Head::fields(c);
        // An earlier damage may have made nonsense of it.
        if !(9..=21).contains(&head.cluster_bits) {
            return;
        }
        let cluster = head.cluster_bytes();
        let index = u64::from(self.index);
        match self.kind % 10 {
            0 => self.edit(c, chains, head.l1_offset, head.l1_size.min(1 << 16), 8),
            1 | 2 => {
                let per_table = cluster / head.entry_bytes;
                let tables = chains.l2_tables.len() as u64;
                if tables > 0 {
                    let table = chains.l2_tables[(index / per_table % tables) as usize];
                    self.edit(c, chains, table, per_table, head.entry_bytes);
                }
            }
            3 => {
                let entries = head.table_clusters.min(64) * cluster / 8;
                self.edit(c, chains, head.table_offset, entries, 8);
            }
            4 | 5 => self.edit_counts(c, chains, cluster),
            6 => {
                let (at, bytes) = FIELDS[usize::from(self.index) % FIELDS.len()];
                let shift = 64 - 8 * bytes;
                let new = self.change(c.be64(at) >> shift, chains) & (u64::MAX >> shift);
                c.write(at, &new.to_be_bytes()[8 - bytes as usize..]);
            }
            7 => {
                // Extensions, and the snapshot table.
                let at = if self.mode & 0x80 != 0 { head.snapshots_offset } else { 104 };
                self.edit_byte(c, at.saturating_add(index % 400));
            }
            8 => {
                let length = c.length - (index * 512).min(c.length);
                c.set_length(length);
            }
            _ => {
                let place = chains.places[usize::from(self.index) % chains.places.len()];
                self.edit_byte(c, place.saturating_add(u64::from(self.value >> 8) % cluster));
            }
        }
    }

    fn edit_byte(&self, c: &mut Contents, at: u64) {
        if at < c.length {
            let byte = c.bytes(at, 1)[0] ^ (self.value as u8).max(1);
            c.write(at, &[byte]);
        }
    }

    /// Changes one 64-bit entry of a table of `count` entries, `stride` bytes apart.
    fn edit(&self, c: &mut Contents, chains: &Chains, table: u64, count: u64, stride: u64) {
        if count == 0 || table >= c.length {
            return;
        }
        let half = if stride == 16 && self.mode & 0x40 != 0 { 8 } else { 0 };
        let at = table + u64::from(self.index) % count * stride + half;
        let other = c.be64(table + u64::from(self.value) % count * stride + half);
        let new = if self.mode % 8 == 7 { other } else { self.change(c.be64(at), chains) };
        c.write(at, &new.to_be_bytes());
    }

    /// Changes bytes of a refcount block, where counts of used clusters are.
    fn edit_counts(&self, c: &mut Contents, chains: &Chains, cluster: u64) {
        if chains.blocks.is_empty() {
            return;
        }
        let block = chains.blocks[usize::from(self.mode >> 4) % chains.blocks.len()];
        let at = block + u64::from(self.index) % cluster;
        if at < c.length {
            c.write(at, &[self.value as u8]);
        }
    }

    fn change(&self, old: u64, chains: &Chains) -> u64 {
        let value = u64::from(self.value);
        let place = chains.places[self.value as usize % chains.places.len()];
        match self.mode % 8 {
            0 => place | (old & (3 << 62)),
            1 => old ^ (1 << (value % 64)),
            2 => old.wrapping_add(value.wrapping_sub(128) % 256 * 512),
            3 => value << (self.value >> 27),
            4 => place | (value >> 24 & 7) << 61 | (value >> 16 & 1),
            5 => 0,
            6 => old & (u64::MAX >> (value % 64)),
            _ => value,
        }
    }
}
