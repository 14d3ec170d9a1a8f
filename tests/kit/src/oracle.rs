//! A second, independent parser of an image: fields read straight from bytes, nothing of the library used. It never
//! fails, and whoever has bytes in another shape says how to read them ([`Bytes`]).

use crate::bitmaps::{bitmaps, directory};
use std::collections::{HashMap, HashSet};

/// Bits 9 to 55 of an entry.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// The bytes of an image, wherever they are. What lies past the end reads as zeroes.
pub trait Bytes {
    fn read_at(&self, at: u64, out: &mut [u8]);

    fn be32(&self, at: u64) -> u64 {
        let mut word = [0; 4];
        self.read_at(at, &mut word);
        u64::from(u32::from_be_bytes(word))
    }

    fn be64(&self, at: u64) -> u64 {
        let mut word = [0; 8];
        self.read_at(at, &mut word);
        u64::from_be_bytes(word)
    }
}

impl Bytes for [u8] {
    fn read_at(&self, at: u64, out: &mut [u8]) {
        let there = usize::try_from(at).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let count = there.len().min(out.len());
        out[..count].copy_from_slice(&there[..count]);
        out[count..].fill(0);
    }
}

impl Bytes for Vec<u8> {
    fn read_at(&self, at: u64, out: &mut [u8]) {
        self.as_slice().read_at(at, out);
    }
}

pub fn be32(bytes: &[u8], at: usize) -> u64 {
    bytes.be32(at as u64)
}

pub fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.be64(at as u64)
}

/// Incompatible feature bit 0 of a version 3 image.
pub fn is_dirty(bytes: &[u8]) -> bool {
    be32(bytes, 4) >= 3 && be64(bytes, 72) & 1 != 0
}

pub fn is_version_2(bytes: &[u8]) -> bool {
    be32(bytes, 4) == 2
}

pub fn has_snapshots(bytes: &[u8]) -> bool {
    be32(bytes, 60) != 0
}

/// The header's fields that place tables, and those that say how these are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub version: u64,
    pub cluster_bits: u32,
    pub size: u64,
    /// How guest data is encrypted; 0: it is not.
    pub crypt_method: u64,
    pub l1_size: u64,
    pub l1_offset: u64,
    pub table_offset: u64,
    pub table_clusters: u64,
    pub snapshot_count: u64,
    pub snapshots_offset: u64,
    /// Feature bits; none in version 2.
    pub incompatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    /// Bytes of an L2 entry: 16 with subclusters.
    pub entry_bytes: u64,
}

impl Head {
    /// `None`: not an image.
    pub fn parse(bytes: &(impl Bytes + ?Sized)) -> Option<Head> {
        (bytes.be32(0) == 0x5146_49fb).then(|| Head::fields(bytes))
    }

    /// The fields as they are, of an image or not.
    pub fn fields(bytes: &(impl Bytes + ?Sized)) -> Head {
        let version = bytes.be32(4);
        let from_version_3 = |at| if version >= 3 { bytes.be64(at) } else { 0 };
        let incompatible = from_version_3(72);
        Head {
            version,
            cluster_bits: bytes.be32(20) as u32,
            size: bytes.be64(24),
            crypt_method: bytes.be32(32),
            l1_size: bytes.be32(36),
            l1_offset: bytes.be64(40),
            table_offset: bytes.be64(48),
            table_clusters: bytes.be32(56),
            snapshot_count: bytes.be32(60),
            snapshots_offset: bytes.be64(64),
            incompatible,
            autoclear: from_version_3(88),
            refcount_order: if version >= 3 { bytes.be32(96) as u32 } else { 4 },
            entry_bytes: if incompatible & 1 << 4 != 0 { 16 } else { 8 },
        }
    }

    pub fn is_dirty(&self) -> bool {
        self.incompatible & 1 != 0
    }

    /// A host sector of zeroes is garbage for the guest.
    pub fn is_encrypted(&self) -> bool {
        self.crypt_method != 0
    }

    /// Guest data is in another file, each cluster at its guest offset.
    pub fn has_data_file(&self) -> bool {
        self.incompatible & 1 << 2 != 0
    }

    /// That file shows what the disk shows.
    pub fn has_raw_data_file(&self) -> bool {
        self.has_data_file() && self.autoclear & 1 << 1 != 0
    }

    pub fn has_bitmaps(&self) -> bool {
        self.autoclear & 1 != 0
    }

    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Counts in a refcount block.
    pub fn block_entries(&self) -> u64 {
        (self.cluster_bytes() * 8) >> self.refcount_order
    }

    /// The stored count of a host cluster.
    pub fn count(&self, bytes: &[u8], cluster: u64) -> u64 {
        let (index, inside) = (cluster / self.block_entries(), cluster % self.block_entries());
        if index * 8 >= self.table_clusters * self.cluster_bytes() {
            return 0;
        }
        let block = be64(bytes, (self.table_offset + index * 8) as usize) & OFFSET;
        if block == 0 {
            return 0;
        }
        count_in(&bytes[(block as usize).min(bytes.len())..], self.refcount_order, inside)
    }
}

/// Count `index` of a block that starts at `block[0]`, the slow way.
pub fn count_in(block: &[u8], order: u32, index: u64) -> u64 {
    let width = 1u64 << order;
    if width >= 8 {
        let at = (index * width / 8) as usize;
        return (0..width as usize / 8)
            .fold(0, |v, i| v << 8 | u64::from(block.get(at + i).copied().unwrap_or(0)));
    }
    let byte = block.get((index * width / 8) as usize).copied().unwrap_or(0);
    u64::from(byte) >> (index * width % 8) & ((1 << width) - 1)
}

/// Bit 63: nothing else refers to the target.
pub const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry.
pub const COMPRESSED: u64 = 1 << 62;

/// What a cluster is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Use {
    Header,
    L1,
    L2 {
        l1_index: u64,
    },
    RefcountTable,
    RefcountBlock {
        index: u64,
    },
    Data {
        guest_cluster: u64,
    },
    /// A compressed stream, which shares its first and last cluster with others.
    Stream {
        guest_cluster: u64,
    },
    Snapshots,
    /// Bitmaps: their directory, their tables, and their bits.
    Bitmaps,
    BitmapTable,
    /// The encryption header with its key slots.
    Encryption,
    SnapshotL1 {
        number: u64,
    },
    SnapshotL2 {
        number: u64,
        l1_index: u64,
    },
    SnapshotData {
        number: u64,
        guest_cluster: u64,
    },
    SnapshotStream {
        number: u64,
        guest_cluster: u64,
    },
}

impl Use {
    /// A reference of the disk itself, as opposed to a snapshot's.
    fn is_active(self) -> bool {
        matches!(self, Use::L2 { .. } | Use::Data { .. } | Use::Stream { .. })
    }

    pub fn is_stream(self) -> bool {
        matches!(self, Use::Stream { .. } | Use::SnapshotStream { .. })
    }

    fn may_share(self) -> bool {
        let snapshots = matches!(self, Use::SnapshotL2 { .. } | Use::SnapshotData { .. });
        self.is_active() || snapshots || self.is_stream()
    }
}

/// Every reference of an image, by host cluster; then the clusters that an entry of the disk calls its own; then
/// the bytes of each stream to the end of its last sector.
#[derive(Default)]
pub struct Owners(pub HashMap<u64, Vec<Use>>, HashSet<u64>, Vec<(u64, u64, Use)>);

impl Owners {
    fn add(&mut self, head: &Head, offset: u64, length: u64, owner: Use) {
        if length == 0 {
            return;
        }
        for cluster in offset >> head.cluster_bits..=(offset + length - 1) >> head.cluster_bits {
            self.0.entry(cluster).or_default().push(owner);
        }
    }

    /// Walks over header, tables and blocks. Never fails: what lies outside reads as zeroes.
    pub fn of(bytes: &[u8]) -> Owners {
        let mut owners = Owners::default();
        let Some(head) = Head::parse(bytes) else { return owners };
        let cluster = head.cluster_bytes();
        owners.add(&head, 0, cluster, Use::Header);
        owners.add(&head, head.l1_offset, head.l1_size * 8, Use::L1);
        owners.add(&head, head.table_offset, head.table_clusters * cluster, Use::RefcountTable);
        for index in 0..head.table_clusters * cluster / 8 {
            let block = be64(bytes, (head.table_offset + index * 8) as usize) & OFFSET;
            if block != 0 {
                owners.add(&head, block, cluster, Use::RefcountBlock { index });
            }
        }
        owners.add_tables(&head, bytes, (head.l1_offset, head.l1_size), None);
        let (snapshots, length) = snapshots(bytes);
        owners.add(&head, be64(bytes, 64), length, Use::Snapshots);
        for (number, (l1_offset, l1_size)) in snapshots.into_iter().enumerate() {
            let number = number as u64;
            owners.add(&head, l1_offset, l1_size * 8, Use::SnapshotL1 { number });
            owners.add_tables(&head, bytes, (l1_offset, l1_size), Some(number));
        }
        if let Some((offset, length)) = encryption_header(bytes) {
            owners.add(&head, offset, length, Use::Encryption);
        }
        if let Some((offset, length, _)) = directory(bytes) {
            owners.add(&head, offset, length, Use::Bitmaps);
        }
        for bitmap in bitmaps(bytes) {
            owners.add(&head, bitmap.table.0, bitmap.table.1 * 8, Use::BitmapTable);
            for entry in bitmap.entries.iter().filter(|entry| **entry & OFFSET != 0) {
                owners.add(&head, entry & OFFSET, cluster, Use::Bitmaps);
            }
        }
        owners
    }

    /// What an L1 table (offset, entries) and its L2 tables refer to.
    fn add_tables(&mut self, head: &Head, bytes: &[u8], l1: (u64, u64), snapshot: Option<u64>) {
        let cluster = head.cluster_bytes();
        for l1_index in 0..l1.1 {
            let entry = be64(bytes, (l1.0 + l1_index * 8) as usize);
            let table = entry & OFFSET;
            if table == 0 {
                continue;
            }
            let owner = snapshot.map_or(Use::L2 { l1_index }, |number| Use::SnapshotL2 { number, l1_index });
            self.add_entry(head, entry, (table, cluster), owner);
            let entries = cluster / head.entry_bytes;
            if head.has_data_file() {
                continue;
            }
            for index in 0..entries {
                let entry = be64(bytes, (table + index * head.entry_bytes) as usize);
                let guest_cluster = l1_index * entries + index;
                let data = Use::Data { guest_cluster };
                let owner = snapshot.map_or(data, |number| Use::SnapshotData { number, guest_cluster });
                if entry & COMPRESSED != 0 {
                    let stream = Use::Stream { guest_cluster };
                    let owner =
                        snapshot.map_or(stream, |number| Use::SnapshotStream { number, guest_cluster });
                    let (offset, length) = compressed(head, entry);
                    self.2.push((offset, offset + length, owner));
                    self.add_entry(head, entry & !COPIED, (offset, length), owner);
                } else if entry & OFFSET != 0 {
                    self.add_entry(head, entry, (entry & OFFSET, cluster), owner);
                }
            }
        }
    }

    fn add_entry(&mut self, head: &Head, entry: u64, (offset, length): (u64, u64), owner: Use) {
        self.add(head, offset, length, owner);
        if owner.is_active() && entry & COPIED != 0 {
            self.1.insert(offset >> head.cluster_bits);
        }
    }

    pub fn uses(&self, cluster: u64) -> &[Use] {
        self.0.get(&cluster).map_or(&[], |u| u)
    }

    /// A stream that bytes `[from, to)` hit, other than in its last sector, where the next stream may start.
    pub fn stream_hit(&self, from: u64, to: u64, own: impl Fn(&Use) -> bool) -> Option<Use> {
        let hit = |(start, end, owner): &&(u64, u64, Use)| {
            *start < to && from < *end && !(from > *start && from >= *end - 512) && !own(owner)
        };
        self.2.iter().find(hit).map(|(.., owner)| *owner)
    }

    /// A cluster that two references share though one of them is metadata's, or calls it its own.
    pub fn conflict(&self) -> Option<String> {
        let shared = self.0.iter().filter(|(_, uses)| uses.len() > 1);
        let mut wrong = shared.filter(|(c, uses)| self.1.contains(c) || !uses.iter().all(|u| u.may_share()));
        wrong.next().map(|(c, uses)| format!("host cluster {c} has more than one owner: {uses:?}"))
    }
}

/// Host offset and bytes of the encryption header.
pub fn encryption_header(bytes: &(impl Bytes + ?Sized)) -> Option<(u64, u64)> {
    let head = Head::parse(bytes)?;
    let mut at = if head.version >= 3 { bytes.be32(100) } else { 72 };
    while at + 24 <= head.cluster_bytes() && bytes.be32(at) != 0 {
        if bytes.be32(at) == 0x0537_be77 {
            return Some((bytes.be64(at + 8), bytes.be64(at + 16)));
        }
        at += 8 + bytes.be32(at + 4).next_multiple_of(8);
    }
    None
}

/// First byte and length of a compressed cluster's stream, in whole 512-byte sectors.
pub fn compressed(head: &Head, entry: u64) -> (u64, u64) {
    let offset_bits = 62 - (head.cluster_bits - 8);
    let offset = entry & ((1 << offset_bits) - 1);
    let more = (entry & (COMPRESSED - 1)) >> offset_bits;
    (offset, (offset / 512 + more + 1) * 512 - offset)
}

/// Most snapshots that an image may have.
const MAX_SNAPSHOTS: u64 = 65536;

impl Head {
    /// The place of each entry of the snapshot table; then the table's end.
    pub fn snapshots(&self, bytes: &(impl Bytes + ?Sized)) -> (Vec<u64>, u64) {
        let (mut places, mut at) = (Vec::new(), self.snapshots_offset);
        for _ in 0..self.snapshot_count.min(MAX_SNAPSHOTS) {
            places.push(at);
            let names = (bytes.be32(at + 12) >> 16) + (bytes.be32(at + 12) & 0xffff);
            at = (at + 40 + bytes.be32(at + 36) + names).next_multiple_of(8);
        }
        (places, at)
    }
}

/// The names of the snapshots.
pub fn snapshot_names(bytes: &[u8]) -> Vec<String> {
    let name = |at: u64| {
        let (id, name) = (bytes.be32(at + 12) >> 16, bytes.be32(at + 12) & 0xffff);
        let from = (at + 40 + bytes.be32(at + 36) + id) as usize;
        let text = bytes.get(from..from + name as usize).unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    };
    Head::fields(bytes).snapshots(bytes).0.into_iter().map(name).collect()
}

/// L1 offset and entries of each snapshot, and the length of their table.
pub fn snapshots(bytes: &[u8]) -> (Vec<(u64, u64)>, u64) {
    let head = Head::fields(bytes);
    let (places, end) = head.snapshots(bytes);
    let table = |at: u64| (bytes.be64(at), bytes.be32(at + 8));
    (places.into_iter().map(table).collect(), end - head.snapshots_offset)
}
